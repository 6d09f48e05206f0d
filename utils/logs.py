"""The log: lines on the screen and in log.txt."""

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from utils.files import NotWrittenError

LOG = logging.getLogger("vand")


class LogFile(logging.FileHandler):
    """Ends the run where a line cannot be written, instead of going on with a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise NotWrittenError(self.baseFilename, sys.exc_info()[1]) from None


def log_to(save_path: Path | None, *, append: bool = False, quiet: bool = False) -> None:
    """Send log lines, those held since the start too, to standard output and to save_path/log.txt (None: no file).

    Args:
        append: go on with the log of an earlier run.
        quiet: on this process (all but the first of several) keep warnings alone, in the file.
    """
    held = [record for handler in LOG.handlers if isinstance(handler, MemoryHandler) for record in handler.buffer]
    for handler in LOG.handlers[:]:
        LOG.removeHandler(handler)
        handler.close()
    LOG.propagate = False
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)
    if save_path is not None:
        if not (append or quiet):
            (save_path / "log.txt").write_text("", encoding="utf-8")
        file = LogFile(save_path / "log.txt", mode="a", encoding="utf-8")  # several processes may append
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        LOG.addHandler(file)
    if quiet:
        return
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(screen)
    for record in held:
        LOG.handle(record)
