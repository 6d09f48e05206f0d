"""Folders -> samples: what the dataset scripts share, and the layouts of MVTec AD and VisA."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.image_files import image_files
from data.meta import PARTS, SPLITS, Defects, Sample, Samples, Unlabelled, display

NORMAL = ("good", "ok", "normal")  # names of folders of normal images, in any case


class DatasetFiles(NamedTuple):
    """What a script found under a root."""

    samples: Samples
    lists: tuple[Path, ...] = ()  # files that were read besides: splits, labels
    normal: tuple[str, ...] = ()  # the names of folders that were read as normal
    unlabelled: Unlabelled | None = None  # see `data.meta`, as the next one
    defects: Defects | None = None
    notes: tuple[str, ...] = ()  # lines for the user: what was recognised, what seems to be missing


class UnknownLayout(ValueError):  # noqa: N818 - a mistake of the user, whose line it is
    """Nothing of the expected layout lies in a folder; one above or below it may be the root."""


# --- files and folders ---


def folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted by name; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return sorted((path for path in found if path.is_dir()), key=lambda path: path.name)


def images(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """The images in a folder, not below it, as `image_files` knows them; [] where there is no such folder.

    Args:
        suffixes: only these, in any case, where a set holds images and masks side by side.
    """
    found = image_files(folder, recursive=False)[0] if folder.is_dir() else []
    return [path for path in found if suffixes is None or path.suffix.lower() in suffixes]


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in the folders below it."""
    return image_files(folder)[0] if folder.is_dir() else []


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


def match_masks(
    pictures: list[Path],
    masks: list[Path],
    endings: tuple[str, ...] = ("_mask", ""),
    tops: tuple[Path, Path] | None = None,
) -> dict[Path, Path]:
    """Pair each picture with the mask whose stem is the picture's plus one of the endings. A mask may be a folder,
    which is called like a stem.

    Args:
        tops: a folder of pictures and one of masks whose subfolders mirror each other: then a mask's path below its
            folder is its picture's, too. None: all pictures lie in one folder, and all masks.

    Raises:
        ValueError: names the pictures without a mask, those with several, and the masks without a picture.
    """
    place = {path: str(path.parent.relative_to(tops[0])) if tops else "" for path in pictures}
    by_name: dict[tuple[str, str], list[Path]] = {}
    for mask in masks:
        stem = mask.name if mask.is_dir() else mask.stem
        by_name.setdefault((str(mask.parent.relative_to(tops[1])) if tops else "", stem), []).append(mask)
    found = {path: [m for end in endings for m in by_name.get((place[path], path.stem + end), [])] for path in pictures}
    used = Counter(mask for matches in found.values() for mask in matches)
    problems = {
        "no mask for": [picture for picture, matches in found.items() if not matches],
        "several masks for": [picture for picture, matches in found.items() if len(matches) > 1],
        "no image for mask": [mask for mask in masks if not used[mask]],
        "several images for mask": [mask for mask in masks if used[mask] > 1],
    }
    lines = [f"{problem} {_names(paths, tops or ())}" for problem, paths in problems.items() if paths]
    if lines:
        parents = tops or tuple(path.parent for path in (*pictures[:1], *masks[:1]))
        places = " and ".join(dict.fromkeys(map(str, parents)))
        names = " or ".join(f"<image>{ending}" for ending in endings)
        raise ValueError(f"{places}: {'; '.join(lines)}; the mask of <image> is called {names}")
    return {picture: matches[0] for picture, matches in found.items()}


def _names(paths: list[Path], tops: Sequence[Path] = ()) -> str:
    """The first three of some paths: below one of the tops, or their names."""
    shown = []
    for path in paths[:3]:
        top = next((top for top in tops if path.is_relative_to(top)), path.parent)
        shown.append(path.relative_to(top).as_posix())
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


# --- MVTec AD's layout ---


def class_folders(root: Path, normal: str = "good") -> list[Path]:
    """The folders under root that hold train/ or test/, sorted by name; raises where there is none."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; unpack the dataset there or give its place with --root")
    found = [path for path in folders(root) if any((path / split).is_dir() for split in SPLITS)]
    if not found:
        expected = f"<class>/train/{normal}, <class>/test/<{normal} or defect>/*.png"
        raise UnknownLayout(f"{root}: no class; expected {expected}")
    return found


def mvtec_layout(root: Path, normal: str = "good", masks_needed: bool = True) -> DatasetFiles:
    """Every class of a root in MVTec AD's layout, see `class_samples`."""
    parts = [class_samples(root, folder, folder.name, normal, masks_needed) for folder in class_folders(root, normal)]
    samples = {split: [sample for part in parts for sample in part.samples[split]] for split in PARTS}
    return DatasetFiles(samples, normal=tuple(dict.fromkeys(name for part in parts for name in part.normal)))


