"""Real-IAD: JSON lists and folders -> meta.json.

    python data/real_iad.py [--root data/real_iad] [--lists realiad_jsons_sv] [--images realiad_1024]

Expects, as the archives unpack,

    <root>/realiad_{256,512,1024}/<class>/OK/S0001/*.jpg
    <root>/realiad_{256,512,1024}/<class>/NG/<defect>/S0001/*.jpg, and their masks, *.png
    <root>/realiad_jsons*/<class>.json     train and test lists, also one folder down: realiad_jsons/realiad_jsons_sv/

and writes <root>/meta.json by the lists of one folder for the images of one size: --lists and --images name the
folders where there are several. realiad_jsons has all five cameras, realiad_jsons_sv a single view, and
realiad_jsons_fuiad_0.1 and the like anomalous images in train, which stay marked as such. The paths in the lists may
hold the class folder or not. The full public set gives 30 classes; realiad_jsons lists 36465 training and 114585 test
images, 51329 of them defect.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import DatasetFiles, UnknownLayout, folders, relative
from data.meta import SPLITS, Sample, Samples, display
from data.script import run
from utils.files import read_json

LISTS, IMAGES = "realiad_jsons", ("realiad_256", "realiad_512", "realiad_1024", "realiad_raw")


def build(root: Path, lists: str | None = None, images: str | None = None) -> DatasetFiles:
    """All classes that the lists have, sorted by name, in the order of the lists.

    Args:
        lists: name of the folder of lists; None takes the only one.
        images: name of the folder of images; None takes the only one.

    Raises:
        ValueError: several folders and none named; an unknown one; a list that is none, or names a file that is not
            there.
    """
    outer = [folder for folder in folders(root) if folder.name.startswith(LISTS)]
    with_lists = [f for f in (*outer, *(inner for one in outer for inner in folders(one))) if any(f.glob("*.json"))]
    if not with_lists:
        raise UnknownLayout(f"{root}: no {LISTS}*/<class>.json; unpack Real-IAD there or name the folder that holds it")
    chosen = _choose(root, "--lists", lists, with_lists)
    pictures = _choose(root, "--images", images, [folder for folder in folders(root) if folder.name in IMAGES])
    samples: Samples = {split: [] for split in SPLITS}
    sources = sorted(chosen.glob("*.json"))
    for source in sources:
        content = read_json(source)
        for split in SPLITS:
            samples[split] += _samples(root, pictures, source, content, split)
    note = f"read {relative(chosen, root)} for the images in {relative(pictures, root)}"
    return DatasetFiles(samples, lists=tuple(sources), notes=(note,))


def _choose(root: Path, flag: str, name: str | None, found: list[Path]) -> Path:
    by_name = {folder.name: folder for folder in reversed(found)}
    names = ", ".join(sorted(by_name))
    if not by_name:
        raise ValueError(f"{root}: no folder {' or '.join(IMAGES)}; unpack the images of one size there")
    if name is None and len(by_name) > 1:
        raise ValueError(f"{root}: holds {names}; choose one with {flag} NAME")
    if name is not None and name not in by_name:
        raise ValueError(f"{flag} {name}: no such folder in {root}; it holds {names}")
    return by_name[name] if name is not None else next(iter(by_name.values()))


def _samples(root: Path, pictures: Path, source: Path, content: Any, split: str) -> Iterator[Sample]:
    """The samples of one list; paths may begin with the class folder, with the list's prefix, or below both."""
    details = content.get("meta", {}) if isinstance(content, dict) else None
    entries = content.get(split) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not isinstance(details, dict):
        raise ValueError(f'{source}: expected {{"meta": {{...}}, "train": [...], "test": [...]}}, as Real-IAD has it')
    name, normal = source.stem, details.get("normal_class", "OK")
    places = list(dict.fromkeys((pictures / name, pictures, pictures / str(details.get("prefix", "")))))

    def found(entry: dict[str, Any], key: str, where: str) -> str:
        path = entry.get(key)
        if not isinstance(path, str) or not path:
            raise ValueError(f"{where}: {key} must be a path, got {display(path)}")
        for place in places:
            if (place / path).is_file():
                return relative(place / path, root)
        raise ValueError(f"{where}: {key} {display(path)} is no file in {pictures} or {places[0]}")

    for number, entry in enumerate(entries, start=1):
        where = f"{source}: {split}, entry {number}"
        kind = entry.get("anomaly_class") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or not kind:
            raise ValueError(f"{where}: expected an object with image_path, mask_path and anomaly_class")
        image = found(entry, "image_path", where)
        if kind == normal:
            yield Sample(image, "", name, "good", 0)
        else:
            yield Sample(image, found(entry, "mask_path", where), name, kind, 1)


FLAGS = {
    "--lists": "folder of JSON lists, which says the views: realiad_jsons (all cameras), realiad_jsons_sv (one), ...",
    "--images": "folder of images, which says their size: realiad_256, realiad_512, realiad_1024",
}

if __name__ == "__main__":
    run(build, "data/real_iad", own_flags=FLAGS)
