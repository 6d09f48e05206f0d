"""Views of reference images: turned and mirrored pictures, as plain values that can be written down and repeated."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps

from data.rotation import rotate_reflected

View = tuple[tuple[str, float], ...]  # operations in order, each with its number; () is the picture itself
ImageViews = tuple[tuple[View, ...], ...]  # of one image: for each time that a method looks at it, the views it sees

PLAIN: ImageViews = (((),),)  # once, the picture itself


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    """Counter-clockwise about the middle, nearest neighbour, the same size; corners become black."""
    return picture.rotate(degrees)


def _mirror(picture: Image.Image, _: float) -> Image.Image:
    return ImageOps.mirror(picture)


def _flip(picture: Image.Image, _: float) -> Image.Image:
    return ImageOps.flip(picture)


# The names stand in k_shot.json and in files of --save_memory.
OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "rotate": _rotate,
    "hflip": _mirror,
    "vflip": _flip,
    "rotate_reflected": rotate_reflected,
}


def apply_view(picture: Image.Image, view: View) -> Image.Image:
    """A picture as a view shows it, of the same size."""
    for name, value in view:
        picture = OPERATIONS[name](picture, value)
    return picture


def parse_views(value: Any, images: int) -> list[ImageViews]:
    """The views of so many images, out of JSON. Raises ValueError for anything else."""
    views = [tuple(tuple(tuple(_step(step) for step in view) for view in one) for one in each) for each in _list(value)]
    if len(views) != images or not all(each and all(each) for each in views):
        raise ValueError(f"views must be one or more for each of {images} references")
    return views


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"views must be a list, not {value!r:.80}")
    return value


def _step(step: Any) -> tuple[str, float]:
    name, value = step
    if name not in OPERATIONS or type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"a view is made of {', '.join(OPERATIONS)}, each with a number, not {step!r:.80}")
    return name, float(value)
