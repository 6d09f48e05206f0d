"""Anomaly maps in colours: the scale, and how they are laid over a picture."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.box import WHOLE, Box

_SAMPLED = 4096  # pixels of a map that are kept for the ends of the colour scale
SCALE_IMAGES = 64  # images whose maps give these ends, where there are no normal ones
_GREYS = np.arange(256, dtype=np.uint8).reshape(256, 1)
_COLOURS = np.ascontiguousarray(cv2.applyColorMap(_GREYS, cv2.COLORMAP_TURBO)[:, 0, ::-1])  # (256, 3) RGB
_STRENGTH = 0.2 + 0.8 * np.sqrt(np.arange(256) / 255)  # of the colours, from low to high


def panel_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of a picture -> those of its panel, whose longer side is given."""
    width, height = (max(16, round(length * side / max(size))) for length in size)
    return width, height


def resize_longest_side(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """A picture whose longer side has the given number of pixels, (H, W, 3) uint8 RGB."""
    size = panel_size(image.size, side)
    picture = image if image.mode == "RGB" else image.convert("RGB")
    # Averages of whole pixels first, which is 0.7 times the work. Hamming's filter is as sharp as the bicubic one where
    # it makes smaller, and takes two thirds of its time.
    smaller = max(size) < max(image.size)
    resampling = Image.Resampling.HAMMING if smaller else Image.Resampling.BICUBIC
    return np.asarray(picture.resize(size, resampling, reducing_gap=1.0))


def crop(image: Image.Image, box: Box) -> Image.Image:
    """A part of a picture."""
    if box == WHOLE:
        return image
    left, top, right, bottom = (round(part * side) for part, side in zip(box, image.size * 2, strict=True))
    return image.crop((left, top, right, bottom))


def blend_heatmap(
    picture: NDArray[np.uint8], heat: NDArray[Any], opacity: float = 0.75, threshold: float = 0.0
) -> NDArray[np.uint8]:
    """The colours of a map laid over a picture, the stronger the higher: what is normal stays visible.

    Args:
        picture: (H, W, 3) uint8 RGB.
        heat: (S, S) in [0, 1], the colour scale's ends; values beyond them are cut off.
        opacity: 0 shows the picture alone, 1 the colour alone where the map is highest.
        threshold: what lies below is left as it is, and what lies above gets an outline; 0 colours everything.

    Returns:
        (H, W, 3) uint8 RGB
    """
    heat = np.clip(cv2.resize(heat.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR), 0, 1)
    levels = cv2.convertScaleAbs(heat, alpha=255)  # (H, W) uint8
    weights = cv2.LUT(levels, (opacity * _STRENGTH).astype(np.float32))
    # OpenCV's tables and its mean take half the time of NumPy's.
    blended: NDArray[Any] = cv2.blendLinear(picture, cv2.applyColorMap(levels, _COLOURS[:, None]), 1 - weights, weights)
    above = heat >= threshold
    if threshold > 0:
        blended[~above] = picture[~above]
    if threshold > 0 and opacity > 0:
        contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for colour, width in (((20, 20, 20), 3), ((255, 255, 255), 1)):  # seen on any ground
            cv2.drawContours(blended, contours, -1, colour, width, cv2.LINE_AA)
    return blended


def css_gradient(stops: int = 17) -> str:
    """The colour scale, from low to high, as CSS."""
    chosen = _COLOURS[np.linspace(0, 255, stops).astype(int)].tolist()
    return f"linear-gradient(to right, {', '.join('rgb({}, {}, {})'.format(*one) for one in chosen)})"


def sample_pixels(one: NDArray[Any], images: int = 1) -> NDArray[np.float32]:
    """Some pixels of a map, evenly spread, (n,) float32, n at most 4096; of such a sample, the same again.

    images: how many maps are sampled; of more than 64 each gives less, so that together they stay as few.
    """
    step = math.ceil(math.sqrt(one.size / _SAMPLED * max(1, images / SCALE_IMAGES)))
    step = min(step, len(one))
    some = one[step // 2 :: step, step // 2 :: step] if one.ndim == 2 else one
    return some.ravel().astype(np.float32)


def on_scale(one: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """A map, (S, S), on a colour scale: 0 at `low`, 1 at `high`. One that reaches above it has an upper end of its own,
    and one that lies above it altogether a lower end, too, so that no defect drowns in a single colour."""
    least, most = np.quantile(sample_pixels(one), (0.01, 0.999))
    bottom = least if least > high else low
    scaled: NDArray[Any] = (one - bottom) / max(most - bottom, high - low)
    return scaled


class HeatScale:
    """The ends of the colour scale: the median and the 99.9th percentile of the pixels of some maps."""

    def __init__(self, images: int):
        self._left = images
        self._parts: list[NDArray[np.float32]] = []

    @property
    def full(self) -> bool:
        """Whether as many maps have come as were wanted."""
        return self._left <= 0

    def add(self, one: NDArray[Any]) -> None:
        """one: (S, S), or what `sample_pixels` keeps of it."""
        self._parts.append(sample_pixels(one))
        self._left -= 1

    def ends(self, stretch: float = 1.0) -> tuple[float, float]:
        """(low, high); stretch: how many times as far above the median the upper end lies, for normal images."""
        low, high = np.quantile(np.concatenate(self._parts), (0.5, 0.999))
        return float(low), float(low + max(stretch * (high - low), 1e-6))
