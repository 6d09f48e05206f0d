"""Masks of formats that lose something; images and masks with an EXIF orientation."""

import numpy as np
import pytest
from PIL import Image

from data.images import load_image, load_mask, lossy_masks, orientation
from dataset import AnomalyDataset, Sample, UnlabeledImages

DEFECT = np.zeros((96, 128), np.uint8)
DEFECT[20:60, 30:75] = 255
DEFECT[70:74, 100:120] = 255
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TURNS = {  # EXIF orientation -> what makes it upright
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a[::-1, ::-1].swapaxes(0, 1), 0),
    8: lambda a: np.rot90(a),
}  # fmt: skip
LOSSY = {
    "a.jpg": {}, "b.jpg": {"quality": 95}, "a.webp": {}, "a.avif": {}, "jpeg.tif": {"compression": "jpeg"},
    "a.jp2": {"irreversible": True, "quality_mode": "rates", "quality_layers": [20]},
}  # fmt: skip
LOSSLESS = {"a.png": {}, "a.bmp": {}, "a.tif": {}, "lzw.tif": {"compression": "tiff_lzw"}, "b.webp": {"lossless": True}}


def turned_file(path, pixels, turn):
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(pixels).save(path, exif=exif)
    return path


# --- lossy masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSY)
def test_the_mask_of_a_lossy_format_does_not_grow(name, tmp_path):
    Image.fromarray(DEFECT).save(tmp_path / name, **LOSSY[name])
    grown = (np.asarray(Image.open(tmp_path / name).convert("L")) > 0).mean() / (DEFECT > 0).mean()
    assert grown > 1.05 or name == "a.avif"  # which keeps this one as it is
    mask = np.asarray(load_mask(tmp_path / name))
    assert set(np.unique(mask)) == {0, 255} and (mask != DEFECT).mean() < 0.005
    assert lossy_masks([tmp_path / name]) == [tmp_path / name]


@pytest.mark.parametrize("value", [3, 40, 255])
def test_half_of_the_largest_value_is_the_bound(value, tmp_path):
    """Masks hold small values as well as 255."""
    Image.fromarray(DEFECT // 255 * np.uint8(value)).save(tmp_path / "a.jpg", quality=100)
    assert (np.asarray(load_mask(tmp_path / "a.jpg")) != DEFECT).mean() < 0.005


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_mask_of_a_lossless_format_has_every_value_but_black(name, tmp_path):
    classes = DEFECT // 255
    classes[20:60, 30:50] = 3
    colours = np.dstack([classes, classes, classes])
    Image.fromarray(colours).save(tmp_path / name, **LOSSLESS[name])
    np.testing.assert_array_equal(load_mask(tmp_path / name), DEFECT)
    assert lossy_masks([tmp_path / name]) == []


def test_a_black_lossy_mask_has_no_defect_and_files_that_cannot_be_read_are_not_lossy(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    assert not np.asarray(load_mask(tmp_path / "a.jpg")).any()
    (tmp_path / "b.jpg").write_text("x")
    assert lossy_masks([tmp_path / "b.jpg", tmp_path / "a.jpg", tmp_path / "gone.jpg"]) == [tmp_path / "a.jpg"]


# --- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
@pytest.mark.parametrize("turn", TURNS)
def test_every_orientation_is_read_and_turned_back(turn, suffix, tmp_path):
    path = turned_file(tmp_path / f"a.{suffix}", PIXELS, turn)
    assert orientation(path) == turn
    stored, upright = np.asarray(load_image(path)), np.asarray(load_image(path, upright=True))
    assert stored.shape == PIXELS.shape
    np.testing.assert_array_equal(upright, TURNS[turn](stored))
    if suffix in ("png", "tif"):
        np.testing.assert_array_equal(stored, PIXELS)


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    whole = turned_file(tmp_path / "a.png", PIXELS, 6).read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    (tmp_path / "a.png").write_bytes(whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:])
    assert orientation(tmp_path / "a.png") == 6
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", upright=True), TURNS[6](PIXELS))


def test_an_image_without_a_readable_orientation_is_upright(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "broken.png", exif=b"II*\0\x08\0\0\0\x02\0\x12\x01\x05\0\x01")
    (tmp_path / "text.png").write_text("x")
    for name in ("a.png", "broken.png", "text.png", "gone.png"):
        assert orientation(tmp_path / name) == 1
    with pytest.raises(ValueError, match=r"broken\.png: unreadable EXIF data"):
        load_image(tmp_path / "broken.png", upright=True)
    assert load_image(tmp_path / "broken.png").size == (30, 20)


def item(folder, image, mask, **options):
    return AnomalyDataset(folder, [Sample(image, mask, "nut", "hole", 1)], 30, **options)[0]


def test_where_only_the_orientation_differs_the_message_says_so(tmp_path):
    """A mask that was drawn on the upright picture, beside the stored one; and the other way round."""
    turned_file(tmp_path / "a.jpg", PIXELS, 6)
    Image.new("L", (20, 30), 255).save(tmp_path / "upright.png")
    Image.new("L", (30, 20), 255).save(tmp_path / "stored.png")
    Image.new("L", (20, 31), 255).save(tmp_path / "other.png")
    line = r"upright\.png is 20 x 30 pixels but its image a\.jpg is 30 x 20; they must agree \(a\.jpg has an EXIF"
    with pytest.raises(ValueError, match=line + r".*`data/folder\.py --exif`"):
        item(tmp_path, "a.jpg", "upright.png")
    assert item(tmp_path, "a.jpg", "upright.png", upright=True)["mask"].all()
    assert item(tmp_path, "a.jpg", "stored.png")["mask"].all()
    with pytest.raises(ValueError, match=r"the EXIF orientation turns a\.jpg alone; .* without --exif"):
        item(tmp_path, "a.jpg", "stored.png", upright=True)
    with pytest.raises(ValueError, match=r"they must agree$"):
        item(tmp_path, "a.jpg", "other.png")


@pytest.mark.parametrize("turn", TURNS)
def test_a_dataset_turns_image_and_mask_each_as_its_own_file_says(turn, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    defect = np.zeros((30, 30), np.uint8)
    defect[2:9, 1:20] = 255
    turned_file(tmp_path / "a.png", pixels, turn)
    turned_file(tmp_path / "own.png", defect, turn)
    Image.fromarray(np.ascontiguousarray(TURNS[turn](defect))).save(tmp_path / "drawn.png")
    for mask in ("own.png", "drawn.png"):
        one = item(tmp_path, "a.png", mask, upright=True)
        np.testing.assert_array_equal(one["image"].permute(1, 2, 0), TURNS[turn](pixels))
        np.testing.assert_array_equal(one["mask"], TURNS[turn](defect) // 255)
    one = item(tmp_path, "a.png", "own.png")
    np.testing.assert_array_equal(one["image"].permute(1, 2, 0), pixels)
    np.testing.assert_array_equal(one["mask"], defect // 255)
    np.testing.assert_array_equal(
        UnlabeledImages([tmp_path / "a.png"], 30)[0]["image"].permute(1, 2, 0), TURNS[turn](pixels)
    )
