"""Where uploads of the web page lie: a temporary folder, bounded in size and age, which goes when the program ends.

What a program that was killed has left is removed by the next one.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from utils.files import LOCK, lock_folder
from utils.logs import LOG

MAX_AGE = 3600  # seconds that a file is kept
_PREFIX = "vand-app-"
_SWEEP = 600  # seconds between two searches for old files
_STALLED = 600  # seconds after which a part that nobody adds to belongs to a connection that was broken off
_LEAST = 1 << 16  # bytes that the smallest file counts, which bounds their number too
_PICTURE = "overlay-"  # how the names of pictures begin that the page writes
_PICTURES = 1000  # of them that are kept, some 100 KB each


class UploadFolder:
    """A temporary folder for uploads and for the pictures that go back.

    An upload is written to a part directly in the folder, and moved into a folder of its own when it is complete.
    Requests reserve their bytes before they send them, so that the folder never holds more than `most`.

    Args:
        most: bytes of all files together.
        parent: where the folder is made; None takes the system's place for temporary files.
    """

    def __init__(self, most: int, parent: Path | None = None):
        self._most, self._parent = most, parent or Path(tempfile.gettempdir())
        self._open = contextlib.ExitStack()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._reserved = self._uploads = 0
        self._kept: set[Path] = set()
        self._pictures: deque[Path] = deque()

    def __enter__(self) -> "UploadFolder":
        remove_leftovers(self._parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        self._open.callback(shutil.rmtree, self.path, ignore_errors=True)
        self._open.enter_context(lock_folder(self.path))
        threading.Thread(target=self._sweep_often, daemon=True).start()
        self._open.callback(self._ended.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep_present(self) -> None:
        """What is in the folder now, such as thumbnails of the page itself, stays as long as the folder."""
        self._kept = set(self._files())

    def new_picture(self) -> Path:
        """An empty file of a new name for a picture; the oldest of many goes."""
        number, name = tempfile.mkstemp(dir=self.path, prefix=_PICTURE, suffix=".jpg")
        os.close(number)
        self._pictures.append(Path(name))
        if len(self._pictures) > _PICTURES:
            self._pictures.popleft().unlink(missing_ok=True)
        return Path(name)

    def reserve(self, size: int) -> bool:
        """Take space for an upload of at most so many bytes, until `release`; False where it is not there."""
        with self._lock:
            self.sweep()
            if self._used() + self._reserved + size > self._most:
                return False
            self._reserved += size
            self._uploads += 1
            return True

    def release(self, size: int) -> None:
        """An upload has ended, complete or not. Parts are removed as soon as none is being written."""
        with self._lock:
            self._reserved -= size
            self._uploads -= 1
            for part in () if self._uploads else filter(self._is_part, self._files()):
                part.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what is too old, whoever wrote it, and parts that nobody adds to."""
        now = time.time()
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                if now - status.st_ctime > MAX_AGE or (self._is_part(path) and now - status.st_mtime > _STALLED):
                    path.unlink()
        for folder in self.path.iterdir():
            if folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()  # where it is empty

    def _sweep_often(self) -> None:
        while not self._ended.wait(_SWEEP):
            with contextlib.suppress(OSError), self._lock:
                self.sweep()

    def _files(self) -> list[Path]:
        """All files but the lock and those that stay."""
        found = [Path(folder, name) for folder, _, names in os.walk(self.path) for name in names if name != LOCK]
        return [path for path in found if path not in self._kept]

    def _is_part(self, path: Path) -> bool:
        return path.parent == self.path and not path.name.startswith(_PICTURE)

    def _used(self) -> int:
        """Bytes of all files, those that are being written too, whose space is reserved besides: never too few."""
        used = 0
        for path in self._files():
            with contextlib.suppress(OSError):
                used += max(path.stat().st_size, _LEAST)
        return used


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of programs that were killed: those of this user that no running program has locked."""
    if os.name != "posix":  # no locks
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # locked by a running program
            status = folder.lstat()
            own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not own or not (folder / LOCK).exists():  # without a lock: just made by a program that starts
                continue
            with lock_folder(folder):
                shutil.rmtree(folder)
            LOG.info("removed the uploads of a program that was killed: %s", folder)
