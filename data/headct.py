"""Head CT, slices of the head with and without a hemorrhage: folders -> meta.json.

    python data/headct.py [--root data/headct]

Expects <root>/labels.csv (columns id and hemorrhage, 0 or 1) and <root>/head_ct/head_ct/000.png, the image of id 0, and
so on, as the archive unpacks, and writes <root>/meta.json with one class, "head ct". All images are for testing; there
are no masks, so only image metrics can be computed, and no training images, so it is for zero-shot. The full public set
gives 200 test images, 100 of them with a hemorrhage.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, csv_rows, images, relative
from data.meta import Sample
from data.script import run

CLASS = "head ct"


def build(root: Path) -> DatasetFiles:
    """All images, in the order of labels.csv. Raises ValueError for a label without an image or the other way round."""
    source = root / "labels.csv"
    if not source.is_file():
        raise UnknownLayout(f"{source}: no such file; unpack the dataset there or give its place with --root")
    folder, test = root / "head_ct" / "head_ct", []
    pictures = {path.stem: path for path in images(folder, (".png",))}
    for row, where in csv_rows(source, ("id", "hemorrhage")):
        if not row["id"].isdecimal() or row["hemorrhage"] not in ("0", "1"):
            raise ValueError(f"{where}: must be a number and 0 or 1, got '{row['id']}' and '{row['hemorrhage']}'")
        stem = f"{int(row['id']):03d}"
        if stem not in pictures:
            found = (folder / f"{stem}.png").is_file()
            raise ValueError(f"{where}: id {row['id']} {'is there twice' if found else f'has no {folder / stem}.png'}")
        specie = ("good", "hemorrhage")[int(row["hemorrhage"])]
        test.append(Sample(relative(pictures.pop(stem), root), "", CLASS, specie, int(row["hemorrhage"])))
    if pictures:
        first = next(iter(pictures.values()))
        raise ValueError(f"{source}: no label for {first}; add a line for each of {len(pictures)} such images")
    return DatasetFiles({"train": [], "test": test}, lists=(source,))


if __name__ == "__main__":
    run(build, "data/headct")
