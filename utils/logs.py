"""The log: lines on the screen and in log.txt, which no name of a file or a class can forge; a screen that never fails.

Nothing heavy is imported: scripts that need no torch log and print through this file too.
"""

import copy
import io
import logging
import os
import sys
import time
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path, PurePath
from typing import Any

from utils.files import NotWrittenError, open_regular
from utils.text import escape_controls

LOG = logging.getLogger("vand")
_NEVER_FAIL = ("backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace")  # of encoding


class Lines(str):
    """An argument of a log message that may have several lines, such as a table; all others are shown on one line."""


class LogFile(logging.FileHandler):
    """A log file. Ends the run where a line cannot be written, instead of going on with a traceback per line."""

    def _open(self) -> io.TextIOWrapper:
        """Raises ValueError where the name is a link, which could lead to any file, or no file; NotWrittenError."""
        try:
            file = open_regular(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # several processes append
        except OSError as error:
            raise NotWrittenError(self.baseFilename, error) from None
        return open(file, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise NotWrittenError(self.baseFilename, sys.exc_info()[1]) from None


class _LineFormatter(logging.Formatter):
    """Escapes what could move the cursor or look like another line in a message and its arguments."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg = _escape_lines(str(record.msg))
        if isinstance(record.args, Mapping):
            record.args = {key: _escape_argument(value) for key, value in record.args.items()}
        elif record.args:
            record.args = tuple(map(_escape_argument, record.args))
        return super().format(record)


def log_to(save_path: Path | None, *, append: bool = False, quiet: bool = False) -> None:
    """Send log lines, those held since the start too, to standard output and to save_path/log.txt (None: no file).

    Args:
        append: go on with the log of an earlier run.
        quiet: on this process (all but the first of several) keep warnings alone, in the file.

    Raises:
        ValueError: log.txt is a link, or no file.
        NotWrittenError: it cannot be written.
    """
    held = [record for handler in LOG.handlers if isinstance(handler, MemoryHandler) for record in handler.buffer]
    for handler in LOG.handlers[:]:
        LOG.removeHandler(handler)
        handler.close()
    LOG.propagate = False
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)
    if save_path is not None:
        file = LogFile(save_path / "log.txt", encoding="utf-8")
        if not (append or quiet):
            os.truncate(file.baseFilename, 0)
        file.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        LOG.addHandler(file)
    if quiet:
        return
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(_LineFormatter("%(message)s"))
    LOG.addHandler(screen)
    for record in held:
        LOG.handle(record)


def safe_streams() -> None:
    """From now on standard output and standard error never raise.

    Characters that their encoding lacks are written as escapes. Where the reader is gone (`| head -1`) or the disk is
    full, further lines are dropped and the run goes on. Calling it again changes nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (">&-")
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115 - to the end
        elif isinstance(stream, io.TextIOWrapper):
            if stream is getattr(sys, f"__{name}__"):
                setattr(sys, name, _unfailing(stream))
            elif stream.errors not in _NEVER_FAIL:  # of whoever runs us in his own process
                stream.reconfigure(errors="backslashreplace")


class _Screen(io.FileIO):
    """A file descriptor that takes everything, and drops it from the first write that fails."""

    def write(self, data: Any, /) -> int:
        try:
            count = super().write(data)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for child processes and libraries too
            os.close(null)
            return len(data)
        if count is None:  # the reader is slow, and whoever opened this wants no waiting: called again
            time.sleep(0.01)
        return count or 0


def _unfailing(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _Screen(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors if stream.errors in _NEVER_FAIL else "backslashreplace",
        # PYTHONUNBUFFERED writes through, which would end in our buffer.
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _escape_argument(value: Any) -> Any:
    """Texts of others, which may hold anything; numbers stay what they are, and lists show escapes by themselves."""
    if isinstance(value, Lines):
        return _escape_lines(value)
    return escape_controls(value) if isinstance(value, (str, PurePath, BaseException)) else value


def _escape_lines(text: str) -> str:
    return "\n".join(map(escape_controls, text.split("\n")))
