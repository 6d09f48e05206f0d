"""What cannot fit into memory is refused before it is tried, by estimates that are never too high."""

import contextlib
from pathlib import Path
from typing import Protocol

import psutil
import torch

from utils.heap import return_freed_memory

_CGROUP = Path("/sys/fs/cgroup")  # of a container or a job


def free_bytes(device: torch.device | str) -> int:
    """Memory that is free on a device: of a GPU, or of the machine or the container for all others."""
    device = torch.device(device)
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    return_freed_memory()
    free: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()) + int(cached))
    return free


class Banks(Protocol):
    """What a detector says of its memory banks, see `interface.FewShotDetector`."""

    @property
    def bank_widths(self) -> dict[str, int]: ...

    @property
    def bank_rows(self) -> dict[str, int]: ...


def check_bank(detector: Banks, images: int, device: torch.device | str, what: str, advice: str) -> None:
    """As `check`, for the memory banks of so many reference images."""
    widths = detector.bank_widths
    need = images * sum(4 * rows * widths[key] for key, rows in detector.bank_rows.items())
    check(need, device, f"{what} ({images} reference images)", advice)


def check_file(path: str | Path, device: torch.device | str = "cpu") -> None:
    """As `check`, for what a file holds, where there is one. The message begins with its name."""
    with contextlib.suppress(OSError):
        check(Path(path).stat().st_size, device, str(path), "is it the right file?")


def check(need: int, device: torch.device | str, what: str, advice: str) -> None:
    """Raises ValueError where so many bytes are more than is free; names what needs them and what to change."""
    free = free_bytes(device)
    if need > free:
        raise ValueError(f"{what}: at least {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; {advice}")
