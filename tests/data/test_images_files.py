"""Which files of a folder are images, and what is passed over."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import image_files

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
