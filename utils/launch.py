"""What a launcher such as torchrun says to each process of a run, in its environment. Nothing heavy is imported."""

import os
from datetime import timedelta

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
