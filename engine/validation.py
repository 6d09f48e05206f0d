"""Scores of a second dataset while training on the first, and the best checkpoint by them."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import metrics
from data.meta import Sample
from data.references import ZERO_SHOT
from engine.batches import Batches
from engine.evaluation import score
from metrics.names import IMAGE, PIXEL, VALIDATION_METRICS
from model.interface import TrainableDetector
from utils.files import atomic_write
from utils.logs import LOG

FILES = ("validation.csv", "best.pth")
_COLUMNS = ("epoch", "dataset", *PIXEL, *IMAGE)


class Validation:
    """Zero-shot scores of a dataset after some epochs: a row each in validation.csv, and a copy of the checkpoint with
    the highest value of one metric as best.pth.

    Args:
        detector: of the method that is trained, with the options that the dataset wants; takes the trained parts over.
        folder: where the checkpoints are.
        dataset: name of the dataset that is scored.
        metric: one of `metrics.names.VALIDATION_METRICS`, higher is better.
        samples: the dataset's samples; a class's follow each other.
        loader: `engine.batches.batches` over the samples.
        accelerator: device, precision and processes.

    Raises:
        ValueError: the labels and masks of the samples do not allow the metric.
    """

    def __init__(
        self,
        detector: TrainableDetector,
        folder: Path,
        dataset: str,
        metric: str,
        samples: Sequence[Sample],
        loader: Batches,
        accelerator: Accelerator,
    ):
        self._check_metric(dataset, metric, samples)
        self._detector = detector.eval()
        self._folder, self._dataset, self._metric, self._loader = folder, dataset, metric, loader
        self._accelerator = accelerator
        self._samples = samples
        self._rows: dict[int, dict[str, Any]] = {}
        self._kept: int | None = None  # the epoch of best.pth

    def resume(self, done: int) -> dict[str, float | None] | None:
        """Take over what an interrupted training has written. Returns the mean after epoch `done`; None where that has
        not been scored."""
        self._rows = {row["epoch"]: row for row in _read(self._folder / FILES[0]) if row["epoch"] <= done}
        scored = done in self._rows and self._rows[done]["dataset"] == self._dataset
        if scored and self._accelerator.is_main_process:  # the metric may be another one now
            self._keep_best()
        return {key: self._rows[done][key] for key in _COLUMNS[2:]} if scored else None

    def __call__(self, trained: Mapping[str, Any], epoch: int) -> dict[str, float | None]:
        """Score the trained parts as they are after an epoch, whose checkpoint has been saved. Returns the mean."""
        self._detector.load_trainable_state(trained)
        every = score(
            self._detector,
            self._loader,
            self._samples,
            [ZERO_SHOT],
            lambda _: [None],
            self._accelerator,
        )
        mean = metrics.mean([result.metrics for result in every])
        self._rows[epoch] = {"epoch": epoch, "dataset": self._dataset, **mean}
        best = " (best so far)" if self._best() == epoch else ""
        values = {key: mean[key] for key in VALIDATION_METRICS}
        shown = ", ".join(f"{key} {100 * value:.1f}" for key, value in values.items() if value is not None)
        LOG.info("epoch %d on %s: %s%s", epoch, self._dataset, shown, best)
        if mean[self._metric] is None:
            LOG.warning("epoch %d on %s: %s cannot be computed", epoch, self._dataset, self._metric)
        if self._accelerator.is_main_process:
            self._keep_best()
            with (
                atomic_write(self._folder / FILES[0]) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(self._rows.values())  # None becomes blank
        return mean

    def _best(self) -> int | None:
        """The epoch with the highest value, the first of equals; None where no epoch has one."""
        values = {
            epoch: row[self._metric]
            for epoch, row in self._rows.items()
            if row["dataset"] == self._dataset and row[self._metric] is not None
        }
        return max(values, key=values.__getitem__) if values else None

    def _keep_best(self) -> None:
        best = self._best()
        checkpoint = self._folder / f"epoch_{best}.pth"
        if best is not None and best != self._kept and checkpoint.is_file():
            with atomic_write(self._folder / FILES[1]) as temporary:
                shutil.copyfile(checkpoint, temporary)
            self._kept = best

    @staticmethod
    def _check_metric(dataset: str, metric: str, samples: Sequence[Sample]) -> None:
        """A class allows pixel metrics where its anomalous images have masks, image metrics where both labels occur."""
        for name in dict.fromkeys(sample.cls_name for sample in samples):
            anomalous = [sample for sample in samples if sample.cls_name == name and sample.anomaly]
            both = 0 < len(anomalous) < sum(sample.cls_name == name for sample in samples)
            if (anomalous and all(sample.mask_path for sample in anomalous)) if metric in PIXEL else both:
                return
        raise ValueError(
            f"--val_metric {metric}: no class of {dataset} has the "
            f"{'masks' if metric in PIXEL else 'normal and anomalous images'} for it; take another metric"
        )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {
                    "epoch": int(row["epoch"]),
                    "dataset": row["dataset"],
                    **{key: float(row[key]) if row[key] else None for key in _COLUMNS[2:]},
                }
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(f"{path}: broken; remove it, and the validation starts anew") from None
