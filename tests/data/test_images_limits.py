"""Image files that would cost much: bounded before it is paid, and refused by name."""

import os
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import bits_hint, find_images, load_image, load_mask, lossy_masks, orientation, pictures_in
from dataset import AnomalyDataset, Sample, UnlabeledImages


def png(width: int, height: int) -> bytes:
    """Black, one bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(height * (1 + -(-width // 8))))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_of_pages(count: int, reduced: bool = False) -> bytes:
    """One-pixel pages; reduced: all but the first are reduced copies."""
    size = 2 + 12 * 9 + 4
    pages = b""
    for page in range(count):
        tags = {254: int(reduced and page > 0), 256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 278: 1, 279: 1}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        following = 10 + (page + 1) * size if page + 1 < count else 0
        pages += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 10) + b"\x80\0" + pages


def refusal(path, **options) -> str:
    with pytest.raises(ValueError) as error:
        load_image(path, **options)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)


def test_a_tiff_of_many_pages_is_refused_at_once(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_of_pages(16_000))
    (tmp_path / "reduced.tif").write_bytes(tiff_of_pages(16_000, reduced=True))
    start = time.perf_counter()
    for name in ("a.tif", "reduced.tif"):
        assert "several pictures in one file" in refusal(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert pictures_in(image) == 2
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(("count", "pictures"), [(1, 1), (2, 1), (100, 1), (101, 2)])
def test_reduced_copies_are_no_pictures_up_to_100_pages(count, pictures, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_of_pages(count, reduced=True))
    with Image.open(tmp_path / "a.tif") as image:
        assert pictures_in(image) == pictures and image.tell() == 0
    if pictures == 1:
        assert np.asarray(load_image(tmp_path / "a.tif")).tolist() == [[128]]


def test_a_gif_of_many_frames_is_refused_without_a_look_at_each(tmp_path, monkeypatch):
    frames = [Image.new("L", (4, 4), value) for value in range(200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    seen = []
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile._seek", _counted(seen))
    assert "several pictures in one file" in refusal(tmp_path / "a.gif")
    assert max(seen) == 1


def _counted(seen):
    from PIL.GifImagePlugin import GifImageFile

    seek = GifImageFile._seek

    def counted(self, frame, *arguments):
        seen.append(frame)
        return seek(self, frame, *arguments)

    return counted


@pytest.mark.parametrize(("width", "height"), [(70_000_000, 1), (1, 70_000_000), (100_001, 1)])
def test_a_side_of_millions_of_pixels_is_refused_before_decoding(width, height, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(width, height))
    monkeypatch.setattr(Image.Image, "load", _never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", _never)
    line = f"image too large, make it smaller ({width} x {height} pixels; a side may have 100000)"
    assert line in refusal(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: image too large"):
        load_mask(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: image too large"):
        AnomalyDataset(tmp_path, [Sample("a.png", "", "nut", "", 0)], 64)[0]


def _never(*_):
    raise AssertionError("decoded")


def test_one_image_that_is_too_large_is_one_skipped_line(tmp_path):
    (tmp_path / "a.png").write_bytes(png(70_000_000, 1))
    Image.new("RGB", (8, 8), (7, 8, 9)).save(tmp_path / "b.png")
    bad, good = UnlabeledImages([tmp_path / "a.png", tmp_path / "b.png"], 16)
    assert "a.png: image too large" in bad["error"] and not bad["image"].any()
    assert not good["error"] and torch.equal(good["image"][:, 3, 5], torch.tensor([7, 8, 9], dtype=torch.uint8))


def test_the_memory_of_the_resize_is_bounded(tmp_path):
    """Pillow resizes the rows first: 4096 x 90,000 pixels on their way to 4096 x 4096."""
    (tmp_path / "a.png").write_bytes(png(10, 90_000))
    assert load_image(tmp_path / "a.png", side=1024).size == (10, 90_000)
    assert "10 x 90000 pixels take 1.5 GB on their way to 4096 x 4096" in refusal(tmp_path / "a.png", side=4096)
    assert UnlabeledImages([tmp_path / "a.png"], 4096)[0]["error"].startswith(f"{tmp_path / 'a.png'}: image too large")


def test_a_mosaic_of_tiles_that_cannot_be_brought_to_one_size_is_refused(tmp_path):
    (tmp_path / "wide.png").write_bytes(png(90_000, 1))
    (tmp_path / "high.png").write_bytes(png(1, 90_000))
    samples = [Sample("wide.png", "", "nut", "good", 0), Sample("high.png", "", "nut", "good", 0)]
    dataset = AnomalyDataset(tmp_path, samples, 8, mosaic_rate=1.0)
    with pytest.raises(ValueError, match="mosaic of class 'nut': images too different in size"):
        for dataset.epoch in range(20):
            dataset[0]


def test_an_icon_that_holds_a_larger_image_than_it_says(tmp_path):
    content = png(150_000, 1)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + content)
    assert "150000 x 1 pixels; a side may have" in refusal(tmp_path / "a.ico")


@pytest.mark.parametrize("place", ["PIL.ImageFile.ImageFile.load", "PIL.Image.Image.convert", "PIL.Image.Image.resize"])
def test_a_decoder_without_memory_names_the_file(place, tmp_path, monkeypatch):
    def without_memory(*_, **__):
        raise MemoryError

    Image.new("CMYK", (8, 8)).save(tmp_path / "a.tif")
    monkeypatch.setattr(place, without_memory)
    assert "a.tif: image too large" in UnlabeledImages([tmp_path / "a.tif"], 16)[0]["error"]
    with pytest.raises(ValueError, match=r"a\.tif: .*too large"):
        AnomalyDataset(tmp_path, [Sample("a.tif", "", "nut", "", 0)], 16)[0]


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_and_never_waited_for(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    done = threading.Event()

    def look():
        for read in (load_image, load_mask):
            with pytest.raises(ValueError, match=rf"a\.png: is a {kind}.*, not a file"):
                read(path)
        assert orientation(path) == 1 and lossy_masks([path]) == [] and bits_hint([path]) is None
        if kind != "folder":
            with pytest.raises(ValueError, match=rf"a\.png: is a {kind}.*, not a file"):
                find_images([str(path)])
        done.set()

    threading.Thread(target=look, daemon=True).start()
    assert done.wait(20)
