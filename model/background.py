"""Which patches show the object, and which the background, on the grid of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.foreground import by_component
from model.subspace import exact


def above_quantile(saliency: Tensor, share: float) -> Tensor:
    """Foreground of each image, (B, N) bool: all but the patches below its quantile (linear between values).

    Args:
        saliency: (B, N).
        share: of patches that are background, from 0 to 1.
    """
    ordered = saliency.sort(dim=1).values
    place = share * (saliency.shape[1] - 1)
    below = int(place)
    low, high = ordered[:, below, None], ordered[:, min(below + 1, saliency.shape[1] - 1), None]
    return saliency >= torch.lerp(low, high, place - below)


def above_otsu(saliency: Tensor) -> Tensor:
    """Foreground of each image, (B, N) bool, by Otsu's threshold on 256 grey levels.

    saliency: (B, N).
    """
    values = exact(saliency)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    grey = (255 * (values - low) / torch.where(high > low, high - low, 1.0)).round()  # (B, N)
    levels = torch.arange(256, device=values.device)
    counts = (grey[..., None] == levels).sum(1).double()  # (B, 256)
    number, total = counts.cumsum(1), (counts * levels).cumsum(1)  # at or below each level
    spread = number * saliency.shape[1] - number.square()  # of both sides' numbers; 0 where one side is empty
    difference = (total[:, -1:] * number - total * saliency.shape[1]).square()
    between = torch.where(spread > 0, difference / spread.clamp_min(1), 0.0)  # variance between the sides, scaled
    return (grey > between.argmax(1, keepdim=True)).to(saliency.device)


def above_normality(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Foreground of each image, (B, N) bool, from the first principal component of its own tokens: AnomalyDINO's mask,
    with dilation and closing on the grid.

    Args:
        tokens: (B, N, W).
        grid: (rows, columns) of the N patches.
    """
    dilated = _dilate(by_component(tokens, grid).unflatten(1, grid))  # (B, G, G)
    return _erode(_dilate(dilated)).flatten(1)


def _dilate(mask: Tensor) -> Tensor:
    """(B, G, G) bool; each patch takes the largest of the 3 x 3 about it, what is outside does not count."""
    return F.max_pool2d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0


def _erode(mask: Tensor) -> Tensor:
    return ~_dilate(~mask)
