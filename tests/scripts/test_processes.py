"""Two processes (gloo) give what one gives: tables, rows and their order, pictures, losses.

torchrun itself starts those of one test; the others are forks, which cost no start of PyTorch.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from forks import Run, together
from stress.interruption import differences
from utils.distributed import DistributedBatchSampler

FAST = ["--image_size", 96, "--num_workers", 0, "--device", "cpu"]
CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"


def call(main, *argv) -> None:
    main([str(arg) for arg in argv])


def torchrun(script: str, *argv) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [str(word) for word in (*launcher, ROOT / script, *argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen | Run) -> str:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out


def rows_of(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_rows(own: list[dict], alone: list[dict]) -> None:
    """The same words in the same order, and numbers to 1e-5."""
    assert len(own) == len(alone) > 0
    for one, other in zip(own, alone, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            try:
                assert float(one[key]) == pytest.approx(float(value), abs=1e-5)
            except ValueError:
                assert one[key] == value


@pytest.mark.parametrize(("count", "size", "ranks"), [(10, 4, 2), (3, 8, 4), (1, 2, 2), (23, 6, 3), (5, 1, 2)])
def test_rounds_deal_every_image_once(count, size, ranks):
    order = list(range(count))[::-1]
    shares = [DistributedBatchSampler(order, size, rank, ranks) for rank in range(ranks)]
    parts = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(part) for part in parts]
    seen = []
    for number, lengths in enumerate(zip(*(share.lengths() for share in shares), strict=True)):
        assert max(own for _, own in lengths) - min(own for _, own in lengths) <= 1
        assert {total for total, _ in lengths} == {len(order[number * size : (number + 1) * size])}
        seen += [index for part, (_, own) in zip(parts, lengths, strict=True) if own for index in part.pop(0)]
    assert seen == order and not any(parts)


def test_testing(tiny_a, mini_visa, tmp_path):
    """By torchrun. Zero-shot and few-shot in one pass; an odd number of images, and a class with fewer images than
    processes."""
    meta = json.loads((mini_visa / "meta.json").read_text())
    meta["test"]["tissue_slide"] = meta["test"]["tissue_slide"][-1:]
    meta["test"]["grass"] = meta["test"]["grass"][1:]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    flags = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", CHECKPOINT,
             "--meta_path", tmp_path / "meta.json", "--k_shot", 0, 2, "--seed", 5, 6, "--batch_size", 4,
             "--save_maps"]  # fmt: skip
    folders = [tmp_path / name for name in ("two", "one")]
    saved = [tmp_path / f"{folder.name}.safetensors" for folder in folders]
    process = torchrun("test.py", *flags, "--save_path", folders[0], "--save_memory", saved[0])
    call(test_script.main, *flags, "--save_path", folders[1], "--save_memory", saved[1])
    finished(process)
    two, one = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    for own, alone in zip(two["runs"], one["runs"], strict=True):
        assert own["settings"] == alone["settings"]
        for name, row in alone["classes"].items():
            assert own["classes"][name] == pytest.approx(row, abs=1e-6)
    assert_same_rows(*(rows_of(folder / "predictions.csv") for folder in folders))
    files = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in folders]
    assert files[0] == files[1]
    for path in folders[1].glob("maps/**/*.npy"):
        np.testing.assert_allclose(np.load(folders[0] / path.relative_to(folders[1])), np.load(path), atol=1e-5)
    pages = [(folder / "report.html").read_text().count("data:image/webp;base64,") for folder in folders]
    assert pages[0] == pages[1] > 0
    assert saved[0].stat().st_size == saved[1].stat().st_size


def test_training(tiny_a, mini_mvtec, tmp_path):
    """--batch_size is that of both: the losses are those of one process, mosaics and a last odd batch included."""
    flags = [*tiny_a.flags, *FAST, "--dataset", "mvtec", "--train_data_path", mini_mvtec, "--aug_rate", 0.5,
             "--batch_size", 5, "--epoch", 1]  # fmt: skip
    process = together("train.py", *flags, "--save_path", tmp_path / "two")
    call(train_script.main, *flags, "--save_path", tmp_path / "one")
    finished(process)
    two, one = (rows_of(tmp_path / folder / "losses.csv") for folder in ("two", "one"))
    assert len(two) == len(one)
    for key in ("loss", "focal", "dice"):
        np.testing.assert_allclose([float(row[key]) for row in two], [float(row[key]) for row in one], rtol=1e-5)


def test_predicting(tiny_c, mini_mvtec, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, path in enumerate(sorted(mini_mvtec.rglob("test/**/*.png"))[:7]):
        (photos / f"{number}.png").symlink_to(path)
    (photos / "4 broken.png").write_bytes(b"no picture")
    flags = [photos, "--class_name", "leather", "--method", "winclip", *tiny_c.flags, "--num_workers", 0, "--device",
             "cpu", "--batch_size", 2]  # fmt: skip
    cache = ["--feature_cache", tmp_path / "cache"]  # which both write at once, and one alone then reads
    process = together("predict.py", *flags, *cache, "--save_path", tmp_path / "two")
    process.communicate(timeout=600)
    assert process.returncode != 0  # as of one process: a file was skipped
    call(predict_script.main, *flags, "--save_path", tmp_path / "one")
    call(predict_script.main, *flags, *cache, "--save_path", tmp_path / "cached")
    assert "7 images found, 0 encoded" in (tmp_path / "cached/log.txt").read_text()
    assert_same_rows(rows_of(tmp_path / "cached/scores.csv"), rows_of(tmp_path / "one/scores.csv"))
    folders = [tmp_path / "two", tmp_path / "one"]
    assert_same_rows(*(rows_of(folder / "scores.csv") for folder in folders))
    skipped = [rows_of(folder / "skipped.csv") for folder in folders]
    assert skipped[0] == skipped[1] and len(skipped[0]) == 1
    pictures = [{p.name: p.read_bytes() for p in (folder / "imgs").iterdir()} for folder in folders]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 7


def test_a_set(tiny_a, mini_mvtec, tmp_path):
    """Both encode a part of it, and compare a part of its pairs."""
    photos, one, two = (tmp_path / name for name in ("photos", "one", "two"))
    photos.mkdir()
    for number, path in enumerate(sorted((mini_mvtec / "brick/test").rglob("*.png"))[:9]):
        (photos / f"{number}.png").symlink_to(path)
    flags = [photos, "--method", "musc", *tiny_a.flags, *FAST, "--save_maps", "--batch_size", 2]
    process = together("predict.py", *flags, "--save_path", two)
    call(predict_script.main, *flags, "--save_path", one)
    finished(process)
    files = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (two, one)]
    assert files[0] == files[1]
    for path in (one / "maps").iterdir():
        np.testing.assert_allclose(np.load(two / "maps" / path.name), np.load(path), atol=1e-6)
    assert_same_rows(rows_of(two / "scores.csv"), rows_of(one / "scores.csv"))


def test_a_killed_process_ends_the_other(tiny_a, mini_visa, tmp_path):
    flags = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", CHECKPOINT]
    process = together("test.py", *flags, "--save_path", tmp_path, "--batch_size", 1)
    deadline = time.monotonic() + 120
    while not (tmp_path / "imgs").is_dir():  # scoring has begun
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pids[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith(("error", "interrupted"))]
    assert "(process 0 of 2)" in line
    left = {path.name for path in tmp_path.rglob("*")}
    assert not left & {"metrics.json", "predictions.csv", "table.md", "report.html"}


def stopped(script: str, seen, number: signal.Signals, *argv) -> str:
    """Two processes, which get a signal once seen() is true; returns what they say."""
    process = together(script, *argv)
    deadline = time.monotonic() + 180
    while not seen():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    return errors


@pytest.mark.parametrize("method", ["vcp_clip", "anomaly_clip"])
def test_an_interrupted_training_of_two_goes_on(method, tiny_a, mini_mvtec, tmp_path):
    flags = [*tiny_a.flags, *FAST, "--method", method, "--dataset", "mvtec", "--train_data_path", mini_mvtec,
             "--class", "brick", "--batch_size", 3, "--epoch", 4, "--save_freq", 1]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished(together("train.py", *flags, "--save_path", whole))
    errors = stopped("train.py", (parts / "epoch_1.pth").is_file, signal.SIGTERM, *flags, "--save_path", parts)
    assert "interrupted (process 0 of 2): the same command with --resume goes on" in errors
    assert (parts / "last.pth").is_file()
    finished(together("train.py", *flags, "--save_path", parts, "--resume"))
    for name in ("losses.csv", "epoch_4.pth"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_an_interrupted_test_of_two_goes_on(tiny_a, mini_visa, tmp_path):
    flags = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", CHECKPOINT,
             "--batch_size", 1]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished(together("test.py", *flags, "--save_path", whole))
    stopped("test.py", (parts / "finished/0.json").is_file, signal.SIGTERM, *flags, "--save_path", parts)
    assert not (parts / "metrics.json").exists()
    finished(together("test.py", *flags, "--save_path", parts, "--resume"))
    assert "resumed: 1 of 2 classes are done" in (parts / "log.txt").read_text()
    assert differences(whole, parts) == []
