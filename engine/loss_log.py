"""losses.csv: what was minimised in every step of a training, and reading it again to resume."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import atomic_write

_COLUMNS = ("epoch", "step", "loss")  # the parts of the loss follow, by the names that the method gives them


@dataclass(frozen=True)
class Step:
    """The losses of one training step; loss is what was minimised, the sum of the parts."""

    epoch: int
    step: int
    loss: float
    parts: Mapping[str, float]


def losses_text(history: Sequence[Step], names: Sequence[str]) -> str:
    """The content of losses.csv. names: of the parts."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [*_COLUMNS, *names])
    writer.writeheader()
    writer.writerows({"epoch": one.epoch, "step": one.step, "loss": one.loss, **one.parts} for one in history)
    return file.getvalue()


def write_losses(path: Path, history: Sequence[Step], names: Sequence[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(losses_text(history, names), encoding="utf-8", newline="")


def parse_losses(path: Path, text: str, names: Sequence[str]) -> list[Step]:
    """The steps that `losses_text` has written into a file. Raises ValueError where there are none; names the file."""
    try:
        steps = [
            Step(int(row["epoch"]), int(row["step"]), float(row["loss"]), {name: float(row[name]) for name in names})
            for row in csv.DictReader(io.StringIO(text))
        ]
    except (KeyError, TypeError, ValueError, csv.Error):
        steps = []
    if not steps:
        raise ValueError(f"{path}: missing or broken, so there is nothing to resume from; train without --resume")
    return steps
