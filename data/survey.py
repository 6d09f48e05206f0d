"""What a dataset script says about the files that it found: what is passed over, and how pixels are read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.image_files import image_files
from data.images import bits_hint, lossy_masks, orientation
from data.layouts import NORMAL, DatasetFiles, relative
from data.meta import PARTS, PixelSettings, Samples, display, repeats
from data.regions import mask_files
from utils.text import escape_controls

_NAMED = 5  # places that are named


def notes(root: Path, found: DatasetFiles, own: list[Path], settings: PixelSettings, can_turn: bool) -> list[str]:
    """All lines that a user should read before he trusts a meta.json.

    Args:
        own: files of this toolkit under the root, which are not passed over.
        can_turn: the script has --exif.
    """
    return [
        *found.notes,
        *_normal_names(found),
        *_passed_over(root, found, own),
        *repeats(found.samples),
        *_orientations(root, found.samples, settings, can_turn),
        *_bits(root, found.samples, settings),
        *_lossy_masks(root, found.samples),
    ]


def _normal_names(found: DatasetFiles) -> Iterator[str]:
    """Folders that were read as normal, where one has another name than the first of NORMAL."""
    if set(found.normal) - {NORMAL[0]}:
        yield f"read as normal: {', '.join(map(escape_controls, found.normal))}"


def _passed_over(root: Path, found: DatasetFiles, own: list[Path]) -> Iterator[str]:
    """Everything under the root that is neither image nor mask of a sample, by the rule of `image_files`."""
    used = {root / path for path in _files(found.samples, "img_path")}
    used |= {file for path in _files(found.samples, "mask_path") for file in mask_files(root / path)}
    used |= {root / image.img_path for part in (found.unlabelled or {}).values() for image in part}
    used |= {*found.lists, *own}
    used_folders = {root, *(folder for path in used for folder in path.parents)}
    tops = [root]
    left_images: list[Path] = []
    left_others: list[Path] = []
    while tops:
        images, others = image_files(tops.pop())
        left_images += [path for path in images if path not in used]
        tops += [path for path in others if path in used_folders]  # links, which it does not follow
        left_others += [path for path in others if path not in used and path not in used_folders]
    left = left_images + left_others
    if left:
        among = f", {len(left_images)} of them images" if left_images else ""
        noun = "file" if len(left) == 1 else "files"
        yield f"passed over {len(left)} {noun}{among}: {_places(left, root, used_folders)}"


def _places(paths: list[Path], root: Path, used_folders: set[Path]) -> str:
    """Some paths in a few words: folders of which nothing is used, and the files of others by suffix."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        top = path
        while top.parent not in used_folders:
            top = top.parent
        if top != path:
            key = f"{relative(top, root)}/"
        elif path.is_file():
            key = relative(path.with_name(f"*{path.suffix}"), root)
        else:
            key = f"{relative(path, root)} ({_kind(path)})"
        groups.setdefault(key, []).append(path)
    counts = Counter({key: len(group) for key, group in groups.items()}).most_common()
    places = [_place(key, groups[key], root) for key, _ in counts[:_NAMED]]
    more = f" and {len(counts) - _NAMED} more places" if len(counts) > _NAMED else ""
    return ", ".join(map(escape_controls, places)) + more


def _place(key: str, group: list[Path], root: Path) -> str:
    if len(group) > 1:
        return f"{key} ({len(group)})"
    return relative(group[0], root) if not key.endswith(")") else key


def _kind(path: Path) -> str:
    """What a path is that is no file."""
    if path.is_dir():
        return "a link to a folder" if path.is_symlink() else "a folder that may not be read"
    return "not a file" if path.exists() else "a link to nothing"


def _orientations(root: Path, samples: Samples, settings: PixelSettings, can_turn: bool) -> Iterator[str]:
    paths = _files(samples, "img_path")
    turned = [path for path in paths if orientation(root / path) != 1]
    if turned:
        counted = f"{len(turned)} of {len(paths)} images have an EXIF orientation, the first is {display(turned[0])}"
        if settings.exif:
            yield f"{counted}: they are turned, and each mask as its own file says"
        else:
            flag = "; --exif turns image and mask, each as its own file says" if can_turn else ""
            yield f"{counted}: images and masks are read as stored, not turned{flag}"


def _bits(root: Path, samples: Samples, settings: PixelSettings) -> Iterator[str]:
    hint = None if settings.bits else bits_hint([root / path for path in _files(samples, "img_path")])
    if hint:
        yield str(hint)


def _lossy_masks(root: Path, samples: Samples) -> Iterator[str]:
    files = [file for path in _files(samples, "mask_path") for file in mask_files(root / path)]
    lossy = lossy_masks(files)
    if lossy:
        yield (
            f"{len(lossy)} of {len(files)} masks are in a lossy format, the first is "
            f"{display(relative(lossy[0], root))}: defect is what lies above half of a mask's largest value"
        )


def _files(samples: Samples, key: str) -> list[str]:
    """The paths of all samples, each once."""
    paths = (getattr(sample, key) for part in PARTS for sample in samples.get(part, []))
    return list(dict.fromkeys(filter(None, paths)))
