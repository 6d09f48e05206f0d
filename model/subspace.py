"""The subspace of normal patch tokens: PCA from sums that add up over images, and the distance of a token to it.

The published program of SubspaceAD looks at its references twice, once for the mean and once for the covariance, and
turns them by other angles each time: the mean and the covariance come from different pictures. What is kept of an image
here holds both, so that images can be put together in any number of settings without being looked at again.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """What PCA needs of the tokens of some images, in float64."""

    total: int  # T, tokens of one pass, those of the background too
    first_sum: Tensor  # (W,), of the tokens that the first pass feeds
    fed: int  # tokens that the second pass feeds
    mean: Tensor  # (W,), of these
    scatter: Tensor  # (W, W), sum of their outer products about that mean


class Subspace(NamedTuple):
    """Where normal tokens lie."""

    mean: Tensor  # (1, W) float32
    components: Tensor  # (K, W) float32, orthonormal, the largest variance first


def exact(values: Tensor) -> Tensor:
    """The same in float64; in main memory where the device has none (Apple's)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def collect(passes: Sequence[tuple[Tensor, Tensor]]) -> TokenStatistics:
    """Statistics of images.

    Args:
        passes: what is seen of them the first and the second time, or once for both: tokens (B, N, W), and which are
            foreground (B, N) bool. Only these are fed; all of an image that has none.
    """
    first, first_sum = passes[0][0], _sum(*passes[0])
    tokens, foreground = passes[-1]
    chosen = _chosen(tokens, foreground)
    fed = sum(map(len, chosen))
    mean = (first_sum if len(passes) == 1 else _sum(tokens, foreground)) / fed
    scatter = mean.new_zeros(len(mean), len(mean))
    for one in chosen:  # image by image: many views in float64 would be large
        centred = exact(one) - mean
        scatter.addmm_(centred.T, centred)
    return TokenStatistics(first.shape[0] * first.shape[1], first_sum, fed, mean, scatter)


def _sum(tokens: Tensor, foreground: Tensor) -> Tensor:
    """Sum of the tokens that are fed, (W,) float64."""
    return torch.stack([exact(one).sum(0) for one in _chosen(tokens, foreground)]).sum(0)


def _chosen(tokens: Tensor, foreground: Tensor) -> list[Tensor]:
    """Per image its foreground tokens, (n, W)."""
    some = foreground.any(1).tolist()
    every = foreground.all(1).tolist()
    return [
        one[mask] if has and not whole else one
        for one, mask, has, whole in zip(tokens, foreground, some, every, strict=True)
    ]


def merge(statistics: Iterable[TokenStatistics]) -> TokenStatistics:
    """Statistics of all the images together."""
    return functools.reduce(_merge_two, statistics)


def _merge_two(one: TokenStatistics, other: TokenStatistics) -> TokenStatistics:
    fed = one.fed + other.fed
    between = other.mean - one.mean
    scatter = one.scatter + other.scatter
    scatter.addr_(between, between, alpha=one.fed * other.fed / fed)
    return TokenStatistics(
        one.total + other.total,
        one.first_sum + other.first_sum,
        fed,
        one.mean + between * (other.fed / fed),
        scatter,
    )


def fit(statistics: TokenStatistics, explained_variance: float, components: int | None = None) -> Subspace:
    """PCA in float64.

    As published, both sums are divided by the number of all tokens, T, where only those of the foreground were summed.

    Args:
        explained_variance: share of the variance that the kept directions reach.
        components: keep so many directions instead.

    Raises:
        ValueError: tokens with NaN or infinity.
    """
    mean = statistics.first_sum / statistics.total  # (W,)
    offset = statistics.mean - mean
    covariance = torch.addr(statistics.scatter, offset, offset, alpha=statistics.fed) / max(statistics.total - 1, 1)
    if not covariance.isfinite().all():
        raise ValueError("features of the references hold NaN or infinity; take --precision bf16 or fp32")
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = components or components_for(values.flip(0), explained_variance)
    return Subspace(mean[None].float(), vectors.flip(1)[:, :kept].T.contiguous().float())


def components_for(eigenvalues: Tensor, explained_variance: float) -> int:
    """The smallest number of directions whose eigenvalues, (W,) descending, reach the share of their sum; 1 where there
    is no variance."""
    total = eigenvalues.sum()
    if not total > 0:
        return 1
    reached = torch.searchsorted(eigenvalues.cumsum(0) / total, explained_variance)
    return min(int(reached) + 1, len(eigenvalues))


def residual(tokens: Tensor, subspace: Subspace) -> Tensor:
    """Squared distance of each token to the subspace, in float32: (B, N, W) -> (B, N)."""
    mean, components = (one.to(tokens.device) for one in subspace)  # Apple's GPUs have no float64, in which it was made
    rebuilt = (tokens - mean) @ components.T @ components + mean
    return (tokens - rebuilt).square().sum(-1)
