"""What a process knows of the others before it talks to them."""

import pytest

from utils.distributed import readers
from utils.launch import is_first_process, process_label, process_timeout, worker_count


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "1e300"])
def test_a_time_out_that_is_none(monkeypatch, seconds):
    monkeypatch.setenv("VAND_TIMEOUT", seconds)
    with pytest.raises(ValueError, match=f"VAND_TIMEOUT={seconds}: must be a number of seconds above 0"):
        process_timeout()


def test_a_time_out(monkeypatch):
    assert process_timeout().total_seconds() == 600
    monkeypatch.setenv("VAND_TIMEOUT", "1.5")
    assert process_timeout().total_seconds() == 1.5


def test_which_process_this_is(monkeypatch):
    assert is_first_process() and process_label() == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process() and process_label() == " (process 1 of 2)"


def test_processes_that_are_worth_having(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert worker_count() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count() == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert worker_count() == 8
    assert [readers(8, batches) for batches in (0, 1, 2, 100)] == [0, 0, 2, 8] and readers(0, 9) == 0
