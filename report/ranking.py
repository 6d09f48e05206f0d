"""report.html of images without labels that were scored together: all of them by their scores, the odd ones first."""

import base64
import heapq
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from report.heatmap import SCALE_IMAGES, HeatScale, on_scale
from report.html import render
from report.overlays import draw_panels

PICTURES = 100  # in a page, at 10 to 30 kB each
_SIDE = 240  # the longer side of a panel, in pixels
_GAP = 3  # between panels, in pixels


class _Kept(NamedTuple):
    """An image that may get a picture; of equal scores the first one counts more."""

    score: float
    order: int
    path: Path
    name: str
    map: NDArray[Any]


class _Picture(NamedTuple):
    name: str
    score: float
    rank: int
    source: str  # data URI
    width: int
    height: int


class Ranking:
    """What the page needs, in bounded memory: all scores, and small maps of the images that may get pictures.

    Args:
        load: path -> PIL image.
        pictures: how many of the highest scores get one.
    """

    def __init__(self, load: Callable[[Path], Image.Image], pictures: int = PICTURES):
        self._load, self._pictures = load, pictures
        self._scores: list[tuple[str, float]] = []
        self._kept: list[_Kept] = []  # a heap, the lowest score first
        self._scale = HeatScale(SCALE_IMAGES)

    def add(self, path: Path, name: str, score: float, one: NDArray[Any]) -> None:
        """Take an image; one: its map, (H, W)."""
        self._scores.append((name, score))
        if not self._scale.full:
            self._scale.add(one)
        if len(self._kept) == self._pictures and score <= self._kept[0].score:
            return
        scale = min(1.0, _SIDE / max(one.shape))
        small = cv2.resize(one.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        heapq.heappush(self._kept, _Kept(score, -len(self._scores), path, name, small))
        if len(self._kept) > self._pictures:
            heapq.heappop(self._kept)

    def write(self, page: Path, scored_by: str) -> None:
        """Write the page; scored_by: method and model, in words."""
        order = sorted(self._scores, key=lambda one: -one[1])
        low, high = self._scale.ends()
        pictures = [
            self._picture(kept, rank, low, high)
            for rank, kept in enumerate(sorted(self._kept, key=lambda kept: (-kept.score, -kept.order)), 1)
        ]
        render(page, "ranking.html.j2", images=order, pictures=pictures, scored_by=scored_by)

    def _picture(self, kept: _Kept, rank: int, low: float, high: float) -> _Picture:
        original, coloured, _ = draw_panels(self._load(kept.path), on_scale(kept.map, low, high), None, _SIDE)
        gap = np.full((original.shape[0], _GAP, 3), 255, np.uint8)
        picture, file = np.hstack([original, gap, coloured]), io.BytesIO()
        Image.fromarray(picture).save(file, "WEBP", quality=70, method=4)
        source = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        return _Picture(kept.name, kept.score, rank, source, picture.shape[1], picture.shape[0])
