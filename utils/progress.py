"""How far a loop has come: a bar on a terminal; elsewhere, as in the log of a job on a cluster, a line a minute."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from tqdm import tqdm

from utils.logs import LOG

T = TypeVar("T", covariant=True)

_SECONDS = 60  # between two lines


class Progress(AbstractContextManager["Progress"]):
    """The progress of a loop.

    Args:
        total: steps in all.
        what: is done.
        unit: of a step, in the singular.
        done: steps before the first one, of a run that is resumed.
        shown: False shows nothing, as in all processes but the first.
        leave: keep the bar when all is done.
    """

    def __init__(self, total: int, what: str, unit: str, *, done: int = 0, shown: bool = True, leave: bool = True):
        disable = None if shown else True  # None: where standard error is no terminal
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, leave=leave, disable=disable)
        self._lines = shown and self._bar.disable
        self._total, self._what, self._unit = total, what, unit
        self._first = self._done = done
        self._begun = self._last = time.monotonic()

    def update(self, steps: int = 1, **values: str) -> None:
        """Some more steps are done. values: shown at the end of the bar."""
        self._bar.update(steps)
        if values:
            self._bar.set_postfix(values)
        self._done += steps
        now = time.monotonic()
        if self._lines and self._first < self._done < self._total and now - self._last >= _SECONDS:
            self._last = now
            left = (now - self._begun) / (self._done - self._first) * (self._total - self._done)
            units = self._unit + ("es" if self._unit.endswith(("s", "ch")) else "s")
            LOG.info("%s: %d of %d %s, about %s left", self._what, self._done, self._total, units, _duration(left))

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Counted(Protocol[T]):
    """What has a length and can be gone through: a list, a DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T]: ...


def tracked(items: Counted[T], what: str, unit: str, *, shown: bool = True, leave: bool = True) -> Iterator[T]:
    """The items, with the progress of the loop over them."""
    with Progress(len(items), what, unit, shown=shown, leave=leave) as progress:
        for item in items:
            yield item
            progress.update()


def _duration(seconds: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
