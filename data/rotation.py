"""Rotation in fixed-point arithmetic: bilinear, the border reflected, grey level by grey level what OpenCV 4's
`warpAffine` gives (as AnomalyDINO's program turns its references), on any machine and without OpenCV.
"""

import math

import numpy as np
from PIL import Image

_LANE = 21  # bits of a channel in a packed pixel: a value of 8 bits times weights of 10, and room to round
_BLOCK = 1 << 14  # pixels at a time: what they need stays in the caches


def rotate_reflected(picture: Image.Image, degrees: float) -> Image.Image:
    """Turn a picture counter-clockwise about (width / 2, height / 2); it keeps its size and mode.

    Places are multiples of 1/32 pixel; what lies beyond the border is its mirror image, without repeating the outermost
    pixel.

    Args:
        picture: "RGB" or "L".

    Raises:
        ValueError: a picture of another mode.
    """
    if picture.mode not in ("RGB", "L"):
        raise ValueError(f"a picture of mode {picture.mode} cannot be turned; convert it to RGB or L")
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    packed = _pack(pixels.reshape(height * width, -1))
    turned = np.empty_like(pixels)
    rows = max(1, _BLOCK // width)
    for top in range(0, height, rows):
        part = turned[top : top + rows]
        _unpack(_sample(packed, width, height, range(top, top + len(part)), math.radians(degrees)), part)
    return Image.fromarray(turned)


def _sample(packed: np.ndarray, width: int, height: int, rows: range, angle: float) -> np.ndarray:
    """Some rows of the turned picture, packed and in units of 1/1024 grey level: (len(rows), width) uint64."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = np.arange(width), np.arange(rows.start, rows.stop)
    # Inverse map: place (x, y) of the result -> (cos x - sin y + left, sin x + cos y + top) of the picture.
    left = width / 2 - cos * width / 2 + sin * height / 2
    top = height / 2 - sin * width / 2 - cos * height / 2
    source_x = _fixed(cos * x)[None, :] + (_fixed(-sin * y + left) + 16)[:, None] >> 5  # in 1/32 pixel
    source_y = _fixed(sin * x)[None, :] + (_fixed(cos * y + top) + 16)[:, None] >> 5
    x_part, y_part = (source_x & 31).astype(np.uint64), (source_y & 31).astype(np.uint64)
    source_x, source_y = source_x >> 5, source_y >> 5
    columns = _reflect(source_x, width), _reflect(source_x + 1, width)
    # Interpolating is linear: all channels at once in one number, modulo 2^64, since no lane of the result overflows.
    mixed = []
    for line in (_reflect(source_y, height) * width, _reflect(source_y + 1, height) * width):
        near, far = packed[line + columns[0]], packed[line + columns[1]]
        mixed.append((near << 5) + x_part * (far - near))
    return (mixed[0] << 5) + y_part * (mixed[1] - mixed[0])


def _fixed(places: np.ndarray) -> np.ndarray:
    """Rounded to 1/1024 pixel, half to even."""
    return np.rint(1024 * places).astype(np.int64)


def _reflect(places: np.ndarray, size: int) -> np.ndarray:
    """Places beyond [0, size) mirrored into it, as often as it takes: ... 2 1 | 0 1 2 ..."""
    if places.min() >= 0 and places.max() < size:
        return places
    if size == 1:
        return np.zeros_like(places)
    places = np.abs(places) % (2 * size - 2)
    return np.minimum(places, 2 * size - 2 - places)


def _pack(pixels: np.ndarray) -> np.ndarray:
    """(n, channels) uint8 -> (n,) uint64, a lane for each channel."""
    lanes = [pixels[:, channel].astype(np.uint64) << (_LANE * channel) for channel in range(pixels.shape[1])]
    return np.bitwise_or.reduce(lanes)


def _unpack(packed: np.ndarray, into: np.ndarray) -> None:
    """Round to whole grey levels: (h, w) uint64 -> (h, w) or (h, w, channels) uint8."""
    channels = into.reshape(*packed.shape, -1)
    for channel in range(channels.shape[2]):
        channels[..., channel] = ((packed >> (_LANE * channel)) + 512 >> 10) & 255
