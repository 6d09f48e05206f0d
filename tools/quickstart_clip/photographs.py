"""Photographs that come with scikit-image and scikit-learn, those of the sample data left out, with drawn defects: to
compare ways of training by, never to train on and never to report."""

from collections.abc import Iterator

import cv2
import numpy as np
from skimage import data
from sklearn.datasets import load_sample_image

from tools.quickstart_clip import scenes
from tools.quickstart_clip.pictures import Pair

_NAMES = ("astronaut", "camera", "cat", "cell", "clock", "hubble_deep_field", "immunohistochemistry", "moon", "rocket",
          "text")  # fmt: skip
_MORE = ("china.jpg", "flower.jpg")


def pairs(size: int, each: int) -> Iterator[Pair]:
    """So many crops of each photograph, turned and mirrored, without and with a defect."""
    for number, photograph in enumerate((*(getattr(data, name)() for name in _NAMES), *map(load_sample_image, _MORE))):
        rgb = np.ascontiguousarray(photograph[..., :3] if photograph.ndim == 3 else np.stack([photograph] * 3, -1))
        rng = np.random.default_rng((7, number))
        for _ in range(each):
            yield _pair(rgb, size, rng)


def _pair(photograph: np.ndarray, size: int, rng: np.random.Generator) -> Pair:
    """Tried until a defect tells itself from what is around it."""
    while True:
        reach = int(min(photograph.shape[:2]) * rng.uniform(0.45, 1))
        top, left = (int(rng.integers(0, side - reach + 1)) for side in photograph.shape[:2])
        crop = photograph[top : top + reach, left : left + reach]
        how = cv2.INTER_AREA if reach > size else cv2.INTER_CUBIC
        crop = np.rot90(cv2.resize(crop, (size, size), interpolation=how), int(rng.integers(4)))
        flawless = np.ascontiguousarray(crop).astype(np.float32) / 255
        scene = scenes.Scene(flawless, np.ones((size, size), np.float32), False, scenes.GENERIC, "photograph")
        image, mask, kind = scenes.with_defect(scene, rng)
        both = np.rint(255 * np.stack([flawless, image])).clip(0, 255).astype(np.uint8)
        one = scenes.Picture(both[0], both[1], mask, scenes.GENERIC, kind, "photograph")
        if kind is not None and scenes.telling(one):
            return Pair(both, mask, scenes.GENERIC, kind)
