"""KolektorSDD2, surface defects: folders -> meta.json.

    python data/ksdd2.py [--root data/ksdd2]

Expects <root>/{train,test}/00000.png with its mask 00000_GT.png beside it, as the archive unpacks, and writes
<root>/meta.json: an image whose mask holds no pixel but zero is normal. The normal images of train are references, its
defects are left out, for the train split of the format holds normal images only. The one class is called "metal
surface", a name for text prompts; kinds of defect are not told apart, so the specie_name of a defect is "". The full
public set gives 2085 training and 1004 test images, 110 of them defect (246 defects of train are left out). Its archive
holds train/10301 and its mask a second time, with " (copy)" in the name: these two files are passed over.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, images, match_masks, relative
from data.meta import SPLITS, Sample
from data.script import run

CLASS = "metal surface"
COPIES = ("train/10301 (copy).png", "train/10301_GT (copy).png")
GREY = ("1", "L", "I", "I;16")  # Pillow's modes of one channel whose zero is black


def build(root: Path) -> DatasetFiles:
    """All images under root. Raises ValueError for a split without images, and for masks missing or left over."""
    samples = {split: _split(root, split) for split in SPLITS}
    return DatasetFiles(samples | {"train": [sample for sample in samples["train"] if not sample.anomaly]})


def _split(root: Path, split: str) -> list[Sample]:
    paths = [path for path in images(root / split) if relative(path, root) not in COPIES]
    if not paths:
        raise UnknownLayout(f"{root / split}: no images; expected 00000.png and its mask 00000_GT.png, ...; set --root")
    masks = [path for path in paths if path.stem.endswith("_GT")]
    pairs = match_masks([path for path in paths if not path.stem.endswith("_GT")], masks, endings=("_GT",))
    return [
        Sample(relative(picture, root), "", CLASS, "good", 0)
        if _is_blank(mask)
        else Sample(relative(picture, root), relative(mask, root), CLASS, "", 1)
        for picture, mask in pairs.items()
    ]


def _is_blank(mask: Path) -> bool:
    import numpy as np  # only this script looks into its files
    from PIL import Image

    try:
        with Image.open(mask) as picture:
            return not np.asarray(picture if picture.mode in GREY else picture.convert("RGB")).any()
    except Exception as error:  # decoders raise what they like on a broken file; the user needs its name
        raise ValueError(f"{mask}: unreadable mask ({type(error).__name__})") from None


if __name__ == "__main__":
    run(build, "data/ksdd2")
