"""MPDD, metal parts: folders -> meta.json.

    python data/mpdd.py [--root data/mpdd]

Expects MVTec AD's layout, <root>/<class>/{train,test}/{good,<defect>}/000.png and
<root>/<class>/ground_truth/<defect>/000_mask.png, as the archive unpacks, and writes <root>/meta.json. The full public
set gives 6 classes (bracket_black, bracket_brown, bracket_white, connector, metal_plate, tubes), 888 training and 458
test images, 282 of them defect.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, mvtec_layout
from data.script import run


def build(root: Path) -> DatasetFiles:
    """All classes under root, sorted by name."""
    return mvtec_layout(root)


if __name__ == "__main__":
    run(build, "data/mpdd")
