"""Resizing as the published programs do it, bit for bit: by Pillow, and in PyTorch on any device, so that a GPU's
readers only decode.

Pillow sums pixels of 8 bits with weights in units of 2^-22, along the rows first, and rounds to 8 bits after each
direction. Integers give the same anywhere.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_BITS = 22  # of a weight behind the point

Filter = Literal["bicubic", "bilinear"]


def resize_picture(picture: Image.Image, width: int, height: int, kind: Filter) -> Image.Image:
    """A picture of 8 bits at another size, the rows first. Pillow 13 begins with the columns where a picture is much
    taller than what it becomes, which gives other values."""
    resampling = _FILTERS[kind].of_pillow
    return picture.resize((width, picture.height), resampling).resize((width, height), resampling)


def resize(images: Tensor, height: int, width: int, kind: Filter) -> Tensor:
    """The same as `resize_picture`.

    Args:
        images: (B, H, W, C) uint8.
        height, width: wanted, in pixels.
        kind: of filter.

    Returns:
        (B, height, width, C) uint8, on the device of the images.
    """
    for axis, length in ((2, width), (1, height)):
        if images.shape[axis] != length:
            images = _along(images, axis, *_on_device(images.shape[axis], length, kind, images.device))
    return images


def _along(images: Tensor, axis: int, places: Tensor, weights: Tensor) -> Tensor:
    """Resize one axis of a uint8 tensor; places, weights: see `_weights`."""
    shape = [1] * images.ndim
    shape[axis] = -1
    total: Tensor | None = None
    for place, weight in zip(places, weights, strict=True):  # all at once would take ten times the memory
        pixels, weight = images.index_select(axis, place), weight.view(shape)
        total = pixels * weight if total is None else total.addcmul_(pixels.int(), weight)
    assert total is not None
    total += 1 << (_BITS - 1)
    total >>= _BITS
    return total.clamp_(0, 255).to(torch.uint8)


@lru_cache(64)
def _on_device(before: int, after: int, kind: Filter, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_weights` where they are needed."""
    places, weights = _weights(before, after, kind)
    return torch.from_numpy(places).to(device), torch.from_numpy(weights).to(device)


@lru_cache(64)
def _weights(before: int, after: int, kind: Filter) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For a length that becomes another one, (taps, after) each: the pixels that are summed, and their weights in units
    of 2^-22; in double precision and in Pillow's order, so that they round alike."""
    wide = max(before / after, 1.0)  # a filter grows with the step where it makes smaller
    function, support, _ = _FILTERS[kind]
    centre = (np.arange(after) + 0.5) * (before / after)
    first = np.maximum((centre - support * wide + 0.5).astype(int), 0)
    last = np.minimum((centre + support * wide + 0.5).astype(int), before)
    sums, columns = np.zeros(after), []
    for tap in range(int((last - first).max())):
        distance = np.abs((tap + first - centre + 0.5) * (1.0 / wide))
        columns.append(np.where(first + tap < last, function(distance), 0.0))
        sums += columns[-1]
    weights = np.stack(columns) / sums
    whole = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5))
    places = np.minimum(first + np.arange(len(columns))[:, None], before - 1)
    return places.astype(np.int32), whole.astype(np.int32)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5, at x >= 0."""
    a = -0.5
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A triangle, at x >= 0."""
    return np.where(x < 1.0, 1.0 - x, 0.0)


class _Kind(NamedTuple):
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    support: float
    of_pillow: Image.Resampling


_FILTERS = {
    "bicubic": _Kind(_bicubic, 2.0, Image.Resampling.BICUBIC),
    "bilinear": _Kind(_bilinear, 1.0, Image.Resampling.BILINEAR),
}
