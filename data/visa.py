"""VisA: folders -> meta.json, by the one-class split that comes with the set.

    python data/visa.py [--root data/visa]

Expects <root>/split_csv/1cls.csv and the files that it lists, <root>/<class>/Data/Images/{Normal,Anomaly}/*.JPG and
<root>/<class>/Data/Masks/Anomaly/*.png, as the archive unpacks, and writes <root>/meta.json. The full public set gives
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
    """All images that the split lists, in its order."""
    return visa_layout(root)


if __name__ == "__main__":
    run(build, "data/visa")
