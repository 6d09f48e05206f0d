"""Colouring pictures."""

import numpy as np
import pytest
from PIL import Image

from report.heatmap import blend_heatmap, css_gradient, on_scale, resize_longest_side, sample_pixels

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)
HEAT = np.linspace(0, 1, 40 * 60).reshape(40, 60).astype(np.float32)  # grows from top to bottom


def test_opacity_zero_is_the_picture():
    np.testing.assert_array_equal(blend_heatmap(PICTURE, HEAT, 0.0, 0.5), PICTURE)


def test_opacity_one_is_the_colour_where_the_map_is_highest():
    bottom = blend_heatmap(PICTURE, np.ones((8, 8)), 1.0)
    assert (bottom == bottom[0, 0]).all() and bottom[0, 0].argmax() == 0  # red


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.9])
def test_below_the_threshold_the_picture_is_left(threshold):
    """But for the outline along it."""
    coloured = blend_heatmap(PICTURE, HEAT, 0.75, threshold)
    plain = blend_heatmap(PICTURE, HEAT, 0.75)
    edge = round(threshold * 40)
    np.testing.assert_array_equal(coloured[: edge - 4], PICTURE[: edge - 4])
    np.testing.assert_array_equal(coloured[edge + 4 : -4, 4:-4], plain[edge + 4 : -4, 4:-4])
    assert (coloured[edge] != PICTURE[edge]).any()


def test_nothing_is_changed_in_place():
    picture, heat = PICTURE.copy(), HEAT.copy()
    blend_heatmap(picture, heat, 0.5, 0.5)
    np.testing.assert_array_equal(picture, PICTURE)
    np.testing.assert_array_equal(heat, HEAT)


def test_fitted_keeps_the_aspect_ratio():
    assert resize_longest_side(Image.new("L", (300, 100)), 60).shape == (20, 60, 3)
    assert resize_longest_side(Image.new("RGB", (10, 2000)), 400).shape == (400, 16, 3)


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (0, 2, (0, 0.5)),  # within the scale of normal images
        (0, 0.5, (0, 1)),  # above it, here and there
        (-0.5, -0.2, (-0.01, 1)),  # above it everywhere: the image's own
    ],
)
def test_no_defect_drowns_in_one_colour(low, high, ends):
    heat = on_scale(HEAT, low, high)
    np.testing.assert_allclose((heat.min(), heat.max()), ends, atol=2e-3)


def test_the_ends_of_many_maps_come_from_few_pixels_of_all_columns():
    wide = np.tile(np.arange(128, dtype=np.float32), (128, 1))
    for images in (1, 64, 128, 2048, 4096):
        taken = sample_pixels(wide, images)
        assert min(images, 64) * 3000 <= images * taken.size <= 64 * 4096 and taken.base is None
        assert abs(np.median(taken) - 63.5) < 3
    np.testing.assert_array_equal(sample_pixels(sample_pixels(wide)), sample_pixels(wide))
    assert sample_pixels(wide, 10**8).tolist() == [64]  # never none


def test_gradient():
    assert css_gradient(2).startswith("linear-gradient(to right, rgb(") and css_gradient(5).count("rgb(") == 5
