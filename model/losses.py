"""Segmentation losses on state probabilities; pure functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

_SMOOTH = 1e-5


def segmentation_losses(probabilities: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
    """{"focal", "dice"}, each summed over the maps, in single precision.

    Args:
        probabilities: per map (B, 2, S, S), each pixel's probabilities of (normal, abnormal).
        masks: (B, S, S), 1 = defect.
    """
    with torch.autocast(masks.device.type, enabled=False):
        return {
            "focal": torch.stack([focal(one.float(), masks) for one in probabilities]).sum(),
            "dice": torch.stack([dice(one[:, 1].float(), masks) for one in probabilities]).sum(),
        }


def focal(probabilities: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., arXiv 1708.02002) as APRIL-GAN's program computes it: without class weights.

    Args:
        probabilities: (B, 2, S, S), each pixel's probabilities of (normal, abnormal).
        mask: (B, S, S), 1 = defect.

    Returns:
        A scalar: the mean of -(1 - pt)^gamma log pt over all pixels.
    """
    target = torch.stack([1 - mask, mask], dim=1).to(probabilities.dtype).clamp(_SMOOTH, 1 - _SMOOTH)  # (B, 2, S, S)
    pt = (target * probabilities).sum(1) + _SMOOTH  # (B, S, S)
    return -((1 - pt) ** gamma * pt.log()).mean()


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Dice loss (Milletari et al., arXiv 1606.04797): 1 - mean over images of (2 sum p g + 1) / (sum p + sum g + 1).

    Args:
        probability: (B, S, S), each pixel's probability of being abnormal.
        mask: (B, S, S), 1 = defect.
    """
    p, g = probability.flatten(1), mask.flatten(1).to(probability.dtype)  # (B, S * S)
    return 1 - ((2 * (p * g).sum(1) + 1) / (p.sum(1) + g.sum(1) + 1)).mean()
