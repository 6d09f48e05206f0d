"""How a script ends: a mistake of the user is one line and exit code 2."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from logging.handlers import MemoryHandler
from typing import NoReturn

import torch

from utils.distributed import TIMEOUT_VARIABLE, is_process_lost, process_label, process_timeout
from utils.files import DISK_FULL, DISK_FULL_ADVICE, NotWrittenError
from utils.logs import LOG, LogFile
from utils.signals import handle_signals, raise_stopped, restore_signals


def run_script(main: Callable[[], int | None], advice: str = "") -> None:
    """Run a script's main, which may return an exit code; a user's mistake (ValueError, OSError) ends it with one line
    and exit code 2, SIGINT (Ctrl-C) and SIGTERM, by which torchrun ends the processes that are left when one has
    failed, with one line and exit code 130 and 143. What lies in temporary folders is removed then.

    VAND_TRACEBACK=1 in the environment shows where an error was raised.

    Args:
        advice: for those who interrupt the script: what is kept, and how to go on.
    """
    LOG.handlers[:] = [MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)]  # until `log_to` knows where lines go
    before, threading.excepthook = handle_signals(raise_stopped), _of_thread
    try:
        code = main()
    except (ValueError, OSError) as error:
        if os.environ.get("VAND_TRACEBACK"):
            raise
        _fail(f"{one_line(error)}{DISK_FULL_ADVICE if _is_full(error) else ''}")
    except RuntimeError as error:
        reason = _explained(error)
        if os.environ.get("VAND_TRACEBACK") or reason is None:
            raise
        _fail(f"{reason} ({first_line(error)})")
    except KeyboardInterrupt as error:
        print(f"interrupted{process_label()}{advice and f': {advice}'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    finally:
        restore_signals(before)
        threading.excepthook = threading.__excepthook__
    if code:
        sys.exit(code)


def _fail(reason: str) -> NoReturn:
    """The last line of a run that cannot go on, also in its log.txt."""
    print(f"error{process_label()}: {reason}", file=sys.stderr)
    record = LOG.makeRecord(LOG.name, logging.ERROR, "", 0, reason, (), None)
    with contextlib.suppress(NotWrittenError):
        for handler in LOG.handlers:
            if isinstance(handler, LogFile):
                handler.handle(record)
    sys.exit(2)


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL


def _of_thread(ended: threading.ExceptHookArgs) -> None:
    """What a thread died of. TensorBoard's, which writes the curves, raises a full disk again at the next call."""
    if not _is_full(ended.exc_value):
        threading.__excepthook__(ended)


def _explained(error: RuntimeError) -> str | None:
    """What happened and what to do, of errors that are not of our making; None of all others."""
    if _is_out_of_memory(error):
        return "out of memory; lower --batch_size, --image_size or --num_workers"
    if is_process_lost(error):
        seconds = process_timeout().total_seconds()
        return (
            f"another process has ended, or has not answered for {seconds:g} s; what it says itself counts, and "
            f"{TIMEOUT_VARIABLE}=SECONDS in the environment makes this one wait longer"
        )
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU, on the CPU, or a worker that the system has killed."""
    signs = ("not enough memory", "can't allocate", "DataLoader worker (pid", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """The message alone: an error of a DataLoader worker comes with the worker's traceback in front of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(line.strip() for line in lines)
