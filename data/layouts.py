"""Folders -> samples: what the dataset scripts share, and the layouts of MVTec AD and VisA."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data.meta import SPLITS, Sample, Samples, display

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted by name; [] where there is no such folder."""
    return [path for path in _visible(folder) if path.is_dir()]


def images(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The image files inside a folder, known by suffix in any case and sorted by name; hidden ones are passed over."""
    return [path for path in _visible(folder) if path.suffix.lower() in suffixes and path.is_file()]


def relative(path: Path, root: Path) -> str:
    """A path as meta.json holds it."""
    return path.relative_to(root).as_posix()


def csv_rows(source: Path, columns: tuple[str, ...]) -> Iterable[tuple[dict[str, str], str]]:
    """Yield the columns of each row, free of spaces around them as their names are, and its place for messages.

    Raises ValueError naming the columns that are not there, or the file where it is not readable.
    """
    with source.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        try:
            rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
            lacking = [column for column in columns if column not in rows.fieldnames]
            if lacking:
                raise ValueError(f"{source}: no column {', '.join(lacking)}; expected {','.join(columns)}")
            for row in rows:
                yield {column: (row[column] or "").strip() for column in columns}, f"{source}:{rows.line_num}"
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{source}: not a readable CSV file ({error})") from None


def match_masks(pictures: list[Path], masks: list[Path], endings: tuple[str, ...] = ("_mask", "")) -> dict[Path, Path]:
    """Pair each picture with the mask whose stem is the picture's plus one of the endings.

    Raises ValueError naming the pictures without a mask, those with several, and the masks without a picture.
    """
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        by_stem.setdefault(mask.stem, []).append(mask)
    found = {picture: [m for end in endings for m in by_stem.get(picture.stem + end, [])] for picture in pictures}
    used = Counter(mask for matches in found.values() for mask in matches)
    problems = {
        "no mask for": [picture for picture, matches in found.items() if not matches],
        "several masks for": [picture for picture, matches in found.items() if len(matches) > 1],
        "no image for mask": [mask for mask in masks if not used[mask]],
        "several images for mask": [mask for mask in masks if used[mask] > 1],
    }
    lines = [f"{problem} {_names(paths)}" for problem, paths in problems.items() if paths]
    if lines:
        places = " and ".join(dict.fromkeys(str(path.parent) for path in (*pictures[:1], *masks[:1])))
        names = " or ".join(f"<image>{ending}" for ending in endings)
        raise ValueError(f"{places}: {'; '.join(lines)}; the mask of <image> is called {names}")
    return {picture: matches[0] for picture, matches in found.items()}


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _names(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


# --- layouts on the disk ---


def class_folders(root: Path, normal: str = "good") -> list[Path]:
    """The folders under root that hold train/ or test/, sorted by name; raises where there is none."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; unpack the dataset there or give its place with --root")
    found = [path for path in folders(root) if any((path / split).is_dir() for split in SPLITS)]
    if not found:
        raise ValueError(f"{root}: no class; expected <class>/train/{normal}, <class>/test/<{normal} or defect>/*.png")
    return found


def mvtec_layout(root: Path, normal: str = "good", masks_needed: bool = True) -> Samples:
    """Every class of a root in MVTec AD's layout, see `class_samples`."""
    parts = [class_samples(root, folder, folder.name, normal, masks_needed) for folder in class_folders(root, normal)]
    return {split: [sample for part in parts for sample in part[split]] for split in SPLITS}


def class_samples(root: Path, folder: Path, name: str, normal: str = "good", masks_needed: bool = True) -> Samples:
    """One class: {train,test}/<normal>/*, test/<defect>/*, ground_truth/<defect>/*, all inside folder.

    Without masks_needed the class may have no ground_truth/ at all, but not half of it. Raises ValueError for images
    that lie beside the folders instead of in them, and for masks or folders of masks that are missing or left over.
    """
    samples: Samples = {}
    for split in SPLITS:
        if loose := images(folder / split):
            raise ValueError(
                f"{folder / split}: {_names(loose)} must lie in {normal}/ or, to test, in a defect's folder"
            )
        paths = images(folder / split / normal)
        samples[split] = [Sample(relative(path, root), "", name, "good", 0) for path in paths]
    truth = folder / "ground_truth"
    defects = [path for path in folders(folder / "test") if path.name != normal]
    surplus = [path for path in folders(truth) if path.name not in {normal, *(defect.name for defect in defects)}]
    if surplus:
        raise ValueError(f"{truth}: {_names(surplus)} holds masks, but {folder / 'test'} has no such folder of images")
    for defect in defects:
        masked = masks_needed or truth.is_dir()
        pairs = _masks_of(defect, truth / defect.name) if masked else dict.fromkeys(images(defect))
        for path, mask in pairs.items():
            mask_path = relative(mask, root) if mask else ""
            samples["test"].append(Sample(relative(path, root), mask_path, name, defect.name, 1))
    return samples


def _masks_of(defect: Path, truth: Path) -> dict[Path, Path]:
    """The images of a defect type with their masks."""
    pictures = images(defect)
    if pictures and not truth.is_dir():
        raise ValueError(f"{truth}: no such folder; it should hold the masks of {len(pictures)} images in {defect}")
    return match_masks(pictures, images(truth))


def visa_layout(root: Path) -> Samples:
    """VisA's layout: split_csv/1cls.csv lists object, split, label, image and mask; samples keep its order.

    Raises FileNotFoundError or ValueError naming the line of a file that is not there or of a value that is unknown.
    """
    source = root / "split_csv" / "1cls.csv"
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; unpack VisA there or name the folder that holds it")
    samples: Samples = {split: [] for split in SPLITS}
    for row, where in csv_rows(source, ("object", "split", "label", "image", "mask")):
        split, sample = _visa_sample(row, root, where)
        samples[split].append(sample)
    return samples


def _visa_sample(row: dict[str, str], root: Path, where: str) -> tuple[str, Sample]:
    for key, known in (("split", SPLITS), ("label", ("normal", "anomaly"))):
        if row[key] not in known:
            raise ValueError(f"{where}: {key} must be {' or '.join(known)}, got {display(row[key])}")
    normal = row["label"] == "normal"
    for key in ("image",) if normal else ("image", "mask"):
        if not (root / row[key]).is_file():
            raise ValueError(f"{where}: {key} {display(row[key])} is not a file under {root}")
    mask, specie = ("", "good") if normal else (row["mask"], "")
    return row["split"], Sample(row["image"], mask, row["object"], specie, int(not normal))
