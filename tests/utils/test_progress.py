"""How far a loop has come, on a terminal and in a log."""

import io
import logging
import sys

import pytest

from utils import progress
from utils.progress import Progress, tracked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test lets go by."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute(clock, caplog):
    with caplog.at_level(logging.INFO, "vand"), Progress(1000, "score", "image", done=100) as bar:
        for _ in range(90):
            clock[0] += 7
            bar.update(10)
    assert caplog.messages[0] == "score: 190 of 1000 images, about 9 min left"
    assert len(caplog.messages) == 9 and caplog.messages[-1] == "score: 910 of 1000 images, about 63 s left"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(20_000, "about 6 h left"), (119, "about 119 s left"), (120, "about 2 min left")]
)
def test_what_is_left(clock, caplog, seconds, shown):
    with caplog.at_level(logging.INFO, "vand"), Progress(2, "epoch 1", "batch") as bar:
        clock[0] += seconds
        bar.update()
    assert caplog.messages == ([f"epoch 1: 1 of 2 batches, {shown}"])


def test_short_loops_and_other_processes_say_nothing(clock, caplog, capsys):
    with caplog.at_level(logging.INFO, "vand"):
        assert list(tracked("abc", "read", "image")) == ["a", "b", "c"]
        for _ in tracked("abc", "read", "image", shown=False):
            clock[0] += 100
    assert not caplog.messages and not capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_no_lines(clock, caplog, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.INFO, "vand"), Progress(2, "epoch 1", "batch") as bar:
        clock[0] += 100
        bar.update(loss="0.125")
    assert "epoch 1" in sys.stderr.getvalue() and "loss=0.125" in sys.stderr.getvalue() and not caplog.messages
