"""Seed, device, precision, logging, and how a script ends."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from utils import processes

VERSION = "0.1.0"
LOG = logging.getLogger("vand")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = "; free some space, or write to another place"
PRECISIONS = ("fp32", "bf16", "fp16")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")  # names of `replacing`, without the suffix
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "accelerate", "numpy", "pillow", "scikit-learn")


class Stopped(KeyboardInterrupt):  # noqa: N818 - it is no error
    """SIGINT (Ctrl-C) or SIGTERM ends the run.

    number: which of them it was.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class HeldSignals:
    """Within it the first SIGINT or SIGTERM is noted, so that the run can end where it can go on from; a second one
    ends the process at once.

    number: of the signal that was noted, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        self._before = _handle_signals(self._note)
        return self

    def __exit__(self, *_) -> None:
        _restore_signals(self._before)

    def _note(self, number: int, _) -> None:
        self.number = number
        _restore_signals(dict.fromkeys(self._before, signal.SIG_DFL))

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within it signals end the run as they do outside; one that was noted does so now."""
        self.__exit__()
        if self.number:
            raise Stopped(self.number)
        yield
        self.__enter__()


def _handle_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Returns what handled SIGINT and SIGTERM before; one that is ignored, as nohup or "&" want it, stays so."""
    heard = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) != signal.SIG_IGN]
    return {one: signal.signal(one, handler) for one in heard}


def _restore_signals(before: Mapping[int, Any]) -> None:
    for one, handler in before.items():
        signal.signal(one, handler)


def _stop(number: int, _) -> None:
    raise Stopped(number)


def run(main: Callable[[], int | None], advice: str = "") -> None:
    """Run a script's main, which may return an exit code; a user's mistake (ValueError, OSError) ends it with one line
    and exit code 2, SIGINT (Ctrl-C) and SIGTERM, by which torchrun ends the processes that are left when one has
    failed, with one line and exit code 130 and 143. What lies in temporary folders is removed then.

    VAND_TRACEBACK=1 in the environment shows where an error was raised.

    Args:
        advice: for those who interrupt the script: what is kept, and how to go on.
    """
    LOG.handlers[:] = [MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)]  # until `log_to` knows where lines go
    before, threading.excepthook = _handle_signals(_stop), _of_thread
    try:
        code = main()
    except (ValueError, OSError) as error:
        if os.environ.get("VAND_TRACEBACK"):
            raise
        _fail(f"{one_line(error)}{_ADVICE if _is_full(error) else ''}")
    except RuntimeError as error:
        reason = _explained(error)
        if os.environ.get("VAND_TRACEBACK") or reason is None:
            raise
        _fail(f"{reason} ({_first(error)})")
    except KeyboardInterrupt as error:
        print(f"interrupted{processes.this_one()}{advice and f': {advice}'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    finally:
        _restore_signals(before)
        threading.excepthook = threading.__excepthook__
    if code:
        sys.exit(code)


def _fail(reason: str) -> NoReturn:
    """The last line of a run that cannot go on, also in its log.txt."""
    print(f"error{processes.this_one()}: {reason}", file=sys.stderr)
    record = LOG.makeRecord(LOG.name, logging.ERROR, "", 0, reason, (), None)
    with contextlib.suppress(NotWrittenError):
        for handler in LOG.handlers:
            if isinstance(handler, _LogFile):
                handler.handle(record)
    sys.exit(2)


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _of_thread(ended: threading.ExceptHookArgs) -> None:
    """What a thread died of. TensorBoard's, which writes the curves, raises a full disk again at the next call."""
    if not _is_full(ended.exc_value):
        threading.__excepthook__(ended)


def _explained(error: RuntimeError) -> str | None:
    """What happened and what to do, of errors that are not of our making; None of all others."""
    if _is_out_of_memory(error):
        return "out of memory; lower --batch_size, --image_size or --num_workers"
    if processes.is_lost(error):
        seconds = processes.timeout().total_seconds()
        return (
            f"another process has ended, or has not answered for {seconds:g} s; what it says itself counts, and "
            f"{processes.TIMEOUT}=SECONDS in the environment makes this one wait longer"
        )
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU, on the CPU, or a worker that the system has killed."""
    signs = ("not enough memory", "can't allocate", "DataLoader worker (pid", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """The message alone: an error of a DataLoader worker comes with the worker's traceback in front of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(line.strip() for line in lines)


