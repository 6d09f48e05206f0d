"""Image files -> pixels and masks; which files of a folder are images."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow hands to other programs (EPS to Ghostscript, which runs what is in it) or to nobody; IPTC opens
# what it holds as any format.
_FOREIGN = {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
# Formats whose further frames are pictures of their own; those of an MPO or PSD are variants and layers of the first.
_SERIES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "FLI", "DCX"}
_SUBFILE_TYPE = 254  # a TIFF tag; bit 0: a reduced copy, bit 2: a transparency mask
# What operating systems and editors leave in folders of images; nobody misses it.
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}


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
    images, passed_over, folders = [], [], [folder]
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


def find_images(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """All images of files and folders, these with all that is below them: (file, its name), sorted within a folder. A
    file that is named is taken whatever its suffix; in folders, Pillow's suffixes count.

    A name is the path relative to what was given; where two files would have the same, the folder's name stands before
    all of them.

    Raises:
        ValueError: something that does not exist, no image at all, or two files of one name even so; names it.
    """
    kinds = formats()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    found: dict[Path, Path] = {}  # file -> the folder that its name is relative to
    for root in map(Path, inputs):
        if root.is_file():
            found.setdefault(root, root.parent)
        elif root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            for path in files:
                found.setdefault(path, root)
        else:
            raise ValueError(f"{root}: no such file or folder")
    if not found:
        raise ValueError(f"{' '.join(inputs)}: no images there (.png, .jpg, .tif and whatever else Pillow reads)")
    for prefix in (False, True):
        names = {path: path.relative_to(root.parent if prefix else root).as_posix() for path, root in found.items()}
        owners = {name: path for path, name in names.items()}
        if len(owners) == len(names):
            return list(names.items())
    first = next(path for path, name in names.items() if owners[name] != path)
    raise ValueError(f"{first} and {owners[names[first]]} would both be called {names[first]}; score them one by one")


def formats() -> list[str]:
    """The formats that are read, all by Pillow's own decoders."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _FOREIGN]


def load_image(path: Path, *, upright: bool = False) -> Image.Image:
    """A picture as 8-bit grey or RGB; palette, alpha, CMYK and 16 bit are brought to that.

    Args:
        upright: turn it as its EXIF orientation says: right for one's own photographs, wrong for datasets, whose masks
            follow the stored pixels.

    Raises:
        ValueError: missing, truncated, too large, several pictures in one file or otherwise unreadable; names the file.
    """
    image = _open(path)
    if upright:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # nobody knows which way is up where part of the block is lost
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # a broken EXIF block raises what it likes
            raise ValueError(f"{path}: unreadable EXIF data ({type(error).__name__}: {error})") from None
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bit, which some files are opened as 32
        return Image.fromarray(_eight_bit(image, path))
    if image.mode == "F":
        raise ValueError(f"{path}: floating-point pixels have no known range; save it as 8 or 16 bit")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def load_mask(path: Path) -> Image.Image:
    """A mask as 0/255 grey: any colour but black is defect (VisA's hold 1..k; alpha is ignored).

    Raises:
        ValueError: as `load_image`; colours in which black is not exact.
    """
    image = _open(path)
    if image.mode == "LAB":
        raise ValueError(f"{path}: a mask in LAB colours has no exact black; save it as grey")
    if image.mode not in ("1", "L", "F", "RGB") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    pixels = np.asarray(image) != 0  # (H, W) or (H, W, 3)
    return Image.fromarray((pixels.any(-1) if pixels.ndim == 3 else pixels).astype(np.uint8) * 255)


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of half the pixels that are refused, and of tags that are passed over
            with Image.open(path, formats=formats()) as image:
                count = pictures_in(image)
                if count == 1:
                    image.load()
                    return image
        raise ValueError(f"{count} pictures in one file; save the one that is meant as a file of its own")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is meta.json up to date?") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: unreadable image (none of the formats that are read)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: image too large, make it smaller ({error})") from None
    except Exception as error:  # decoders raise what they like on a broken file; the user needs its name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: unreadable image ({reason})") from None


def pictures_in(image: Image.Image) -> int:
    """How many a file holds, without the reduced copies and masks that a TIFF may have; goes to the first."""
    if image.format not in _SERIES or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return image.n_frames
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 0b101:
            pages.append(page)
    image.seek(pages[0] if pages else 0)
    return max(len(pages), 1)


def _eight_bit(image: Image.Image, path: Path) -> np.ndarray:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"{path}: pixel values outside 0..65535; save it as 8 or 16 bit")
    return ((pixels + 128) // 257).astype(np.uint8)
