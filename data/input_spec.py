"""How a picture becomes what a detector takes. The specification belongs to the detector; the dataset asks it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InputSpec(Protocol):
    """Turns pictures and masks into tensors. Images of one batch must come out with one shape."""

    @property
    def side(self) -> int:
        """The longer side of an input in pixels; bounds what reading a picture may cost."""

    def image(self, picture: Image.Image) -> Tensor:
        """Grey or RGB of any size -> (3, H, W) uint8 RGB."""

    def blank(self) -> Tensor:
        """(3, H, W) uint8, what stands for an image that cannot be read."""

    def mask(self, mask: Image.Image) -> Tensor:
        """A mask of 0 and 255, as large as its picture -> (H, W) uint8, 1 = defect."""


@dataclass(frozen=True)
class SquareInput:
    """Pictures stretched to S x S, bicubic; grey becomes RGB after that, as in the published programs.

    side: S.
    """

    side: int

    def image(self, picture: Image.Image) -> Tensor:
        """(3, S, S) uint8 RGB"""
        picture = picture.resize((self.side, self.side), Image.Resampling.BICUBIC).convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def blank(self) -> Tensor:
        """(3, S, S) uint8, black"""
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8)

    def mask(self, mask: Image.Image) -> Tensor:
        """Stretched, bilinear; defect above half of full scale. (S, S) uint8"""
        return torch.from_numpy(resize_mask(mask, self.side))


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """A mask of 0 and 255, stretched to S x S, bilinear; defect above half of full scale. (S, S) uint8, 1 = defect"""
    pixels = np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR))
    return (pixels > 127).astype(np.uint8)
