"""Helper processes: small jobs, such as drawing a picture, done beside a run.

A helper is a fresh Python that imports what its jobs need and nothing else. Those of multiprocessing would import the
script again, and PyTorch with it, or begin as a copy of a process that has threads and a GPU.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from utils.heap import keep_freed_memory

T = TypeVar("T")
P = ParamSpec("P")

_ROOT = str(Path(__file__).resolve().parent.parent)
_CODE = f"import sys; sys.path.insert(0, {_ROOT!r}); from utils.helpers import serve; serve()"
# One thread each: there are as many helpers as they are to have cores.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_NICE = 5  # the run itself goes first where cores are short
_PATIENCE = 10  # seconds for a job that is being done at the end of the run
# A process that is forked off while a helper starts would inherit the pipe whose end says that it has started, and the
# start would wait for that process to end.
_STARTING = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_STARTING.release)


class Helpers:
    """Some helper processes, each started when there is a job for it. They end with the block, which waits for the jobs
    that are being done and drops those that wait, and with the process, however that ends.

    Args:
        count: of processes.
        waiting: jobs that may wait; `submit` waits where there are more. None: any number.
    """

    def __init__(self, count: int, waiting: int | None = None):
        self._threads = ThreadPoolExecutor(count, "helper")
        self._room = threading.Semaphore(count + waiting) if waiting is not None else None
        self._own = threading.local()
        self._all: list[subprocess.Popen] = []

    def __enter__(self) -> "Helpers":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for one in self._all:
            with contextlib.suppress(OSError):  # it may have ended
                _send(one, None)  # closing does not do: a process that was forked off may have the pipe, too
            try:
                one.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
            for pipe in (one.stdin, one.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def submit(self, what: str, function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> "Future[T]":
        """Have a function called in a helper; function, arguments and result travel by pickle.

        Args:
            what: the job is about, for the error of a helper that dies of it.

        Returns:
            The result to come. An error is that of the function; MemoryError where the system has killed the helper,
            RuntimeError where it ended in another way, or where the error cannot travel.
        """
        if self._room:
            self._room.acquire()
        future = self._threads.submit(self._call, what, (function, args, keywords))
        if self._room:
            future.add_done_callback(lambda _: self._room.release())  # type: ignore[union-attr]
        return future

    def _call(self, what: str, job: Any) -> Any:
        helper = getattr(self._own, "helper", None)
        if helper is None:
            helper = self._own.helper = _start()
            self._all.append(helper)
        try:
            _send(helper, job)
            good, value = pickle.load(helper.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError):
            code = helper.wait()
            del self._own.helper
            if code == -signal.SIGKILL:
                raise MemoryError(f"out of memory: the system has killed the process that worked on {what}") from None
            raise RuntimeError(f"the process that worked on {what} has ended with exit code {code}") from None
        if good:
            return value
        raise value


def _start() -> subprocess.Popen:
    """A session of its own: signals to the process group, such as Ctrl-C, are for the run alone."""
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _CODE]
    with _STARTING:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)


def _send(helper: subprocess.Popen, job: Any) -> None:
    helper.stdin.write(pickle.dumps(job))  # type: ignore[union-attr]
    helper.stdin.flush()  # type: ignore[union-attr]


def serve() -> None:
    """What a helper does: jobs come on standard input and results go to standard output, until None or the end."""
    keep_freed_memory()  # the arrays of a picture serve the next one: a fifth of the time
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    with contextlib.suppress(AttributeError, OSError):  # Windows has no such thing
        os.nice(_NICE)
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):  # the run was killed
        while job := pickle.load(sys.stdin.buffer):
            function, args, keywords = job
            answer: tuple[bool, Any]
            try:
                answer = True, function(*args, **keywords)
            except Exception as error:
                answer = False, _portable(error)
            results.write(pickle.dumps(answer))
            results.flush()


def _portable(error: Exception) -> Exception:
    """An error as it can travel; the traceback of one that is a bug travels in its message."""
    with contextlib.suppress(Exception):
        if isinstance(error, (ValueError, OSError, MemoryError)):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError("".join(traceback.format_exception(error)))
