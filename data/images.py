"""Image files -> pixels and masks."""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from data.bit_depth import BITS, BitsHint, Depth, depth_of, read_colours, seeming_bits, to_eight_bits
from data.image_files import find_images, formats, image_files, passed_over_line, result_names
from utils.files import check_regular

__all__ = [
    "bits_hint", "check_size", "find_images", "formats", "image_files", "load_image", "load_mask", "lossy_masks",
    "orientation", "passed_over_line", "pictures_in", "pixel_digest", "result_names", "without_copies",
]  # fmt: skip

# Formats whose further frames are pictures of their own; those of an MPO or PSD are variants and layers of the first.
_SERIES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "FLI", "DCX"}
_SUBFILE_TYPE = 254  # a TIFF tag; bit 0: a reduced copy, bit 2: a transparency mask
_PAGES = 100  # of a TIFF that are looked at
_LONGEST = 100_000  # pixels of a side
_RESIZE_BYTES = 2**30
_MOST_FILES = 100  # files of a set, see `bits_hint`
_LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF"}
_ORIENTATION = 274  # an EXIF tag; what makes a picture upright, by its value:
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    path: Path,
    *,
    upright: bool = False,
    bits: int | None = None,
    side: int | None = None,
    shown: int | None = None,
) -> Image.Image:
    """A picture as 8-bit grey or RGB; palette, alpha, CMYK and more than 8 bits are brought to that.

    Integers of 16 bits become value * 255 / 65535, and of 32 bits too, unless none is larger than 255: then they are 8
    bits already. A file that says that it holds fewer (a TIFF of 12, a PGM, a JPEG 2000) is taken at its word.

    Args:
        upright: turn it as its EXIF orientation says: right for one's own photographs, wrong for datasets whose masks
            follow the stored pixels.
        bits: 8..16, those that files of 16 or 32 bits really use: their values become value * 255 / (2^bits - 1).
        side: of the square that the picture is going to be resized to, whose memory is then bounded, too.
        shown: side at which it is going to be shown, not scored: a JPEG is decoded at a half or less where that does.

    Raises:
        ValueError: missing, no regular file, truncated, too large, several pictures in one file, values that do not fit
            `bits`, or otherwise unreadable; names the file. `bits` that are not 8..16.
    """
    if bits is not None and bits not in BITS:
        raise ValueError(f"bits must be {BITS[0]} to {BITS[-1]}, got {bits}")
    with _named(path):
        raw = _open(path, upright, side, shown)
        return _turned(_eight_bits(raw, bits), raw.turn)


def load_mask(path: Path, *, upright: bool = False) -> Image.Image:
    """A mask as 0/255 grey: any colour but black is defect (VisA's hold 1..k; alpha is ignored).

    Formats that lose something (see `lossy_masks`) blur a mask's edge: there, defect is what lies above half of the
    largest value of the mask.

    Raises:
        ValueError: as `load_image`; colours in which black is not exact.
    """
    with _named(path):
        image = (raw := _open(path, upright)).pixels
        if isinstance(image, Image.Image):
            if image.mode == "LAB":
                raise _RefusedError("a mask in LAB colours has no exact black; save it as grey")
            if image.mode == "L" and not raw.lossy:  # as most are: less than half the time of what follows
                return _turned(image.point([0] + [255] * 255), raw.turn)
            if image.mode not in ("1", "L", "F", "RGB") and not image.mode.startswith("I"):
                image = image.convert("RGB")
        pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        defect = pixels > int(pixels.max()) // 2 if raw.lossy else pixels != 0
        defect = defect.any(-1) if defect.ndim == 3 else defect
        return _turned(Image.fromarray(defect.astype(np.uint8) * 255), raw.turn)


