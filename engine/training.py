"""Training: its epochs, and what is saved, validated and shown after them. Knows a detector by its protocol alone."""

import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.meta import PixelSettings, Sample
from dataset import AnomalyDataset, EpochSampler
from engine import checkpoint
from engine.epoch import train_epoch
from engine.evaluation import infer
from engine.loss_log import Step, losses_text, write_losses
from engine.validation import Validation
from model.interface import TrainableDetector
from utils.devices import set_seed
from utils.distributed import DistributedBatchSampler, begin_reading, readers, shutdown
from utils.logs import LOG
from utils.signals import HeldSignals, Stopped

_WATCHED = 4  # anomalous images whose maps are shown after each saved epoch


class WatchedMap(NamedTuple):
    """What the detector in training makes of an image, zero-shot."""

    sample: Sample
    map: np.ndarray  # (S, S) float32
    mask: np.ndarray  # (S, S) uint8, 1 = defect


class TrainingObserver(Protocol):
    """Receives what happens in a training, on the main process. `report.tensorboard.TensorBoardLogger` is one."""

    def epoch(self, steps: Sequence[Step], rates: Sequence[float]) -> None:
        """The steps of an epoch, and the learning rate of each group of parameters."""

    def validation(self, row: Mapping[str, float | None]) -> None:
        """Metrics of the validation dataset after the last step."""

    def maps(self, maps: Sequence[WatchedMap]) -> None:
        """Maps of a few images after the last step."""

    def flush(self) -> None:
        """Nothing of what was received may be lost when the training is killed now."""

    def close(self) -> None:
        """Nothing more follows."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a training runs; see `config.settings.TrainSettings` for the fields of these names.

    root: of the dataset.
    pixels: how its files are read.
    """

    root: str
    pixels: PixelSettings
    epoch: int
    batch_size: int
    num_workers: int
    seed: int
    aug_rate: float
    mosaic_of: str
    augment: bool
    no_shuffle: bool
    print_freq: int
    save_freq: int


