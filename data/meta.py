"""The one home of the dataset format: meta.json is read, checked and written here.

    <root>/meta.json = {"train": {class: [sample, ...]}, "test": {class: [sample, ...]}}
    sample = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

Paths are relative to the root and "/" separated; mask_path is "" where there is no mask, and may be a folder with an
image for each region; anomaly is 0 or 1; specie_name is the defect type, "good" for normal images and "" where nobody
recorded it. Further keys, which most datasets lack:

    "validation": {class: [sample, ...]}     more normal images, for thresholds
    "settings": {"bits": 12, "exif": true}   how all files are read, see `PixelSettings`
    "unlabelled": {part: {class: [{"img_path", "cls_name", "specie_name"}, ...]}}     test images with secret labels
    "defects": {class: [{"defect_name", "pixel_value", "saturation_threshold", "relative_saturation"}, ...]}
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.bit_depth import BITS
from data.boundary import boundary
from data.defect_kinds import DefectKind, kind_entries, parse_kinds
from utils.files import atomic_write, read_json
from utils.logs import LOG

SPLITS = ("train", "test")
PARTS = ("train", "validation", "test")


class Sample(NamedTuple):
    """One image of a dataset; both paths are relative to its root."""

    img_path: str
    mask_path: str  # "" where there is no mask; a folder: the union of the masks in it, see `data.regions`
    cls_name: str
    specie_name: str  # defect type, "good" for normal images, "" where unknown
    anomaly: int  # 0 or 1


Samples = dict[str, list[Sample]]  # {"train": [...], "test": [...]}, and "validation" where a dataset has it


class UnlabelledImage(NamedTuple):
    """An image to score whose label nobody has; the path is relative to the root."""

    img_path: str
    cls_name: str
    specie_name: str  # what the dataset tells about it, such as the light; "" where nothing


Unlabelled = Mapping[str, list[UnlabelledImage]]  # name of the part, such as "test_private" -> its images
Defects = Mapping[str, Mapping[int, DefectKind]]  # class -> pixel value in its masks -> kind of defect


class PixelSettings(NamedTuple):
    """How the files of a dataset are read; the defaults take them as they are stored."""

    bits: int | None = None  # used by integer pixels of more than 8 bits, 8 to 16; None: what the file's type holds
    exif: bool = False  # turn image and mask, each as its own EXIF orientation says


def read(root: str | Path, meta_path: str | Path | None = None, *, follow_links: bool = False) -> Samples:
    """Read and check <root>/meta.json, or the file meta_path whose paths are relative to root.

    All of PARTS are there, "validation" empty where the file has none. Samples come class by class in file order; a
    class is what the samples say, whatever key holds them. Nobody looks whether the images exist, only that no path
    leads out of the root. Logs a line about samples that are listed twice.

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


def read_unlabelled(
    root: str | Path, meta_path: str | Path | None = None, *, follow_links: bool = False
) -> dict[str, list[UnlabelledImage]]:
    """The test images without labels, by part, class by class in file order; {} where there are none. Raises as
    `read`."""
    source = source_of(root, meta_path)
    return _unlabelled(_load(source, Path(root)), Path(root), source, boundary(Path(root), follow_links))


def read_defects(root: str | Path, meta_path: str | Path | None = None) -> dict[str, dict[int, DefectKind]]:
    """Class -> pixel value in its masks -> kind of defect, of datasets that tell; {} of others. Raises as `read`."""
    source = source_of(root, meta_path)
    return _defects(_load(source, Path(root)), source)


def read_settings(root: str | Path, meta_path: str | Path | None = None) -> PixelSettings:
    """The settings that a file which `read` accepts holds. Raises as `read`."""
    source = source_of(root, meta_path)
    return _settings(_load(source, Path(root)), source)


def source_of(root: str | Path, meta_path: str | Path | None = None) -> Path:
    """The file that describes a dataset. Raises FileNotFoundError where its root is no folder."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the root of a dataset to --data_path or --root")
    return Path(meta_path) if meta_path else Path(root) / "meta.json"


def write(
    root: str | Path,
    samples: Samples,
    meta_path: str | Path | None = None,
    settings: PixelSettings | None = None,
    *,
    follow_links: bool = False,
    unlabelled: Unlabelled | None = None,
    defects: Defects | None = None,
) -> Path:
    """Check samples and write them to <root>/meta.json, or meta_path; classes stand in order of first appearance.

    The file, whose path is returned, appears whole or not at all. Raises ValueError for what `read` would refuse.
    """
    root, target = Path(root), Path(meta_path) if meta_path else Path(root) / "meta.json"
    parts = [part for part in PARTS if part in SPLITS or samples.get(part)]
    names = dict.fromkeys(sample.cls_name for part in parts for sample in samples.get(part, []))
    document: dict[str, Any] = {part: _by_class(samples.get(part, []), names) for part in parts}
    chosen = {key: value for key, value in (settings or PixelSettings())._asdict().items() if value}
    if chosen:
        document["settings"] = chosen
    if unlabelled:
        document["unlabelled"] = {part: _by_class(found, {}) for part, found in unlabelled.items()}
    if defects:
        document["defects"] = {name: kind_entries(kinds) for name, kinds in defects.items()}
    _check(document, root, target, follow_links)
    for part in parts[1:]:
        document[part] = {name: entries for name, entries in document[part].items() if entries}
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
    return target


def _by_class(samples: Iterable[Sample | UnlabelledImage], names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Class -> its samples; first these names, then the others in order of appearance."""
    classes: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for sample in samples:
        classes.setdefault(sample.cls_name, []).append(sample._asdict())
    return classes


