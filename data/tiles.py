"""Large pictures in overlapping tiles: where they lie, how each becomes an input, and with which weights what is found
in them is put together again."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.input_spec import InputSpec, OwnSizeMaps

MOST_TILES = 16  # a side
MOST_OVERLAP = 0.5  # beyond it three tiles share a place, which costs time and shows nothing new


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: into side x side tiles of its own shape, one size for all.

    side: tiles a side; 1: not at all.
    overlap: what a tile shares with the next one, as a part of its side, at least; a defect that is no larger lies
        whole in one of them.
    """

    side: int = 1
    overlap: float = 0.0

    def __str__(self) -> str:
        """As descriptions of a detector have it."""
        return "none" if self.side == 1 else f"{self.side} x {self.side}, overlap {self.overlap:g}"

    @property
    def count(self) -> int:
        """Tiles of a picture."""
        return self.side**2

    def spans(self, length: int) -> list[tuple[int, int]]:
        """(start, end) of the tiles along an edge of so many pixels; all of one size, the first at the beginning, the
        last at the end."""
        size = min(length, math.ceil(length / (self.side - (self.side - 1) * self.overlap)))
        steps = max(1, self.side - 1)
        return [(start, start + size) for start in (round(k * (length - size) / steps) for k in range(self.side))]

    def weights(self, length: int) -> Tensor:
        """Of the tiles along an edge: (side, pixels of a tile) float32, a Hann window each, divided by the sum of all
        that cover the place; so they sum to one everywhere."""
        spans = self.spans(length)
        size = spans[0][1] - spans[0][0]
        window = torch.sin(math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size).square()
        total = torch.zeros(length, dtype=torch.float64)
        for start, end in spans:
            total[start:end] += window
        return torch.stack([window / total[start:end] for start, end in spans]).float()


WHOLE_PICTURES = Tiling()


@dataclass(frozen=True)
class TiledInput(OwnSizeMaps):
    """Pictures in tiles, each of which becomes an input as a whole picture would. Maps and masks have the picture's own
    size.

    spec: of one tile.
    """

    spec: InputSpec
    tiling: Tiling

    @property
    def side(self) -> int:
        return self.spec.side

    def image(self, picture: Image.Image) -> Tensor:
        """(T, 3, h, w) uint8 RGB, the tiles row by row."""
        rows, columns = self.tiling.spans(picture.height), self.tiling.spans(picture.width)
        boxes = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        return torch.stack([self.spec.image(picture.crop(box)) for box in boxes])

    def blank(self) -> Tensor:
        """(T, 3, h, w) uint8"""
        return torch.stack([self.spec.blank()] * self.tiling.count)


def inputs_per_picture(taker: Any) -> int:
    """How many inputs each picture becomes: 1, or its tiles. taker: a dataset or a detector; one without an
    `input_spec` takes whole pictures."""
    spec = getattr(taker, "input_spec", None)
    return spec.tiling.count if isinstance(spec, TiledInput) else 1
