"""Resizing in PyTorch against Pillow, which must not differ by a single level."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import exact_resize
from data.exact_resize import is_exact, resize
from data.input_spec import SquareInput

SIZES = [
    ((1000, 1500), (518, 518)),
    ((97, 61), (240, 336)),  # larger
    ((240, 700), (240, 448)),  # one side stays
    ((700, 240), (448, 240)),
    ((3, 2), (37, 41)),
    ((611, 1), (640, 16)),
    ((240, 240), (240, 240)),
]


@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_every_pixel_is_the_same(before, after, kind):
    rng = np.random.default_rng(before[0])
    pixels = rng.choice([0, 1, 127, 128, 254, 255], (2, *before, 3)).astype(np.uint8)
    pixels[0] = rng.integers(0, 256, (*before, 3))
    filter_ = Image.Resampling[kind.upper()]
    found = resize(torch.from_numpy(pixels), *after, kind).numpy()
    for one, result in zip(pixels, found, strict=True):
        np.testing.assert_array_equal(result, Image.fromarray(one).resize(after[::-1], filter_))
    assert is_exact(before, after, kind)


def test_what_pillow_does_in_another_order_is_found(monkeypatch):
    """Whatever version of Pillow is installed: here one that always begins with the columns."""
    plain = Image.Image.resize

    def columns_first(self, size, *rest):
        return plain(plain(self, (self.width, size[1]), *rest), size, *rest)

    monkeypatch.setattr(Image.Image, "resize", columns_first)
    exact_resize.is_exact.cache_clear()
    assert not is_exact((90, 120), (50, 60), "bicubic")
    assert is_exact((90, 60), (50, 60), "bicubic")  # no rows to resize
    exact_resize.is_exact.cache_clear()


@pytest.mark.parametrize(("before", "after"), [((2048, 333), (14, 999)), ((400, 300), (240, 240)), *SIZES])
def test_no_picture_that_is_exact_differs(before, after):
    """Also of sizes that Pillow may begin with the columns of."""
    pixels = np.random.default_rng(1).integers(0, 256, before, np.uint8)
    same = np.array_equal(
        resize(torch.from_numpy(pixels)[None, :, :, None], *after, "bicubic")[0, :, :, 0],
        Image.fromarray(pixels).resize(after[::-1], Image.Resampling.BICUBIC),
    )
    assert same == is_exact(before, after, "bicubic")


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
