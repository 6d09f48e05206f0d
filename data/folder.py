"""Images of one's own: folders -> meta.json.

    python data/folder.py --root DIR [--meta_path FILE] [--bits N] [--exif] [--follow_links]

Expects, with or without the level of classes (without it, the class is named after DIR):

    DIR/[<class>/]train/good/**              normal images to draw references from; may be missing
    DIR/[<class>/]validation/good/**         more normal images, for thresholds; may be missing
    DIR/[<class>/]test/good/**               normal images to test; may be missing
    DIR/[<class>/]test/<defect>/**           a folder for each kind of defect, under any name but good, ok and normal
    DIR/[<class>/]ground_truth/<defect>/**   masks, zero where normal, named as their images, with or without _mask

and writes DIR/meta.json. Folders may be nested, masks then lie in folders of the same names. Instead of a mask,
000.png may have a folder 000/ or 000_mask/ with a mask for each region; their union is the mask. ok and normal, in any
case, mean good. Files may have any format that predict.py reads. A class has masks for all its defects or no
ground_truth/ at all; without masks only image metrics can be computed. What is passed over is named at the end, as is
all that changes how pixels are read.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, class_samples, mvtec_layout
from data.meta import SPLITS
from data.script import run


def build(root: Path) -> DatasetFiles:
    """All classes under root, or root as the only class."""
    if any((root / split).is_dir() for split in SPLITS):
        return class_samples(root, root, root.resolve().name, masks_needed=False)
    return mvtec_layout(root, masks_needed=False)


if __name__ == "__main__":
    run(build, None, can_turn=True)
