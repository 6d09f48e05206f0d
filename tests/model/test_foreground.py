"""AnomalyDINO's masks: the component against the published arrays and an exact decomposition, the rules by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_closing, binary_dilation

from conftest import load_case
from model import foreground

CASES = [
    ("anomalydino_mvtec_k4_mask_rotate", "gravel"),
    ("anomalydino_mvtec_k4_mask_rotate", "coins"),
    ("anomalydino_visa_k2_mask", "grass"),
    ("anomalydino_visa_k2_mask", "tissue_slide"),
]


@pytest.mark.parametrize(("name", "cls"), CASES)
def test_component_and_mask_of_the_published_features(name, cls):
    case = load_case(name)
    facts = case.facts
    own_images = [image for image, of in zip(facts["images"], facts["image_class"], strict=True) if of == cls]
    row = own_images.index(facts["features_first_image"][cls])
    features = torch.from_numpy(case.arrays[f"features_first/{cls}"])[None]
    allowed = facts["tolerance"]["first_pc_abs"]
    component = foreground.first_component(features)[0]
    np.testing.assert_allclose(component, case.arrays[f"first_pc/{cls}"][row], atol=allowed)
    mask = foreground.foreground(features, tuple(facts["grids"][cls]))[0]
    np.testing.assert_array_equal(mask, case.arrays[f"foreground/{cls}"][row].ravel())


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.99, 0.999])
def test_component_is_that_of_an_exact_decomposition(ratio):
    """Also where the second component is nearly as large as the first."""
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(3, 60, 24, generator=generator).double())[0]
    left = torch.linalg.qr(left - left.mean(1, keepdim=True))[0]  # centred
    right = torch.linalg.qr(torch.randn(3, 24, 24, generator=generator).double())[0]
    sizes = 100 * torch.tensor([1.0, ratio**0.5] + [0.3] * 22).double()
    features = left * sizes @ right.mT + 5
    loadings = right[..., 0]
    sign = loadings.gather(1, loadings.abs().argmax(1, keepdim=True)).sign()  # (3, 1)
    own = foreground.first_component(features.float())
    torch.testing.assert_close(own, (left[..., 0] * 100 * sign).float(), atol=0.02, rtol=0)


def test_equal_features_have_no_component_and_no_foreground():
    features = torch.ones(2, 12, 8)
    assert not foreground.first_component(features).any()
    assert not foreground.foreground(features, (3, 4)).any()


@pytest.mark.parametrize("seed", range(5))
def test_morphology_runs_in_raster_order(seed):
    """On the N x 1 column, across the ends of rows; what lies outside a column is no neighbour."""
    mask = np.random.default_rng(seed).random((40, 1)) < 0.15
    square = np.ones((3, 3), bool)
    padded = np.pad(binary_dilation(mask, square), ((2, 2), (2, 2)))
    expected = binary_closing(padded, square)[2:-2, 2:-2] | binary_dilation(mask, square)
    dilated = foreground._dilate(torch.from_numpy(mask.T))
    np.testing.assert_array_equal(dilated[0], binary_dilation(mask, square)[:, 0])
    inner = slice(2, -2)  # scipy's closing counts what is outside as background
    np.testing.assert_array_equal(foreground._close(dilated)[0, inner], expected[inner, 0])


@pytest.mark.parametrize(("covered", "turned"), [(12, True), (13, False)])
def test_the_other_side_is_taken_where_little_of_the_centre_is_covered(monkeypatch, covered, turned):
    """10 x 10: the centre has 36 patches, of which more than 35 %, 12.6, must be covered."""
    component = torch.full((10, 10), -20.0)  # of which the centre is rows and columns 2 to 7
    centre = torch.full((36,), -20.0)
    centre[:covered] = 20
    component[2:8, 2:8] = centre.view(6, 6)
    monkeypatch.setattr(foreground, "first_component", lambda features: component.view(1, 100))
    monkeypatch.setattr(foreground, "_dilate", lambda mask: mask)
    mask = foreground.foreground(torch.zeros(1, 100, 4), (10, 10))
    assert torch.equal(mask[0], (component.view(-1) < 0) == turned)
