"""How a script ends: a mistake of the user is one line and exit code 2, and so are a full disk and a lack of memory.

Nothing heavy is imported, so that a wrong flag is answered at once.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from logging.handlers import MemoryHandler
from typing import NoReturn

from utils.files import DISK_FULL, DISK_FULL_ADVICE, NotWrittenError
from utils.launch import TIMEOUT_VARIABLE, process_label, process_timeout
from utils.logs import LOG, LogFile, safe_streams
from utils.signals import handle_signals, raise_stopped, restore_signals
from utils.text import escape_controls, shorten

MESSAGE_LIMIT = 400  # characters of an error's line


def run_script(main: Callable[[], int | None], advice: str = "") -> None:
    """Run a script's main, which may return an exit code. What lies in temporary folders is removed however it ends.

    A user's mistake (ValueError, OSError), a full disk and a lack of memory end it with one line and exit code 2.
    SIGINT (Ctrl-C), SIGTERM, by which torchrun ends the processes that are left when one has failed, and SIGHUP end it
    with one line and exit code 130, 143 and 129. All other errors are bugs and keep their traceback. Standard output
    and standard error never fail, see `logs.safe_streams`.

    VAND_TRACEBACK=1 in the environment shows where an error was raised.

    Args:
        advice: for those who interrupt the script: what is kept, and how to go on.
    """
    safe_streams()
    LOG.handlers[:] = [MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)]  # until `log_to` knows where lines go
    LOG.propagate = False  # libraries put a handler of their own on the root logger
    LOG.setLevel(logging.INFO)
    before, threading.excepthook = handle_signals(raise_stopped), _end_of_thread
    try:
        code = main()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        reason = _explain(error)
        if os.environ.get("VAND_TRACEBACK") or reason is None:
            raise
        _fail(reason)
    except KeyboardInterrupt as error:
        print(f"interrupted{process_label()}{advice and f': {advice}'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    finally:
        restore_signals(before)
        threading.excepthook = threading.__excepthook__
    if code:
        sys.exit(code)


def first_line(error: BaseException) -> str:
    """Of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def one_line(error: BaseException) -> str:
    """The whole message on one line. An error of a DataLoader worker comes with the worker's traceback in front of it,
    which is left out."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(line.strip() for line in lines)


def _explain(error: Exception) -> str | None:
    """What happened and what to do; None for errors that are bugs."""
    if isinstance(error, (ValueError, OSError)):
        return one_line(error) + (DISK_FULL_ADVICE if _is_disk_full(error) else "")
    if _is_out_of_memory(error):
        return f"out of memory; lower --batch_size, --image_size or --num_workers ({first_line(error)})"
    if _is_process_lost(error):
        seconds = process_timeout().total_seconds()
        return (
            f"another process has ended, or has not answered for {seconds:g} s; what it says itself counts, and "
            f"{TIMEOUT_VARIABLE}=SECONDS in the environment makes this one wait longer ({first_line(error)})"
        )
    return None


def _fail(reason: str) -> NoReturn:
    """The last line of a run that cannot go on, also in its log.txt."""
    reason = escape_controls(reason)
    print(shorten(f"error{process_label()}: {reason}", MESSAGE_LIMIT), file=sys.stderr)
    record = LOG.makeRecord(LOG.name, logging.ERROR, "", 0, "%s", (shorten(reason, MESSAGE_LIMIT),), None)
    with contextlib.suppress(NotWrittenError):
        for handler in LOG.handlers:
            if isinstance(handler, LogFile):
                handler.handle(record)
    sys.exit(2)


def _end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """What a thread died of. TensorBoard's, which writes the curves, raises a full disk again at the next call."""
    if not _is_disk_full(ended.exc_value):
        threading.__excepthook__(ended)


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU, on the CPU, or a worker that the system has killed."""
    signs = ("not enough memory", "can't allocate", "DataLoader worker (pid", "out of memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _is_process_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone, or too late."""
    distributed = sys.modules.get("torch.distributed")  # not imported: nothing is lost where nobody has done so
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return False
    signs = ("gloo", "NCCL", "Connection closed by peer", "Timed out waiting", "Broken pipe", "Connection reset")
    return isinstance(error, distributed.DistError) or any(sign in str(error) for sign in signs)
