"""Bundles of tokens: nested NamedTuples and dicts of tensors whose first axis is the image. Anything else in them, such
as the sizes of grids, is the same for all images."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def join_tokens(bundles: Sequence[Any]) -> Any:
    """Concatenate the tensors of equal bundles along the images."""
    first = bundles[0]
    if len(bundles) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(bundles))
    if isinstance(first, Mapping):
        return {key: join_tokens([bundle[key] for bundle in bundles]) for key in first}
    if hasattr(first, "_fields"):
        return type(first)(*map(join_tokens, zip(*bundles, strict=True)))
    return first


def split_tokens(bundle: Any, count: int) -> list[Any]:
    """A bundle of so many images -> one for each image."""
    return [each_tensor(bundle, operator.itemgetter(slice(row, row + 1))) for row in range(count)]


def to_device(bundle: Any, device: torch.device | str) -> Any:
    """The same on a device."""
    return each_tensor(bundle, lambda tensor: tensor.to(device))


def each_tensor(bundle: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The bundle with each of its tensors changed."""
    if isinstance(bundle, Tensor):
        return change(bundle)
    if isinstance(bundle, Mapping):
        return {key: each_tensor(value, change) for key, value in bundle.items()}
    if hasattr(bundle, "_fields"):
        return type(bundle)(*(each_tensor(value, change) for value in bundle))
    return bundle


def token_bytes(bundle: Any) -> int:
    """What the tensors of a bundle take."""
    if isinstance(bundle, Tensor):
        return bundle.numel() * bundle.element_size()
    if isinstance(bundle, Mapping):
        return sum(map(token_bytes, bundle.values()))
    return sum(map(token_bytes, bundle)) if hasattr(bundle, "_fields") else 0
