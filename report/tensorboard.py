"""Curves of a training for TensorBoard."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.images import load_image
from data.meta import PixelSettings, Sample
from report.overlays import PANEL_SIDE, encode_png, overlay
from utils.files import NotWrittenError

FOLDER = "tensorboard"


class Step(Protocol):
    """See `engine.loss_log.Step`."""

    @property
    def loss(self) -> float: ...

    @property
    def parts(self) -> Mapping[str, float]: ...


class WatchedMap(Protocol):
    """See `engine.training.WatchedMap`."""

    @property
    def sample(self) -> Sample: ...

    @property
    def map(self) -> NDArray[Any]: ...

    @property
    def mask(self) -> NDArray[Any]: ...


class TensorBoardLogger:
    """Losses and learning rates per step, validation metrics and maps per saved epoch.

    Args:
        folder: of the training; the curves go to a subfolder.
        root: of the dataset, whose images are shown; pixels: how its files are read.
        done: steps of an interrupted training that is resumed; what it had drawn after them is taken back.
    """

    def __init__(self, folder: Path, root: Path, pixels: PixelSettings, done: int):
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, and training alone needs it

        self._writer: Any = SummaryWriter(folder / FOLDER, purge_step=done + 1)  # its file_writer has no type
        self._root, self._step = root, done
        self._pixels = pixels

    def close(self) -> None:
        """Nothing more follows."""
        with self._named():
            self._writer.close()

    def flush(self) -> None:
        """Write what has been drawn, so that it is not lost when the training is killed."""
        with self._named():
            self._writer.flush()

    def epoch(self, steps: Sequence[Step], rates: Sequence[float]) -> None:
        """The steps of an epoch, and the learning rate of each group of parameters."""
        for step in steps:
            self._step += 1
            losses = {f"loss/{name}": value for name, value in {"loss": step.loss, **step.parts}.items()}
            self._scalars({**losses, **{f"learning_rate/group_{n}": rate for n, rate in enumerate(rates)}})

    def validation(self, row: Mapping[str, float | None]) -> None:
        """Metrics after the last step; those that cannot be computed are left out."""
        self._scalars({f"validation/{key}": value for key, value in row.items() if value is not None})

    def maps(self, maps: Sequence[WatchedMap]) -> None:
        """Original | anomaly map | ground truth of some images after the last step; each map has its own scale."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # with the writer, see above

        for one in maps:
            heat = (one.map - one.map.min()) / max(np.ptp(one.map), 1e-6)
            path = self._root / one.sample.img_path
            image = load_image(path, upright=self._pixels.exif, bits=self._pixels.bits, shown=PANEL_SIDE)
            picture = overlay(image, heat, one.mask, (one.sample.img_path, "anomaly map", "ground truth"))
            height, width, channels = picture.shape
            # add_image would encode it again at PIL's default level, which takes as long as the rest of the picture.
            encoded = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=encode_png(picture)
            )
            with self._named():
                self._writer.file_writer.add_summary(
                    Summary(value=[Summary.Value(tag=one.sample.img_path, image=encoded)]), self._step
                )

    def _scalars(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            with self._named():
                self._writer.add_scalar(name, value, self._step)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """The errors of TensorBoard's writer name no file. Raises NotWrittenError."""
        try:
            yield
        except OSError as error:
            raise NotWrittenError(self._writer.log_dir, error) from None
