"""MVTec AD 2: folders -> meta.json.

    python data/mvtec2.py [--root data/mvtec2]

Expects the folder that the archives unpack to,

    <root>/<class>/{train,validation}/good/NNN_<light>.png
    <root>/<class>/test_public/{good,bad}/NNN_<light>.png
    <root>/<class>/test_public/ground_truth/bad/NNN_<light>_mask.png
    <root>/<class>/{test_private,test_private_mixed}/NNN_<light>.png     labels on the evaluation server alone

and writes <root>/meta.json. The specie_name of every image, normal or not, is its light: regular, overexposed,
underexposed, shift_1, ...; the set does not tell kinds of defect apart. "test" is the public part, which test.py scores
as any other dataset; "validation" holds normal images for thresholds, and "unlabelled" the parts test_private and
test_private_mixed, which have no labels and which `test.py --unlabelled` scores. The full public set gives 8 classes; a
line at the end says where test_private lacks images of it.
"""

import re
import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, folders, images, match_masks, relative
from data.meta import PARTS, Sample, Samples, UnlabelledImage
from data.mvtec2_server import COUNTS
from data.mvtec2_server import PARTS as SERVER_PARTS
from data.script import run

SECRET = tuple(SERVER_PARTS)


def build(root: Path) -> DatasetFiles:
    """All classes under root, sorted by name. Raises ValueError for folders without images, names without a light, and
    masks missing or left over."""
    classes = [folder for folder in folders(root) if (folder / "test_public").is_dir()]
    if not classes:
        raise UnknownLayout(
            f"{root}: no class; expected <class>/train/good/*.png, <class>/test_public/{{good,bad}}/*.png"
        )
    samples: Samples = {part: [] for part in PARTS}
    unlabelled: dict[str, list[UnlabelledImage]] = {part: [] for part in SECRET}
    notes = []
    for folder in classes:
        for part in ("train", "validation"):
            samples[part] += _normal(root, folder, f"{part}/good")
        samples["test"] += _normal(root, folder, "test_public/good") + _defects(root, folder)
        for part in SECRET:
            found = [UnlabelledImage(relative(p, root), folder.name, _light(p)) for p in images(folder / part)]
            unlabelled[part] += found
        count, full = len(images(folder / SECRET[0])), COUNTS.get(folder.name)
        if full not in (None, count):
            notes.append(f"{folder.name}: {count} images in {SECRET[0]}, the full set has {full}")
    secret = {part: found for part, found in unlabelled.items() if found}
    return DatasetFiles(samples, unlabelled=secret, notes=tuple(notes))


def _normal(root: Path, folder: Path, place: str) -> list[Sample]:
    return [Sample(relative(path, root), "", folder.name, _light(path), 0) for path in _some(folder / place)]


def _defects(root: Path, folder: Path) -> list[Sample]:
    pictures = _some(folder / "test_public/bad")
    pairs = match_masks(pictures, images(folder / "test_public/ground_truth/bad"), endings=("_mask",))
    return [Sample(relative(p, root), relative(mask, root), folder.name, _light(p), 1) for p, mask in pairs.items()]


def _some(folder: Path) -> list[Path]:
    """The images of a folder that every class has."""
    found = images(folder)
    if not found:
        raise ValueError(f"{folder}: no images; every class of MVTec AD 2 has some there, unpack it again")
    return found


def _light(path: Path) -> str:
    """The light of an image, by its name: "shift_1" of 000_shift_1.png."""
    match = re.fullmatch(r"\d+_(\w+)", path.stem)
    if not match:
        raise ValueError(f"{path}: expected a name such as 000_regular.png, a number and the light")
    return match[1]


if __name__ == "__main__":
    run(build, "data/mvtec2")
