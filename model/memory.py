"""The memory bank: the reference images' patch tokens, and the distance of a token to its nearest one."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at once; bounds the memory of a search to 256 MiB whatever the size of the bank.
_CHUNK = 1 << 26


def bank(tokens: Tensor) -> Tensor:
    """Pool the tokens of the reference images, (k, N, W), into one bank of unit vectors, (k * N, W), float32."""
    return F.normalize(tokens.flatten(0, 1).float(), dim=-1)


def nearest_distance(tokens: Tensor, references: Tensor) -> Tensor:
    """Cosine distance of each token to its nearest reference token, clamped at 0.

    Args:
        tokens: (B, N, W), any length.
        references: (M, W), unit length.

    Returns:
        (B, N), in [0, 2]
    """
    queries = F.normalize(tokens.flatten(0, 1).float(), dim=-1)  # (B * N, W)
    rows = max(1, _CHUNK // len(references))
    best = torch.cat([(part @ references.T).amax(1) for part in queries.split(rows)])  # (B * N,)
    return (1 - best).clamp_min(0).unflatten(0, tokens.shape[:2])
