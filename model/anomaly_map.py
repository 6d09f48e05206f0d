"""From values at patches to maps of pixels, and the scale of scores."""

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from model.interface import ScoreRange


def upsample(values: Tensor, grid: tuple[int, int], size: int, *, align_corners: bool) -> Tensor:
    """Bilinear interpolation of values at patches, (B, N), to (B, S, S) pixels."""
    values = values.unflatten(1, (1, *grid))  # (B, 1, G, G)
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=align_corners)[:, 0]


def state_logit(features: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """Logit of "abnormal" against "normal" under a softmax over scaled cosine similarities.

    The softmax of two states is the sigmoid of the difference of their logits, and interpolation is linear: working
    with the difference does half the work for the same numbers.

    Args:
        features: (B, N, D), any length.
        text: (B, D, 2), unit length; (1, D, 2) serves all images.
        scale: inverse temperature.

    Returns:
        (B, N)
    """
    direction = text[..., 1] - text[..., 0]  # (B, D)
    return scale * (F.normalize(features, dim=-1) @ direction[..., None])[..., 0]


def state_probabilities(logit: Tensor) -> Tensor:
    """Probabilities of (normal, abnormal) from the logit of "abnormal": (B, S, S) -> (B, 2, S, S)."""
    return torch.sigmoid(torch.stack([-logit, logit], dim=1))


def minmax_over_class(values: Tensor) -> Tensor:
    """Rescale to [0, 1] over all given values, (n,): the published image scores look at the whole test set of a class.

    Equal values (one image, constant scores) give 0.
    """
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def rescale(score_components: Mapping[str, Tensor], key: str, limits: ScoreRange | None) -> Tensor:
    """A term of the image score, (n,), on the scale that is asked for.

    limits None is the published, transductive way, see `minmax_over_class`; otherwise a score does not depend on other
    test images: the term's limits become 0 and 1, and values beyond them go beyond.
    """
    if limits is None:
        return minmax_over_class(score_components[key])
    low, high = limits[key]
    return (score_components[key] - low) / (high - low)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the last two axes: what `scipy.ndimage.gaussian_filter` gives with its defaults (cut off at
    4 sigma, edges reflected), for a batch and on the device.

    Args:
        maps: (B, H, W) float32.
        sigma: standard deviation in pixels; 0 changes nothing.
    """
    if sigma == 0:
        return maps
    rows, columns = (_gaussian_matrix(size, sigma).to(maps) for size in maps.shape[-2:])  # (H, H), (W, W)
    return rows @ maps @ columns.T


def upsample_smoothly(values: Tensor, grid: tuple[int, int], size: tuple[int, int], sigma: float) -> Tensor:
    """`upsample` with align_corners=False to any size, and `gaussian` after it, at a small part of the cost: both are
    linear, along the rows and along the columns, so that one thin matrix an axis does both.

    Args:
        values: at patches, (B, N).
        grid: (g_h, g_w), with N = g_h * g_w.
        size: (H, W) of the maps.
        sigma: standard deviation in pixels.

    Returns:
        (B, H, W) float32
    """
    pairs = zip(size, grid, strict=True)
    rows, columns = (_smooth_upsampling(pixels, patches, sigma).to(values) for pixels, patches in pairs)
    return rows @ values.unflatten(1, grid) @ columns.T


@functools.lru_cache(maxsize=64)
def _smooth_upsampling(size: int, patches: int, sigma: float) -> Tensor:
    """Along one axis as a matrix, (size, patches)."""
    each = torch.eye(patches, dtype=torch.float64)[None]  # (1, patches, patches)
    matrix = F.interpolate(each, size=size, mode="linear", align_corners=False)[0].T  # (size, patches)
    place, weights = _taps(size, sigma)
    return torch.einsum("itp,t->ip", matrix[place], weights).float()


@functools.lru_cache(maxsize=8)
def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """The filter along one axis as a matrix, (size, size): row i holds the weights of pixel i, those beyond an edge
    folded back into the picture as often as it takes."""
    place, weights = _taps(size, sigma)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, place, weights.expand(size, -1).contiguous()).float()


def _taps(size: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Of the filter along one axis: the pixels that each pixel looks at, (size, taps), and their weights, (taps,)."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    place = (torch.arange(size)[:, None] + offsets) % (2 * size)  # reflected pictures repeat after 2 * size
    return torch.where(place < size, place, 2 * size - 1 - place), weights / weights.sum()