def repeats(samples: Samples) -> list[str]:
    """A line for images that a part lists more than once for a class, and one for those of test and another part."""
    lines = []
    for split in PARTS:
        counts = Counter((sample.cls_name, sample.img_path) for sample in samples.get(split, []))
        twice = [path for (_, path), count in counts.items() if count > 1]
        if twice:
            stand = f"{_images(twice)} {'stands' if len(twice) == 1 else 'stand'} more than once in {split}"
            lines.append(f"{stand}, the first is {display(twice[0])}; each counts as often as it is listed")
    tested = {sample.img_path for sample in samples["test"]}
    uses = {"train": "drawn as references they are scored, too", "validation": "thresholds have seen what is scored"}
    for part, consequence in uses.items():
        shared = list(dict.fromkeys(s.img_path for s in samples.get(part, []) if s.img_path in tested))
        if shared:
            stand = f"{_images(shared)} {'is' if len(shared) == 1 else 'are'} in {part} and in test"
            lines.append(f"{stand}, the first is {display(shared[0])}; {consequence}")
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
    stays_inside = boundary(root, follow_links)
    _unlabelled(document, root, source, stays_inside)
    _defects(document, source)
    samples: Samples = {part: [] for part in PARTS}
    for part in PARTS:
        for where, entry in _entries(document.get(part, {}), f"{source}: {part}"):
            if part == "test" or not _is_placeholder(entry):
                samples[part].append(_sample(entry, where, root, stays_inside))
                if part == "validation" and samples[part][-1].anomaly:
                    raise ValueError(f"{where}: validation holds normal images only, this one is anomalous")
        _check_labels(samples[part], f"{source}: {part}")
    if not samples["test"]:
        raise ValueError(f'{source}: "test" holds no sample, nothing to score; check that {root} holds test images')
    return samples


def _unlabelled(
    document: Any, root: Path, source: Path, stays_inside: Callable[[str], bool]
) -> dict[str, list[UnlabelledImage]]:
    given = document.get("unlabelled", {}) if isinstance(document, dict) else {}
    if not isinstance(given, dict) or not all(re.fullmatch(r"\w[\w-]*", part) for part in given):
        raise ValueError(f"{source}: unlabelled must map names of parts to classes, got {display(given)}")
    found: dict[str, list[UnlabelledImage]] = {part: [] for part in given}
    for part, classes in given.items():
        for where, entry in _entries(classes, f"{source}: {part}"):
            texts = _texts(entry, UnlabelledImage._fields, where)
            found[part].append(UnlabelledImage(**_inside(texts, where, root, stays_inside)))
    return found


def _defects(document: Any, source: Path) -> dict[str, dict[int, DefectKind]]:
    given = document.get("defects", {}) if isinstance(document, dict) else {}
    if not isinstance(given, dict):
        raise ValueError(f"{source}: defects must map classes to kinds of defect, got {display(given)}")
    return {name: parse_kinds(kinds, f"{source}: defects of {display(name)}") for name, kinds in given.items()}


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
    texts = _texts(entry, Sample._fields[:4], where)
    where = f"{where} ({display(texts['img_path'])})"
    anomaly = entry.get("anomaly")
    if not isinstance(anomaly, int) or anomaly not in (0, 1):
        raise ValueError(f"{where}: anomaly must be 0 (normal) or 1 (defect), got {display(anomaly)}")
    return Sample(**_inside(texts, where, root, stays_inside), anomaly=int(anomaly))


def _texts(entry: Any, keys: Sequence[str], where: str) -> dict[str, str]:
    """The strings of a sample by these keys, "" where one is missing that may be."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object with img_path, cls_name, anomaly, ...; got {display(entry)}")
    texts = {key: entry.get(key, "") for key in keys}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} must be a string, got {display(value)}")
    for key in ("img_path", "cls_name"):
        if not texts[key].strip():
            raise ValueError(f"{where}: {key} is missing or empty; give every sample one")
    return texts


def _inside(texts: dict[str, str], where: str, root: Path, stays_inside: Callable[[str], bool]) -> dict[str, str]:
    """The strings with "/" separated paths, and nothing that is read through them outside of the root."""
    for key in (key for key in ("img_path", "mask_path") if texts.get(key)):
        texts[key] = path = texts[key].replace("\\", "/")  # files made on Windows
        within = stays_inside(path)
        if within and key == "mask_path" and os.path.isdir(root / path):
            within = all(stays_inside(f"{path}/{name}") for name in os.listdir(root / path))
        if not within:
            raise ValueError(
                f"{where}: {key} {display(path)} is not a path inside the root {root}; keep the file there"
            )
    return texts


def shown_kind(specie_name: str, anomaly: int) -> str:
    """What an image shows, in a word or two, also where its dataset does not name the kinds of defects, or tells more
    of normal images."""
    if anomaly:
        return specie_name or "defect"
    return "good" if specie_name in ("", "good") else f"good, {specie_name}"


def missing(root: Path, samples: Samples) -> list[str]:
    """The paths of images and masks that are not there under root."""
    paths = (path for split in SPLITS for sample in samples[split] for path in (sample.img_path, sample.mask_path))
    return [path for path in paths if path and not (root / path).exists()]


def display(value: Any) -> str:
    """A value as one short line for a message."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
