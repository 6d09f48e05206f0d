"""The tokens of several layers of a backbone as one feature at each place, and which layers these are."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.interface import ImageTower, Tokens


def join_layers(tokens: Tokens, layers: Sequence[int]) -> Tensor:
    """The tokens of each layer, of unit length at each place, averaged on the coarsest of their grids, one after the
    other: (B, N, sum of the widths)."""
    grid = coarsest(tokens, layers)
    each = [F.normalize(tokens.patches[layer].float(), dim=-1) for layer in layers]
    averaged = [average(one, tokens.grids[layer], grid) for one, layer in zip(each, layers, strict=True)]
    return torch.cat(averaged, dim=-1)


def compared_layers(backbone: ImageTower, published: Sequence[int]) -> Sequence[int]:
    """The layers whose tokens are compared with others' where no flag names any: the published ones of a ViT; of a CNN
    the two stages before the last, which is coarse and knows classes better than places."""
    return published if backbone.grid is not None else [-3, -2]


def aggregate(tokens: Tokens, groups: Sequence[Sequence[int]]) -> tuple[Tensor, tuple[int, int]]:
    """Per patch the means of groups of layers, concatenated.

    Returns:
        (B, N, W) float32 and its grid, the coarsest of the layers'.
    """
    grid = coarsest(tokens, [layer for group in groups for layer in group])
    means = [
        torch.stack([average(tokens.patches[layer].float(), tokens.grids[layer], grid) for layer in group]).mean(0)
        for group in groups
    ]
    return torch.cat(means, dim=-1), grid


def coarsest(tokens: Tokens, layers: Sequence[int]) -> tuple[int, int]:
    """The grid with the fewest places."""
    return min((tokens.grids[layer] for layer in layers), key=lambda grid: grid[0] * grid[1])


def average(tokens: Tensor, grid: tuple[int, int], coarser: tuple[int, int]) -> Tensor:
    """Tokens at the places of a grid, (B, N, W), averaged at those of a coarser one."""
    if grid == coarser:
        return tokens
    return F.adaptive_avg_pool2d(tokens.mT.unflatten(2, grid), coarser).flatten(2).mT


def layer_groups(
    backbone: ImageTower,
    aggregation: str,
    features_list: Sequence[int] | None,
    grouped_layers: str | None,
    default: Sequence[int],
) -> list[list[int]]:
    """Groups of layers, whose means are concatenated, numbered from 1.

    Args:
        aggregation: "mean" (one group), "concat" (each layer is one), "group".
        features_list, grouped_layers: as the flags give them; grouped_layers is "-1,-2:-3,-4" with "group", else None.
        default: layers where there is no features_list.

    Raises:
        ValueError: layers that do not exist; layers of one group with different widths; flags that do not go together.
    """
    if aggregation == "group":
        if grouped_layers is None or features_list is not None:
            raise ValueError("--aggregation group: takes its layers from --grouped_layers, and no --features_list")
        groups = [backbone.number_layers("--grouped_layers", group) for group in _parse_groups(grouped_layers)]
    else:
        if grouped_layers is not None:
            raise ValueError(f"--grouped_layers {grouped_layers}: requires --aggregation group")
        layers = backbone.number_layers("--features_list", features_list or default)
        groups = [layers] if aggregation == "mean" else [[layer] for layer in layers]
    for group in groups:
        widths = [backbone.width(layer) for layer in group]
        if len(set(widths)) > 1:
            raise ValueError(
                f"--features_list {' '.join(map(str, group))}: these layers of {backbone.name} have widths of "
                f"{', '.join(map(str, widths))}, and no mean; take one of them, or --aggregation concat"
            )
    return groups


def _parse_groups(text: str) -> list[list[int]]:
    try:
        return [[int(layer) for layer in group.split(",")] for group in text.split(":")]
    except ValueError:
        raise ValueError(
            f'--grouped_layers {text}: must be groups of layers, as in --grouped_layers="-1,-2:-3,-4"'
        ) from None
