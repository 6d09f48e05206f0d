"""Pictures of every kind, through the dataset, test.py and predict.py: right by the pixel, or refused by name."""

import csv
import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import predict as predict_script
import test as test_script
from conftest import REFERENCE
from data.exact_resize import resize_picture
from data.images import find_images, formats, load_image
from dataset import AnomalyDataset, Sample, UnlabeledImages

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 64, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
FLAT = np.full((40, 64, 3), (200, 30, 60), np.uint8)  # which JPEG keeps
RIGHT: dict[str, np.ndarray] = {
    "rgb.png": PIXELS, "png.jpg": PIXELS, "no_suffix": PIXELS, "cmyk.tif": PIXELS, "cmyk_jpeg.jpg": FLAT,
    "sixteen.png": GREY, "sixteen_rgb.png": PIXELS, "palette.png": PIXELS[:, :, :1] // 64 * 64 + np.uint8([0, 20, 40]),
    "alpha.png": PIXELS, "bits.png": (GREY > 127) * np.uint8(255), "turned.png": PIXELS, "two_sizes.tif": PIXELS,
    "small_first.tif": PIXELS, "camera.jpg": FLAT,
}  # fmt: skip
REFUSED = {
    "zero.png": "unreadable image (none of the formats",
    "half.png": "unreadable image (",
    "text.jpg": "unreadable image (none of the formats",
    "program.eps": "unreadable image (none of the formats",
    "moving_gif.gif": "several pictures in one file; save the one that is meant",
    "moving_png.png": "several pictures in one file",
    "moving_webp.webp": "several pictures in one file",
    "pages.tif": "several pictures in one file",
    "bomb.png": "too large, make it smaller (Image size (400000000 pixels)",
    "absurd.png": "too large, make it smaller (Image size (4611686014132420609 pixels)",
    "wide.png": "too large, make it smaller (70000000 x 1 pixels; a side may have 100000)",
    "float.tif": "floating-point pixels",
    "range.tif": "pixel values outside 0..65535",
}


