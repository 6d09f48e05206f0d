"""CVC-ClinicDB, polyps in frames of colonoscopies: folders -> meta.json.

    python data/clinicdb.py [--root data/clinicdb]

Expects <root>/Original/<name>.tif and for each frame its mask <root>/Ground Truth/<name>.tif, as the archive unpacks;
the two folders may lie in TIF/ or PNG/ instead, as in the archive that has both (TIF/ is taken). Writes
<root>/meta.json with one class, "colon". All images are for testing and show a polyp, so only pixel metrics can be
computed; there are no training images, so it is for zero-shot. The full public set gives 612 test images.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, images, match_masks, relative
from data.meta import Sample
from data.script import run

CLASS, SPECIE = "colon", "polyp"
PLACES = ("", "TIF", "PNG")


def build(root: Path) -> DatasetFiles:
    """All frames under root. Raises ValueError where there are none, and for masks missing or left over."""
    top = next((root / place for place in PLACES if images(root / place / "Original")), None)
    if top is None:
        advice = f"unpack the dataset to {root} or give its place with --root"
        raise UnknownLayout(f"{root / 'Original'}: no images; {advice}")
    pairs = match_masks(images(top / "Original"), images(top / "Ground Truth"), endings=("",))
    test = [Sample(relative(path, root), relative(mask, root), CLASS, SPECIE, 1) for path, mask in pairs.items()]
    return DatasetFiles({"train": [], "test": test})


if __name__ == "__main__":
    run(build, "data/clinicdb")
