"""What is interrupted, killed or out of space goes on where it was, and ends with the same files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import engine.class_scores
import engine.epoch
import forks
import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from engine.resume import FinishedClasses
from engine.test_run import TestFolder
from stress.interruption import KILLED, differences, same_training
from utils.errors import run_script

FAST = ["--image_size", 64, "--num_workers", 0, "--device", "cpu"]
CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"


def words(*argv) -> list[str]:
    return [str(word) for word in argv]


def kill(script: str, count: int, *argv) -> None:
    """Run a script that dies by SIGKILL at the `count`th file that it gives its name."""
    assert forks.run("-c", KILLED, count, ROOT / script, *argv).returncode == -signal.SIGKILL


def interrupt(monkeypatch, place: str, call: int, number: int, main, *argv) -> tuple[int, str]:
    """Send a signal in the given call of a function of the engine; returns the exit code."""
    module = engine.epoch if hasattr(engine.epoch, place) else engine.class_scores
    original, calls = getattr(module, place), []

    def counted(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args)

    monkeypatch.setattr(module, place, counted)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # as where the tests run in the background
    with pytest.raises(SystemExit) as end:
        run_script(lambda: main(words(*argv)), train_script.RESUME_ADVICE)
    monkeypatch.undo()
    return end.value.code


@pytest.fixture(scope="module")
def training(tiny_a, mini_mvtec, mini_visa, tmp_path_factory):
    """(flags, folder of a training that was not interrupted): three epochs of six steps, mosaics, dropout."""
    folder = tmp_path_factory.mktemp("whole")
    flags = [*tiny_a.flags, *FAST, "--method", "vcp_clip", "--dataset", "mvtec", "--train_data_path", mini_mvtec,
             "--batch_size", 3, "--aug_rate", 0.5, "--epoch", 3, "--class", "brick", "--val_dataset", "visa",
             "--val_data_path", mini_visa]  # fmt: skip
    train_script.main(words(*flags, "--save_path", folder))
    return flags, folder


def test_a_killed_training_goes_on(training, tmp_path):
    """Before the first checkpoint has its name, and before losses.csv knows of the second."""
    flags, whole = training
    for count in (3, 8):
        kill("train.py", count, *flags, "--save_path", tmp_path, "--resume")
    time.sleep(1.1)  # TensorBoard sorts files by the second, then by the process
    train_script.main(words(*flags, "--save_path", tmp_path, "--resume"))
    same_training(whole, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_training_on_other_images_is_not_resumed(training, tmp_path, mini_mvtec):
    flags, whole = training
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    meta = json.loads((mini_mvtec / "meta.json").read_text())
    meta["test"]["brick"].pop()
    (tmp_path / "fewer.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"was trained with samples 16 images \(.+\) but this run has 15 images"):
        train_script.main(words(*flags, "--save_path", tmp_path, "--resume", "--meta_path", tmp_path / "fewer.json"))


def test_an_interrupted_training_goes_on_within_the_epoch(training, monkeypatch, tmp_path, capsys):
    flags, whole = training
    flags = [*flags, "--save_path", tmp_path]
    for call, number in ((1, signal.SIGINT), (7, signal.SIGTERM)):
        capsys.readouterr()
        assert interrupt(monkeypatch, "_losses", call, number, train_script.main, *flags, "--resume") == 128 + number
        assert capsys.readouterr().err == "interrupted: the same command with --resume goes on\n"
        assert (tmp_path / "last.pth").is_file()
    meta = torch.load(tmp_path / "last.pth", weights_only=True)["meta"]
    assert len(meta["losses"].splitlines()) == 1 + 1 + 7 and meta["epoch"] == 1  # a header, the steps of both runs
    train_script.main(words(*flags, "--resume"))
    same_training(whole, tmp_path)
    assert not (tmp_path / "last.pth").exists()


def test_a_signal_counts_where_an_epoch_is_a_single_step(tiny_a, mini_mvtec, monkeypatch, tmp_path):
    flags = [*tiny_a.flags, *FAST, "--dataset", "mvtec", "--train_data_path", mini_mvtec, "--batch_size", 100,
             "--class", "brick", "--epoch", 3]  # fmt: skip
    train_script.main(words(*flags, "--save_path", tmp_path / "whole"))
    flags += ["--save_path", tmp_path / "stopped"]
    assert interrupt(monkeypatch, "_losses", 2, signal.SIGTERM, train_script.main, *flags) == 143
    assert not (tmp_path / "stopped/epoch_2.pth").exists() and (tmp_path / "stopped/last.pth").is_file()
    train_script.main(words(*flags, "--resume"))
    both = [tmp_path / run / "losses.csv" for run in ("whole", "stopped")]
    assert both[0].read_bytes() == both[1].read_bytes() and len(both[0].read_text().splitlines()) == 4
    states = [torch.load(path.with_name("epoch_3.pth"), weights_only=True) for path in both]
    for key in states[0].keys() - {"meta"}:
        pairs = zip(states[0][key].values(), states[1][key].values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


# --- test.py and predict.py -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def testing(tiny_a, mini_mvtec, tmp_path_factory):
    """(flags, folder of a test that was not interrupted): several settings, batches across classes, all pictures."""
    folder = tmp_path_factory.mktemp("whole")
    flags = [*tiny_a.flags, *FAST, "--data_path", mini_mvtec, "--checkpoint_path", CHECKPOINT, "--k_shot", 0, 1, 2,
             "--seed", 3, "--save_maps", "--batch_size", 5]  # fmt: skip
    test_script.main(words(*flags, "--save_path", folder))
    return flags, folder


def finished_classes(folder) -> set[str]:
    return {path.name for path in (folder / "finished").glob("*.json")}


def test_a_killed_test_goes_on(testing, tmp_path):
    flags, whole = testing
    kill("test.py", 120, *flags, "--save_path", tmp_path)
    done = finished_classes(tmp_path)
    assert done and list(tmp_path.rglob(".*")) and not (tmp_path / "metrics.json").exists()
    test_script.main(words(*flags, "--save_path", tmp_path, "--resume"))
    assert f"resumed: {len(done)} of 3 classes are done" in (tmp_path / "log.txt").read_text()
    assert differences(whole, tmp_path) == []


def test_pictures_that_are_gone_are_drawn_again(testing, monkeypatch, tmp_path):
    flags, whole = testing
    flags = [*flags, "--save_path", tmp_path, "--resume"]
    interrupt(monkeypatch, "finish", 9, signal.SIGTERM, test_script.main, *flags)
    assert finished_classes(tmp_path) == {"0.json", "1.json"}
    next((tmp_path / "maps").glob("*/brick/test/*/*.npy")).unlink()
    run_script(lambda: test_script.main(words(*flags)))
    log = (tmp_path / "log.txt").read_text()
    assert "is missing: 'brick' is scored anew" in log and "resumed: 1 of 3 classes are done" in log
    assert differences(whole, tmp_path) == []


def test_a_test_that_has_ended_is_not_done_again(testing, tmp_path):
    flags, whole = testing
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    del before[tmp_path / "log.txt"]
    flags = [*flags, "--save_path", tmp_path, "--resume"]
    test_script.main(words(*flags))
    assert f"nothing to resume: these results are in {tmp_path}" in (tmp_path / "log.txt").read_text()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    (tmp_path / "metrics.json").unlink()
    test_script.main(words(*flags))
    assert "resumed: 0 of 3 classes are done" in (tmp_path / "log.txt").read_text()
    assert differences(whole, tmp_path) == []


def test_an_interrupted_test(testing, monkeypatch, tmp_path, capsys):
    """It keeps the finished classes for the same run alone."""
    flags, whole = testing
    code = interrupt(monkeypatch, "finish", 5, signal.SIGTERM, test_script.main, *flags, "--save_path", tmp_path)
    assert code == 143 and finished_classes(tmp_path) == {"0.json"}
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted: ")
    place = flags.index("--k_shot")
    other = [*flags[:place], *flags[place + 4 :]]
    run_script(lambda: test_script.main(words(*other, "--save_path", tmp_path, "--resume")))
    log = (tmp_path / "log.txt").read_text()
    assert "is of other settings, weights or images" in log and "resumed: 0 of 3 classes are done" in log
    assert not (tmp_path / "finished").exists() and not (tmp_path / "k_shot.json").exists()
    test_script.main(words(*flags, "--save_path", tmp_path, "--resume"))
    assert differences(whole, tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc says which signals a process handles")
def test_an_interruption_of_the_imports_is_one_line(tmp_path):
    """They take seconds, in which users see that a flag is wrong."""
    command = [sys.executable, ROOT / "test.py", "--data_path", tmp_path, "--save_path", tmp_path / "out"]
    script = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while script.poll() is None and not handles(script.pid, signal.SIGTERM):
        time.sleep(0.01)
    script.terminate()
    assert script.communicate()[1].splitlines() == ["interrupted"] and script.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def handles(process: int, number: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


def test_an_interrupted_test_of_sets_goes_on(tiny_a, mini_mvtec, monkeypatch, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--method", "musc", *tiny_a.flags, *FAST, "--data_path", mini_mvtec, "--class", "brick", "coins",
             "--features_list", 2, "--neighborhoods", 3, "--no_images", "--save_maps"]  # fmt: skip
    test_script.main(words(*flags, "--save_path", whole))
    code = interrupt(monkeypatch, "finish", 2, signal.SIGTERM, test_script.main, *flags, "--save_path", parts)
    assert code == 143 and finished_classes(parts) == {"0.json"}
    test_script.main(words(*flags, "--save_path", parts, "--resume"))
    assert "resumed: 1 of 2 classes are done" in (parts / "log.txt").read_text()
    assert differences(whole, parts) == []


def nothing_is_earlier(folder):
    """A test takes the folder for its own, and begins."""
    test_script.check_owner(SimpleNamespace(save_path=str(folder), data_path=str(folder)))
    finished = FinishedClasses(folder, "0123", ["brick"])
    results = TestFolder(folder, finished, {"brick": []}, [], 1, few_shot=False, save_memory=None)
    assert results.begin(Accelerator(), lambda page: page, resume=True) == {}


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "3", "[]", "null", '{"settings": 1}', '{"settings": {"data_path": 3}}', "{",
     '{"settings": {"data_path": "\\u0000"}, "description": []}', '{"vand_kit": 1, "description": {"identity": {}}}'],
)  # fmt: skip
def test_a_planted_config_is_no_earlier_run(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    nothing_is_earlier(tmp_path)


def test_a_config_that_is_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    nothing_is_earlier(tmp_path)
