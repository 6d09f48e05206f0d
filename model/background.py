"""Which patches show the object, and which the background, on the grid of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.subspace import exact

_NORMALITY = 10.0  # score on the first principal component above which a patch is foreground
_CENTRE = (0.2, 0.8)  # share of the grid's sides where the object is expected
_LEAST = (7, 20)  # of the centre, as a fraction: with no more foreground than that, the sign is taken to be wrong


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
    """Foreground of each image, (B, N) bool, from the first principal component of its own tokens: AnomalyDINO's mask
    (its section 3.3), with a closing on the grid.

    Args:
        tokens: (B, N, W).
        grid: (rows, columns) of the N patches.
    """
    scores = torch.stack([_first_component(one) for one in tokens]).unflatten(1, grid)  # (B, G, G)
    foreground = scores > _NORMALITY
    (top, bottom), (left, right) = (tuple(int(share * side) for share in _CENTRE) for side in grid)
    centre = foreground[:, top:bottom, left:right].flatten(1)
    wrong = centre.sum(1) * _LEAST[1] <= _LEAST[0] * centre.shape[1]  # (B,)
    foreground = torch.where(wrong[:, None, None], -scores > _NORMALITY, foreground)
    return _erode(_dilate(_dilate(foreground))).flatten(1)


def _first_component(tokens: Tensor) -> Tensor:
    """Scores (N,) of an image's tokens (N, W) on their first principal component, whose largest loading is positive."""
    centred = exact(tokens)
    centred = centred - centred.mean(0)
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]  # (W,)
    direction = direction * direction[direction.abs().argmax()].sign()
    return (centred @ direction).float().to(tokens.device)


def _dilate(mask: Tensor) -> Tensor:
    """(B, G, G) bool; each patch takes the largest of the 3 x 3 about it, what is outside does not count."""
    return F.max_pool2d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0


def _erode(mask: Tensor) -> Tensor:
    return ~_dilate(~mask)
