"""The one home of the dataset format: meta.json is read, checked and written here.

    <root>/meta.json = {"train": {class: [sample, ...]}, "test": {class: [sample, ...]}}
    sample = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

Paths are relative to the root and "/" separated; mask_path is "" where there is no mask; anomaly is 0 or 1; specie_name
is the defect type, "good" for normal images and "" where nobody recorded it. Only the standard library is needed.
"""

import functools
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SPLITS = ("train", "test")


class Sample(NamedTuple):
    """One image of a dataset; both paths are relative to its root."""

    img_path: str
    mask_path: str  # "" where there is no mask
    cls_name: str
    specie_name: str  # defect type, "good" for normal images, "" where unknown
    anomaly: int  # 0 or 1


Samples = dict[str, list[Sample]]  # {"train": [...], "test": [...]}


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
            f'{source}: expected {{"train": ..., "test": {{class: [sample, ...]}}}}, got {display(document)}'
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
        raise ValueError(f"{where} must map classes to lists of samples, got {display(classes)}")
    for name, entries in classes.items():
        if not isinstance(entries, list):
            raise ValueError(f"{where}, class {display(name)} must be a list of samples, got {display(entries)}")
        for index, entry in enumerate(entries):
            yield f"{where}, class {display(name)}, sample {index}", entry


def _is_placeholder(entry: Any) -> bool:
    """The published VCP-CLIP puts one without a path where a folder of train is empty."""
    return isinstance(entry, dict) and all(entry.get(key) == "" for key in ("img_path", "mask_path", "dataset_name"))


def _sample(entry: Any, where: str, root: Path, stays_inside: Callable[[str], bool]) -> Sample:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object with img_path, cls_name, anomaly, ...; got {display(entry)}")
    texts = {key: entry.get(key, "") for key in ("img_path", "mask_path", "cls_name", "specie_name")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} must be a string, got {display(value)}")
    for key in ("img_path", "cls_name"):
        if not texts[key].strip():
            raise ValueError(f"{where}: {key} is missing or empty; give every sample one")
    where = f"{where} ({display(texts['img_path'])})"
    anomaly = entry.get("anomaly")
    if not isinstance(anomaly, int) or anomaly not in (0, 1):
        raise ValueError(f"{where}: anomaly must be 0 (normal) or 1 (defect), got {display(anomaly)}")
    for key in ("img_path", "mask_path"):
        texts[key] = texts[key].replace("\\", "/")  # files made on Windows
        if texts[key] and not stays_inside(texts[key]):
            raise ValueError(
                f"{where}: {key} {display(texts[key])} is not a path inside the root {root}; keep the file there"
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


def missing(root: Path, samples: Samples) -> list[str]:
    """The paths of images and masks that are no files under root."""
    paths = (path for split in SPLITS for sample in samples[split] for path in (sample.img_path, sample.mask_path))
    return [path for path in paths if path and not (root / path).is_file()]


def display(value: Any) -> str:
    """A value as one short line for a message."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
