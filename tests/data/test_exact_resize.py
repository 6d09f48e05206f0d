"""Resizing in PyTorch against Pillow, which must not differ by a single level."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.exact_resize import resize, resize_picture
from data.input_spec import SquareInput, resize_mask

SIZES = [
    ((1000, 1500), (518, 518)),
    ((97, 61), (240, 336)),  # larger
    ((240, 700), (240, 448)),  # one side stays
    ((700, 240), (448, 240)),
    ((3, 2), (37, 41)),
    ((611, 1), (640, 16)),
    ((2048, 333), (14, 999)),  # of which newer versions of Pillow resize the columns first
    ((240, 240), (240, 240)),
]


@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_every_pixel_is_the_same(before, after, kind):
    rng = np.random.default_rng(before[0])
    pixels = rng.choice([0, 1, 127, 128, 254, 255], (2, *before, 3)).astype(np.uint8)
    pixels[0] = rng.integers(0, 256, (*before, 3))
    height, width = after
    found = resize(torch.from_numpy(pixels), height, width, kind).numpy()
    for one, result in zip(pixels, found, strict=True):
        picture = Image.fromarray(one)
        np.testing.assert_array_equal(result, resize_picture(picture, width, height, kind))
    plain = np.asarray(picture.resize((width, height), Image.Resampling[kind.upper()])).astype(int)
    assert abs(plain - result).max() <= (4 if before[0] > before[1] else 0)  # in whatever order Pillow does it


@pytest.mark.parametrize("spec", [SquareInput(56), SquareInput(48, "bilinear"), SquareInput(56, center_crop=True)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_input_made_later_is_the_same(spec, mode):
    pixels = np.random.default_rng(2).integers(0, 256, (90, 130, 3), np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    raw = spec.raw(picture)
    assert raw is not None and raw.shape == (90, 130, 3 if mode == "RGB" else 1)
    torch.testing.assert_close(spec.from_raw(raw[None])[0], spec.image(picture), rtol=0, atol=0)


def test_what_torchvision_resizes_is_not_made_later():
    assert SquareInput(56, "torchvision").raw(Image.new("RGB", (9, 9))) is None


@pytest.mark.parametrize(("before", "after"), [((100, 150), 52), ((61, 97), 120), ((300, 20), 37), ((40, 40), 40)])
def test_a_mask_is_that_of_a_picture_which_is_resized_whole(before, after):
    """Only the rows and columns of the defect are."""
    rng = np.random.default_rng(after)
    for kind in ("none", "dots", "box", "corner", "noise"):
        pixels = np.zeros(before, np.uint8)
        top, left = rng.integers(0, before[0]), rng.integers(0, before[1])
        if kind == "dots":
            pixels[top, left] = pixels[-1, 0] = 255
        elif kind == "box":
            pixels[top : top + before[0] // 3, left : left + before[1] // 3] = 255
        elif kind == "corner":
            pixels[-9:, -9:] = 255
        elif kind == "noise":
            pixels[rng.random(before) < 0.4] = 255
        mask = Image.fromarray(pixels)
        whole = np.asarray(resize_picture(mask, after, after, "bilinear")) > 127
        np.testing.assert_array_equal(resize_mask(mask, after), whole)
        assert whole.any() or kind in ("none", "dots")
