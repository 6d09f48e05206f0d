"""What a process knows of the others before it talks to them."""

import pytest

from utils.launch import is_first_process, process_label, process_timeout


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
