"""SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that is closed): a run ends where it can go on from."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn


class Stopped(KeyboardInterrupt):  # noqa: N818 - it is no error
    """A signal ends the run.

    number: which of them it was.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class HeldSignals:
    """Within it the first signal is noted, so that the run can end where it can go on from; a second one
    ends the process at once.

    number: of the signal that was noted, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        self._before = handle_signals(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        restore_signals(self._before)

    def _note(self, number: int, _: Any) -> None:
        self.number = number
        restore_signals(dict.fromkeys(self._before, signal.SIG_DFL))

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within it signals end the run as they do outside; one that was noted does so now."""
        self.__exit__()
        if self.number:
            raise Stopped(self.number)
        yield
        self.__enter__()


def handle_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have SIGINT, SIGTERM and the end of the terminal (SIGHUP) handled; returns what handled them before, by number.

    A signal that is ignored, as nohup or "&" want it, stays so.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    every = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [number for number in every if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore_signals(before: Mapping[int, Any]) -> None:
    """Put back what `handle_signals` has returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_stopped(number: int, _: Any) -> NoReturn:
    """A handler that ends the run."""
    raise Stopped(number)
