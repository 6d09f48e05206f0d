"""A disk that is full, or a file that may not grow: one line names it, and nothing is lost."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from data.box import WHOLE
from dataset import AnomalyDataset, Sample
from engine.batches import batches
from report.pictures import Previews
from utils.errors import one_line

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
    fill(small_disk, 16_000)  # the log goes on, neither the curves' pictures nor a checkpoint fit
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


def test_what_a_reader_keeps_does_not_fit(small_disk, tmp_path):
    """Its error comes from another process."""
    fill(small_disk, 40_000)
    samples = [Sample(str(number), "", "nut", "good", 0) for number in range(4)]
    for sample in samples:
        Image.new("RGB", (400, 300)).save(tmp_path / sample.img_path, "PNG")
    dataset = AnomalyDataset(tmp_path, samples, 32, on_read=Previews(small_disk, WHOLE))
    with pytest.raises(OSError) as error:
        list(batches(dataset, 2, 2, Accelerator(cpu=True)))
    assert re.match(rf"{small_disk}/preview-\d.npy is not written \(.*\); free some space", one_line(error.value))


def test_the_curves_do_not_fit(tiny_a, mini_mvtec, small_disk):
    """TensorBoard writes them in a thread of its own, whose end must not be told by a traceback."""
    fill(small_disk, 200_000)
    argv = [sys.executable, ROOT / "train.py", *flags(tiny_a, mini_mvtec, small_disk)["train.py"], "--epoch", 1]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and f"{small_disk}/tensorboard is not written" in done.stderr
    assert torch.load(small_disk / "epoch_1.pth", weights_only=True)["meta"]["epoch"] == 1


LIMITED = """
import resource, sys
from utils.errors import run_script
for script, limit, *flags in map(eval, sys.argv[1:]):
    main = __import__(script).main
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run_script(lambda: main(flags))
    except SystemExit as end:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("ended with", end.code, file=sys.stderr)
"""


def test_a_file_that_may_not_grow(tiny_a, mini_mvtec, tmp_path):
    """Where nobody may mount anything. In a process of its own: log.txt, a map, a checkpoint cannot be written."""
    calls = []
    for script, limit in (("predict", 300), ("test", 3_000), ("train", 6_000)):
        words = map(str, flags(tiny_a, mini_mvtec, tmp_path / script)[f"{script}.py"])
        calls.append(repr([script, limit, *words]))
    done = subprocess.run([sys.executable, "-c", LIMITED, *calls], capture_output=True, text=True, cwd=ROOT)
    said = done.stderr.strip().splitlines()
    assert said[1::2] == ["ended with 2"] * 3 and len(said) == 6, done.stderr
    for script, line in zip(("predict", "test", "train"), said[::2], strict=True):
        assert line.startswith(f"error: {tmp_path / script}/") and "is not written" in line
        assert script != "train" or "epoch_1.pth is not written" in line
        left = {path.name for path in (tmp_path / script).rglob("*") if path.is_file() and "events" not in path.name}
        assert left <= {"log.txt", "config.json", "calibration.json", "losses.csv"}