def default_precision(device: str) -> tuple[str, str]:
    """The precision of a device where no flag names one, and why: bf16 where a GPU computes with it, fp32 elsewhere."""
    on_gpu = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"default on {torch.cuda.get_device_name()}"
    return "fp32", "default on a GPU without bf16" if on_gpu else "default without a GPU that has bf16"


def check_compiler(device: torch.device) -> None:
    """Compile a small function as --compile would. Raises ValueError where nothing here can compile for the device."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # noqa: BLE001 - every back end raises its own where a compiler is missing
        raise ValueError(
            f"--compile: nothing here compiles for {device.type} ({_first(error)}); install a C++ compiler (Debian: "
            "apt-get install g++), or drop --compile"
        ) from None


def accelerator(device: str, precision: str) -> Accelerator:
    """Device, precision and processes of a run.

    Args:
        device: "auto" (the first accelerator that is there, else the CPU), "cpu", "cuda", "cuda:1", "mps", ...
        precision: one of PRECISIONS.

    Raises:
        ValueError: a device or precision that is not to be had here.
    """
    if device != "auto":
        try:
            torch.zeros(1, device=device).tolist()
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"--device {device}: not to be had here ({_first(error)})") from None
    if ":" in device:  # without a number, each of several processes takes one of its own
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if precision == "fp16" and (device == "cpu" or not torch.accelerator.is_available()):
        raise ValueError("--precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
    torch.backends.cudnn.allow_tf32 = False  # which rounds to 10 bits the convolutions that are left in full precision
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    group = InitProcessGroupKwargs(timeout=processes.timeout())
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[group])


def leave(accelerator: Accelerator) -> None:
    """The end of a run in which all went well: no process may leave while another still talks to it."""
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()


def set_seed(seed: int) -> None:
    """Seed every generator that a library may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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


class _LogFile(logging.FileHandler):
    """Ends the run where a line cannot be written, instead of going on with a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise NotWrittenError(self.baseFilename, sys.exc_info()[1]) from None


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `replacing` gives until a file is whole."""
    return _TEMPORARY.fullmatch(path.stem) is not None


def clear_leftovers(save_path: Path, folders: Sequence[str] = ()) -> None:
    """Remove the half-written files of `replacing` that a killed run has left in its folder and in these below it; what
    else lies below may be of a run that goes on."""
    below = [path for name in folders for path in (save_path / name).rglob(".*")]
    for path in (*save_path.glob(".*"), *below):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def log_to(save_path: Path | None, *, append: bool = False, quiet: bool = False) -> None:
    """Log lines, those held since `run` among them, go to standard output and to save_path/log.txt (None: to no file).

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
        file = _LogFile(save_path / "log.txt", mode="a", encoding="utf-8")  # several processes may append
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        LOG.addHandler(file)
    if quiet:
        return
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(screen)
    for record in held:
        LOG.handle(record)


class NotWrittenError(OSError):
    """A file that could not be written, as on a full disk; libraries do not always say which."""

    def __init__(self, path: str | Path, reason: Any):
        super().__init__(f"{path} is not written ({getattr(reason, 'strerror', None) or reason}){_ADVICE}")


def save_array(path: Path, array: np.ndarray) -> None:
    """np.save, whose errors name no file. Raises NotWrittenError."""
    try:
        np.save(path, array)
    except OSError as error:
        raise NotWrittenError(path, error) from None


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
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


def digest(paths: Iterable[str | Path]) -> str:
    """Identity of what some files hold, whatever their names and order: 16 hex digits."""
    each = []
    for path in paths:
        each.append(hashlib.sha256(Path(path).read_bytes()).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()[:16]


def write_json(path: str | Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_config(save_path: Path, settings: Any, sources: Mapping[str, str], description: Mapping[str, Any]) -> None:
    """config.json: every setting and where it comes from, what identifies the run, and what it was made with."""
    value = {"settings": vars(settings), "sources": sources, "description": description, **provenance()}
    write_json(save_path / "config.json", value)


def provenance() -> dict[str, str | None]:
    """What a result was made with: versions, platform, git revision (None outside a checkout)."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "vand_kit": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