class Trainer:
    """A training under way: its epochs, and what is written and shown after them.

    Args:
        detector, optimizer: the optimiser holds the detector's trainable parts.
        plan: how it runs.
        samples: what it learns from.
        folder: of checkpoints and losses.csv.
        meta: of the checkpoints.
        observer: receives what happens; None on all but the main process.
        validate: scores another dataset after each checkpoint; None where none is wanted.
        done: epochs that are behind it.
        history: all steps so far; those of the epoch in which it was interrupted among them.
    """

    def __init__(
        self,
        detector: TrainableDetector,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        plan: TrainingPlan,
        samples: Sequence[Sample],
        folder: Path,
        meta: Mapping[str, Any],
        *,
        observer: TrainingObserver | None = None,
        validate: Validation | None = None,
        done: int = 0,
        history: Sequence[Step] = (),
    ):
        self._detector, self._accelerator, self._plan, self._samples = detector, accelerator, plan, samples
        self._folder, self._meta, self._observer, self._validate = folder, meta, observer, validate
        self._done, self._history = done, list(history)
        self._dataset = AnomalyDataset(
            plan.root,
            samples,
            detector.input_spec,
            mosaic_rate=plan.aug_rate,
            mosaic_of=plan.mosaic_of,
            augmented=plan.augment,
            seed=plan.seed,
            bits=plan.pixels.bits,
            upright=plan.pixels.exif,
        )
        self._sampler = EpochSampler(len(self._dataset), plan.seed, shuffle=not plan.no_shuffle)
        # --batch_size is that of all processes together, so that the same command gives the same losses on any number.
        self._rounds = DistributedBatchSampler(
            self._sampler, plan.batch_size, accelerator.process_index, accelerator.num_processes
        )
        self._loader = DataLoader(
            self._dataset,
            batch_sampler=self._rounds,
            num_workers=readers(plan.num_workers, len(self._rounds)),
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=begin_reading,
        )
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._optimizer = accelerator.prepare(optimizer)
        self._known = [step for step in history if step.epoch > done]  # of an epoch that was interrupted

    def fit(self) -> None:
        """Run the epochs that are left. Raises Stopped, with last.pth written, where a signal ends them."""
        self._make_up()
        with HeldSignals() as signals:
            for epoch in range(self._done + 1, self._plan.epoch + 1):
                self._run(epoch, signals)
        if self._observer:
            self._observer.close()

    def _make_up(self) -> None:
        """Do what an interrupted training had still to do after its last checkpoint."""
        scored = self._validate.resume(self._done) if self._validate and (self._done or self._known) else None
        if not resumes_after_epoch(self._done, self._history):
            return
        if self._observer:
            self._observer.epoch(self._history[-1:], self._rates)
        self._show_maps()
        if self._validate:
            self._show_validation(scored or self._validate(self._detector.trainable_state(), self._done))

    def _run(self, epoch: int, signals: HeldSignals) -> None:
        plan = self._plan
        self._dataset.epoch = self._sampler.epoch = epoch
        known, self._known = self._known, []
        self._rounds.skip = len(known)
        left = len(self._rounds.lengths())
        steps, stopped = train_epoch(
            self._detector,
            self._loader,
            self._optimizer,
            self._accelerator,
            epoch,
            first=len(known) + 1,
            before_step=partial(_seed_step, plan.seed, epoch, self._accelerator.process_index),
            stop=lambda: signals.number > 0,
        )
        self._history += steps
        if stopped and (len(steps) < left or epoch < plan.epoch):
            self._stop(steps[-1], signals.number or signal.SIGTERM)
        steps = known + steps
        if self._observer:
            self._observer.epoch(steps, self._rates)
        if epoch % plan.print_freq == 0:
            LOG.info("epoch [%d/%d], loss:%.4f", epoch, plan.epoch, sum(step.loss for step in steps) / len(steps))
        if epoch % plan.save_freq == 0 or epoch == plan.epoch:
            self._save_epoch(epoch)
            self._show_maps()
            if self._validate:
                with signals.released():  # which takes long, and is done again by --resume
                    self._show_validation(self._validate(self._detector.trainable_state(), epoch))

    def _stop(self, last: Step, number: int) -> None:
        path = self._folder / checkpoint.UNFINISHED
        if self._accelerator.is_main_process:
            self._save(path, epoch=last.epoch - 1, losses=losses_text(self._history, self._detector.LOSSES))
        LOG.info("saved %s after step %d of epoch %d", path, last.step, last.epoch)
        if self._observer:
            self._observer.close()
        shutdown(self._accelerator)
        raise Stopped(number)

    def _save_epoch(self, epoch: int) -> None:
        if not self._accelerator.is_main_process:
            return
        if self._observer:
            self._observer.flush()  # before the checkpoint: a training that resumes after it does not draw them again
        path = self._folder / f"epoch_{epoch}.pth"
        self._save(path, epoch=epoch)
        write_losses(self._folder / "losses.csv", self._history, self._detector.LOSSES)
        (self._folder / checkpoint.UNFINISHED).unlink(missing_ok=True)
        LOG.info("saved %s", path)

    def _save(self, path: Path, **progress: Any) -> None:
        meta = {**self._meta, **progress, "optimizer": self._optimizer.state_dict()}
        checkpoint.save(path, self._detector.trainable_state(), meta)

    def _show_validation(self, row: Mapping[str, float | None]) -> None:
        if self._observer:
            self._observer.validation(row)

    def _show_maps(self) -> None:
        if self._observer:
            self._observer.maps(_watched_maps(self._detector, self._accelerator, self._plan, self._samples))


def resumes_after_epoch(done: int, history: Sequence[Step]) -> bool:
    """Whether a training resumes right after a saved epoch. What was shown after that may be lost, and is shown again.

    done, history: see `Trainer`.
    """
    return done > 0 and not any(step.epoch > done for step in history)


def reported_steps(done: int, history: Sequence[Step]) -> int:
    """Steps of an interrupted training that an observer does not receive again."""
    return sum(step.epoch <= done for step in history) - resumes_after_epoch(done, history)


def _watched_maps(
    detector: TrainableDetector, accelerator: Accelerator, plan: TrainingPlan, samples: Sequence[Sample]
) -> list[WatchedMap]:
    """Of a few anomalous images, evenly spread."""
    anomalous = [sample for sample in samples if sample.anomaly]
    detector.eval()
    maps = []
    for sample in anomalous[:: max(1, len(anomalous) // _WATCHED)][:_WATCHED]:
        bits, upright = plan.pixels
        item = AnomalyDataset(plan.root, [sample], detector.input_spec, bits=bits, upright=upright)[0]
        prediction = infer(detector, item["image"][None], sample.cls_name, None, accelerator)
        maps.append(WatchedMap(sample, prediction.maps[0].float().cpu().numpy(), item["mask"].numpy()))
    return maps


def _seed_step(seed: int, epoch: int, rank: int, step: int) -> None:
    """What is drawn in a step (dropout; images have draws of their own) must not depend on how it was reached; each
    process draws for images of its own."""
    set_seed(random.Random(f"{seed}/{epoch}/{step}/{rank}").getrandbits(32))
