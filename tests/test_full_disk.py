"""A disk that is full, or a file that may not grow: one line names it, and nothing is lost."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch

import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT

BRICK = REFERENCE / "data/mini_mvtec/brick"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this test mounts a small file system, which needs the rights of an administrator")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place, left: int) -> None:
    """Leave so many bytes, in whole pages."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
    (place / "filler").write_bytes(bytes(max(0, free - left)))


def flags(tiny_a, mini_mvtec, place) -> dict[str, list]:
    own = [*tiny_a.flags, "--image_size", 96, "--num_workers", 0, "--save_path", place]
    return {
        "train.py": [*own, "--train_data_path", mini_mvtec, "--class", "brick"],
        "test.py": [*own, "--data_path", mini_mvtec, "--class", "brick", "--method", "winclip", "--save_maps"],
        "predict.py": [BRICK / "test", *own, "--class_name", "brick", "--method", "winclip"],
    }


def test_a_full_disk_keeps_the_last_checkpoint(tiny_a, mini_mvtec, small_disk, fails):
    own = flags(tiny_a, mini_mvtec, small_disk)["train.py"]
    train_script.main([str(word) for word in [*own, "--epoch", 1]])
    before = {name: (small_disk / name).read_bytes() for name in ("epoch_1.pth", "losses.csv")}
    fill(small_disk, 12_000)  # the log goes on, neither the curves' pictures nor a checkpoint fit
    line = fails(train_script.main, *own, "--epoch", 2, "--resume")
    assert "is not written (No space left on device); free some space" in line
    assert any(str(small_disk / name) in line for name in ("epoch_2.pth", "tensorboard"))
    assert before == {name: (small_disk / name).read_bytes() for name in before}
    assert not list(small_disk.glob(".*")) and not (small_disk / "epoch_2.pth").exists()
    (small_disk / "filler").unlink()
    train_script.main([str(word) for word in [*own, "--epoch", 2, "--resume"]])
    assert torch.load(small_disk / "epoch_2.pth", weights_only=True)["meta"]["epoch"] == 2


@pytest.mark.parametrize("left", [0, 40_000])
def test_a_full_disk_leaves_no_half_results(left, tiny_a, mini_mvtec, small_disk, fails):
    fill(small_disk, left)
    line = fails(test_script.main, *flags(tiny_a, mini_mvtec, small_disk)["test.py"])
    assert "free some space, or write to another place" in line and str(small_disk) in line
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".") or path.name == "metrics.json"]
    for path in small_disk.rglob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize(("script", "limit"), [("train.py", 6_000), ("test.py", 3_000), ("predict.py", 300)])
def test_a_file_that_may_not_grow(script, limit, tiny_a, mini_mvtec, tmp_path):
    """Where nobody may mount anything: log.txt, a map that waits, or a checkpoint cannot be written."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags(tiny_a, mini_mvtec, out)[script])],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "is not written" in done.stderr and str(out) in done.stderr
    left = {path.name for path in out.rglob("*") if path.is_file() and "events" not in path.name}
    assert left <= {"log.txt", "config.json", "calibration.json", "losses.csv"}  # the last without a row
