"""DAGM 2007, synthetic textures: folders -> meta.json.

    python data/dagm.py [--root data/dagm]

Expects <root>/Class<i>/{Train,Test}/0001.PNG and for each defect its mask, Label/0001_label.PNG beside its image: an
image without a mask is normal. Where there is a Label/Labels.txt, every file that it lists must be there too. Writes
<root>/meta.json: the images of Test are for testing, the normal ones of Train are references, and the defects of Train
are left out, for the train split of the format holds normal images only. The kinds of defect have no names, so the
specie_name of a defect is "". The full public set gives 10 classes (Class1 to Class10), 7004 training and 8050 test
images, 1054 of them defect. Masks are rough ellipses around the defects: mind that in pixel metrics.
"""

import re
import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, folders, images, match_masks, relative
from data.meta import Sample
from data.script import run


def build(root: Path) -> DatasetFiles:
    """All classes under root, by number. Raises ValueError where there is none, and for files missing or left over."""
    classes = [folder for folder in folders(root) if re.fullmatch(r"Class\d+", folder.name)]
    if not classes:
        raise UnknownLayout(f"{root}: no Class<i> folder; expected Class1/Train/*.PNG, Class1/Test/*.PNG; set --root")
    classes.sort(key=lambda folder: int(folder.name.removeprefix("Class")))
    train = [sample for folder in classes for sample in _split(root, folder, "Train")]
    test = [sample for folder in classes for sample in _split(root, folder, "Test")]
    lists = tuple(_list(folder, split) for folder in classes for split in ("Train", "Test"))
    return DatasetFiles({"train": [sample for sample in train if not sample.anomaly], "test": test}, lists)


def _split(root: Path, folder: Path, split: str) -> list[Sample]:
    pictures, masks = images(folder / split), images(folder / split / "Label")
    if not pictures:
        raise ValueError(f"{folder / split}: no images; expected *.PNG, and Label/*_label.PNG for the defects")
    _check_list(_list(folder, split), {path.name.lower() for path in pictures + masks})
    stems = {mask.stem.removesuffix("_label") for mask in masks}
    pairs = match_masks([picture for picture in pictures if picture.stem in stems], masks, endings=("_label",))
    return [
        Sample(relative(picture, root), relative(pairs[picture], root), folder.name, "", 1)
        if picture in pairs
        else Sample(relative(picture, root), "", folder.name, "good", 0)
        for picture in pictures
    ]


def _list(folder: Path, split: str) -> Path:
    return folder / split / "Label" / "Labels.txt"


def _check_list(source: Path, present: set[str]) -> None:
    """Without its mask a defect would pass for a normal image; the list, where there is one, tells."""
    if source.is_file():
        listed = [word for word in source.read_text("utf-8-sig", "replace").split() if word.lower().endswith(".png")]
        if missing := [name for name in listed if name.lower() not in present]:
            raise ValueError(f"{source}: lists {missing[0]}, which is not there ({len(missing)} missing in all)")


if __name__ == "__main__":
    run(build, "data/dagm")
