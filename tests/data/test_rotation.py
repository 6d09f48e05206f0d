"""The fixed-point rotation against the published program's pictures, and against its formula pixel by pixel."""

import math

import numpy as np
import pytest
from PIL import Image

from conftest import REFERENCE, load_case
from data import rotation
from data.rotation import rotate_reflected


@pytest.mark.parametrize("name", ["brick", "gravel", "coins"])
def test_no_grey_level_differs_from_the_published_rotations(name):
    case = load_case("anomalydino_mvtec_k4_mask_rotate")
    path = REFERENCE / case.facts["dataset_dir"] / case.facts["reference_images"][name][0]
    with Image.open(path) as file:
        picture = file.convert("RGB")
    own = [np.asarray(rotate_reflected(picture, degrees)) for degrees in case.facts["hyper_parameters"]["angles"]]
    np.testing.assert_array_equal(own, case.arrays[f"rotated_first/{name}"])


def mirrored(place: int, size: int) -> int:
    while not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place


def one_pixel(pixels, x, y, degrees):
    """The formula, a pixel at a time."""
    height, width = pixels.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    left = width / 2 - cos * width / 2 + sin * height / 2
    top = height / 2 - sin * width / 2 - cos * height / 2
    source_x = (round(1024 * (-sin * y + left)) + 16 + round(1024 * cos * x)) >> 5
    source_y = (round(1024 * (cos * y + top)) + 16 + round(1024 * sin * x)) >> 5
    (x0, fx), (y0, fy) = divmod(source_x, 32), divmod(source_y, 32)
    total = 16384
    for dy, wy in ((0, 32 - fy), (1, fy)):
        for dx, wx in ((0, 32 - fx), (1, fx)):
            value = pixels[mirrored(y0 + dy, height), mirrored(x0 + dx, width)]
            total = total + 32 * wx * wy * value.astype(np.int64)
    return total >> 15


@pytest.mark.parametrize("size", [(5, 4), (13, 2), (2, 31), (7, 7), (6, 9)])
@pytest.mark.parametrize("degrees", [0, 45, 90, 17.3, 135, 180, -30, 270])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_pixel_is_the_formulas(monkeypatch, size, degrees, mode):
    monkeypatch.setattr(rotation, "_BLOCK", 20)  # several blocks of rows
    shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(sum(size)).integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0] = 255  # carries between channels would show
    own = np.asarray(rotate_reflected(Image.fromarray(pixels), degrees))
    places = [[one_pixel(pixels, x, y, degrees) for x in range(size[0])] for y in range(size[1])]
    np.testing.assert_array_equal(own, places)


def test_a_picture_of_one_row_has_one_row_to_mirror():
    picture = Image.new("RGB", (9, 1), (1, 2, 3))
    assert rotate_reflected(picture, 45).getcolors() == [(9, (1, 2, 3))]


def test_a_picture_with_a_palette_is_refused():
    with pytest.raises(ValueError, match="mode P"):
        rotate_reflected(Image.new("P", (4, 4)), 90)


def test_a_picture_whose_places_are_no_numbers_of_16_bits_is_refused():
    """It would be turned into something else. One that just has room is turned."""
    assert rotate_reflected(Image.new("L", (32700, 30), 7), 90).getcolors() == [(32700 * 30, 7)]
    with pytest.raises(ValueError, match="40000 x 30 pixels are too many to be turned"):
        rotate_reflected(Image.new("L", (40000, 30)), 90)
