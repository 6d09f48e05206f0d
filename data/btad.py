"""BTAD, beanTech's products: folders -> meta.json.

    python data/btad.py [--root data/btad]

Expects <root>/<class>/{train,test}/ok/*, <root>/<class>/test/ko/* and <root>/<class>/ground_truth/ko/*, png or bmp, as
in the folder that the archive unpacks to; a mask has its image's name, their suffixes may differ. Writes
<root>/meta.json, where the specie_name of a normal image is "good", as in every set, and that of a defect "ko": the set
does not tell kinds of defect apart. The full public set gives 3 classes (01, 02, 03), 1799 training and 741 test
images, 290 of them defect.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, class_folders, folders, mvtec_layout
from data.meta import SPLITS
from data.script import run

NORMAL, DEFECT = "ok", "ko"


def build(root: Path) -> DatasetFiles:
    """All classes under root, sorted by name. Raises ValueError for images in a folder that is neither ok nor ko."""
    for folder in class_folders(root, NORMAL):
        for kind in (kind for split in SPLITS for kind in folders(folder / split)):
            if kind.name not in (NORMAL, DEFECT):
                raise ValueError(f"{kind}: BTAD has images in {NORMAL}/ and {DEFECT}/ only")
    return mvtec_layout(root, NORMAL)._replace(normal=())  # its usual name


if __name__ == "__main__":
    run(build, "data/btad")