def lossy_masks(paths: Iterable[Path]) -> list[Path]:
    """Those of some mask files that lose something: JPEG, JPEG 2000, AVIF, lossy WebP, JPEG within TIFF. Reads headers
    alone; files that cannot be read are none of them, see `load_mask`."""
    found = []
    for path in paths:
        with contextlib.suppress(ValueError), _named(path), _header(path) as image:
            if _is_lossy(image):
                found.append(path)
    return found


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1..8, from its header; 1 (upright) where it has none or cannot be read."""
    with contextlib.suppress(ValueError), _named(path), _header(path) as image:
        return _orientation(image)
    return 1


def bits_hint(paths: Sequence[Path]) -> BitsHint | None:
    """Whether a set of images seems to hold values of 8, 10, 12 or 14 bits in files of 16 or 32; None where it does
    not. Its text is a line for the user.

    The largest value of all files counts, never that of one. Of many files, 100 are looked at, spread evenly; those of
    8 bits cost a look at their header, and unreadable ones are passed over.
    """
    largest, count, wide = 0, 0, True
    for path in paths[:: max(1, -(-len(paths) // _MOST_FILES))]:
        with contextlib.suppress(ValueError), _named(path):
            with _header(path) as image:
                depth = depth_of(image)
            if depth.stored > 8:
                largest = max(largest, int(np.max(np.asarray(_open(path, False).pixels))))
                count, wide = count + 1, wide and depth.stored == 32
            if seeming_bits(largest) is None and largest:
                return None
    bits = seeming_bits(largest)
    return None if bits is None or (wide and bits == 8) else BitsHint(bits, largest, count)


def pixel_digest(path: Path, *, upright: bool = True, bits: int | None = None) -> str:
    """Identity of the picture that `load_image` gives, whatever file holds it: 16 hex digits. Grey is the same in one
    channel and in three.

    Raises:
        ValueError: as `load_image`.
    """
    pixels = np.asarray(load_image(path, upright=upright, bits=bits))
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0]
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:16]


def without_copies(
    paths: Sequence[Path], *, upright: bool = True, bits: int | None = None
) -> tuple[list[Path], list[Path]]:
    """(files that show a picture for the first time, files that show one again), both in the order given.

    Raises:
        ValueError: as `load_image`.
    """
    first: dict[str, Path] = {}
    copies: list[Path] = []
    for path in paths:
        digest = pixel_digest(path, upright=upright, bits=bits)
        if digest in first:
            copies.append(path)
        else:
            first[digest] = path
    return list(first.values()), copies


class _Raw(NamedTuple):
    """A decoded file."""

    pixels: Image.Image | np.ndarray  # the array: (H, W, 3) uint16
    depth: Depth
    turn: Image.Transpose | None  # what is left to do
    lossy: bool


class _RefusedError(Exception):
    """A readable file that is not taken, and why."""


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Decoders raise what they like on a broken file; the user needs its name."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of half the pixels that are refused, and of tags that are passed over
            yield
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is meta.json up to date?") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: unreadable image (none of the formats that are read)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: image too large, make it smaller ({error})") from None
    except MemoryError:
        raise ValueError(f"{path}: image too large, make it smaller (there is not enough memory for it)") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: unreadable image ({reason})") from None


def _header(path: Path) -> ImageFile:
    """An opened image, not decoded."""
    return Image.open(path, formats=formats())


def _open(path: Path, upright: bool, side: int | None = None, shown: int | None = None) -> _Raw:
    """Decode a file that holds one picture of a bounded size."""
    with _header(path) as image:
        if pictures_in(image) > 1:
            raise ValueError("several pictures in one file; save the one that is meant as a file of its own")
        check_size(image.width, image.height, side)
        depth, lossy, turn = depth_of(image), _is_lossy(image), 1
        is_tiff = image.format == "TIFF"  # which decoders turn; what they leave is the same with every version of them
        if upright or is_tiff:
            turn = _orientation_for(image, upright)
        if depth.reader == "OpenCV":
            return _Raw(read_colours(path, image.tell()), depth, _transpose(turn, upright, is_tiff), lossy)
        if shown and image.format == "JPEG":
            image.draft(None, (shown, shown))
        image.load()
        check_size(image.width, image.height, side)  # an icon may hold a larger one than it says
        turned = is_tiff and turn != _orientation_for(image, False)
        return _Raw(image, depth, _transpose(turn, upright, turned), lossy)


def check_size(width: int, height: int, side: int | None = None) -> None:
    """Raises Image.DecompressionBombError on more than 100,000 pixels on one side, or where the way to a square of
    `side` takes more than a gigabyte: Pillow resizes the rows first, to side x height pixels."""
    if max(width, height) > _LONGEST:
        raise Image.DecompressionBombError(f"{width} x {height} pixels; a side may have {_LONGEST}")
    if side is not None and 4 * side * height > _RESIZE_BYTES:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels take {4e-9 * side * height:.1f} GB on their way to {side} x {side}"
        )


def _orientation_for(image: Image.Image, upright: bool) -> int:
    """The EXIF orientation. Where nobody turns the image, a broken block is as good as none."""
    try:
        return _orientation(image)
    except Exception as error:  # a broken block raises what it likes
        if upright:
            raise _RefusedError(f"unreadable EXIF data ({type(error).__name__}: {error})") from None
        return 1


def _orientation(image: Image.Image) -> int:
    """1..8; of a PNG without decoding it, where no such data follows its pixels."""
    if image.format == "PNG" and "exif" not in image.info and not _has_hidden_exif(image):
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody knows which way is up where part of the block is lost
        value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _TURNS else 1


def _has_hidden_exif(image: Image.Image) -> bool:
    """Whether a PNG has an orientation in a text, or in a block behind its pixels: Pillow decodes it to see these."""
    file = getattr(image, "fp", None)
    if file is None or {"Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
        return True
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            text = file.read(min(length, 32)) if head[4:] in (b"tEXt", b"zTXt", b"iTXt") else b""
            if head[4:] == b"eXIf" or text.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                return True
            file.seek(length + 4 - len(text), os.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def _transpose(turn: int, upright: bool, turned: bool) -> Image.Transpose | None:
    """What makes pixels upright, or as they are stored, where a decoder has turned them or not."""
    if upright == turned:
        return None
    return _TURNS[turn] if upright else _TURNS[{6: 8, 8: 6}.get(turn, turn)]


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _is_lossy(image: ImageFile) -> bool:
    """Whether a format may change pixels. WebP has two codecs, named by its chunks (RFC 9649)."""
    if image.format == "TIFF":
        return image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if image.format == "WEBP":
        with open(image.filename, "rb") as file:
            file.seek(12)
            while len(head := file.read(8)) == 8 and head[:4] not in (b"VP8 ", b"VP8L"):
                length = int.from_bytes(head[4:], "little")
                file.seek(length + length % 2, os.SEEK_CUR)
        return bool(head[:4] == b"VP8 ")
    return image.format in _LOSSY


def _eight_bits(raw: _Raw, bits: int | None) -> Image.Image:
    image, depth = raw.pixels, raw.depth
    if bits is not None and depth.reader == "high byte":
        raise _RefusedError(f"--bits {bits} is not available for pixels of 16 bits of this kind; save it as PNG")
    if isinstance(image, np.ndarray) or image.mode.startswith("I"):
        try:
            return Image.fromarray(to_eight_bits(np.asarray(image), depth, bits))
        except ValueError as error:
            raise _RefusedError(str(error)) from None
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F":
        raise _RefusedError("floating-point pixels have no known range; save it as 8 or 16 bit")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def pictures_in(image: Image.Image) -> int:
    """How many pictures an opened file holds: 1, or 2 for more than one. Goes to the first.

    The reduced copies and masks that a TIFF may have do not count; one of more than 100 pages counts as several,
    whatever they are.
    """
    if image.format not in _SERIES or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return 2
    pages: Any = image
    first: int | None = None
    for page in range(_PAGES + 1):  # `n_frames` would walk over all of them
        try:
            pages.seek(page)
        except EOFError:
            image.seek(first or 0)
            return 1
        if not int(pages.tag_v2.get(_SUBFILE_TYPE, 0)) & 0b101:
            if first is not None:
                break
            first = page
    image.seek(first or 0)
    return 2
