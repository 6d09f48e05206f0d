"""The folder of uploads: bounded, emptied in time, and removed whatever happens."""

import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from inference import upload_folder
from inference.upload_folder import UploadFolder


@pytest.fixture
def folder(tmp_path):
    with UploadFolder(10**6, tmp_path) as opened:
        yield opened


def write(path, size: int = 10) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))


def test_it_goes_when_the_program_ends(tmp_path):
    with UploadFolder(10**6, tmp_path) as folder:
        write(folder.path / "hash/a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_program_left_is_removed_by_the_next_and_a_running_one_keeps_its_own(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom inference.upload_folder import UploadFolder\n"
        "with UploadFolder(10**6, pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder.path / 'a.png').write_text('x')\n    print(folder.path, flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    other = process.stdout.readline().strip()
    with UploadFolder(10**6, tmp_path):
        assert os.listdir(other), "a running program lost its uploads"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "vand-app-link").symlink_to(ROOT)
    with UploadFolder(10**6, tmp_path):
        assert not os.path.exists(other) and (ROOT / "app.py").is_file()


def test_old_files_go_whoever_wrote_them(folder, monkeypatch):
    write(folder.path / "thumbnails/page.png")
    folder.keep_present()
    write(folder.path / "hash/upload.png")
    write(folder.path / "other/result.webp")
    folder.sweep()
    assert len(list(folder.path.rglob("*.*p*"))) == 3
    monkeypatch.setattr(upload_folder, "MAX_AGE", -1)
    folder.sweep()
    assert {path.name for path in folder.path.iterdir()} == {".lock", "thumbnails"}
    assert (folder.path / "thumbnails/page.png").is_file()


def test_a_part_that_nobody_adds_to_goes(folder):
    write(folder.path / "tmpabc")
    write(folder.path / "tmpold")
    os.utime(folder.path / "tmpold", (time.time() - 700,) * 2)
    folder.sweep()
    assert (folder.path / "tmpabc").exists() and not (folder.path / "tmpold").exists()


def test_parts_go_with_the_last_upload_that_is_under_way(folder):
    assert folder.reserve(1000) and folder.reserve(1000)
    write(folder.path / "tmpabc")
    write(folder.path / "hash/whole.png")
    folder.release(1000)
    assert (folder.path / "tmpabc").exists()
    folder.release(1000)
    assert not (folder.path / "tmpabc").exists() and (folder.path / "hash/whole.png").exists()


def test_the_quota_counts_files_reservations_and_many_small_files(folder):
    assert not folder.reserve(1_000_001)
    assert folder.reserve(600_000) and not folder.reserve(600_000)
    folder.release(600_000)
    write(folder.path / "hash/a.png", 500_000)
    assert not folder.reserve(600_000) and folder.reserve(400_000)
    folder.release(400_000)
    (folder.path / "hash/a.png").unlink()
    for number in range(16):
        write(folder.path / f"hash/{number}.png", 1)
    assert not folder.reserve(1), "a million bytes hold no 16 files of a block each"


def test_the_oldest_of_many_pictures_goes(folder, monkeypatch):
    monkeypatch.setattr(upload_folder, "_PICTURES", 2)
    first, second, third = (folder.new_picture() for _ in range(3))
    assert not first.exists() and second.exists() and third.exists()
