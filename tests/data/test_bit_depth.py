"""Integers of few bits in files of 16 or 32: right by the pixel with `bits`, and named without."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.images import bits_hint, load_image, load_mask
from dataset import AnomalyDataset, Sample, UnlabeledImages

RNG = np.random.default_rng(0)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits
COLOUR = np.dstack([RAMP, RAMP[::-1], RAMP.T])
CAMERA = {  # Pillow reads grey of 16 bits, but keeps the high byte of colours
    "grey.png": RAMP, "grey.tif": RAMP, "grey.jp2": RAMP, "grey.pgm": RAMP,
    "colour.png": COLOUR, "colour.tif": COLOUR, "colour.jp2": COLOUR, "colour.ppm": COLOUR,
    "alpha.png": COLOUR, "alpha.tif": COLOUR,
}  # fmt: skip


def scaled(values: np.ndarray, white: int) -> np.ndarray:
    return np.floor(values.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)


def write(path: Path, values: np.ndarray) -> Path:
    if path.stem == "alpha":
        values = np.dstack([values, values[..., 0]])
    cv2.imwrite(str(path), values[..., [2, 1, 0, *range(3, values.shape[2])]] if values.ndim == 3 else values)
    return path


def tiff(values: np.ndarray, bits: int, *, planes: int = 1, extra: int | None = None, turn: int = 1) -> bytes:
    """An uncompressed TIFF, bits of a sample (12 packed, 16, 32), written tag by tag."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, bands = values.shape
    if bits == 12:
        digits = ["".join(f"{value:012b}" for value in row) for row in values.reshape(height, -1)]
        strips = [b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in digits)]
    else:
        parts = [values[..., band] for band in range(bands)] if planes == 2 else [values]
        strips = [np.ascontiguousarray(part).astype(f"<u{bits // 8}").tobytes() for part in parts]
    tags = {256: [width], 257: [height], 258: [bits] * bands, 259: [1], 262: [2 if bands > 2 else 1], 273: [0],
            274: [turn], 277: [bands], 278: [height], 279: [len(strip) for strip in strips],
            284: [planes]} | ({338: [extra]} if extra is not None else {})  # fmt: skip
    start, data, entries = 8 + 2 + 12 * len(tags) + 4, b"".join(strips), b""
    tags[273] = [start + sum(map(len, strips[:number])) for number in range(len(strips))]
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            packed, data = struct.pack("<I", start + len(data)), data + packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    return b"II" + struct.pack("<HIH", 42, 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("name", CAMERA)
def test_values_of_12_bits_are_right_with_bits_and_nearly_black_without(name, tmp_path):
    path, values = write(tmp_path / name, CAMERA[name]), CAMERA[name]
    np.testing.assert_array_equal(load_image(path, bits=12), scaled(values, 4095))
    np.testing.assert_array_equal(load_image(path), scaled(values, 65535))


@pytest.mark.parametrize("name", ["grey.png", "colour.png", "colour.tif"])
@pytest.mark.parametrize("bits", range(8, 17))
def test_every_number_of_bits(bits, name, tmp_path):
    values = RNG.integers(0, 2**bits, (9, 7, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    values = values if name[0] == "c" else values[..., 0]
    np.testing.assert_array_equal(load_image(write(tmp_path / name, values), bits=bits), scaled(values, 2**bits - 1))


def test_a_dark_image_of_a_set_stays_dark(tmp_path):
    """No image is stretched by its own largest value."""
    bright, dark = RAMP, RAMP // 16
    for name, values in (("a.png", bright), ("b.png", dark)):
        write(tmp_path / name, values)
    items = list(UnlabeledImages([tmp_path / "a.png", tmp_path / "b.png"], 64, bits=12))
    assert [int(item["image"].max()) for item in items] == [255, 16]
    samples = [Sample(name, "", "nut", "good", 0) for name in ("a.png", "b.png")]
    assert [int(item["image"].max()) for item in AnomalyDataset(tmp_path, samples, 64, bits=12)] == [255, 16]


@pytest.mark.parametrize("name", ["grey.png", "colour.tif"])
def test_a_value_that_bits_cannot_hold_is_refused(name, tmp_path):
    path = write(tmp_path / name, CAMERA[name])
    with pytest.raises(ValueError, match=rf"{name}: a pixel value of 4095 does not fit into --bits 10.*1023"):
        load_image(path, bits=10)


@pytest.mark.parametrize("bits", [None, 12])
def test_files_of_8_bits_are_what_they_are_with_every_number_of_bits(bits, tmp_path):
    pixels = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for name in ("a.png", "a.tif", "a.bmp", "a.ppm"):
        Image.fromarray(pixels).save(tmp_path / name)
        np.testing.assert_array_equal(load_image(tmp_path / name, bits=bits), pixels)


def test_integers_of_32_bits(tmp_path):
    small = RNG.integers(0, 256, (9, 7)).astype(np.int32)
    Image.fromarray(small).save(tmp_path / "small.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "small.tif"), small)
    np.testing.assert_array_equal(load_image(tmp_path / "small.tif", bits=12), scaled(small, 4095))
    (tmp_path / "unsigned.tif").write_bytes(tiff(small.astype(np.uint32), 32))
    np.testing.assert_array_equal(load_image(tmp_path / "unsigned.tif"), small)
    large = RAMP.astype(np.int32) * 16
    Image.fromarray(large).save(tmp_path / "large.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "large.tif"), scaled(large, 65535))


def test_a_file_that_says_how_many_bits_it_has_is_taken_at_its_word(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(RAMP, 12))
    (tmp_path / "a.ppm").write_bytes(b"P6\n64 64\n4095\n" + COLOUR.astype(">u2").tobytes())
    (tmp_path / "a.pgm").write_bytes(b"P5\n64 64\n4095\n" + RAMP.astype(">u2").tobytes())
    written = cv2.imencode(".jp2", RAMP + 2**15 - 2**11)[1].tobytes()  # zero lies in the middle, as the header says
    place = written.index(b"\xff\x4f\xff\x51") + 42
    (tmp_path / "a.jp2").write_bytes(
        (written[:place] + b"\x0b" + written[place + 1 :]).replace(b"\x0f\x07", b"\x0b\x07")
    )
    for bits in (None, 10):
        np.testing.assert_array_equal(load_image(tmp_path / "a.tif", bits=bits), scaled(RAMP, 4095))
        np.testing.assert_array_equal(load_image(tmp_path / "a.ppm", bits=bits), scaled(COLOUR, 4095))
        for name in ("a.pgm", "a.jp2"):  # Pillow stretches them to 16 bits first
            np.testing.assert_allclose(load_image(tmp_path / name, bits=bits), scaled(RAMP, 4095), atol=1)


def test_colours_of_16_bits_beside_transparency_and_other_chunks(tmp_path):
    """A colour that is transparent, grey with alpha, a TIFF with a fourth channel that means nothing."""

    def png(kind: int, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
        rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
        header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
        parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        coded = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(coded)

    transparent = (b"tRNS", struct.pack(">HHH", *COLOUR[0, 0]))
    gamma = (b"gAMA", struct.pack(">I", 45455))
    (tmp_path / "a.png").write_bytes(png(2, COLOUR, gamma, transparent))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", bits=12), scaled(COLOUR, 4095))
    (tmp_path / "b.png").write_bytes(png(4, COLOUR[..., :2]))
    np.testing.assert_array_equal(load_image(tmp_path / "b.png", bits=12), scaled(np.dstack([RAMP] * 3), 4095))
    (tmp_path / "c.tif").write_bytes(tiff(np.dstack([COLOUR, RAMP]), 16, extra=0))
    np.testing.assert_array_equal(load_image(tmp_path / "c.tif", bits=12), scaled(COLOUR, 4095))


def test_kinds_of_16_bits_that_no_decoder_here_reads_whole_are_refused(tmp_path):
    (tmp_path / "planes.tif").write_bytes(tiff(COLOUR, 16, planes=2))
    with pytest.raises(ValueError, match=r"planes\.tif: unreadable image \(colours of 16 bits in separate planes"):
        load_image(tmp_path / "planes.tif")
    associated = tiff(np.dstack([COLOUR * 16, np.full_like(RAMP, 65535)]), 16, extra=1)
    (tmp_path / "associated.tif").write_bytes(associated)
    np.testing.assert_array_equal(load_image(tmp_path / "associated.tif"), COLOUR >> 4)  # the high byte
    with pytest.raises(ValueError, match=r"associated\.tif: --bits 12 is not available"):
        load_image(tmp_path / "associated.tif", bits=12)


def test_a_page_behind_its_reduced_copy_has_all_its_bits(tmp_path):
    first, second = tiff(COLOUR[:8, :8], 16), tiff(COLOUR, 16)
    small = bytearray(first.replace(struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 254, 4, 1, 1)))
    width = struct.pack("<HHII", 284, 4, 1, 1)  # the planes' tag gives its place to the width, which must stay sorted
    place = small.index(width)
    small[place : place + 12] = b""
    entries = small[10:place]
    entries = entries[:12] + struct.pack("<HHII", 256, 4, 1, 8) + entries[12:]
    small = small[:10] + entries + struct.pack("<I", len(first)) + first[10 + len(entries) + 4 :]
    shift = len(small)
    moved = bytearray(second[8:])
    for tag in (258, 273):
        at = moved.index(struct.pack("<HH", tag, 4)) + 8
        moved[at : at + 4] = struct.pack("<I", struct.unpack("<I", moved[at : at + 4])[0] + shift - 8)
    (tmp_path / "a.tif").write_bytes(bytes(small) + bytes(moved))
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif", bits=12), scaled(COLOUR, 4095))


@pytest.mark.parametrize("turn", range(1, 9))
def test_colours_of_16_bits_are_turned_as_others_are(turn, tmp_path):
    values = COLOUR[:40]
    (tmp_path / "deep.tif").write_bytes(tiff(values, 16, turn=turn))
    Image.fromarray(scaled(values, 65535)).save(tmp_path / "flat.tif", tiffinfo={274: turn})
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(scaled(values, 65535)).save(tmp_path / "flat.png", exif=exif)
    for upright in (False, True):
        right = np.asarray(load_image(tmp_path / "flat.png", upright=upright))
        np.testing.assert_array_equal(load_image(tmp_path / "flat.tif", upright=upright), right)
        np.testing.assert_array_equal(load_image(tmp_path / "deep.tif", upright=upright), right)
    np.testing.assert_array_equal(load_image(tmp_path / "deep.tif"), scaled(values, 65535))


def test_a_mask_of_16_bit_colours_keeps_its_small_values(tmp_path):
    defect = np.zeros((20, 30, 3), np.uint16)
    defect[5:9, 4:20, 2] = 1
    cv2.imwrite(str(tmp_path / "m.png"), defect)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png"), defect.max(-1) * 255)


@pytest.mark.parametrize("bits", [0, 7, 17, 32])
def test_a_number_of_bits_that_no_file_has_is_refused(bits, tmp_path):
    with pytest.raises(ValueError, match=f"bits must be 8 to 16, got {bits}"):
        load_image(write(tmp_path / "a.png", RAMP), bits=bits)


# --- the hint -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (900, 10), (4095, 12), (16383, 14), (16384, None), (65535, None)]
)
def test_a_set_is_named_with_the_bits_that_it_seems_to_have(largest, bits, tmp_path):
    paths = [write(tmp_path / f"{number}.png", np.full((4, 5), largest // 2**number, np.uint16)) for number in range(3)]
    hint = bits_hint(paths)
    assert (hint and hint.bits) == bits
    if hint:
        assert hint.largest == largest and hint.images == 3
        assert f"no pixel of 3 images of 16 or 32 bits is above {largest}" in str(hint)
        assert f"--bits {bits} reads them" in str(hint)


def test_sets_that_need_no_hint(tmp_path):
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "eight.png")
    Image.fromarray(np.full((4, 5), 200, np.int32)).save(tmp_path / "wide.tif")  # read as 8 bit anyway
    (tmp_path / "twelve.tif").write_bytes(tiff(RAMP, 12))
    write(tmp_path / "black.png", np.zeros((4, 5), np.uint16))
    (tmp_path / "broken.png").write_text("x")
    assert bits_hint([]) is None
    for name in ("eight.png", "wide.tif", "twelve.tif", "black.png", "broken.png", "gone.png"):
        assert bits_hint([tmp_path / name]) is None, name


def test_colours_and_integers_of_32_bits_take_part_in_the_hint(tmp_path):
    dark = Image.fromarray(np.full((4, 5), 200, np.int32))
    dark.save(tmp_path / "dark.tif")
    Image.fromarray(np.full((4, 5), 1000, np.int32)).save(tmp_path / "bright.tif")
    hint = bits_hint([tmp_path / "dark.tif", tmp_path / "bright.tif"])
    assert hint and (hint.bits, hint.largest, hint.images) == (10, 1000, 2)
    hint = bits_hint([write(tmp_path / name, COLOUR) for name in ("colour.png", "colour.tif")])
    assert hint and (hint.bits, hint.largest, hint.images) == (12, 4095, 2)
