"""Scores of one's own images: scores.csv, overlays and maps, written as the images come."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from data.images import result_names
from data.input_spec import InputSpec
from data.meta import PixelSettings
from dataset import UnlabeledImages
from engine.batches import batches
from inference.calibration import Calibration
from inference.predictor import ImageResult, check_finite
from report.heatmap import sample_pixels
from report.map_files import save_map
from report.streamed_overlays import StreamedOverlays
from utils.distributed import each_round, gather
from utils.files import atomic_write
from utils.logs import LOG
from utils.progress import Progress
from utils.text import csv_cell

_NAMED = 20  # unreadable files that the log names one by one

# Images (B, 3, h, w) uint8 RGB, the (H, W) of the wanted maps -> a result each.
Predict = Callable[[Tensor, tuple[int, int]], list[ImageResult]]
Skipped = list[tuple[str, str]]  # (name, why it could not be read)


@dataclass(frozen=True)
class ScoringOptions:
    """How images are read, and what is written of them.

    input_spec: of the detector. bits: that images of 16 bits really use. draw: whether to write overlays.
    """

    save_path: Path
    class_name: str
    input_spec: InputSpec
    batch_size: int
    num_workers: int
    bits: int | None
    save_maps: bool
    draw: bool


def score_and_report(
    options: ScoringOptions,
    predict: Predict,
    images: Sequence[tuple[Path, str]],
    calibration: Calibration | None,
    accelerator: Accelerator,
    no_verdict: str,
) -> int:
    """Score images, (file, name) each; returns the exit code: 3 where some were left out.

    no_verdict: what to do to get a verdict, where there is no calibration.
    """
    save_path = options.save_path
    if calibration:
        if accelerator.is_main_process:
            calibration.save(save_path / "calibration.json")
        LOG.info("threshold %.4g: %s", calibration.threshold, calibration.promise())
        if calibration.pixel_threshold is not None:
            LOG.info("threshold of pixels %.4g; rule: %s", calibration.pixel_threshold, calibration.rule)
        count, source = calibration.normal_images, calibration.source
        LOG.info("scale and threshold come from %d normal images: %s", count, source)
    else:
        LOG.info("scores are on a scale of their own, and there is no verdict; %s", no_verdict)
    skipped = score_images(options, predict, images, calibration, accelerator)
    return report_end(save_path, skipped, len(images), accelerator)


def report_end(save_path: Path, skipped: Skipped, images: int, accelerator: Accelerator, page: str = "") -> int:
    """Say what was scored and what was not, of so many images; returns the exit code. page: of the results, if any."""
    look = f"; open {save_path / page}" if page else ""
    LOG.info("images scored: %d; results are in %s%s", images - len(skipped), save_path, look)
    if skipped and accelerator.is_main_process:
        _write_skipped(save_path / "skipped.csv", skipped)
        for name, reason in skipped[:_NAMED]:
            LOG.warning("skipped %s: %s", name, reason)
        LOG.warning("%d of %d files were left out, see skipped.csv", len(skipped), images)
    return 3 if skipped else 0


def score_images(
    options: ScoringOptions,
    predict: Predict,
    images: Sequence[tuple[Path, str]],
    calibration: Calibration | None,
    accelerator: Accelerator,
) -> Skipped:
    """Score all images as they come; writes scores.csv, overlays and maps. Returns what was skipped, and why.

    Of several processes each scores its part of a round, and the first writes the rows of all, in the order of images.
    """
    skipped: Skipped = []
    is_main = accelerator.is_main_process
    dataset = UnlabeledImages([path for path, _ in images], options.input_spec, bits=options.bits)
    loader = batches(dataset, options.batch_size, options.num_workers, accelerator)
    pictures = Pictures(options, images, calibration)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(len(images), "predict", "image", shown=is_main))
        table = (
            stack.enter_context(Table.open(options.save_path / "scores.csv", options.class_name)) if is_main else None
        )
        stack.enter_context(pictures)
        for length, batch in each_round(loader):
            results, unreadable = predict_batch(images, predict, batch or ())
            rows = [(images[index][1], result.values) for index, result in results]
            for their_rows, their_unreadable, pixels in gather(
                (rows, unreadable, pictures.sample(results)), accelerator
            ):
                skipped += their_unreadable
                pictures.learn(pixels)
                if table:
                    table.write(their_rows)
            pictures.write(results)
            progress.update(length)
    return skipped


def predict_batch(
    images: Sequence[tuple[Path, str]], predict: Predict, batch: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[int, ImageResult]], Skipped]:
    """(index, result) of each readable image of a batch of `UnlabeledImages`, (name, reason) of each other, in the
    order of the images. Raises ValueError where a result is no number."""
    found: list[tuple[int, ImageResult]] = []
    unreadable: list[tuple[int, str]] = []
    for group in batch:
        indices, errors = group["index"].tolist(), group["error"]
        unreadable += [(index, error) for index, error in zip(indices, errors, strict=True) if error]
        good = [row for row, error in enumerate(errors) if not error]
        results = predict(group["image"][good], group["map_size"]) if good else []
        check_finite(results, [images[indices[row]][1] for row in good])
        found += [(indices[row], result) for row, result in zip(good, results, strict=True)]
    return sorted(found, key=lambda one: one[0]), [(images[index][1], error) for index, error in sorted(unreadable)]


class Table:
    """scores.csv, row by row; its columns are those of the first row."""

    def __init__(self, file: Any, class_name: str):
        self._file, self._class_name = file, class_name
        self._writer: Any = None

    @classmethod
    @contextmanager
    def open(cls, path: Path, class_name: str) -> Iterator["Table"]:
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            yield cls(file, class_name)

    def write(self, rows: Sequence[tuple[str, Mapping[str, float | str]]]) -> None:
        """rows: (name of the image, its values)."""
        for name, values in rows:
            if self._writer is None:
                self._writer = csv.writer(self._file)
                self._writer.writerow(["img_path", "cls_name", *values])
            self._writer.writerow(map(csv_cell, (name, self._class_name, *values.values())))


class Pictures(ExitStack):
    """Overlays and maps, those that are wanted. Of several processes each writes those of its images."""

    def __init__(
        self, options: ScoringOptions, images: Sequence[tuple[Path, str]], calibration: Calibration | None
    ) -> None:
        super().__init__()
        self._images, self._maps = images, options.save_path / "maps" if options.save_maps else None
        stems = result_names([name for _, name in images])
        self._names = {name: stem + PurePosixPath(name).suffix for name, stem in stems.items()}
        self._overlays: StreamedOverlays | None = None
        if options.draw:
            ends, pixels = calibration.heat if calibration else None, PixelSettings(exif=True, bits=options.bits)
            self._overlays = self.enter_context(
                StreamedOverlays(options.save_path / "imgs", pixels, ends, len(images), options.input_spec.shown)
            )

    def sample(self, results: Sequence[tuple[int, ImageResult]]) -> list[np.ndarray]:
        """Pixels of maps, for `learn`, while the colour scale is not known."""
        learning = self._overlays is not None and self._overlays.learning
        return [sample_pixels(result.map) for _, result in results] if learning else []

    def learn(self, pixels: Sequence[np.ndarray]) -> None:
        """What `sample` gave, of one process after the other: all have the same colour scale."""
        if self._overlays:
            self._overlays.learn(pixels)

    def write(self, results: Sequence[tuple[int, ImageResult]]) -> None:
        """results: (index of the image, its result)."""
        for index, result in results:
            path, name = self._images[index]
            if self._maps:
                save_map(self._maps, self._names[name], result.map)
            if self._overlays:
                caption = f"score {result.score:.3f} {result.verdict or ''}"
                self._overlays.keep(path, self._names[name], result.map, caption, result.foreground)


def _write_skipped(path: Path, skipped: Skipped) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("img_path", "reason"), *(tuple(map(csv_cell, row)) for row in skipped)])
