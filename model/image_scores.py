"""One number for an anomaly map, by name: maps (B, H, W) -> (B,)."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PROBABILITY = "text"  # the component of image scores that is a probability: of "abnormal", by the texts


def top_mean(maps: Tensor, count: int) -> Tensor:
    """Mean of the so many largest values of each map."""
    return maps.flatten(1).topk(count, sorted=False).values.mean(1)


def top_share_mean(maps: Tensor, share: float) -> Tensor:
    """Mean of that share of largest values, of one at least."""
    return top_mean(maps, max(1, int(share * maps[0].numel())))


def quantile(maps: Tensor, share: float) -> Tensor:
    """Quantile of each map, linear between values. From the largest down, since it is meant for high ones."""
    place = share * (maps[0].numel() - 1)
    below = math.floor(place)
    top = maps.flatten(1).topk(maps[0].numel() - below).values  # descending; the last is at `below`
    return torch.lerp(top[:, -1], top[:, max(top.shape[1] - 2, 0)], place - below)


IMAGE_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mtop1p": lambda maps: top_share_mean(maps, 0.01),
    "max": lambda maps: maps.amax((1, 2)),
    "mean": lambda maps: maps.mean((1, 2)),
    "p99": lambda maps: quantile(maps, 0.99),
    "mtop5": lambda maps: top_mean(maps, 5),
}
