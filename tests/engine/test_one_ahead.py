"""The next step is begun before the last one is handed out; here with streams that only take notes."""

import contextlib

import pytest
import torch

from engine import one_ahead as module
from engine.one_ahead import one_ahead


class Stream:
    def __init__(self, notes):
        self.notes = notes

    def record_event(self):
        return self.notes[-1]  # the step that has been begun

    def wait_event(self, event):
        self.notes.append(f"wait for {event}")

    def synchronize(self):
        self.notes.append("all read")


@pytest.fixture
def notes(monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(notes))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(module, "side_stream", lambda *_: Stream(notes))
    return notes


def begin(notes, count, broken=None):
    for number in range(count):
        if number == broken:
            raise ValueError("broken")
        notes.append(f"step {number}")
        yield number


def read(steps, notes):
    for step, reading in steps:
        with reading:
            notes.append(f"read {step}")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_step_is_read_when_the_next_one_has_been_begun(notes, count):
    read(one_ahead(begin(notes, count), torch.device("cuda")), notes)
    expected = ["step 0"] * (count > 0)
    for number in range(count):
        expected += [f"step {number + 1}"] * (number + 1 < count)
        expected += [f"wait for step {number}", f"read {number}", "all read"]
    assert notes == expected


def test_what_came_before_an_error_is_read(notes):
    with pytest.raises(ValueError, match="broken"):
        read(one_ahead(begin(notes, 3, broken=2), torch.device("cuda")), notes)
    assert [note for note in notes if note.startswith("read")] == ["read 0", "read 1"]


def test_other_devices_read_each_step_as_it_comes(notes):
    read(one_ahead(begin(notes, 2), torch.device("cpu")), notes)
    assert notes == ["step 0", "read 0", "step 1", "read 1"]
