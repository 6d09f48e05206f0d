"""Which files of a folder are images, and what is passed over."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data.images import find_images, image_files, passed_over_line, pixel_digest, result_names, without_copies

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
READ = ["a.jfif", "a.jpe", "a.dib", "a.gif", "a.pgm", "a.ppm", "a.avif", "a.jp2", "a.tga", "a.PNG", "a.TIFF", "a.webp"]


def save(path: Path, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).convert("L" if path.suffix == ".pgm" else "RGB").save(path, kind)
    return path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_images_of_every_suffix_and_of_none_are_found_at_any_depth(tmp_path):
    for name in READ:
        save(tmp_path / name)
    save(tmp_path / "cam1/deep/b.png")
    save(tmp_path / "no_suffix", "PNG")
    save(tmp_path / "export.dat", "JPEG")
    images, passed_over = image_files(tmp_path)
    assert names(images, tmp_path) == sorted([*READ, "cam1/deep/b.png", "no_suffix", "export.dat"]) and not passed_over
    images, passed_over = image_files(tmp_path, recursive=False)
    assert names(images, tmp_path) == sorted([*READ, "no_suffix", "export.dat"]) and not passed_over


def test_what_is_no_image_is_passed_over_by_name(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("0 0 0 0\n" * 100)
    (tmp_path / "scores.csv").write_text("img_path,score\n")
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    np.save(tmp_path / "map.npy", np.zeros(9))
    (tmp_path / "zeros").write_bytes(bytes(3000))
    save(tmp_path / "program.eps")
    os.symlink("nowhere", tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    images, passed_over = image_files(tmp_path)
    assert names(images, tmp_path) == ["a.png"]
    assert names(passed_over, tmp_path) == sorted(
        ["notes.txt", "scores.csv", "a.svg", "phone.heic", "map.npy", "zeros", "program.eps", "gone.png", "pipe.png"]
    )


def test_hidden_files_and_clutter_are_in_neither_list(tmp_path):
    kept = save(tmp_path / "a.png")
    for name in ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "cam/.hidden/b.png"):
        save(tmp_path / name)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "cam/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    assert image_files(tmp_path) == ([kept], [])
    assert image_files(tmp_path / "__MACOSX") == ([tmp_path / "__MACOSX/a.png"], [])  # where it is named


def test_a_link_to_a_folder_is_passed_over_and_one_to_a_file_is_read(tmp_path):
    save(tmp_path / "elsewhere/a.png")
    (tmp_path / "photos").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos/linked")
    os.symlink(tmp_path / "photos", tmp_path / "photos/circle")
    os.symlink(tmp_path / "elsewhere/a.png", tmp_path / "photos/b.png")
    images, passed_over = image_files(tmp_path / "photos")
    assert names(images, tmp_path) == ["photos/b.png"]
    assert names(passed_over, tmp_path) == ["photos/circle", "photos/linked"]
    assert image_files(tmp_path / "photos/linked")[0] == [tmp_path / "photos/linked/a.png"]


@pytest.mark.parametrize("recursive", [True, False])
def test_a_missing_folder_is_passed_over_by_name(recursive, tmp_path):
    assert image_files(tmp_path / "gone", recursive) == ([], [tmp_path / "gone"])


# --- find_images ----------------------------------------------------------------------------------------------------


def test_what_predict_passes_over_is_returned_once_and_what_is_named_is_read(tmp_path):
    save(tmp_path / "photos/a.png")
    save(tmp_path / "photos/.ipynb_checkpoints/a-checkpoint.png")
    (tmp_path / "photos/notes.txt").write_text("x")
    (tmp_path / "photos/odd.dat").write_text("x")
    folder, hidden = str(tmp_path / "photos"), str(tmp_path / "photos/.ipynb_checkpoints")
    found = find_images([folder, folder])
    assert [name for _, name in found.images] == ["a.png"]
    assert names(found.passed_over, tmp_path) == ["photos/notes.txt", "photos/odd.dat"]
    assert [name for _, name in find_images([hidden]).images] == ["a-checkpoint.png"]
    assert [name for _, name in find_images([f"{hidden}/a-checkpoint.png"]).images] == ["a-checkpoint.png"]
    found = find_images([folder, f"{folder}/odd.dat"])  # a file that is named is taken, and then not passed over
    assert [name for _, name in found.images] == ["a.png", "odd.dat"]
    assert names(found.passed_over, tmp_path) == ["photos/notes.txt"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("x")
    first = ", ".join(str(tmp_path / f"{number}.txt") for number in range(3))
    with pytest.raises(ValueError, match="no images there") as error:
        find_images([str(tmp_path)])
    assert str(error.value).endswith(f"; passed over, not images: 5 ({first} and 2 more)")
    assert passed_over_line([Path("a.txt")]) == "passed over, not images: 1 (a.txt)"


def test_results_of_images_that_differ_in_the_suffix_alone_have_names_of_their_own():
    assert result_names(["cam/a.png", "b.tar.png", "no_suffix", "é.jpg"]) == {
        "cam/a.png": "cam/a", "b.tar.png": "b.tar", "no_suffix": "no_suffix", "é.jpg": "é",
    }  # fmt: skip
    assert result_names(["a.jpg", "a.png", "a", "x/a.png"]) == {
        "a.jpg": "a_jpg", "a.png": "a_png", "a": "a", "x/a.png": "x/a"
    }  # fmt: skip
    crowded = result_names(["a.jpg", "a.png", "a_jpg.bmp", "a_jpg_.bmp", "a_png", "a_png.tif"])
    assert crowded["a_jpg_.bmp"] == "a_jpg_" and len(set(crowded.values())) == 6
    assert result_names([]) == {}


# --- copies ---------------------------------------------------------------------------------------------------------


def test_one_picture_in_several_files_has_one_digest(tmp_path):
    grey = PIXELS[..., 0]
    picture = Image.fromarray(PIXELS)
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
        picture.save(tmp_path / name)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(PIXELS).copy()).save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "text.png", pnginfo=_note())
    Image.fromarray(np.dstack([PIXELS, grey])).save(tmp_path / "alpha.png")
    cv2.imwrite(str(tmp_path / "sixteen.png"), PIXELS[..., ::-1].astype(np.uint16) * 257)
    assert len({pixel_digest(path) for path in tmp_path.iterdir()}) == 1
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "grey_rgb.bmp")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey_sixteen.png")
    assert len({pixel_digest(path) for path in tmp_path.glob("grey*")}) == 1


def _note() -> PngImagePlugin.PngInfo:
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "the same pixels in other bytes")
    return note


def test_other_pictures_have_other_digests(tmp_path):
    changed = PIXELS.copy()
    changed[3, 4, 1] ^= 1
    others = [PIXELS, changed, PIXELS[::-1], PIXELS.swapaxes(0, 1), PIXELS.reshape(24, 8, 3), PIXELS[..., 0]]
    for number, pixels in enumerate(others):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{number}.png")
    assert len({pixel_digest(path) for path in tmp_path.iterdir()}) == len(others)
    digest = pixel_digest(tmp_path / "0.png")
    assert len(digest) == 16 and int(digest, 16) >= 0
    values = np.uint16([[0, 100, 4095]])
    Image.fromarray(values).save(tmp_path / "few.png")
    Image.fromarray(np.uint8([[0, 6, 255]])).save(tmp_path / "eight.png")
    assert pixel_digest(tmp_path / "few.png", bits=12) == pixel_digest(tmp_path / "eight.png")
    assert pixel_digest(tmp_path / "few.png") != pixel_digest(tmp_path / "eight.png")


def test_copies_are_left_out_and_the_first_of_them_stays(tmp_path):
    order = ["b.png", "a.png", "a.bmp", "c.png", "b_copy.png", "a.tif"]
    for number, letter in enumerate("abc"):
        for name in (name for name in order if name[0] == letter):
            Image.fromarray(np.roll(PIXELS, number, 0)).save(tmp_path / name)
    unique, copies = without_copies([tmp_path / name for name in order])
    assert names(unique, tmp_path) == ["b.png", "a.png", "c.png"]
    assert names(copies, tmp_path) == ["a.bmp", "b_copy.png", "a.tif"]
    assert without_copies([tmp_path / "a.png"] * 2) == ([tmp_path / "a.png"], [tmp_path / "a.png"])
    (tmp_path / "broken.png").write_text("x")
    with pytest.raises(ValueError, match=r"broken\.png: unreadable image"):
        without_copies([tmp_path / "a.png", tmp_path / "broken.png"])