def png_of(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel, without its pixels where there are too many to make."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(height * (1 + width // 8))) if width * height < 10**9 else b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    picture, flat = Image.fromarray(PIXELS), Image.fromarray(FLAT)
    for name in ("rgb.png", "png.jpg", "no_suffix"):
        picture.save(root / name, "PNG")
    picture.convert("CMYK").save(root / "cmyk.tif")
    flat.convert("CMYK").save(root / "cmyk_jpeg.jpg", quality=100)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(root / "sixteen.png")
    cv2.imwrite(str(root / "sixteen_rgb.png"), PIXELS[..., ::-1].astype(np.uint16) * 257)
    palette = Image.fromarray(GREY // 64)
    palette.putpalette([part for value in range(4) for part in (64 * value, 64 * value + 20, 64 * value + 40)])
    palette.save(root / "palette.png", transparency=bytes([0, 128, 255, 30]))
    Image.fromarray(np.dstack([PIXELS, GREY])).save(root / "alpha.png")
    Image.fromarray(GREY > 127).save(root / "bits.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "turned.png", exif=exif)
    small = picture.resize((8, 5))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    picture.save(root / "two_sizes.tif", save_all=True, append_images=[small])
    large = picture.copy()
    large.encoderinfo = {"tiffinfo": {254: 0}}
    small.save(root / "small_first.tif", save_all=True, append_images=[large], tiffinfo={254: 1})
    flat.save(root / "camera.jpg", "MPO", save_all=True, append_images=[flat.resize((32, 20))], quality=100)

    (root / "zero.png").write_bytes(b"")
    (root / "half.png").write_bytes((root / "rgb.png").read_bytes()[:3000])
    (root / "text.jpg").write_text("no picture")
    picture.save(root / "program.eps")
    others = [Image.fromarray(np.roll(PIXELS, step, 0)) for step in (5, 9)]
    for kind in ("gif", "png", "webp"):
        picture.save(root / f"moving_{kind}.{kind}", save_all=True, append_images=others)
    picture.save(root / "pages.tif", save_all=True, append_images=others[:1])
    (root / "bomb.png").write_bytes(png_of(20_000, 20_000))
    (root / "absurd.png").write_bytes(png_of(2**31 - 1, 2**31 - 1))
    (root / "wide.png").write_bytes(png_of(70_000_000, 1))
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "float.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(root / "range.tif")
    return root


def expected(name: str, size: int = 32) -> np.ndarray:
    picture = Image.fromarray(RIGHT[name]).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    return np.asarray(picture).transpose(2, 0, 1)


@pytest.mark.parametrize("name", RIGHT)
def test_the_dataset_has_the_pixels(name, folder, recwarn):
    image = AnomalyDataset(folder, [Sample(name, "", "nut", "", 0)], 32)[0]["image"]
    np.testing.assert_allclose(image, expected(name), atol=2 if name in ("cmyk_jpeg.jpg", "camera.jpg") else 0)
    assert not recwarn.list


@pytest.mark.parametrize("name", REFUSED)
def test_the_dataset_refuses_by_name(name, folder, recwarn):
    with pytest.raises(ValueError) as error:
        AnomalyDataset(folder, [Sample(name, "", "nut", "", 0)], 32)[0]
    assert str(error.value).startswith(f"{folder / name}: ") and REFUSED[name] in str(error.value)
    assert not recwarn.list


def test_a_large_image_is_read_without_a_warning(folder, monkeypatch, recwarn):
    """Pillow warns from its limit on, and refuses from twice that on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS.size // 3 * 2 // 3)
    assert load_image(folder / "rgb.png").size == (64, 40) and not recwarn.list


def test_datasets_leave_photographs_as_they_are_stored_and_predict_turns_them(folder):
    """Masks follow the stored pixels; of one's own photographs the EXIF data says which way is up."""
    stored = AnomalyDataset(folder, [Sample("turned.png", "", "nut", "", 0)], 32)[0]["image"]
    np.testing.assert_array_equal(stored, expected("rgb.png"))
    upright = resize_picture(Image.fromarray(np.rot90(PIXELS, -1).copy()), 32, 32, "bicubic")
    np.testing.assert_array_equal(UnlabeledImages([folder / "turned.png"], 32)[0]["image"].permute(1, 2, 0), upright)


def flags(tiny_a, out) -> list:
    return [*tiny_a.flags, "--image_size", 96, "--num_workers", 0, "--checkpoint_path", CHECKPOINT, "--save_path", out]


def rows(path) -> dict[str, dict]:
    with path.open(newline="") as file:
        return {row["img_path"]: row for row in csv.DictReader(file)}


def put_meta(folder, names) -> None:
    samples = [
        {"img_path": name, "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": 0} for name in names
    ]
    (folder / "meta.json").write_text(json.dumps({"test": {"nut": samples}}))


SAME = (
    "png.jpg",
    "no_suffix",
    "cmyk.tif",
    "sixteen_rgb.png",
    "alpha.png",
    "two_sizes.tif",
    "small_first.tif",
)  # as rgb.png


def test_the_same_picture_has_the_same_score_in_test(folder, tiny_a, tmp_path):
    put_meta(folder, RIGHT)
    argv = [*flags(tiny_a, tmp_path / "out"), "--data_path", folder, "--no_images"]
    test_script.main([str(word) for word in argv])
    scores = {name: float(row["score"]) for name, row in rows(tmp_path / "out/predictions.csv").items()}
    assert scores.keys() == RIGHT.keys()
    for name in (*SAME, "turned.png"):
        assert scores[name] == pytest.approx(scores["rgb.png"], abs=1e-6)


def test_no_format_that_runs_what_it_holds_is_read():
    assert not {"EPS", "IPTC"} & set(formats())  # IPTC opens its content as any format, EPS among them


@pytest.mark.parametrize("name", REFUSED)
def test_test_stops_at_a_picture_by_name(name, folder, fails, tiny_a, tmp_path):
    put_meta(folder, ["rgb.png", name])
    line = fails(test_script.main, *flags(tiny_a, tmp_path / "out"), "--data_path", folder)
    assert f"{folder / name}: " in line and REFUSED[name] in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) in (
        ["config.json", "log.txt"],
        ["config.json", "imgs", "log.txt"],
    )
    assert not list((tmp_path / "out").rglob("*.png"))


def test_predict_scores_what_is_right_and_lists_the_rest(folder, tiny_a, tmp_path):
    inputs = [folder / name for name in (*RIGHT, *REFUSED)]
    code = predict_script.main([str(w) for w in [*inputs, "--class_name", "nut", *flags(tiny_a, tmp_path / "out")]])
    scores, skipped = rows(tmp_path / "out/scores.csv"), rows(tmp_path / "out/skipped.csv")
    assert code == 3 and scores.keys() == RIGHT.keys() and skipped.keys() == REFUSED.keys()
    for name in SAME:
        assert float(scores[name]["score"]) == pytest.approx(float(scores["rgb.png"]["score"]), abs=1e-6)
    for name, row in skipped.items():
        assert REFUSED[name] in row["reason"]
    assert len(list((tmp_path / "out/imgs").glob("*.png"))) == len({name.split(".")[0] for name in RIGHT})


def test_a_folder_is_searched_for_what_can_be_read(folder):
    found = find_images([str(folder)])
    assert {name for _, name in found.images} == (RIGHT.keys() | REFUSED.keys()) - {"program.eps"}
    assert {path.name for path in found.passed_over} - {"meta.json"} == {"program.eps"}


def test_masks_of_any_colour_space(tmp_path):
    """Black is no defect in any of them; in LAB it is not exactly black."""
    defect = np.zeros((20, 30), np.uint8)
    defect[5:9, 4:20] = 255
    for mode in ("L", "RGB", "CMYK", "YCbCr", "P", "LA", "LAB"):
        buffer = io.BytesIO()
        Image.fromarray(np.dstack([defect] * 3)).convert(mode).save(buffer, "TIFF")
        (tmp_path / "m.tif").write_bytes(buffer.getvalue())
        Image.fromarray(PIXELS[:20, :30]).save(tmp_path / "a.png")
        dataset = AnomalyDataset(tmp_path, [Sample("a.png", "m.tif", "nut", "", 1)], 30)
        if mode == "LAB":
            with pytest.raises(ValueError, match=r"m\.tif: a mask in LAB colours"):
                dataset[0]
            return
        mask = Image.fromarray(defect).resize((30, 30), Image.Resampling.BILINEAR)
        assert torch.equal(dataset[0]["mask"], torch.from_numpy((np.asarray(mask) > 127).astype(np.uint8))), mode
