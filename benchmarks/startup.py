"""How long the scripts take to answer --help, against importing PyTorch alone, which their flags need."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.common import ROOT, Row, in_turns, median_ratio

SCRIPTS = ("train.py", "test.py", "predict.py", "export.py", "app.py")
LIMIT = 1.3  # times the import


def measure(quick: bool) -> Iterator[Row]:
    turns = 1 if quick else 7
    sides: dict[str, Callable[[], None]] = {"torch": lambda: run("-c", "import torch")}
    sides |= {script: lambda script=script: run(script, "--help") for script in SCRIPTS}
    in_turns(sides, 1)  # files are read from the disk once
    seconds, _ = in_turns(sides, turns)
    yield Row("python -c 'import torch'", f"{statistics.median(seconds['torch']):.2f} s")
    for script in SCRIPTS:
        ratio = f"{median_ratio(seconds[script], seconds['torch']):.2f} times that"
        yield Row(f"{script} --help", f"{statistics.median(seconds[script]):.2f} s", ratio, f"at most {LIMIT}")


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
