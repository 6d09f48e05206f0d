"""Files: read where they are files, written whole or not at all. Folders of results: one run at a time writes there."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.launch import is_first_process
from utils.text import escape_controls

if TYPE_CHECKING:
    import numpy as np

try:
    import fcntl
except ImportError:  # Windows; see `lock_folder`
    fcntl = None  # type: ignore[assignment]

_ARRAY_HEADERS = threading.RLock()
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL_ADVICE = "; free some space, or write to another place"
LOCK = ".lock"  # in a folder of results while a run writes there
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what a file system says that has none
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "FIFO (named pipe)"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_HELD: set[int] = set()  # descriptors of the locks of this process
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")  # names of `atomic_write`, without the suffix


class NotWrittenError(OSError):
    """A file that could not be written, as on a full disk; libraries do not always say which.

    Args:
        reason: the error, or a text; where it may be the disk, the message says what to do.
    """

    def __init__(self, path: str | Path, reason: Any):
        advice = DISK_FULL_ADVICE if getattr(reason, "errno", None) in (None, *DISK_FULL) else ""
        super().__init__(f"{path} is not written ({getattr(reason, 'strerror', None) or reason}){advice}")
        self._made_of = path, reason

    def __reduce__(self) -> Any:  # it also comes from another process
        return NotWrittenError, self._made_of


def check_regular(path: str | Path) -> None:
    """Raises ValueError where a path leads to anything but a file: to a FIFO, which would be waited for, to a device, a
    socket or a folder. Opens nothing; a file that is missing is named by what opens it."""
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "special file")
            raise ValueError(f"{path}: is a {kind}, not a file")


def open_regular(path: str | Path, flags: int) -> int:
    """As os.open, which makes a new file with the usual rights; but it follows no link and waits for no FIFO.

    Raises:
        ValueError: a link, or no regular file; names it.
        OSError: as os.open.
    """
    check_regular(path)
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path}: is a link, which is not followed; remove it, or name another folder") from None
        raise


def read_json(path: str | Path) -> Any:
    """What a JSON file holds, with or without a byte order mark.

    Raises:
        ValueError: no JSON, nested too deep, or no regular file; names it.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def file_digest(paths: Iterable[str | Path]) -> str:
    """Identity of what some files hold, whatever their names and order: 16 hex digits. Raises OSError, and ValueError
    for what is no file."""
    each = sorted(map(sha256, paths))
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def sha256(path: str | Path) -> bytes:
    """Of what a file holds, read in parts. Raises as `file_digest`."""
    check_regular(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well: no half file under a final name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process's number: another machine may write into the same folder.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except NotWrittenError:
        raise  # another file, within the block
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise NotWrittenError(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON. Names of files that are no text stay what they are. Raises ValueError for NaN."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_array(path: Path, array: "np.ndarray") -> None:
    """np.save, whose errors name no file. Raises NotWrittenError."""
    import numpy as np  # here: the scripts that use the other functions do without it

    try:
        np.save(path, array)
    except OSError as error:
        raise NotWrittenError(path, error) from None


def load_array(path: Path) -> "np.ndarray":
    """np.load of a .npy file, for threads too.

    NumPy parses the file's header with `ast`, whose recursion counter the threads of Python 3.11 share: two at once end
    in "SystemError: AST constructor recursion depth mismatch".
    """
    import numpy as np  # here: see `save_array`

    with _ARRAY_HEADERS:
        array: np.ndarray = np.load(path)
    return array


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `atomic_write` gives until a file is whole."""
    return _TEMPORARY.fullmatch(path.stem) is not None


def result_folder(save_path: str) -> Path:
    """The folder of results, not made yet. Raises ValueError where there can be none of that name."""
    path = Path(save_path)
    blocking = next((parent for parent in (path, *path.parents) if parent.exists()), None)
    if not save_path.strip() or (blocking and not blocking.is_dir()):
        raise ValueError(f"results cannot go to '{save_path}': {blocking or 'that'} is no folder; name another one")
    if blocking and not os.access(blocking, os.W_OK):
        raise ValueError(f"results cannot go to '{save_path}': {blocking} is not writable; name another one")
    return path


def clear_results(save_path: Path, names: Sequence[str]) -> None:
    """Remove what an earlier run left under these names, which are patterns of `glob`: files and folders that must not
    stand beside a new run's log.

    Only in a folder whose config.json was written by this toolkit.
    """
    with contextlib.suppress(OSError, ValueError):
        config = read_json(save_path / "config.json")
        if not (isinstance(config, dict) and "vand_kit" in config):
            return
        for path in [path for name in names for path in save_path.glob(name)]:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()


def clear_leftovers(save_path: Path, folders: Sequence[str] = ()) -> None:
    """Remove the half-written files of `atomic_write` that a killed run has left in its folder and in these below it.
    What else lies below may belong to another run."""
    below = [path for name in folders for path in (save_path / name).rglob(".*")]
    for path in (*save_path.glob(".*"), *below):
        if is_temporary(path):
            path.unlink(missing_ok=True)


# A file that only this script writes into its folder of results.
_RESULT_OF = {"test.py": "metrics.json", "predict.py": "scores.csv", "train.py": "losses.csv"}


def check_results_of(save_path: Path, script: str) -> None:
    """Raises ValueError where a folder holds results of another script: files of both would contradict each other."""
    for other, name in _RESULT_OF.items():
        if other != script and (save_path / name).is_file():
            raise ValueError(f"--save_path {save_path} holds results of {other} ({name}); name another folder")


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Within it no other run writes into a folder, which is made if need be.

    The operating system holds the lock and lets go when the process ends, however it ends. Of several processes of one
    run the first takes it. Without fcntl (Windows) there is no lock; a file system without locks gets a warning.

    Raises:
        ValueError: another run has the lock; says which.
    """
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is None or not is_first_process():
        yield
        return
    file = _locked(path)
    _HELD.add(file)
    try:
        yield
    finally:
        _HELD.discard(file)
        if _is_file(file, path / LOCK):
            (path / LOCK).unlink(missing_ok=True)  # before the lock is let go: nobody else has this file yet
        os.close(file)


def _locked(folder: Path) -> int:
    """The descriptor of a folder's lock file, locked, with who has it written into it."""
    path = folder / LOCK
    while True:
        try:
            file = open_regular(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise NotWrittenError(path, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(file, path):
                break
        except BlockingIOError:
            owner = escape_controls(os.read(file, 200).decode(errors="replace").strip())
            os.close(file)
            raise ValueError(
                f"{folder}: another run writes there{owner and f' ({owner})'}; wait for it, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise NotWrittenError(path, error) from None
            logging.getLogger("vand").warning("%s: no locks here, so nothing keeps a second run out", folder)
            break
        os.close(file)  # of a run that has just ended and removed it
    with contextlib.suppress(OSError):  # the lock holds on a full disk too, without a name
        os.ftruncate(file, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode())
    return file


def _is_file(file: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    return False


def _close_locks() -> None:
    """In a worker that was forked off: it must not hold the lock longer than the run."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)
