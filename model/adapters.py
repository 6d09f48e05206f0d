"""Adapters shared by methods, and the loading of trained parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from model import anomaly_map, state_dicts


class Adapters(nn.Module):
    """One linear map with bias per tapped layer, from that layer's width into the joint embedding.

    State dict keys are the published ones: fc.0.weight (D, W), fc.0.bias (D,), fc.1.weight, ...
    """

    def __init__(self, widths: Sequence[int], embed_dim: int):
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for width in widths)

    def forward(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """Per layer (B, N, W) -> (B, N, D)."""
        return [fc(tokens) for fc, tokens in zip(self.fc, patches, strict=True)]

    def pixel_logits(
        self,
        patches: Mapping[int, Tensor],
        grids: Mapping[int, tuple[int, int]],
        text: Tensor,
        scale: float | Tensor,
        size: int,
    ) -> list[Tensor]:
        """Per layer, in order, the logit of "abnormal" at each pixel, (B, size, size) (APRIL-GAN, section 3.1).

        Args:
            patches: layer -> (B, N, W), as many layers as there are adapters.
            grids: layer -> (G, G).
            text: (B, D, 2), unit length.
            scale: inverse temperature.
        """
        layers = sorted(patches)
        adapted = self([patches[layer].float() for layer in layers])
        return [
            anomaly_map.upsample(anomaly_map.state_logit(features, text, scale), grids[layer], size, align_corners=True)
            for layer, features in zip(layers, adapted, strict=True)
        ]


def load_part(module: nn.Module, state: Mapping[str, Any], key: str, method: str) -> None:
    """Load the part of a checkpoint under `key` into a module.

    Raises:
        ValueError: no such part; see `load_exactly`.
    """
    if key not in state:
        raise ValueError(
            f"no '{key}' in it (found: {', '.join(map(str, state))[:90] or 'nothing'}); it is no checkpoint of {method}"
        )
    load_exactly(module, state[key])


def load_exactly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` that names what differs in one line.

    Raises:
        ValueError: a missing or surplus key, a tensor of another shape or kind of numbers, NaN or infinity.
    """
    own = module.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError("its weights are no mapping of names to tensors")
    state_dicts.check_tensors(state)
    state = state_dicts.strip_prefixes(state, own)
    try:
        state_dicts.check_fit(*({key: tuple(value.shape) for key, value in one.items()} for one in (state, own)))
    except ValueError as error:
        raise ValueError(f"{error}; were model, features_list or method others when it was trained?") from None
    for key, value in state.items():
        if value.is_floating_point() != own[key].is_floating_point():
            kind = "floating-point" if own[key].is_floating_point() else "whole"
            raise ValueError(f"'{key}' holds {str(value.dtype).removeprefix('torch.')} numbers, not {kind} ones")
        if not value.isfinite().all():
            raise ValueError(f"'{key}' holds NaN or infinity; take an earlier checkpoint or train again")
    module.load_state_dict(state)
