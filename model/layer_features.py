"""The tokens of several layers of a backbone as one feature at each place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.interface import Tokens


def join_layers(tokens: Tokens, layers: Sequence[int]) -> Tensor:
    """The tokens of each layer, of unit length at each place, averaged on the coarsest of their grids, one after the
    other: (B, N, sum of the widths)."""
    grid = coarsest(tokens, layers)
    each = [F.normalize(tokens.patches[layer].float(), dim=-1) for layer in layers]
    averaged = [average(one, tokens.grids[layer], grid) for one, layer in zip(each, layers, strict=True)]
    return torch.cat(averaged, dim=-1)


def coarsest(tokens: Tokens, layers: Sequence[int]) -> tuple[int, int]:
    """The grid with the fewest places."""
    return min((tokens.grids[layer] for layer in layers), key=lambda grid: grid[0] * grid[1])


def average(tokens: Tensor, grid: tuple[int, int], coarser: tuple[int, int]) -> Tensor:
    """Tokens at the places of a grid, (B, N, W), averaged at those of a coarser one."""
    if grid == coarser:
        return tokens
    return F.adaptive_avg_pool2d(tokens.mT.unflatten(2, grid), coarser).flatten(2).mT
