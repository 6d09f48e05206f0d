"""Mutual scoring against the published program's features, and against every distance computed by itself."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from conftest import load_case
from model import mutual_scoring
from model.mutual_scoring import mutual_scores, neighborhood_means

CPU = torch.device("cpu")


def every_distance(images: torch.Tensor, grid, side: int, count: int) -> np.ndarray:
    """The same from the formulas, in double: (n, N)."""
    features = []
    for image in images.double().numpy():
        normal = (image - image.mean()) / np.sqrt(image.var() + 1e-5)
        padded = np.pad(normal.reshape(*grid, -1), [(side // 2,) * 2, (side // 2,) * 2, (0, 0)])
        means = np.array(
            [[padded[y : y + side, x : x + side].mean((0, 1)) for x in range(grid[1])] for y in range(grid[0])]
        ).reshape(len(image), -1)
        features.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    scores = []
    for number, own in enumerate(features):
        others = [other for place, other in enumerate(features) if place != number]
        nearest = [np.linalg.norm(own[:, None] - other[None], axis=2).min(1) for other in others]
        scores.append(np.sort(nearest, axis=0)[:count].mean(0))
    return np.array(scores)


@pytest.mark.parametrize(
    "name", ["musc_mvtec", "musc_mvtec_divide2", "musc_visa", "musc_dino_visa", "musc_dinov2_visa"]
)
def test_aggregated_features_of_the_published_program(name):
    case = load_case(name)
    features = torch.from_numpy(case.arrays["first_features"])  # (layers, N, W)
    side = int(features.shape[1] ** 0.5)
    for size in case.facts["hyper_parameters"]["r_list"]:
        own = neighborhood_means(features, (side, side), size)
        np.testing.assert_allclose(own, case.arrays[f"first_lnamd_r{size}"], atol=5e-7)


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_every_distance(at_once, monkeypatch):
    """In blocks of any size, with products in pieces of any size, on a grid that is no square."""
    torch.manual_seed(0)
    images = torch.randn(11, 12, 8)
    monkeypatch.setattr(mutual_scoring, "_PART", 1)
    monkeypatch.setattr(mutual_scoring, "_BLOCK", at_once * 4 * 12 * 8)
    monkeypatch.setattr(mutual_scoring, "_CHUNK", {"cpu": 2 * 12 * 12, "": 1})
    told = []
    own = mutual_scores(list(images), (3, 4), (1, 3, 5), 3, CPU, told.append)
    for side, scores in zip((1, 3, 5), own, strict=True):
        np.testing.assert_allclose(scores, every_distance(images, (3, 4), side, 3), atol=1e-6)
    assert sum(told) == 11 * 10 // 2


class Threads:
    """`utils.distributed.Processes`, as threads of this one."""

    def __init__(self, rank: int, values: list, barrier: threading.Barrier):
        self.rank, self.ranks, self._values, self._barrier = rank, len(values), values, barrier

    def gather(self, value):
        self._values[self.rank] = value
        self._barrier.wait(60)
        found = list(self._values)
        self._barrier.wait(60)
        return found


@pytest.mark.parametrize(("ranks", "count"), [(2, 17), (3, 17), (4, 16), (5, 6)])
def test_processes_share_the_pairs(ranks, count):
    torch.manual_seed(0)
    images = list(torch.randn(count, 12, 8))
    alone = mutual_scores(images, (3, 4), (1, 3), 4, CPU)
    values, barrier = [None] * ranks, threading.Barrier(ranks)

    def work(rank):
        told = []
        return mutual_scores(images, (3, 4), (1, 3), 4, CPU, told.append, Threads(rank, values, barrier)), sum(told)

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(work, range(ranks)))
    assert all(torch.equal(scores, found[0][0]) for scores, _ in found)
    np.testing.assert_allclose(found[0][0], alone, atol=1e-6)
    told = [pairs for _, pairs in found]
    assert sum(told) == count * (count - 1) // 2 and max(told) <= 1.3 * sum(told) / ranks


def test_equal_and_nearly_equal_patches():
    """Where the product alone would say 5e-4 instead of 0, and anything instead of 1e-4."""
    torch.manual_seed(0)
    images = torch.randn(5, 40, 64).repeat(2, 1, 1)  # each image twice
    images[5:, 20:] += 1e-4 * torch.randn(5, 20, 64)
    own = mutual_scores(list(images), (5, 8), [1], 1, CPU)[0]
    assert own[:, :20].max() < 5e-5  # the means of the whole images differ a little
    np.testing.assert_allclose(own, every_distance(images, (5, 8), 1, 1), atol=2e-7)
    copies = mutual_scores(list(images[:5].repeat(2, 1, 1)), (5, 8), [3], 1, CPU)
    assert copies.max() < 1e-6


@pytest.mark.parametrize("crowd", [0, 16, 10**6])
def test_near_duplicates_by_pairs_or_in_double(crowd, monkeypatch):
    """Images that differ by little, of different patches and of nearly equal ones; pairs in pieces."""
    torch.manual_seed(0)
    monkeypatch.setattr(mutual_scoring, "_CROWD", crowd)
    monkeypatch.setattr(mutual_scoring, "_CHUNK", {"cpu": 2 * 12 * 12, "": 1})
    different = torch.randn(12, 64) + 0.01 * torch.randn(5, 12, 64)
    alike = torch.randn(64) + 0.01 * torch.randn(5, 12, 64)
    one_alike = torch.cat([different[:, :6], alike[:, 6:]], dim=1)
    for images in (different, alike, one_alike, torch.cat([different, torch.randn(2, 12, 64)])):
        for side, scores in zip((1, 3), mutual_scores(list(images), (3, 4), (1, 3), 2, CPU), strict=True):
            np.testing.assert_allclose(scores, every_distance(images, (3, 4), side, 2), atol=1e-6)


def test_near_duplicates_are_compared_again_in_few_pairs(monkeypatch):
    torch.manual_seed(0)
    counts = []
    norm = torch.Tensor.norm
    monkeypatch.setattr(mutual_scoring, "_neighborhood_sums", lambda tokens, grid, side: tokens)
    images = list(torch.randn(30, 64) + 0.01 * torch.randn(4, 30, 64))
    monkeypatch.setattr(
        torch.Tensor, "norm", lambda own, **given: counts.append(own.numel() // 64) or norm(own, **given)
    )
    mutual_scores(images, (5, 6), (1,), 1, CPU)
    assert sum(counts) == 4 * 30 + 6 * 30  # lengths, and of each of 6 pairs of images a pair for each patch


def test_half_precision_is_taken_as_it_is():
    torch.manual_seed(0)
    images = torch.randn(6, 9, 16).bfloat16()
    np.testing.assert_array_equal(
        mutual_scores(list(images), (3, 3), [3], 2, CPU), mutual_scores(list(images.float()), (3, 3), [3], 2, CPU)
    )