def class_samples(root: Path, folder: Path, name: str, normal: str = "good", masks_needed: bool = True) -> DatasetFiles:
    """One class: {train,validation,test}/<normal>/**, test/<defect>/**, ground_truth/<defect>/**, all inside folder.

    Folders below a defect's or a normal one hold more images of it. Normal are good, ok and normal in any case, of
    which `normal` is the one that messages name. The masks of one image may lie in a folder that is called as its mask
    would be. Without masks_needed the class may have no ground_truth/ at all, but not half of it. Raises ValueError for
    images that lie beside the folders instead of in them, and for masks or folders of masks that are missing or left
    over.
    """
    samples: Samples = {}
    names: dict[str, None] = {}
    for split in PARTS:
        if split in SPLITS and (loose := images(folder / split)):
            raise ValueError(
                f"{folder / split}: {_names(loose)} must lie in {normal}/ or, to test, in a defect's folder"
            )
        kinds = [path for path in folders(folder / split) if path.name.lower() in NORMAL]
        names |= dict.fromkeys(path.name for path in kinds)
        samples[split] = [
            Sample(relative(path, root), "", name, "good", 0) for kind in kinds for path in images_below(kind)
        ]
    samples["test"] += _defects(root, folder, name, masks_needed)
    return DatasetFiles(samples, normal=tuple(names))


def _defects(root: Path, folder: Path, name: str, masks_needed: bool) -> list[Sample]:
    """The defects of a class, with their masks."""
    truth = folder / "ground_truth"
    defects = [path for path in folders(folder / "test") if path.name.lower() not in NORMAL]
    known = {defect.name for defect in defects}
    surplus = [path for path in folders(truth) if path.name not in known and path.name.lower() not in NORMAL]
    if surplus:
        raise ValueError(f"{truth}: {_names(surplus)} holds masks, but {folder / 'test'} has no such folder of images")
    samples = []
    for defect in defects:
        masked = masks_needed or truth.is_dir()
        pairs = _masks_of(defect, truth / defect.name) if masked else dict.fromkeys(images_below(defect))
        for path, mask in pairs.items():
            mask_path = relative(mask, root) if mask else ""
            samples.append(Sample(relative(path, root), mask_path, name, defect.name, 1))
    return samples


def _masks_of(defect: Path, truth: Path) -> dict[Path, Path]:
    """The images of a defect type with their masks, a file or a folder of files each."""
    pictures = images_below(defect)
    if pictures and not truth.is_dir():
        raise ValueError(f"{truth}: no such folder; it should hold the masks of {len(pictures)} images in {defect}")
    sets = _mask_folders(pictures, defect, truth)
    single = [path for path in images_below(truth) if not sets.intersection(path.parents)]
    return match_masks(pictures, sorted([*single, *sets]), tops=(defect, truth))


def _mask_folders(pictures: list[Path], defect: Path, truth: Path) -> set[Path]:
    """The folders that hold the masks of one picture each. One that mirrors a folder of pictures is none."""
    found = set()
    for picture in pictures:
        place = picture.parent.relative_to(defect)
        for name in (picture.stem, f"{picture.stem}_mask"):
            if images(truth / place / name) and not (defect / place / name).is_dir():
                found.add(truth / place / name)
    return found


# --- VisA's layout ---


VISA = ("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2",
        "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum")  # fmt: skip


def visa_layout(root: Path) -> DatasetFiles:
    """VisA as published, or the tree of its one-class split that other programs make of it; a note says which.

    As published, split_csv/1cls.csv lists object, split, label, image and mask; samples keep its order. The tree has
    <class>/{train/good,test/good,test/bad,ground_truth/bad}, in the root or in 1cls/ or visa_pytorch/1cls/ below it.

    Raises ValueError naming the line of a file that is not there or of a value that is unknown, or as `class_samples`.
    """
    source = root / "split_csv" / "1cls.csv"
    if source.is_file():
        return _visa_list(root, source)
    for tree in (root, root / "1cls", root / "visa_pytorch" / "1cls"):
        if any((tree / name / split).is_dir() for name in VISA for split in SPLITS):
            return _visa_tree(root, tree)
    raise UnknownLayout(
        f"{source}: no such file, and no <class of VisA>/train/good; unpack VisA there or name the folder that holds it"
    )


def _visa_tree(root: Path, tree: Path) -> DatasetFiles:
    parts = [class_samples(root, folder, folder.name) for folder in class_folders(tree)]
    samples = {split: [sample for part in parts for sample in part.samples[split]] for split in SPLITS}
    samples["test"] = [sample._replace(specie_name="") if sample.anomaly else sample for sample in samples["test"]]
    return DatasetFiles(samples, notes=(f"read as the tree of the one-class split, <class>/train/good, in {tree}",))


def _visa_list(root: Path, source: Path) -> DatasetFiles:
    samples: Samples = {split: [] for split in SPLITS}
    for row, where in csv_rows(source, ("object", "split", "label", "image", "mask")):
        split, sample = _visa_sample(row, root, where)
        samples[split].append(sample)
    return DatasetFiles(samples, lists=(source,), notes=(f"read as published, by {source}",))


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
