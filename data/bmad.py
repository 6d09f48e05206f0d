"""BMAD, six sets of medical images: folders -> meta.json.

    python data/bmad.py [--root data/bmad]

Expects a folder for each set, such as <root>/Brain, or what its archive unpacks to, <root>/Brain_AD/BraTS2021_slice,

    <set>/train/good/*.png
    <set>/{valid,test}/{good,Ungood}/img/*.png, and masks of the same names in {good,Ungood}/label/

The archives differ: names of folders count in any case, val is read as valid, anomaly_mask as label, img/ may be
missing or stand above good/ and Ungood/. Writes <root>/meta.json with a class for each set, called by its folder
without _AD; "validation" holds the normal images of valid/, for thresholds, and its anomalous ones are passed over.
Sets without masks (chest, histopathology, Retina_OCT2017) have image metrics only. The full public sets have, images of
train, valid and test: brain 7500, 83, 3715; liver 1542, 166, 1493; RESC 4297, 115, 1805; OCT2017 26315, 32, 968; chest
8000, 1490, 17194; histopathology 5088, 236, 1997.
"""

import re
import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import NORMAL, DatasetFiles, UnknownLayout, folders, images_below, match_masks, relative
from data.meta import PARTS, Sample, Samples
from data.script import run

SPLIT_NAMES = {"train": "train", "valid": "validation", "val": "validation", "test": "test"}
DEFECT = "ungood"
_SUFFIX = re.compile(r"[_-]AD$")
MASKS = {"label", "anomaly_mask", "test_label", "val_label", "valid_label"}


def build(root: Path) -> DatasetFiles:
    """All sets under root, sorted by name. Raises ValueError for images that are neither good nor Ungood, and for masks
    missing or left over."""
    sets = {folder: place for folder in folders(root) if (place := _place(folder))}
    if not sets:
        raise UnknownLayout(f"{root}: no set; expected <set>/train/good/*.png, <set>/test/{{good,Ungood}}/img/*.png")
    samples: Samples = {part: [] for part in PARTS}
    if _SUFFIX.search(root.name):
        raise ValueError(f"{root}: is one set; name the folder that holds the sets, {root.parent}")
    names: dict[str, Path] = {}
    for folder, place in sets.items():
        name = _SUFFIX.sub("", folder.name)
        if names.setdefault(name, folder) != folder:
            raise ValueError(f"{root}: {names[name].name} and {folder.name} are the same set; remove one of them")
        for split in folders(place):
            part = SPLIT_NAMES.get(split.name.lower())
            if part:
                samples[part] += _samples(root, split, name, with_defects=part == "test")
    return DatasetFiles(samples)


def _place(folder: Path) -> Path | None:
    """The folder with the splits of a set: itself, or the one below it."""
    for place in (folder, *folders(folder)):
        if any(split.name.lower() == "test" for split in folders(place)):
            return place
    return None


def _samples(root: Path, split: Path, name: str, with_defects: bool) -> list[Sample]:
    normal: list[Path] = []
    defects: list[Path] = []
    masks: list[Path] = []
    for path in images_below(split):
        words = {word.lower() for word in path.relative_to(split).parts[:-1]}
        if DEFECT in words:
            (masks if words & MASKS else defects).append(path)
        elif not words & {*NORMAL}:
            raise ValueError(f"{path}: lies neither in good/ nor in Ungood/; put it there or remove it")
        elif not words & MASKS:
            normal.append(path)
    found = [Sample(relative(path, root), "", name, "good", 0) for path in normal]
    if with_defects:
        if not masks and defects and (elsewhere := _any_mask(split.parent)):
            raise ValueError(
                f"{split}: no masks, though there are some of this set ({elsewhere}); unpack the set again"
            )
        pairs = match_masks(defects, masks) if masks else dict.fromkeys(defects)
        for path, mask in pairs.items():
            found.append(Sample(relative(path, root), relative(mask, root) if mask else "", name, "", 1))
        if not found:
            raise ValueError(f"{split}: no images; expected good/ and Ungood/ with some, unpack the set again")
    return found


def _any_mask(place: Path) -> Path | None:
    """A mask of a defect in any part of a set."""
    for path in images_below(place):
        words = {word.lower() for word in path.relative_to(place).parts[:-1]}
        if DEFECT in words and words & MASKS:
            return path
    return None


if __name__ == "__main__":
    run(build, "data/bmad")
