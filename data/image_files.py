"""Which files of a folder are images, and how their results are called."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from utils.files import check_regular

# Formats that Pillow hands to other programs (EPS to Ghostscript, which runs what is in it) or to nobody; IPTC opens
# what it holds as any format.
_FOREIGN = {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
# What operating systems and editors leave in folders of images; nobody misses it.
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}


class FoundImages(NamedTuple):
    """What `find_images` finds in files and folders."""

    images: list[tuple[Path, str]]  # (file, its name)
    passed_over: list[Path]  # see `image_files`


def image_files(folder: Path, recursive: bool = True) -> tuple[list[Path], list[Path]]:
    """The images in a folder, and what else is there: (images, passed over), both sorted.

    A file is an image where its suffix, in any case, is one of a format that is read, or where its first bytes are;
    `load_image` says what is wrong with one that turns out to be broken. Hidden files and folders (`._x.jpg`,
    `.ipynb_checkpoints`), `__MACOSX`, Thumbs.db and desktop.ini appear in neither list. Passed over are all other
    files, whatever is neither file nor folder, links to folders below `folder`, which are not followed, and folders
    that may not be read.

    Args:
        recursive: look into the folders below, too; otherwise they appear in neither list.
    """
    suffixes = known_suffixes()
    images: list[Path] = []
    passed_over: list[Path] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            entries = list(os.scandir(current))
        except OSError:
            passed_over.append(current)
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
                continue
            path = current / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders += [path] * recursive
            elif entry.is_dir():
                passed_over += [path] * recursive
            else:
                is_image = entry.is_file() and (path.suffix.lower() in suffixes or _begins_as_image(path))
                (images if is_image else passed_over).append(path)
    return sorted(images), sorted(passed_over)


def known_suffixes() -> set[str]:
    """Suffixes of the formats that are read, in lower case and with the dot."""
    kinds = formats()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}


def _begins_as_image(path: Path) -> bool:
    """Whether the header of a regular file is that of a format which is known by its first bytes: TGA and a few others
    are not, and almost any file could be one."""
    kinds = [kind for kind in formats() if Image.OPEN[kind][1] is not None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=kinds):
                return True
    except Image.DecompressionBombError:
        return True  # which `load_image` refuses by name
    except Exception:  # decoders raise what they like on what they do not know
        return False


def find_images(inputs: Sequence[str]) -> FoundImages:
    """All images of files and folders, these with all that is below them, sorted within a folder. A file that is named
    is taken whatever its name and suffix; in folders, `image_files` decides.

    A name is the path relative to what was given; where two files would have the same, the folder's name stands before
    all of them.

    Raises:
        ValueError: something that does not exist or is neither file nor folder, no image at all, or two files of one
            name even so; names it.
    """
    found: dict[Path, Path] = {}  # file -> the folder that its name is relative to
    passed_over: dict[Path, None] = {}
    for root in map(Path, inputs):
        if root.is_dir():
            images, others = image_files(root)
            for path in images:
                found.setdefault(path, root)
            passed_over |= dict.fromkeys(others)
        elif root.exists():
            check_regular(root)
            found.setdefault(root, root.parent)
        else:
            raise ValueError(f"{root}: no such file or folder")
    if not found:
        reason = f"; {passed_over_line(list(passed_over))}" if passed_over else ""
        given = " ".join(inputs)
        raise ValueError(f"{given}: no images there (.png, .jpg, .tif and whatever else Pillow reads){reason}")
    others = [path for path in passed_over if path not in found]
    for prefix in (False, True):
        names = {path: path.relative_to(root.parent if prefix else root).as_posix() for path, root in found.items()}
        owners = {name: path for path, name in names.items()}
        if len(owners) == len(names):
            return FoundImages(list(names.items()), others)
    first = next(path for path, name in names.items() if owners[name] != path)
    raise ValueError(f"{first} and {owners[names[first]]} would both be called {names[first]}; score them one by one")


def passed_over_line(paths: Sequence[Path]) -> str:
    """One line that counts and names what `image_files` passed over, for logs and errors."""
    shown = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return f"passed over, not images: {len(paths)} ({shown})"


def result_names(names: Sequence[str]) -> dict[str, str]:
    """Image name -> the name of its results, to which a suffix is added: that of the image without its suffix.

    Where two images would share one (a.jpg, a.png), each keeps its suffix in the name (a_jpg, a_png), with more
    underscores where that is taken, too.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    count = Counter(stems.values())
    taken = {stem for stem, images in count.items() if images == 1}
    for name, stem in stems.items():
        if count[stem] > 1:
            suffix = PurePosixPath(name).suffix
            stems[name] = f"{stem}_{suffix[1:]}" if suffix else stem
            while stems[name] in taken:
                stems[name] += "_"
            taken.add(stems[name])
    return stems


def formats() -> list[str]:
    """The formats that are read, all by Pillow's own decoders."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _FOREIGN]
