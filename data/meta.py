"""The one home of the dataset format: meta.json is read, checked and written here.

    <root>/meta.json = {"train": {class: [sample, ...]}, "test": {class: [sample, ...]}, "settings": {...}}
    sample = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

Paths are relative to the root and "/" separated; mask_path is "" where there is no mask; anomaly is 0 or 1; specie_name
is the defect type, "good" for normal images and "" where nobody recorded it. "settings", which may be missing, says how
all files are read: {"bits": 12, "exif": true}, see `PixelSettings`.
"""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data.bit_depth import BITS
from utils.files import atomic_write, read_json
from utils.logs import LOG

SPLITS = ("train", "test")
_LONGEST = 4096  # bytes of a path, more than Linux takes


class Sample(NamedTuple):
    """One image of a dataset; both paths are relative to its root."""

    img_path: str
    mask_path: str  # "" where there is no mask
    cls_name: str
    specie_name: str  # defect type, "good" for normal images, "" where unknown
    anomaly: int  # 0 or 1


Samples = dict[str, list[Sample]]  # {"train": [...], "test": [...]}


class PixelSettings(NamedTuple):
    """How the files of a dataset are read; the defaults take them as they are stored."""

    bits: int | None = None  # used by integer pixels of more than 8 bits, 8 to 16; None: what the file's type holds
    exif: bool = False  # turn image and mask, each as its own EXIF orientation says


def read(root: str | Path, meta_path: str | Path | None = None, *, follow_links: bool = False) -> Samples:
    """Read and check <root>/meta.json, or the file meta_path whose paths are relative to root.

    Samples come class by class in file order; a class is what the samples say, whatever key holds them. Nobody looks
    whether the images exist, only that no path leads out of the root. Logs a line about samples that are listed twice.

    Args:
        follow_links: accept links out of the root where the owner of the root made them.

    Raises:
        FileNotFoundError, ValueError: naming the file, and the sample in it.
    """
    source = source_of(root, meta_path)
    samples = _check(_load(source, Path(root)), Path(root), source, follow_links)
    for line in repeats(samples):
        LOG.warning("%s: %s", source, line)
    return samples


def read_settings(root: str | Path, meta_path: str | Path | None = None) -> PixelSettings:
    """The settings that a file which `read` accepts holds. Raises as `read`."""
    source = source_of(root, meta_path)
    return _settings(_load(source, Path(root)), source)


