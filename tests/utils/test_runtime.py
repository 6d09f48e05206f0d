"""How a script ends, and files that appear whole or not at all."""

import signal
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from torch.utils.data import DataLoader, Dataset

from conftest import ROOT
from utils.devices import check_compiler, default_precision
from utils.distributed import process_timeout
from utils.errors import one_line, run_script
from utils.files import atomic_write, write_json
from utils.logs import LOG, log_to
from utils.provenance import VERSION, provenance
from utils.signals import Stopped


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("a.png: unreadable image (reason: none)")


def test_the_message_of_a_worker_is_its_last_line():
    with pytest.raises(ValueError) as error:
        list(DataLoader(Broken(), num_workers=1))
    assert one_line(error.value) == "a.png: unreadable image (reason: none)"


def test_a_bug_keeps_its_traceback():
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_script(main)


def test_the_line_of_an_interrupted_script(capsys):
    def main():
        raise Stopped(signal.SIGTERM)

    for advice, line in (("", "interrupted\n"), ("nothing is lost", "interrupted: nothing is lost\n")):
        with pytest.raises(SystemExit) as end:
            run_script(main, advice)
        assert end.value.code == 143 and capsys.readouterr().err == line


def test_traceback_on_demand(monkeypatch):
    def main():
        raise ValueError("mistake")

    monkeypatch.setenv("VAND_TRACEBACK", "1")
    with pytest.raises(ValueError):
        run_script(main)


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_log_holds_what_was_said_before_its_file_was_known(tmp_path, capsys):
    def main():
        LOG.warning("early")
        log_to(tmp_path)
        LOG.info("late")

    run_script(main)
    assert capsys.readouterr().out.splitlines() == ["early", "late"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING early", "INFO late"]


def test_provenance_names_versions():
    facts = provenance()
    assert facts["vand_kit"] == VERSION and facts["torch"] and facts["open_clip_torch"]


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    with pytest.raises(ValueError, match=r"^--compile: nothing here compiles for cpu \(.*install a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_a_time_out_that_is_none(monkeypatch, seconds):
    monkeypatch.setenv("VAND_TIMEOUT", seconds)
    with pytest.raises(ValueError, match=f"VAND_TIMEOUT={seconds}"):
        process_timeout()


def test_precision_without_a_flag():
    """bf16 where a GPU has it; a device that is named counts, not what else is there."""
    assert default_precision("cpu")[0] == "fp32"
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert default_precision("auto")[0] == ("bf16" if on_gpu else "fp32")


def test_the_first_signal_is_held_and_the_second_is_not():
    script = (
        "import os, signal\n"
        "from utils.runtime import HeldSignals\n"
        "with HeldSignals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(signals.number, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still there')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, f"{int(signal.SIGTERM)}\n")
