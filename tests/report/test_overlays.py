"""Overlays as files: what is written is what was drawn."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from data.input_spec import SquareInput
from data.meta import PixelSettings
from report.overlays import PANEL_SIDE, draw_panels, encode_png, scale_mask
from report.pictures import draw_unlabelled
from report.streamed_overlays import StreamedOverlays


@pytest.mark.parametrize("shape", [(17, 33), (1, 1), (3, 1), (1, 7)])
def test_png_holds_the_very_pixels(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    file = encode_png(picture)
    with Image.open(io.BytesIO(file)) as read:
        read.verify()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), picture)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], picture)


def photograph(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    return Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def test_a_large_jpeg_looks_as_if_decoded_whole(tmp_path):
    photograph(1000, 1500).save(tmp_path / "large.jpg", quality=95)
    Image.open(tmp_path / "large.jpg").save(tmp_path / "large.png")
    for name in ("large.jpg", "large.png"):
        draw_unlabelled(
            tmp_path / name, np.zeros((8, 8), np.float32), (0, 1), "map", tmp_path / f"{name}.out.png", PixelSettings()
        )
    own, whole = (np.asarray(Image.open(tmp_path / f"large.{kind}.out.png"))[22:, : PANEL_SIDE + 2].astype(int)
                  for kind in ("jpg", "png"))  # fmt: skip
    assert own.shape == (256, 386, 3)
    assert np.abs(own - whole).mean() < 1 and np.abs(own - whole).max() <= 16


@pytest.mark.parametrize("count", [3, 1000])
def test_overlays_of_a_stream(tmp_path, count):
    """In this process, or beside it."""
    photograph(80, 120).save(tmp_path / "a.png")
    with StreamedOverlays(tmp_path / "imgs", PixelSettings(), None, count) as overlays:
        for number in range(66):
            one = np.full((16, 16), number, np.float32)
            overlays.learn([one])
            assert overlays.learning == (number < 63)
            overlays.keep(tmp_path / "a.png", f"sub/{number}.jpg", one, f"score {number}")
    assert len(list((tmp_path / "imgs/sub").glob("*.png"))) == 66


@pytest.mark.parametrize("count", [3, 1000])
def test_an_image_that_cannot_be_drawn_is_named(tmp_path, count):
    with (
        pytest.raises(ValueError, match="gone.png: no such file"),
        StreamedOverlays(tmp_path / "imgs", PixelSettings(), (0, 1), count) as overlays,
    ):
        overlays.keep(tmp_path / "gone.png", "gone.png", np.zeros((16, 16), np.float32), "")
    assert not list(tmp_path.rglob("*.png"))


def panel_of(path, **shown) -> np.ndarray:
    """The anomaly map of an overlay, without caption and frame."""
    file = path.with_suffix(".out.png")
    draw_unlabelled(path, np.zeros((8, 8), np.float32), (0, 1), "map", file, PixelSettings(), **shown)
    both = np.asarray(Image.open(file))[22:]
    return both[:, both.shape[1] // 2 + 1 : -1]


def test_what_a_method_masks_is_darker(tmp_path):
    Image.fromarray(np.full((80, 80, 3), 200, np.uint8)).save(tmp_path / "a.png")
    foreground = np.zeros((4, 4), bool)
    foreground[:, 2:] = True
    plain, masked = panel_of(tmp_path / "a.png"), panel_of(tmp_path / "a.png", foreground=foreground)
    middle = plain.shape[1] // 2
    assert np.array_equal(masked[:, middle:], plain[:, middle:])
    assert masked[:, :middle].max() < plain[:, :middle].min()


def test_a_map_of_the_middle_lies_over_the_middle(tmp_path):
    pixels = np.zeros((160, 320, 3), np.uint8)
    pixels[10:150, 20:300] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = SquareInput(140, center_crop=True).shown
    assert shown == (10 / 160, 10 / 160, 150 / 160, 150 / 160) and SquareInput(140).shown == (0, 0, 1, 1)
    assert panel_of(tmp_path / "a.png").min() < 50 < 100 < panel_of(tmp_path / "a.png", shown=shown).min()


def test_what_draws_needs_no_pytorch():
    """So that processes which draw begin soon, and stay small."""
    code = "import sys, report.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("side", [384, 176])
@pytest.mark.parametrize("shape", [(9000, 12000), (1000, 1500), (200, 300)])
def test_a_defect_of_one_pixel_is_seen(shape, side):
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 3, shape[1] // 3] = 255
    height, width = (round(length * side / shape[1]) for length in shape)
    assert scale_mask(mask, (width, height)).max() == 255
    picture, coloured, truth = draw_panels(Image.new("RGB", shape[::-1], "grey"), np.zeros((8, 8)), mask, side)
    assert not (picture != 128).any()
    rows, columns = np.nonzero((truth != 128).any(-1))
    assert 8 <= len(rows) < 50 and abs(rows.mean() - height / 3) < 2 and abs(columns.mean() - width / 3) < 2
    assert (coloured[rows, columns].mean(-1) > coloured.mean() + 9).all()
