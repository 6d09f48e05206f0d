"""What glibc does with memory that has been freed. On other systems nothing is done."""

import ctypes
import sys
from collections.abc import Callable

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of malloc.h: memory beside the heap; when the heap shrinks by itself


def keep_freed_memory() -> None:
    """Keep what large tensors leave for the next ones. By default it goes back to the system and comes anew page by
    page, which takes a sixth of the time of a backbone on a CPU; the peak grows by a twentieth."""
    mallopt = _glibc("mallopt")
    if mallopt:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give what is kept back to the system, which then knows how much is free."""
    trim = _glibc("malloc_trim")
    if trim:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
