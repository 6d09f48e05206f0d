"""Pictures of anomaly maps; an overlay is original | anomaly map | ground truth."""

import functools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from report.captions import draw_text
from report.heatmap import blend_heatmap, resize_longest_side
from utils.files import atomic_write

PANEL_SIDE = 384  # the longer side of a panel, in pixels
_STRIP = 22  # the caption's height, in pixels
_TEXT = 13  # of a caption, in pixels
_GREEN, _WHITE = (60, 220, 60), (255, 255, 255)  # of outlines; the anomaly map has greens of its own


def overlay(
    image: Image.Image,
    heat: NDArray[Any],
    mask: NDArray[Any] | None,
    captions: Sequence[str],
    foreground: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Three panels side by side, at the image's own aspect ratio: original, anomaly map, ground truth.

    Args:
        image: the original, any size.
        heat: (S, S) in [0, 1], the colour scale's ends.
        mask: (S, S), non-zero = defect; None where it is not known.
        captions: one per panel; two leave the ground truth out.
        foreground: (G, G), the patches that the method has looked at; the others are darkened on the anomaly map.

    Returns:
        (H, W, 3) uint8 RGB
    """
    panels = draw_panels(image, heat, mask, PANEL_SIDE, foreground)[: len(captions)]
    height, width = panels[0].shape[:2]
    framed = np.full((height + _STRIP, len(captions) * (width + 2), 3), 255, np.uint8)
    for number, (panel, text) in enumerate(zip(panels, captions, strict=True)):
        left = number * (width + 2)
        framed[:_STRIP, left : left + width + 2] = _strip(text, width + 2)
        framed[_STRIP:, left + 1 : left + 1 + width] = panel
    return framed


def draw_panels(
    image: Image.Image,
    heat: NDArray[Any],
    mask: NDArray[Any] | None,
    side: int,
    foreground: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Original, anomaly map, ground truth, each (H, W, 3) uint8 RGB, the longer side as given; else as `overlay`."""
    picture = resize_longest_side(image, side)
    blended, truth = blend_heatmap(picture, heat), picture.copy()
    if foreground is not None:
        seen = cv2.resize(foreground.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        blended[~seen] = blended[~seen] // 3
    if mask is not None and mask.any():
        shape = scale_mask((mask > 0).astype(np.uint8), (picture.shape[1], picture.shape[0]))
        around = cv2.dilate(shape, np.ones((3, 3), np.uint8))  # so that the outline hides nothing of the defect
        contours, _ = cv2.findContours(around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for panel, colour in ((blended, _WHITE), (truth, _GREEN)):
            cv2.drawContours(panel, contours, -1, colour, 1, cv2.LINE_AA)
    return picture, blended, truth


@functools.lru_cache(64)  # that of the truth comes again with the next image, that of the file with the next setting
def _strip(text: str, width: int) -> NDArray[np.uint8]:
    """A caption, (H, W, 3) uint8 RGB."""
    strip = Image.new("RGB", (width, _STRIP), "white")
    draw_text(strip, (4, 3), text, _TEXT, width=width - 8)
    return np.asarray(strip)


def scale_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask, (H, W), non-zero = defect, at another (width, height): the largest of the pixels that become one, so that
    the smallest defect is seen."""
    height, width = mask.shape
    if (width, height) == size:
        return mask
    reach = -(-height // size[1]), -(-width // size[0])  # from one chosen pixel to the next
    largest = cv2.dilate(mask, np.ones(reach, np.uint8), anchor=(0, 0))
    rows, columns = np.arange(size[1]) * height // size[1], np.arange(size[0]) * width // size[0]
    return largest[rows[:, None], columns]


def split_panels(picture: Image.Image) -> list[Image.Image]:
    """The original, the anomaly map and the ground truth out of an overlay, without captions."""
    width = picture.width // 3
    return [picture.crop((left + 1, _STRIP, left + width - 1, picture.height)) for left in (0, width, 2 * width)]


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, (H, W, 3) uint8 RGB, as PNG."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(encode_png(picture))


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """A picture, (H, W, 3) uint8 RGB, as a PNG file.

    Pillow tries all filters on each row, which takes more time than all the rest of an overlay. One filter, each pixel
    less its left neighbour, and a fast compressor take an eighth of that, for files that are a sixth to a half
    larger (sample data).
    """
    height, width = picture.shape[:2]
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1  # the filter's number
    rows[:, 1:4] = picture[:, 0]
    np.subtract(picture[:, 1:], picture[:, :-1], out=rows[:, 4:].reshape(height, width - 1, 3))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB
        (b"IDAT", isal_zlib.compress(rows.data, 2)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))
        for kind, data in chunks
    )
