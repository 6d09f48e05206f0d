"""The Gaussian filter against scipy's."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from model import anomaly_map


@pytest.mark.parametrize(("size", "sigma"), [(96, 8), (96, 2), (518, 8), (37, 0.3), (5, 8), (1, 3), (64, 7.77)])
def test_gaussian_equals_scipys(size, sigma):
    values = np.random.default_rng(size).normal(size=(3, size, size)).astype(np.float32)
    own = anomaly_map.gaussian(torch.from_numpy(values), sigma)
    expected = np.stack([gaussian_filter(value, sigma=sigma) for value in values])
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_no_smoothing():
    values = torch.rand(2, 5, 5)
    assert torch.equal(anomaly_map.gaussian(values, 0), values)


@pytest.mark.parametrize(("size", "sigma"), [((96, 40), 8), ((5, 64), 2), ((1, 7), 3)])
def test_gaussian_of_maps_that_are_not_square(size, sigma):
    values = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    own = anomaly_map.gaussian(torch.from_numpy(values), sigma)
    expected = np.stack([gaussian_filter(value, sigma=sigma) for value in values])
    np.testing.assert_allclose(own, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "size"),
    [((7, 8), (128, 160)), ((16, 16), (16, 16)), ((16, 20), (10, 9)), ((1, 3), (4, 50)), ((5, 2), (1, 1))],
)
def test_smooth_upsampling_is_upsampling_and_scipys_filter(grid, size):
    """To any size, smaller ones than the grid as well."""
    values = np.random.default_rng(1).random((3, grid[0] * grid[1])).astype(np.float32)
    own = anomaly_map.upsample_smoothly(torch.from_numpy(values), grid, size, 4.0)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(values).double().view(3, 1, *grid), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    expected = np.stack([gaussian_filter(one.numpy(), sigma=4) for one in large])
    np.testing.assert_allclose(own, expected, atol=5e-7)
