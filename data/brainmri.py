"""Brain MRI, slices of the brain with and without a tumor: folders -> meta.json.

    python data/brainmri.py [--root data/brainmri]

Expects <root>/brain_tumor_dataset/{yes,no}/*, jpg, jpeg or png, as the archive unpacks (its second copy, <root>/yes and
<root>/no, is passed over), and writes <root>/meta.json with one class, called "brain ct" as in the published programs.
All images are for testing; there are no masks, so only image metrics can be computed, and no training images, so it is
for zero-shot. The full public set gives 253 test images, 155 of them with a tumor.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, images, relative
from data.meta import Sample
from data.script import run

CLASS = "brain ct"
KINDS = {"no": ("good", 0), "yes": ("tumor", 1)}


def build(root: Path) -> DatasetFiles:
    """All images under root. Raises ValueError where there are none in yes/ or no/, and for those beside them."""
    top, test = root / "brain_tumor_dataset", []
    if loose := images(top):
        raise ValueError(f"{loose[0]}: must lie in {top / 'yes'} or {top / 'no'}, as {len(loose)} images in all")
    for name, label in KINDS.items():
        found = images(top / name)
        if not found:
            raise UnknownLayout(f"{top / name}: no images; unpack the dataset to {root} or give its place with --root")
        test += [Sample(relative(path, root), "", CLASS, *label) for path in found]
    return DatasetFiles({"train": [], "test": test})


if __name__ == "__main__":
    run(build, "data/brainmri")
