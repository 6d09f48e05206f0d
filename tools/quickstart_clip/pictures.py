"""Generated pictures in batches: drawn once, cut, recoloured and strengthened anew each time."""

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from tools.quickstart_clip import scenes

PICTURES = 2  # seed of the pictures
PAIRS = 24, 8  # in a batch, of parts and of whole pictures
LEAST = 12  # pixels of a defect that make a picture abnormal


class Pictures(NamedTuple):
    flawless: np.ndarray  # (n, S, S, 3) uint8
    images: np.ndarray  # (n, S, S, 3) uint8, the same with a defect
    masks: np.ndarray  # (n, S, S) bool
    nouns: list[Sequence[str]]
    kinds: list[str]
    scenes: list[str]


def _draw(job: tuple[int, int, int]) -> scenes.Picture:
    size, seed, index = job
    return scenes.picture(size, np.random.default_rng((seed, index)))


def draw(count: int, size: int, seed: int) -> Pictures:
    """Of the first `count` pictures of a seed, drawn on all cores, those with a defect that shows: with puzzles among
    them a network of this size learns more slowly."""
    with multiprocessing.get_context("spawn").Pool(initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        drawn = pool.imap(_draw, ((size, seed, index) for index in range(count)), chunksize=64)
        kept = [one for one in drawn if one.defect and one.scene != "circuit" and scenes.telling(one)]
    flawless, images, masks, nouns, kinds, names = zip(*kept, strict=True)
    return Pictures(np.stack(flawless), np.stack(images), np.stack(masks), list(nouns), list(kinds), list(names))


class Batch(NamedTuple):
    """B pictures, the flawless ones before the same with their defects."""

    images: Tensor  # (2 B, 3, s, s) in 0..1
    masks: Tensor  # (2 B, s, s) float, 1 = defect
    corners: Tensor  # (2 B, 2) row and column of the part's first patch in the full grid
    nouns: list[Sequence[str]]  # B
    kinds: list[str]  # B


def batches(pictures: Pictures, side: int, patch: int, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless random parts of side x side pixels, some reduced or enlarged, turned, mirrored, in new colours."""
    count, full = len(pictures.images), pictures.images.shape[1]
    while True:
        for rows in rng.permutation(count)[: count // size * size].reshape(-1, size):
            images, masks = zip(*(_part(pictures, row, side, rng) for row in rows), strict=True)
            masks = torch.from_numpy(np.stack(masks)).float()
            images = torch.from_numpy(np.stack(images)).permute(1, 0, 4, 2, 3).float() / 255  # (2, B, 3, s, s)
            corners = torch.from_numpy(rng.integers(0, (full - side) // patch + 1, (size, 2)))
            yield Batch(
                _recoloured(images, rng).flatten(0, 1),
                torch.cat([torch.zeros_like(masks), masks]),
                corners.repeat(2, 1),
                [pictures.nouns[row] for row in rows],
                [pictures.kinds[row] for row in rows],
            )


def _part(pictures: Pictures, row: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same part without and with the defect, (2, s, s, 3), and the mask, (s, s); some of the defect is in sight."""
    both, mask = np.stack([pictures.flawless[row], pictures.images[row]]), pictures.masks[row]
    full = len(mask)
    reach = side
    if side < full and pictures.scenes[row] == "object" and rng.random() < 0.6:  # an object shows as a whole
        reach = int(rng.integers(0.7 * full, full + 1))
    elif rng.random() < 0.4:
        reach = int(rng.integers(int(0.7 * side), min(full, 2 * side) + 1))
    spots = np.argwhere(mask)
    spot = spots[rng.integers(len(spots))]
    low, high = np.clip(spot - reach + 4, 0, full - reach), np.clip(spot - 4, 0, full - reach)
    top, left = rng.integers(np.minimum(low, high), np.maximum(low, high) + 1)
    both, mask = both[:, top : top + reach, left : left + reach], mask[top : top + reach, left : left + reach]
    if reach != side:
        how = cv2.INTER_AREA if reach > side else cv2.INTER_LINEAR
        both = np.stack([cv2.resize(one, (side, side), interpolation=how) for one in both])
        mask = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.4
    turns = int(rng.integers(4))
    if rng.random() < 0.5:
        both, mask = both[:, :, ::-1], mask[:, ::-1]
    return np.rot90(both, turns, (1, 2)), np.rot90(mask, turns)


def strengthened(batch: Batch, rate: float, rng: np.random.Generator) -> Batch:
    """At that rate, defects brought to a mean contrast of 0.15 to 0.5 where theirs is less, or also tinted: a network
    that has seen little does not find faint ones, and learns nothing from them."""
    (flawless, images), masks = batch.images.chunk(2), batch.masks.chunk(2)[1][:, None]
    count = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)).to(images.device)

    chosen = (draw(0, 1) < rate).float()
    inside = masks.sum((1, 2, 3), keepdim=True).clamp_min(1)
    change = (images - flawless) * masks
    contrast = change.abs().amax(1, keepdim=True).sum((2, 3), keepdim=True) / inside
    factor = (draw(0.15, 0.5) / contrast.clamp_min(0.01)).clamp(1, 4)
    shade = (images * masks).mean(1, keepdim=True).sum((2, 3), keepdim=True) / inside
    away = torch.where(shade < 0.5, 1.0, -1.0) * draw(0.1, 0.6) * (draw(0, 1) < 0.4)
    wild = draw(-1, 1, 3)
    colour = torch.where(draw(0, 1) < 0.4, wild / wild.abs().amax(1, keepdim=True), torch.ones_like(wild))
    stronger = flawless + factor * change + away * colour * masks
    images = images + chosen * (torch.where(masks > 0, stronger, images).clamp(0, 1) - images)
    return batch._replace(images=torch.cat([flawless, images]))


def _recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(2, B, 3, s, s): both of a pair alike."""
    count = images.shape[1]

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    images = images[:, :, rng.permutation(3)] if rng.random() < 0.5 else images
    grey = (draw(0, 1) < 0.2).float()
    images = images + grey * (images.mean(2, keepdim=True) - images)
    middle = images[0].mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * draw(0.7, 1.3)) * draw(0.8, 1.2) * draw(0.93, 1.07, 3)
    return images.clamp(1e-4, 1) ** draw(0.8, 1.25)
