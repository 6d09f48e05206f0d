"""Images of one's own: folders -> meta.json.

    python data/folder.py --root DIR

Expects, with or without the level of classes (without it, the class is named after DIR):

    DIR/[<class>/]train/good/*              normal images to draw references from; may be missing
    DIR/[<class>/]test/good/*               normal images to test; may be missing
    DIR/[<class>/]test/<defect>/*           one folder for each kind of defect, under any name but good
    DIR/[<class>/]ground_truth/<defect>/*   masks, zero where normal, named as their images, with or without _mask

and writes DIR/meta.json. Files may be png, jpg, bmp, tif or webp. A class has masks for all its defects or no
ground_truth/ at all; without masks only image metrics can be computed.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import class_samples, mvtec_layout
from data.meta import SPLITS, Samples
from data.script import run


def build(root: Path) -> Samples:
    """All classes under root, or root as the only class."""
    if any((root / split).is_dir() for split in SPLITS):
        return class_samples(root, root, root.resolve().name, masks_needed=False)
    return mvtec_layout(root, masks_needed=False)


if __name__ == "__main__":
    raise SystemExit(run(build, None))
