"""Rotation in fixed-point arithmetic: bilinear, the border reflected, grey level by grey level what OpenCV 4's
`warpAffine` gives (as AnomalyDINO's program turns its references). That of OpenCV 5 interpolates in another way, but
`remap` with places in fixed point gives the same in both.
"""

import math

import cv2
import numpy as np
from PIL import Image

# Pixels at a time: what they need stays in the caches, and OpenCV starts no threads for so few, as is right in a reader
# that was forked off.
_BLOCK = 1 << 15


def rotate_reflected(picture: Image.Image, degrees: float) -> Image.Image:
    """Turn a picture counter-clockwise about (width / 2, height / 2); it keeps its size and mode.

    Places are multiples of 1/32 pixel; what lies beyond the border is its mirror image, without repeating the outermost
    pixel.

    Args:
        picture: "RGB" or "L".

    Raises:
        ValueError: a picture of another mode; one too large for places of 16 bits, as a square of more than about
            27,000 pixels a side is.
    """
    if picture.mode not in ("RGB", "L"):
        raise ValueError(f"a picture of mode {picture.mode} cannot be turned; convert it to RGB or L")
    width, height = picture.size
    if math.hypot(width, height) + max(width, height) >= (1 << 16) - 4:  # twice how far out a place may lie
        raise ValueError(f"{width} x {height} pixels are too many to be turned; make the picture smaller")
    pixels = np.asarray(picture)
    turned = np.empty_like(pixels)
    rows = max(1, _BLOCK // width)
    for top in range(0, height, rows):
        part = turned[top : top + rows]
        places, parts = _places(width, height, range(top, top + len(part)), math.radians(degrees))
        cv2.remap(pixels, places, parts, cv2.INTER_LINEAR, dst=part, borderMode=cv2.BORDER_REFLECT_101)
    return Image.fromarray(turned)


def _places(width: int, height: int, rows: range, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of some rows of the turned picture come from: (len(rows), width, 2) int16, x and y in whole
    pixels, and (len(rows), width) uint16, the 1/32 pixels beyond, 32 y + x."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = np.arange(width), np.arange(rows.start, rows.stop)
    # Inverse map: place (x, y) of the result -> (cos x - sin y + left, sin x + cos y + top) of the picture.
    left = width / 2 - cos * width / 2 + sin * height / 2
    top = height / 2 - sin * width / 2 - cos * height / 2
    source_x = _fixed(cos * x)[None, :] + (_fixed(-sin * y + left) + 16)[:, None] >> 5  # in 1/32 pixel
    source_y = _fixed(sin * x)[None, :] + (_fixed(cos * y + top) + 16)[:, None] >> 5
    places = np.stack([source_x >> 5, source_y >> 5], axis=-1, dtype=np.int16, casting="same_kind")
    return places, ((source_y & 31) << 5 | source_x & 31).astype(np.uint16)


def _fixed(places: np.ndarray) -> np.ndarray:
    """Rounded to 1/1024 pixel, half to even."""
    return np.rint(1024 * places).astype(np.int32)
