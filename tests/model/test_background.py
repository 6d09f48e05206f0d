"""Masks of the background, against the published program's arrays, OpenCV and scikit-learn."""

import cv2
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from conftest import load_case
from model import background


@pytest.fixture(scope="module")
def case():
    return load_case("subspacead_mvtec_k2_saliency")


def test_published_quantile(case):
    saliency = torch.from_numpy(case.arrays["saliency"]).flatten(1)  # (N, 64)
    foreground = background.above_quantile(saliency, case.facts["hyper_parameters"]["percentile_threshold"])
    scores = case.arrays["patch_scores"].reshape(len(saliency), -1)
    np.testing.assert_array_equal(
        np.where(foreground, scores, 0), case.arrays["patch_scores_masked"].reshape(scores.shape)
    )
    assert (foreground.sum(1) == 45).all()  # as many as the references fed


@pytest.mark.parametrize("share", [0.0, 0.15, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 49, 81])
def test_quantile(share, count):
    saliency = torch.rand(3, count, generator=torch.Generator().manual_seed(count))
    wanted = saliency.numpy() >= np.quantile(saliency.numpy(), share, axis=1, keepdims=True).astype(np.float32)
    np.testing.assert_array_equal(background.above_quantile(saliency, share), wanted)


def test_otsu():
    stream = torch.Generator().manual_seed(0)
    saliency = torch.cat([torch.rand(20, 50, generator=stream), 2 + 3 * torch.rand(20, 30, generator=stream)], dim=1)
    saliency[3], saliency[4] = torch.rand(80, generator=stream) ** 6, torch.rand(80, generator=stream)
    for one, foreground in zip(saliency, background.above_otsu(saliency), strict=True):
        grey = np.rint(255 * ((one - one.min()) / (one.max() - one.min())).double().numpy()).astype(np.uint8)
        threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        np.testing.assert_array_equal(foreground, grey > threshold)


def test_otsu_of_equal_values_finds_nothing():
    assert not background.above_otsu(torch.full((1, 9), 0.25)).any()


def published_normality(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """AnomalyDINO's steps with other libraries, on the grid."""
    solver = PCA(1, svd_solver="full").fit(tokens)
    scores = solver.transform(tokens)[:, 0] * np.sign(solver.components_[0][np.abs(solver.components_[0]).argmax()])
    foreground = (scores > 10).reshape(grid)
    rows, columns = (slice(int(0.2 * side), int(0.8 * side)) for side in grid)
    if foreground[rows, columns].mean() <= 0.35:
        foreground = (-scores > 10).reshape(grid)
    kernel = np.ones((3, 3), np.uint8)
    return cv2.morphologyEx(cv2.dilate(foreground.astype(np.uint8), kernel), cv2.MORPH_CLOSE, kernel).astype(bool)


@pytest.mark.parametrize("object_side", [1, -1])
def test_normality(object_side):
    """An object in the middle, noise, and single patches beside it, on a grid that is no square."""
    grid, stream = (8, 11), torch.Generator().manual_seed(7)
    direction = torch.nn.functional.normalize(torch.randn(16, generator=stream), dim=0) * object_side
    where = torch.full(grid, -14.0)
    where[2:6, 3:8] = 20.0
    where[0, 0] = where[7, 10] = where[4, 5] = -30.0
    where[0, 9] = 25.0
    tokens = where.flatten()[:, None] * direction + torch.randn(88, 16, generator=stream)
    foreground = background.above_normality(torch.stack([tokens, tokens.flip(1) + 5]), grid)
    for one, found in zip((tokens, tokens.flip(1) + 5), foreground, strict=True):
        np.testing.assert_array_equal(found.unflatten(0, grid), published_normality(one.numpy(), grid))
    assert 0 < foreground[0].sum() < 88
