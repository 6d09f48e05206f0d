"""VisA: folders -> meta.json, by the one-class split that comes with the set, or by the tree that was made of it.

    python data/visa.py [--root data/visa]

Expects <root>/split_csv/1cls.csv and the files that it lists, <root>/<class>/Data/Images/{Normal,Anomaly}/*.JPG and
<root>/<class>/Data/Masks/Anomaly/*.png, as the archive unpacks; or the tree that many programs read,
<class>/{train/good,test/good,test/bad,ground_truth/bad}/*, in <root>, <root>/1cls or <root>/visa_pytorch/1cls. Writes
<root>/meta.json and says which it has read. The full public set gives
12 classes and 10821 images: 8659 for training, all normal, and 2162 for testing, 962 normal and 1200 anomalous. The
split does not tell kinds of defect apart, so the specie_name of a defect is "".
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, visa_layout
from data.script import run


def build(root: Path) -> DatasetFiles:
    """All images, in the order of the split's list, or of the tree. Raises ValueError as `visa_layout`."""
    return visa_layout(root)


if __name__ == "__main__":
    run(build, "data/visa")
