"""Helper processes: their results, errors and ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT
from utils.files import NotWrittenError, check_regular
from utils.helpers import Helpers

FULL_DISK = (
    "(_ for _ in ()).throw(__import__('utils.files').files.NotWrittenError('a.png', OSError(28, 'No space left')))"
)


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_results_come_from_other_processes_that_end_with_the_block():
    with Helpers(2) as helpers:
        futures = [helpers.submit("a number", pow, base, 2, mod=7) for base in range(9)]
        assert [one.result() for one in futures] == [base**2 % 7 for base in range(9)]
        pids = {helpers.submit("itself", os.getpid).result() for _ in range(9)}
        assert pids and os.getpid() not in pids and len(pids) <= 2
        modules = helpers.submit("its modules", eval, "sorted(__import__('sys').modules)").result()
        assert not {"torch", "numpy", "pytest"} & set(modules)
        assert helpers.submit("what it prints", print, "no result").result() is None
    assert not any(map(alive, pids))


def test_an_error_is_that_of_the_function():
    with Helpers(1) as helpers:
        with pytest.raises(ValueError, match="is a folder, not a file"):
            helpers.submit("a folder", check_regular, ROOT).result()
        with pytest.raises(FileNotFoundError, match="no/such/folder"):
            helpers.submit("a folder", os.listdir, "no/such/folder").result()
        with pytest.raises(NotWrittenError, match="a.png is not written .No space left"):
            helpers.submit("a file", eval, FULL_DISK).result()
        with pytest.raises(RuntimeError, match="(?s)Traceback.+KeyError: 'a'"):
            helpers.submit("a key", {}.__getitem__, "a").result()
        assert helpers.submit("a number", pow, 2, 2).result() == 4  # it goes on


def test_a_helper_that_dies_names_its_job_and_is_replaced():
    with Helpers(1) as helpers:
        pid = helpers.submit("itself", os.getpid).result()
        with pytest.raises(MemoryError, match="out of memory.+worked on nut/0.png"):
            helpers.submit("nut/0.png", os.kill, pid, signal.SIGKILL).result()
        with pytest.raises(RuntimeError, match="worked on nut/1.png has ended with exit code 3"):
            helpers.submit("nut/1.png", os._exit, 3).result()
        assert helpers.submit("a number", pow, 2, 2).result() == 4


def test_what_waits_is_dropped_and_what_is_being_done_is_waited_for(tmp_path):
    with pytest.raises(KeyboardInterrupt), Helpers(1) as helpers:
        first = helpers.submit("a folder", eval, f"__import__('time').sleep(0.5) or {str(tmp_path / 'a')!r}")
        others = [helpers.submit("a nap", time.sleep, 60) for _ in range(5)]
        assert wait_until(first.running)
        raise KeyboardInterrupt
    assert first.result() == str(tmp_path / "a") and all(one.cancelled() for one in others)


def test_submitting_waits_where_enough_waits():
    with Helpers(1, waiting=1) as helpers:
        futures = [helpers.submit("a nap", time.sleep, 0.2) for _ in range(4)]
        assert sum(not one.done() for one in futures) <= 2


RUN = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
sys.path.insert(0, {root!r})
from utils.helpers import Helpers
with Helpers(1) as helpers:
    print(helpers.submit("itself", os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_helper_ends_with_the_run_and_hears_no_signal_before(number):
    run = subprocess.Popen([sys.executable, "-c", RUN.format(root=str(ROOT))], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    pid = int(run.stdout.readline())
    assert os.getpgid(pid) != os.getpgid(run.pid)
    os.killpg(run.pid, number)
    errors = run.communicate(timeout=30)[1]
    assert wait_until(lambda: not alive(pid))
    assert errors.count("Traceback") == (number == signal.SIGINT)  # of the run alone


def test_a_helper_starts_while_processes_are_forked_off():
    """None of them may hold what says that the helper has started: they live on."""
    fork = multiprocessing.get_context("fork")
    for _ in range(3):
        others = [fork.Process(target=time.sleep, args=(60,)) for _ in range(4)]
        with Helpers(2) as helpers:
            jobs = [helpers.submit("a number", int) for _ in range(2)]
            for other in others:
                other.start()
            try:
                assert [job.result(timeout=30) for job in jobs] == [0, 0]
            finally:
                for other in others:
                    other.kill()
                    other.join()