def source_of(root: str | Path, meta_path: str | Path | None = None) -> Path:
    """The file that describes a dataset. Raises FileNotFoundError where its root is no folder."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the root of a dataset")
    return Path(meta_path) if meta_path else Path(root) / "meta.json"


def write(
    root: str | Path,
    samples: Samples,
    meta_path: str | Path | None = None,
    settings: PixelSettings | None = None,
    *,
    follow_links: bool = False,
) -> Path:
    """Check samples and write them to <root>/meta.json, or meta_path; classes stand in order of first appearance.

    The file, whose path is returned, appears whole or not at all. Raises ValueError for what `read` would refuse.
    """
    root, target = Path(root), Path(meta_path) if meta_path else Path(root) / "meta.json"
    names = dict.fromkeys(sample.cls_name for split in SPLITS for sample in samples.get(split, []))
    document: dict[str, Any] = {split: {name: [] for name in names} for split in SPLITS}
    for split in SPLITS:
        for sample in samples.get(split, []):
            document[split][sample.cls_name].append(sample._asdict())
    chosen = {key: value for key, value in (settings or PixelSettings())._asdict().items() if value}
    if chosen:
        document["settings"] = chosen
    _check(document, root, target, follow_links)
    document["test"] = {name: entries for name, entries in document["test"].items() if entries}
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
    return target


def repeats(samples: Samples) -> list[str]:
    """A line for images that a split lists more than once for a class, and one for those of both splits."""
    lines = []
    for split in SPLITS:
        counts = Counter((sample.cls_name, sample.img_path) for sample in samples[split])
        twice = [path for (_, path), count in counts.items() if count > 1]
        if twice:
            stand = f"{_images(twice)} {'stands' if len(twice) == 1 else 'stand'} more than once in {split}"
            lines.append(f"{stand}, the first is {display(twice[0])}; each counts as often as it is listed")
    tested = {sample.img_path for sample in samples["test"]}
    shared = list(dict.fromkeys(sample.img_path for sample in samples["train"] if sample.img_path in tested))
    if shared:
        stand = f"{_images(shared)} {'is' if len(shared) == 1 else 'are'} in train and in test"
        lines.append(f"{stand}, the first is {display(shared[0])}; drawn as references they are scored, too")
    return lines


def _images(paths: list[str]) -> str:
    return "1 image" if len(paths) == 1 else f"{len(paths)} images"


def _load(source: Path, root: Path) -> Any:
    if not source.exists():
        raise FileNotFoundError(
            f"{source}: no such file; write it with the dataset's script (python data/mvtec.py --root {root}, or "
            "data/visa.py, data/mtd.py, ...; data/folder.py for images of your own)"
        )
    try:
        return read_json(source)
    except ValueError as error:
        raise ValueError(f"{error}; write it again with the dataset's script") from None


def _check(document: Any, root: Path, source: Path, follow_links: bool) -> Samples:
    if not isinstance(document, dict) or "test" not in document:
        raise ValueError(
            f'{source}: expected {{"train": ..., "test": {{class: [sample, ...]}}}}, got {display(document)}'
        )
    _settings(document, source)
    stays_inside = _boundary(root, follow_links)
    samples: Samples = {split: [] for split in SPLITS}
    for split in SPLITS:
        for where, entry in _entries(document.get(split, {}), f"{source}: {split}"):
            if split == "test" or not _is_placeholder(entry):
                samples[split].append(_sample(entry, where, root, stays_inside))
        _check_labels(samples[split], f"{source}: {split}")
    if not samples["test"]:
        raise ValueError(f'{source}: "test" holds no sample, nothing to score; check that {root} holds test images')
    return samples


def _settings(document: Any, source: Path) -> PixelSettings:
    """Raises ValueError for keys and values that are unknown."""
    given = document.get("settings", {}) if isinstance(document, dict) else {}
    if not isinstance(given, dict):
        raise ValueError(f"{source}: settings must be an object such as {{}}, got {display(given)}")
    for key, value in given.items():
        if key not in PixelSettings._fields:
            known = ", ".join(PixelSettings._fields)
            raise ValueError(f"{source}: settings: unknown key {display(key)}; this version knows {known}")
        fits = type(value) is bool if key == "exif" else type(value) is int and value in BITS
        if not fits:
            expected = "true or false" if key == "exif" else f"a whole number from {BITS[0]} to {BITS[-1]}"
            raise ValueError(f"{source}: settings: {key} must be {expected}, got {display(value)}")
    return PixelSettings(**given)


def _check_labels(samples: list[Sample], where: str) -> None:
    """An image that is listed twice has one label."""
    labels: dict[tuple[str, str], int] = {}
    for sample in samples:
        if labels.setdefault((sample.cls_name, sample.img_path), sample.anomaly) != sample.anomaly:
            raise ValueError(
                f"{where}, class {display(sample.cls_name)}: {display(sample.img_path)} is listed twice, as normal and "
                "as defect; remove one of the two"
            )


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


def _boundary(root: Path, follow_links: bool) -> Callable[[str], bool]:
    """Return path -> whether it stays under root; each folder is looked at once.

    It raises ValueError for links that lead out of the root and are not accepted.
    """
    top = os.path.realpath(root)

    def stays_inside(path: str) -> bool:
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:  # a lone surrogate
            return False
        parts = path.split("/")
        if b"\0" in encoded or len(encoded) > _LONGEST or ".." in parts or re.match("/|[A-Za-z]:", path):
            return False
        for end in range(len(parts)):
            check_link("/".join(parts[: end + 1]))
        return True

    @functools.cache
    def check_link(path: str) -> None:
        place = os.path.join(top, path)
        if not os.path.islink(place) or Path(target := os.path.realpath(place)).is_relative_to(top):
            return
        if not follow_links:
            advice = "copy it there, or accept the links that the root's owner made with --follow_links"
            raise ValueError(f"{root / path} is a link to {target}, outside of the root; {advice}")
        if os.lstat(place).st_uid != os.stat(top).st_uid:
            raise ValueError(
                f"{root / path} is a link to {target}, outside of the root, that somebody else than the root's owner "
                "made; remove it, or copy what is meant"
            )

    return stays_inside


def missing(root: Path, samples: Samples) -> list[str]:
    """The paths of images and masks that are no files under root."""
    paths = (path for split in SPLITS for sample in samples[split] for path in (sample.img_path, sample.mask_path))
    return [path for path in paths if path and not (root / path).is_file()]


def display(value: Any) -> str:
    """A value as one short line for a message."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
