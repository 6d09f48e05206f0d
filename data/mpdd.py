"""MPDD, metal parts: folders -> meta.json.

    python data/mpdd.py [--root data/mpdd]

Expects MVTec AD's layout, <root>/<class>/{train,test}/{good,<defect>}/000.png and
<root>/<class>/ground_truth/<defect>/000_mask.png, as the archive unpacks, and writes <root>/meta.json. The full public
set gives 6 classes (bracket_black, bracket_brown, bracket_white, connector, metal_plate, tubes), 888 training and 458
test images, 282 of them defect.
"""

from pathlib import Path

from meta import Samples, mvtec_layout, run


def build(root: Path) -> Samples:
    """All classes under root, sorted by name."""
    return mvtec_layout(root)


if __name__ == "__main__":
    raise SystemExit(run(build, "data/mpdd"))
