"""Curves of a training for TensorBoard."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import NotWrittenError

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Losses and learning rates per step, validation metrics and maps per saved epoch.

    Args:
        folder: of the training; the curves go to a subfolder. None draws nothing (all processes but the first).
        done: steps of an interrupted training that goes on; what it had drawn after them is taken back.
    """

    def __init__(self, folder: Path | None, done: int):
        self._writer, self._step = None, done
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import, and training alone needs it

            self._writer = SummaryWriter(folder / FOLDER, purge_step=done + 1)

    def close(self) -> None:
        if self._writer:
            with self._named():
                self._writer.close()

    def flush(self) -> None:
        """Write what has been drawn, so that it is not lost when the training is killed."""
        if self._writer:
            with self._named():
                self._writer.flush()

    def epoch(self, steps: Sequence[Any], rates: Sequence[float]) -> None:
        """The steps of an epoch (`engine.training.Step`), and the learning rate of each group of parameters."""
        for step in steps:
            self._step += 1
            values = {f"loss/{part}": getattr(step, part) for part in ("loss", "focal", "dice")}
            self._scalars({**values, **{f"learning_rate/group_{n}": rate for n, rate in enumerate(rates)}})

    def validation(self, row: Mapping[str, float | None]) -> None:
        """Metrics after the last step; those that cannot be computed are left out."""
        self._scalars({f"validation/{key}": value for key, value in row.items() if value is not None})

    def pictures(self, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures after the last step, each (H, W, 3) uint8."""
        for name, picture in pictures.items() if self._writer else ():
            with self._named():
                self._writer.add_image(name, picture, self._step, dataformats="HWC")

    def _scalars(self, values: Mapping[str, float]) -> None:
        for name, value in values.items() if self._writer else ():
            with self._named():
                self._writer.add_scalar(name, value, self._step)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """The errors of TensorBoard's writer name no file. Raises NotWrittenError."""
        try:
            yield
        except OSError as error:
            raise NotWrittenError(self._writer.log_dir, error) from None
