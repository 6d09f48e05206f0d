"""Magnetic tile defects: folders -> meta.json.

    python data/mtd.py [--root data/mtd]

Expects <root>/MT_<Defect>/Imgs/<name>.jpg with its mask <name>.png beside it, normal tiles in MT_Free, and writes
<root>/meta.json with one class, "magnetic tile". The set comes without a split: of the normal tiles sorted by name
every fifth is for testing, the others are for training, and all defects are for testing. The full public set gives
761 training and 583 test images, 392 of them defect. The masks of four uneven tiles are empty: they count as anomalous
images without a region.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, folders, images, match_masks, relative
from data.meta import Sample, Samples
from data.script import run

CLASS = "magnetic tile"


def build(root: Path) -> DatasetFiles:
    """All tiles under root. Raises ValueError where there is no MT_* folder, and for masks missing or left over."""
    kinds = [folder for folder in folders(root) if folder.name.startswith("MT_")]
    if not kinds:
        raise UnknownLayout(f"{root}: no MT_* folder; expected MT_Free/Imgs/*.jpg, MT_<Defect>/Imgs/*.jpg; set --root")
    samples: Samples = {"train": [], "test": []}
    for kind in kinds:
        if kind.name == "MT_Free":
            normal = [Sample(relative(path, root), "", CLASS, "good", 0) for path in _tiles(kind)]
            samples["train"] += [sample for index, sample in enumerate(normal) if index % 5]
            samples["test"] += normal[::5]
        else:
            samples["test"] += _defects(root, kind)
    return DatasetFiles(samples)


def _tiles(kind: Path) -> list[Path]:
    return images(kind / "Imgs", (".jpg", ".jpeg"))


def _defects(root: Path, kind: Path) -> list[Sample]:
    pairs = match_masks(_tiles(kind), images(kind / "Imgs", (".png",)), endings=("",))
    specie = kind.name.removeprefix("MT_").lower()
    return [Sample(relative(path, root), relative(mask, root), CLASS, specie, 1) for path, mask in pairs.items()]


if __name__ == "__main__":
    run(build, "data/mtd")
