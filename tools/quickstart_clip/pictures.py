"""Generated pairs of pictures, flawless and defective, as the training takes them: drawn, recoloured, strengthened."""

from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from typing import NamedTuple

import cv2
import numpy as np

from tools.quickstart_clip import scenes

_STRENGTHENED = 0.3  # share of the pairs whose defect is made plain


class Pair(NamedTuple):
    images: np.ndarray  # (2, S, S, 3) uint8 RGB, without and with the defect
    mask: np.ndarray  # (S, S) bool
    nouns: Sequence[str]
    kind: str  # of the defect


def pair(size: int, seed: int, index: int) -> Pair | None:
    """Pair `index` of a seed; None where its defect is too faint to learn from."""
    rng = np.random.default_rng((seed, index))
    one = scenes.picture(size, rng)
    if one.defect is None or not scenes.telling(one):
        return None
    both = _recoloured(np.stack([one.flawless, one.image]).astype(np.float32) / 255, rng)
    if rng.random() < _STRENGTHENED:
        both = _strengthened(both, one.mask, rng)
    return Pair(np.rint(255 * both).astype(np.uint8), one.mask, one.nouns, one.defect)


def pairs(count: int, size: int, seed: int, processes: int) -> Iterator[Pair]:
    """Those of the first `count` pairs of a seed that tell something, in order."""
    jobs = ((size, seed, index) for index in range(count))
    with get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from (one for one in pool.imap(_pair, jobs, chunksize=16) if one is not None)


def _pair(job: tuple[int, int, int]) -> Pair | None:
    return pair(*job)


def _strengthened(both: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The defect brought to a mean contrast of 0.15 to 0.5 where its own is less, or also tinted."""
    flawless, image = both
    change = (image - flawless)[mask]  # (n, 3)
    contrast = np.abs(change).max(1).mean()
    factor = np.clip(rng.uniform(0.15, 0.5) / max(contrast, 0.01), 1, 4)
    away = rng.uniform(0.1, 0.6) * (rng.random() < 0.4) * (1 if image[mask].mean() < 0.5 else -1)
    wild = rng.uniform(-1, 1, 3)
    colour = wild / np.abs(wild).max() if rng.random() < 0.4 else np.ones(3)
    image[mask] = np.clip(flawless[mask] + factor * change + away * colour, 0, 1)
    return both


def _recoloured(both: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(2, S, S, 3) in 0..1: channels exchanged, grey, contrast, light, tint, gamma; both of a pair alike."""
    if rng.random() < 0.5:
        both = both[..., rng.permutation(3)]
    if rng.random() < 0.2:
        both = np.broadcast_to(both.mean(-1, keepdims=True), both.shape)
    middle = both[0].mean()
    both = (middle + (both - middle) * rng.uniform(0.7, 1.3)) * rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    return np.clip(both, 1e-4, 1).astype(np.float32) ** np.float32(rng.uniform(0.8, 1.25))
