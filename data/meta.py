"""The one home of the dataset format: meta.json is read, checked and written here; dataset scripts share their helpers.

    <root>/meta.json = {"train": {class: [sample, ...]}, "test": {class: [sample, ...]}}
    sample = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

Paths are relative to the root and "/" separated; mask_path is "" where there is no mask; anomaly is 0 or 1; specie_name
is the defect type, "good" for normal images and "" where nobody recorded it. Only the standard library is needed.
"""

import argparse
import csv
import functools
import json
import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Sample(NamedTuple):
    """One image of a dataset; both paths are relative to its root."""

    img_path: str
    mask_path: str  # "" where there is no mask
    cls_name: str
    specie_name: str  # defect type, "good" for normal images, "" where unknown
    anomaly: int  # 0 or 1


Samples = dict[str, list[Sample]]  # {"train": [...], "test": [...]}


# --- read and write ---


def read(root: str | Path, meta_path: str | Path | None = None) -> Samples:
    """Read and check <root>/meta.json, or the file meta_path whose paths are relative to root.

    Samples come class by class in file order; a class is what the samples say, whatever key holds them. Nobody looks
    whether the images exist, only that no path leads out of the root. Raises FileNotFoundError or ValueError.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the root of a dataset")
    source = Path(meta_path) if meta_path else root / "meta.json"
    return _check(_load(source, root), root, source)


def write(root: str | Path, samples: Samples, meta_path: str | Path | None = None) -> Path:
    """Check samples and write them to <root>/meta.json, or meta_path; classes stand in order of first appearance.

    The file, whose path is returned, appears whole or not at all. Raises ValueError for what `read` would refuse.
    """
    root, target = Path(root), Path(meta_path) if meta_path else Path(root) / "meta.json"
    names = dict.fromkeys(sample.cls_name for split in SPLITS for sample in samples.get(split, []))
    document = {split: {name: [] for name in names} for split in SPLITS}
    for split in SPLITS:
        for sample in samples.get(split, []):
            document[split][sample.cls_name].append(sample._asdict())
    _check(document, root, target)
    document["test"] = {name: entries for name, entries in document["test"].items() if entries}
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _load(source: Path, root: Path) -> Any:
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: no such file; write it with the dataset's script (python data/mvtec.py --root {root}, or "
            "data/visa.py, data/mtd.py, ...; data/folder.py for images of your own)"
        )
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not valid JSON ({error}); write it again with the dataset's script") from None


def _check(document: Any, root: Path, source: Path) -> Samples:
    if not isinstance(document, dict) or "test" not in document:
        raise ValueError(
            f'{source}: expected {{"train": ..., "test": {{class: [sample, ...]}}}}, got {_show(document)}'
        )
    stays_inside = _boundary(root)
    samples: Samples = {split: [] for split in SPLITS}
    for split in SPLITS:
        for where, entry in _entries(document.get(split, {}), f"{source}: {split}"):
            if split == "test" or not _is_placeholder(entry):
                samples[split].append(_sample(entry, where, root, stays_inside))
    if not samples["test"]:
        raise ValueError(f'{source}: "test" holds no sample, nothing to score; check that {root} holds test images')
    return samples


def _entries(classes: Any, where: str) -> Iterable[tuple[str, Any]]:
    """Yield (place for messages, entry) of {class: [entry, ...]}."""
    if not isinstance(classes, dict):
        raise ValueError(f"{where} must map classes to lists of samples, got {_show(classes)}")
    for name, entries in classes.items():
        if not isinstance(entries, list):
            raise ValueError(f"{where}, class {_show(name)} must be a list of samples, got {_show(entries)}")
        for index, entry in enumerate(entries):
            yield f"{where}, class {_show(name)}, sample {index}", entry


def _is_placeholder(entry: Any) -> bool:
    """The published VCP-CLIP puts one without a path where a folder of train is empty."""
    return isinstance(entry, dict) and all(entry.get(key) == "" for key in ("img_path", "mask_path", "dataset_name"))


def _sample(entry: Any, where: str, root: Path, stays_inside: Callable[[str], bool]) -> Sample:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object with img_path, cls_name, anomaly, ...; got {_show(entry)}")
    texts = {key: entry.get(key, "") for key in ("img_path", "mask_path", "cls_name", "specie_name")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} must be a string, got {_show(value)}")
    for key in ("img_path", "cls_name"):
        if not texts[key].strip():
            raise ValueError(f"{where}: {key} is missing or empty; give every sample one")
    where = f"{where} ({_show(texts['img_path'])})"
    anomaly = entry.get("anomaly")
    if not isinstance(anomaly, int) or anomaly not in (0, 1):
        raise ValueError(f"{where}: anomaly must be 0 (normal) or 1 (defect), got {_show(anomaly)}")
    for key in ("img_path", "mask_path"):
        texts[key] = texts[key].replace("\\", "/")  # files made on Windows
        if texts[key] and not stays_inside(texts[key]):
            raise ValueError(
                f"{where}: {key} {_show(texts[key])} is not a path inside the root {root}; keep the file there"
            )
    return Sample(**texts, anomaly=int(anomaly))


def _boundary(root: Path) -> Callable[[str], bool]:
    """Return path -> whether it stays under root, also where links lead; each folder is resolved once."""
    top = os.path.realpath(root)

    @functools.cache
    def resolves_inside(path: str) -> bool:
        return Path(os.path.realpath(os.path.join(top, path))).is_relative_to(top)

    def stays_inside(path: str) -> bool:
        try:
            possible = b"\0" not in os.fsencode(path)
        except UnicodeEncodeError:  # a lone surrogate
            possible = False
        if not possible or path.startswith("/") or re.match("[A-Za-z]:", path) or ".." in path.split("/"):
            return False
        folder = resolves_inside(posixpath.dirname(path))
        return folder and (not os.path.islink(os.path.join(top, path)) or resolves_inside(path))

    return stays_inside


def _show(value: Any) -> str:
    """A value as one short line for a message."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- what dataset scripts share ---


def folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted by name; [] where there is no such folder."""
    return [path for path in _visible(folder) if path.is_dir()]


def images(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The image files inside a folder, known by suffix in any case and sorted by name; hidden ones are passed over."""
    return [path for path in _visible(folder) if path.suffix.lower() in suffixes and path.is_file()]


def relative(path: Path, root: Path) -> str:
    """A path as meta.json holds it."""
    return path.relative_to(root).as_posix()


def missing(root: Path, samples: Samples) -> list[str]:
    """The paths of images and masks that are no files under root."""
    paths = (path for split in SPLITS for sample in samples[split] for path in (sample.img_path, sample.mask_path))
    return [path for path in paths if path and not (root / path).is_file()]


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
            raise ValueError(f"{where}: {key} must be {' or '.join(known)}, got {_show(row[key])}")
    normal = row["label"] == "normal"
    for key in ("image",) if normal else ("image", "mask"):
        if not (root / row[key]).is_file():
            raise ValueError(f"{where}: {key} {_show(row[key])} is not a file under {root}")
    mask, specie = ("", "good") if normal else (row["mask"], "")
    return row["split"], Sample(row["image"], mask, row["object"], specie, int(not normal))


# --- command line ---


def run(build: Callable[[Path], Samples], default_root: str | None, argv: list[str] | None = None) -> int:
    """A dataset script: parse --root, build the samples, write meta.json, print their table; returns the exit code."""
    header = sys.modules[build.__module__].__doc__
    parser = argparse.ArgumentParser(description=header, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = f"dataset root (default: {default_root})" if default_root else "dataset root"
    parser.add_argument("--root", default=default_root, required=default_root is None, metavar="DIR", help=help_text)
    root = Path(parser.parse_args(argv).root)
    return guard(lambda: finish(root, build(root)))


def finish(root: Path, samples: Samples) -> None:
    """Write meta.json and print the table of what it holds."""
    target = write(root, samples)
    print(f"{table(samples)}\nwrote {target}")


def guard(action: Callable[[], None]) -> int:
    """Run a script's action; an error of the data becomes one line on stderr and exit code 2."""
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def table(samples: Samples) -> str:
    """The numbers of images per class: train, normal and defect images of test, and how many have masks."""
    names = list(dict.fromkeys(sample.cls_name for split in SPLITS for sample in samples[split]))
    rows = [("class", "train", "test normal", "test defect", "with masks")]
    rows += [(name, *_counts(samples, {name})) for name in names] + [("all", *_counts(samples, set(names)))]
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(13) for cell in row[1:]) for row in rows)


def _counts(samples: Samples, names: set[str]) -> tuple[str, ...]:
    train, test = ([sample for sample in samples[split] if sample.cls_name in names] for split in SPLITS)
    defects = sum(sample.anomaly for sample in test)
    masks = sum(bool(sample.mask_path) for sample in train + test)
    return tuple(map(str, (len(train), len(test) - defects, defects, masks)))
