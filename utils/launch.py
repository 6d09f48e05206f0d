"""What a launcher such as torchrun says to each process of a run, in its environment. Nothing heavy is imported."""

import os
from datetime import timedelta

_MOST_WORKERS = 8
TIMEOUT_VARIABLE = "VAND_TIMEOUT"  # environment: seconds that a process waits for the others


def is_first_process() -> bool:
    """Whether this is the process that writes the results; true where there is one."""
    return os.environ.get("RANK", "0") == "0"


def process_label() -> str:
    """Which of several processes this is, for its messages: " (process 1 of 2)"; "" where there is one."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    return f" (process {os.environ.get('RANK', '?')} of {ranks})" if ranks != "1" else ""


def process_timeout() -> timedelta:
    """How long a process waits for the others before it gives up; 10 minutes unless VAND_TIMEOUT says otherwise.

    Raises:
        ValueError: VAND_TIMEOUT is no positive number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "600")
    try:
        timeout = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        timeout = timedelta(0)
    if timeout <= timedelta(0):
        raise ValueError(f"{TIMEOUT_VARIABLE}={text}: must be a number of seconds above 0")
    return timeout


def worker_count() -> int:
    """Processes that are worth having beside this one: as many as it has processor cores, at most 8. Of several
    processes of a run on one machine each has its share of the cores."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), _MOST_WORKERS)
