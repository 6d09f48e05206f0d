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
