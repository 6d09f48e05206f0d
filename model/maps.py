"""From values at patches to maps of pixels, and the scale of scores."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(values: Tensor, grid: tuple[int, int], size: int, *, align_corners: bool) -> Tensor:
    """Bilinear interpolation of values at patches, (B, N), to (B, S, S) pixels."""
    values = values.unflatten(1, (1, *grid))  # (B, 1, G, G)
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=align_corners)[:, 0]


def state_logit(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """Logit of "abnormal" against "normal" under a softmax over scaled cosine similarities.

    The softmax of two states is the sigmoid of the difference of their logits, and interpolation is linear: working
    with the difference does half the work for the same numbers.

    Args:
        features: (B, N, D), any length.
        text: (B, D, 2), unit length.
        scale: inverse temperature.

    Returns:
        (B, N)
    """
    direction = text[..., 1] - text[..., 0]  # (B, D)
    return scale * torch.einsum("bnd,bd->bn", F.normalize(features, dim=-1), direction)


def minmax_over_class(values: Tensor) -> Tensor:
    """Rescale to [0, 1] over all given values, (n,): the published image scores look at the whole test set of a class.

    Equal values (one image, constant scores) give 0.
    """
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
