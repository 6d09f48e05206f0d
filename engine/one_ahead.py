"""A GPU's work beside that of the host: the next step is under way while what came of the last one is read."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from utils.devices import side_stream

T = TypeVar("T")


def one_ahead(steps: Iterable[T], device: torch.device) -> Iterator[tuple[T, AbstractContextManager[None]]]:
    """Steps, each with the context in which its tensors are read.

    On a GPU a step is handed out when the next one has been begun, and read in a stream of its own: whoever waits there
    for a value does not wait for the next step, which the device works on meanwhile. When the context ends, all that
    was begun in it is done. On other devices each step is handed out as it comes.

    Args:
        steps: their work is begun, in the device's current stream, when they are asked for.
        device: that does it.
    """
    if device.type != "cuda":
        for step in steps:
            yield step, contextlib.nullcontext()
        return
    beside, coming = side_stream(device, "results"), iter(steps)
    begun: tuple[T, AbstractContextManager[None]] | None = None
    while True:
        try:
            step = next(coming)
        except StopIteration:
            break
        except Exception:  # of the next step: what came before it is whole
            if begun:
                yield begun
            raise
        ready = torch.cuda.current_stream(device).record_event()
        if begun:
            yield begun
        begun = step, _reading(beside, ready)
    if begun:
        yield begun


@contextlib.contextmanager
def _reading(beside: torch.cuda.Stream, ready: torch.cuda.Event) -> Iterator[None]:
    beside.wait_event(ready)
    try:
        with torch.cuda.stream(beside):
            yield
    finally:
        beside.synchronize()  # memory that is freed from now on serves the other stream
