"""What the web page refuses, and in which words."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from inference.uploads import FORMATS, UploadLimits

LIMITS = UploadLimits(megabytes=1, pixels=100 * 100, references=2, side=64)


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "good.png"
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(path)
    return str(path)


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size; it holds no pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def refusal(name, image, references=()) -> str:
    with pytest.raises(ValueError) as error:
        LIMITS.check(name, image, references)
    return str(error.value)


def test_what_is_in_order_passes(image):
    LIMITS.check("screw", image, [image, image])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_formats(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (32, 32)).save(path)
    LIMITS.check("screw", str(path), [])


def test_something_is_missing_or_too_much(image):
    assert refusal("screw", None).startswith("There is no image yet")
    assert refusal("  ", image).startswith("Type what the image shows")
    assert refusal("a" * 81, image) == "The name has 81 characters; 80 are allowed."
    assert refusal("screw", image, [image] * 3) == "There are 3 reference images; 2 are allowed."


def test_files(image, tmp_path):
    """By content, whatever the suffix says; the message names the file and not where it lies."""

    def written(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    unreadable = f"bad.png is not an image that can be read here; must be one of {', '.join(FORMATS)}."
    for content in (b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 2 2 255 " + bytes(12)):
        assert refusal("screw", written("bad.png", content)) == unreadable
        assert refusal("screw", image, [image, written("bad.png", content)]) == unreadable
    assert refusal("screw", written("big.png", bytes(1_500_000))) == "big.png has 1.5 MB; 1 MB are allowed."
    line = refusal("screw", written("wide.png", png_header(101, 100)))
    assert line == "wide.png has 101 x 100 pixels; 0.01 megapixels are allowed."
    line = refusal("screw", written("bomb.png", png_header(60000, 60000)))
    assert line == "bomb.png has more pixels than can be opened safely."
    preview, page = Image.new("L", (8, 8)), Image.new("L", (101, 100))
    page.encoderinfo = {"tiffinfo": {254: 0}}
    preview.save(tmp_path / "preview.tif", save_all=True, append_images=[page], tiffinfo={254: 1})
    line = refusal("screw", str(tmp_path / "preview.tif"))
    assert line == "preview.tif has 101 x 100 pixels; 0.01 megapixels are allowed."
    assert "gone.png is no longer here" in refusal("screw", str(tmp_path / "gone.png"))


@pytest.mark.slow
def test_many_pages_are_refused_at_the_check_and_soon(tmp_path):
    """Some 8 seconds went by over 16,000 pages before. The file is made by hand, since Pillow takes longer still."""
    tags = {256: 1, 257: 1, 258: 1, 259: 1, 262: 1, 273: 8, 278: 1, 279: 1}  # 1 x 1 pixel of 1 bit, which is byte 8
    entries = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    starts = [10 + number * (len(entries) + 4) for number in range(8_000)]
    pages = b"".join(entries + struct.pack("<I", following) for following in [*starts[1:], 0])
    (tmp_path / "pages.tif").write_bytes(struct.pack("<2sHIH", b"II", 42, starts[0], 0) + pages)
    with Image.open(tmp_path / "pages.tif") as first:
        assert first.getpixel((0, 0)) == 0
        first.seek(2)
    start = time.process_time()
    line = refusal("screw", str(tmp_path / "pages.tif"))
    assert line.startswith("pages.tif holds several pictures in one file") and time.process_time() - start < 1


def test_a_picture_whose_way_to_the_model_is_costly_is_refused(tmp_path):
    limits = UploadLimits(megabytes=10, pixels=10**9, references=2, side=64)
    for size in ((1, 150_000), (150_000, 1)):
        Image.new("1", size).save(tmp_path / "line.png")
        with pytest.raises(ValueError, match="line.png has more pixels than can be opened safely"):
            limits.check("screw", str(tmp_path / "line.png"), [])


def test_control_characters_in_a_name_are_escaped(image, tmp_path):
    (tmp_path / "a\x1b[2J.png").write_bytes(b"")
    assert refusal("screw", str(tmp_path / "a\x1b[2J.png")).startswith("a\\x1b[2J.png is not an image")
