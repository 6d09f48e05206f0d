"""How a script ends: with one line and an exit code, or with the traceback of a bug."""

import os
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from conftest import ROOT
from utils.errors import MESSAGE_LIMIT, first_line, one_line, run_script
from utils.logs import log_to
from utils.signals import Stopped


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("a.png: unreadable image (reason: none)")


def raising(error: BaseException):
    def main():
        raise error

    return main


def test_the_message_of_a_worker_is_its_last_line():
    with pytest.raises(ValueError) as error:
        list(DataLoader(Broken(), num_workers=1))
    assert one_line(error.value) == "a.png: unreadable image (reason: none)"


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one \n two")) == "one" and first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("shape mismatch"), RecursionError("bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(raising(error))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_a_lack_of_memory_is_one_line(fails, error):
    line = fails(lambda _: raising(error)())
    assert line.startswith("error: out of memory; lower --batch_size, --image_size or --num_workers (")


def test_the_line_of_an_interrupted_script(capsys):
    for advice, line in (("", "interrupted\n"), ("nothing is lost", "interrupted: nothing is lost\n")):
        with pytest.raises(SystemExit) as end:
            run_script(raising(Stopped(signal.SIGTERM)), advice)
        assert end.value.code == 143 and capsys.readouterr().err == line


def test_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("VAND_TRACEBACK", "1")
    with pytest.raises(ValueError):
        run_script(raising(ValueError("mistake")))


def test_a_message_is_one_line_of_at_most_300_characters(fails, tmp_path):
    """On the screen and in log.txt: what and where at its start, what to do at its end, without any control character.
    The middle of a path goes before other words do."""
    path, keys = "/data/" + "folder/" * 60 + "epoch_3.pth", ", ".join(f"layer.{n}" for n in range(400))

    def main(_):
        log_to(tmp_path)
        raise ValueError(f"{path}: unknown keys\x1b[2J\u202e of april_gan; use the method that has written it")

    line = fails(main)
    assert 150 < len(line) <= MESSAGE_LIMIT and line.isprintable()
    assert line.startswith("error: /data/folder/") and r"/epoch_3.pth: unknown keys\x1b[2J\u202e of april_gan;" in line
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith("use the method that has written it")
    line = fails(lambda _: raising(ValueError(f"a.pth: wrong keys {keys}; train it again"))())
    assert len(line) == MESSAGE_LIMIT and line.startswith("error: a.pth: wrong keys layer.0,")
    assert line.endswith("train it again")


def test_errors_are_explained_without_torch():
    """A wrong flag is answered at once, and data scripts need no torch."""
    rooms = "errors, files, launch, logs, packages, provenance, signals, text"
    script = f"import sys\nfrom utils import {rooms}\nassert not {{'torch', 'numpy', 'accelerate'}} & set(sys.modules)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, env=environment)
