"""MVTec LOCO AD: folders -> meta.json.

    python data/mvtec_loco.py [--root data/mvtec_loco]

Expects the folder that the archive unpacks to,

    <root>/<class>/{train,validation}/good/NNN.png
    <root>/<class>/test/{good,logical_anomalies,structural_anomalies}/NNN.png
    <root>/<class>/ground_truth/{logical_anomalies,structural_anomalies}/NNN/000.png, ...     a mask for each region
    <root>/<class>/defects_config.json     kind of defect of a pixel value, and how much of a region has to be found

and writes <root>/meta.json. The mask_path of a defect is its folder: pixel metrics take the union of the masks, the
saturated per-region overlap (sPRO) each mask and its kind of defect. "defects" of meta.json holds the kinds of each
class, "validation" normal images for thresholds. All masks are read, and one whose pixel value is no kind of defect is
refused. The full public set gives 5 classes, 1772 training, 304 validation and 1568 test images, 993 of them defect.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.defect_kinds import DefectKind, parse_kinds
from data.layouts import DatasetFiles, class_folders, mvtec_layout
from data.meta import Sample
from data.regions import read_regions
from data.script import run
from utils.files import read_json

CONFIG = "defects_config.json"
DEFECTS = ("logical_anomalies", "structural_anomalies")


def build(root: Path) -> DatasetFiles:
    """All classes under root, sorted by name. Raises ValueError for a class without its kinds of defect, other folders
    of defects, and masks that are missing, left over, not in a folder, or of an unknown kind."""
    classes = class_folders(root)
    found = mvtec_layout(root)
    defects = {folder.name: _kinds(folder) for folder in classes}
    for sample in found.samples["test"]:
        if sample.anomaly:
            _check(root, sample, defects[sample.cls_name])
    lists = tuple(folder / CONFIG for folder in classes)
    return found._replace(lists=lists, normal=(), defects=defects)


def _kinds(folder: Path) -> dict[int, DefectKind]:
    source = folder / CONFIG
    if not source.is_file():
        raise ValueError(f"{source}: no such file; it comes with MVTec LOCO AD and says what its pixel values mean")
    kinds = parse_kinds(read_json(source), str(source))
    if not kinds:
        raise ValueError(f"{source}: lists no kind of defect; unpack MVTec LOCO AD again")
    return kinds


def _check(root: Path, sample: Sample, kinds: dict[int, DefectKind]) -> None:
    if sample.specie_name not in DEFECTS:
        raise ValueError(f"{root / sample.img_path}: MVTec LOCO AD has defects in {' and '.join(DEFECTS)} only")
    if not (root / sample.mask_path).is_dir():
        raise ValueError(f"{root / sample.mask_path}: expected a folder with a mask for each region")
    read_regions(root, sample, kinds)


if __name__ == "__main__":
    run(build, "data/mvtec_loco")
