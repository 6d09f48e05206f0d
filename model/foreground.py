"""Which patches of an image show the object: AnomalyDINO's mask, from the first principal component of its features."""

import torch
import torch.nn.functional as F
from torch import Tensor

_THRESHOLD = 10.0  # of the component, in the units of DINOv2's features after the final norm
_CENTRE = (0.2, 0.8)  # of rows and columns: where the object is looked for
_LEAST = 0.35  # share of the centre that must be foreground
# The covariance to the power 2^8 turns a vector 2^6 times: eigenvalues a thousandth apart are told from each other.
_SQUARINGS, _STEPS = 8, 64


def foreground(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of the object, (B, N) bool; may be none: those of `by_component`, then dilation and closing, in
    raster order (see `_dilate`).

    Args:
        features: (B, N, W), not normalised.
        grid: (g_h, g_w), with N = g_h * g_w.
    """
    return _close(_dilate(by_component(features, grid)))


def by_component(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches whose first component is above a threshold; where these cover little of the centre, those below minus the
    threshold. As `foreground`, without morphology."""
    component = first_component(features)
    mask = component > _THRESHOLD
    rows, columns = (slice(*(int(share * side) for share in _CENTRE)) for side in grid)
    centre = mask.unflatten(1, grid)[:, rows, columns].flatten(1)
    few = centre.sum(1, keepdim=True) <= centre.shape[1] * _LEAST  # (B, 1)
    return (few & (-component > _THRESHOLD)) | (~few & mask)  # onnxruntime has no choice of bools


def first_component(features: Tensor) -> Tensor:
    """Scores of each image's first principal component, (B, N), (B, N, W) centred by itself; of its loadings the one
    with the largest absolute value is positive.

    By powers of the covariance: products alone, which every device and ONNX have.
    """
    centred = features.float() - features.float().mean(1, keepdim=True)
    power = _scaled(centred.mT @ centred)  # (B, W, W)
    for _ in range(_SQUARINGS):
        power = _scaled(power @ power)
    start = power.diagonal(dim1=1, dim2=2).argmax(1)
    loadings = power.gather(1, start[:, None, None].expand(-1, 1, power.shape[2])).mT  # (B, W, 1)
    for _ in range(_STEPS):
        loadings = F.normalize(power @ loadings, dim=1)
    largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))  # (B, 1, 1)
    return (centred @ (loadings * torch.where(largest < 0, -1.0, 1.0)))[..., 0]


def _scaled(power: Tensor) -> Tensor:
    """By its largest entry, so that no power of it overflows."""
    return power / power.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)


def _dilate(mask: Tensor) -> Tensor:
    """Each patch with its neighbours in raster order, across the ends of rows; what lies outside does not count.

    The published program dilates with a 3 x 3 square, but an N x 1 column instead of the grid: this is what it does.
    """
    return F.max_pool1d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0


def _close(mask: Tensor) -> Tensor:
    """Dilation, then erosion."""
    return ~_dilate(~_dilate(mask))
