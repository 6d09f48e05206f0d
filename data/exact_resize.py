"""Pillow's resizing in PyTorch, on any device and bit for bit: so a GPU can do it, and its readers only decode.

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
_TRIED = 8  # columns that are compared

Filter = Literal["bicubic", "bilinear"]


def resize(images: Tensor, height: int, width: int, kind: Filter) -> Tensor:
    """Resize as `Image.resize` does where `is_exact`.

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


@lru_cache(256)
def is_exact(before: tuple[int, int], after: tuple[int, int], kind: Filter) -> bool:
    """Whether `resize` gives what the Pillow that is installed gives, from (H, W) to (H, W). Not always: for some tall
    pictures Pillow 13 begins with the columns. Found by trying it on noise of that size."""
    noise = np.random.default_rng(0).integers(0, 256, before, np.uint8)
    wanted = np.asarray(Image.fromarray(noise).resize(after[::-1], _FILTERS[kind].of_pillow))[:, :_TRIED]
    found = torch.from_numpy(noise)[None, :, :, None]
    if before[1] != after[1]:
        places, weights = map(torch.from_numpy, _weights(before[1], after[1], kind))
        found = _along(found, 2, places[:, :_TRIED], weights[:, :_TRIED])
    found = resize(found[:, :, :_TRIED], after[0], min(_TRIED, after[1]), kind)
    return np.array_equal(found[0, :, :, 0].numpy(), wanted)


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
