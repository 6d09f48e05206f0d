"""Files that appear whole or not at all, and folders of results."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL_ADVICE = "; free some space, or write to another place"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")  # names of `atomic_write`, without the suffix


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

    Only in a folder whose config.json is ours.
    """
    with contextlib.suppress(OSError, ValueError):
        if "vand_kit" in json.loads((save_path / "config.json").read_text(encoding="utf-8")):
            for path in [path for name in names for path in save_path.glob(name)]:
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `atomic_write` gives until a file is whole."""
    return _TEMPORARY.fullmatch(path.stem) is not None


def clear_leftovers(save_path: Path, folders: Sequence[str] = ()) -> None:
    """Remove the half-written files of `atomic_write` that a killed run has left in its folder and in these below it.
    What else lies below may belong to another run."""
    below = [path for name in folders for path in (save_path / name).rglob(".*")]
    for path in (*save_path.glob(".*"), *below):
        if is_temporary(path):
            path.unlink(missing_ok=True)


class NotWrittenError(OSError):
    """A file that could not be written, as on a full disk; libraries do not always say which."""

    def __init__(self, path: str | Path, reason: Any):
        super().__init__(f"{path} is not written ({getattr(reason, 'strerror', None) or reason}){DISK_FULL_ADVICE}")


def save_array(path: Path, array: np.ndarray) -> None:
    """np.save, whose errors name no file. Raises NotWrittenError."""
    try:
        np.save(path, array)
    except OSError as error:
        raise NotWrittenError(path, error) from None


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


def file_digest(paths: Iterable[str | Path]) -> str:
    """Identity of what some files hold, whatever their names and order: 16 hex digits."""
    each = []
    for path in paths:
        each.append(hashlib.sha256(Path(path).read_bytes()).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()[:16]


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
