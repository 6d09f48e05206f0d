"""Pixels of more than 8 bits: what a file says about them, and how they become 8 bits."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL.ImageFile import ImageFile

BITS = range(8, 17)  # what `bits` may be wherever it is a parameter
_ROWS = 64  # looked up at once: NumPy widens each index to 8 bytes
_TIFF_BITS, _TIFF_PLANES = 258, 284  # tags
_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")  # raw modes of Pillow whose low bytes it drops, but OpenCV keeps


class Depth(NamedTuple):
    """What the samples of a file mean, as far as its header says it."""

    white: int = 255  # the value of white
    stored: int = 8  # bits of a sample that may fill fewer of them, 16 or 32; 8 where `white` is exact
    reader: str = "Pillow"  # "OpenCV" where Pillow would drop the low bytes; "high byte" where nothing here keeps them


def depth_of(image: ImageFile) -> Depth:
    """Of an opened image that is not loaded yet.

    Raises ValueError for colours of 16 bits in separate planes of a TIFF, which no decoder here reads rightly.
    """
    codec, _, _, arguments = (*image.tile[0],)[:4] if image.tile else ("", None, 0, "")
    raw = arguments if isinstance(arguments, str) else str((arguments or ("",))[0])
    colour = image.mode in ("RGB", "RGBA", "LA")
    if image.format == "TIFF":
        return _depth_of_tiff(image, codec, raw)
    if image.format == "PPM":
        white = arguments[1] if isinstance(arguments, tuple) and len(arguments) == 2 else 0
        if white <= 255:
            return Depth(65535, 16) if raw.startswith("I;16") else Depth()
        stored = 16 if white == 65535 else 8
        if not colour:
            return Depth(65535, stored)  # to which Pillow stretches it
        return Depth(white, stored, "OpenCV") if codec == "ppm" else Depth(reader="high byte")
    if image.format == "JPEG2000":
        deep = _jpeg2000_bits(image) == 16
        if image.mode.startswith("I"):
            return Depth(65535, 16 if deep else 8)  # Pillow stretches fewer bits, which the header names, to 16
        return Depth(65535, 16, "OpenCV") if deep and colour else Depth()
    if image.format == "PNG" and colour and ";16" in raw:
        return Depth(65535, 16, "OpenCV")
    if image.mode.startswith("I"):
        return Depth(65535, 16 if "16" in raw or "16" in image.mode else 32)
    return Depth(reader="high byte" if ";16" in raw or codec == "SGI16" else "Pillow")


def _depth_of_tiff(image: Any, codec: str, raw: str) -> Depth:
    bits = max(image.tag_v2.get(_TIFF_BITS, (1,)))
    if image.mode.startswith("I"):
        return Depth(2**bits - 1) if bits < 16 else Depth(65535, 16 if bits == 16 else 32)
    if bits != 16:
        return Depth()
    if image.tag_v2.get(_TIFF_PLANES, 1) == 2:
        if codec != "libtiff":
            raise ValueError("colours of 16 bits in separate planes are not supported; save it as PNG")
        return Depth(reader="high byte")
    return Depth(65535, 16, "OpenCV") if raw.startswith(_COLOURS) else Depth(reader="high byte")


def _jpeg2000_bits(image: ImageFile) -> int:
    """The bits of the first component, from the codestream's SIZ marker (ISO 15444-1, A.5.1); 0 where it has none."""
    file: Any = image.fp
    place = file.tell()
    file.seek(0)
    head = file.read(4096)
    file.seek(place)
    start = head.find(b"\xff\x4f\xff\x51")
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 0


def read_colours(path: Path, page: int) -> np.ndarray:
    """All bits of a colour image for which `depth_of` says "OpenCV": (H, W, 3) uint16 RGB, turned where it is a TIFF
    with an orientation. page: of a TIFF; others have page 0. Raises ValueError where it cannot be decoded."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # of tags that it passes over
    try:
        if page:
            _, pages = cv2.imreadmulti(str(path), page, 1, flags=cv2.IMREAD_UNCHANGED)
            pixels = pages[0] if pages else None
        else:
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(before)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError("its colours of 16 bits cannot be decoded")
    return np.ascontiguousarray(pixels[..., 2::-1])  # BGR or BGRA


def to_eight_bits(pixels: np.ndarray, depth: Depth, bits: int | None) -> np.ndarray:
    """Integers of any width as uint8: value * 255 / white, rounded.

    White is what the file says; 2^bits - 1 where it leaves that open and `bits` is given; and 255 for integers of 32
    bits none of which is larger.

    Raises ValueError on values outside 0..65535 or above white.
    """
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ValueError("pixel values outside 0..65535; save it as 8 or 16 bit")
    white = depth.white
    if bits is not None and depth.stored > 8:
        white = 2**bits - 1
        if high > white:
            raise ValueError(f"a pixel value of {high} does not fit into --bits {bits}, which ends at {white}")
    elif depth.stored == 32 and high <= 255:
        white = 255
    table, result = _table(white), np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), _ROWS):
        result[row : row + _ROWS] = table[pixels[row : row + _ROWS]]
    return result


@functools.lru_cache(maxsize=16)
def _table(white: int) -> np.ndarray:
    """8 bits for each value 0..65535, whole numbers throughout; (65536,) uint8"""
    values = np.arange(65536)
    return ((values * 510 + white) // (2 * white)).clip(0, 255).astype(np.uint8)


class BitsHint(NamedTuple):
    """What a set of images seems to be: see `data.images.bits_hint`."""

    bits: int
    largest: int  # value of all images that were looked at
    images: int  # that were looked at and have 16 or 32 bits

    def __str__(self) -> str:
        return (
            f"no pixel of {self.images} images of 16 or 32 bits is above {self.largest}: they seem to hold values of "
            f"{self.bits} bits, and are nearly black where they are read as 16 bits; --bits {self.bits} reads them "
            "rightly"
        )


def seeming_bits(largest: int) -> int | None:
    """The bits of a camera whose largest value is that; None where it is too near to 65535 to tell, or 0."""
    return next((bits for bits in (8, 10, 12, 14) if 0 < largest < 2**bits), None)
