"""ISIC 2016, skin lesions (the test part of task 1): folders -> meta.json.

    python data/isic.py [--root data/isic]

Expects <root>/ISBI2016_ISIC_Part1_Test_Data/<name>.jpg and for each image its mask
<root>/ISBI2016_ISIC_Part1_Test_GroundTruth/<name>_Segmentation.png, as the archives unpack, and writes <root>/meta.json
with one class, "skin". All images are for testing and show a lesion, so only pixel metrics can be computed; there are
no training images, so it is for zero-shot. The full public set gives 379 test images.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, images, match_masks, relative
from data.meta import Sample
from data.script import run

CLASS, SPECIE = "skin", "lesion"
DATA, TRUTH = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"


def build(root: Path) -> DatasetFiles:
    """All images under root. Raises ValueError where there are none, and for masks missing or left over."""
    pictures = images(root / DATA, (".jpg", ".jpeg"))
    if not pictures:
        raise UnknownLayout(f"{root / DATA}: no images; unpack the dataset to {root} or give its place with --root")
    pairs = match_masks(pictures, images(root / TRUTH, (".png",)), endings=("_Segmentation",))
    test = [Sample(relative(path, root), relative(mask, root), CLASS, SPECIE, 1) for path, mask in pairs.items()]
    return DatasetFiles({"train": [], "test": test})


if __name__ == "__main__":
    run(build, "data/isic")
