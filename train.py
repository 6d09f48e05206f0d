"""Fit a method's trainable parts on one dataset, to be tested on another.

    python train.py --dataset mvtec --train_data_path ./data/mvtec --save_path ./exps/visa/vit_large_14_518

Writes epoch_N.pth, losses.csv, tensorboard/, config.json and log.txt into --save_path; with --val_dataset also
validation.csv, and the best checkpoint as best.pth. Interrupted by Ctrl-C or SIGTERM it finishes its step and writes
last.pth, from which the same command with --resume goes on; last.pth goes when a later checkpoint is there.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import csv
import io
import json
import random
import signal
from dataclasses import asdict, fields
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from config.flags import train_parser
from config.settings import log_settings, resolve_train, validation_options
from data.images import load_image
from data.references import ZERO_SHOT
from dataset import AnomalyDataset, EpochSampler, read, select
from engine import checkpoint, validation
from engine.build import build_for_training
from engine.evaluation import batches, infer
from engine.training import Step, train_epoch
from model import METHODS, build_on
from prompt_ensemble import load_prompts
from report.overlays import overlay
from report.tensorboard import FOLDER, TensorBoardLogger
from utils.devices import make_accelerator, set_seed
from utils.distributed import DistributedBatchSampler, isolate_signals, shutdown
from utils.errors import run_script
from utils.files import atomic_write, clear_leftovers, clear_results, result_folder
from utils.logs import LOG, log_to
from utils.packages import require
from utils.provenance import write_config
from utils.signals import HeldSignals, Stopped

_WATCHED = 4  # anomalous images whose maps are drawn after each saved epoch
# Settings that a resumed training must share with what it resumes.
TRAINING = ("seed", "batch_size", "learning_rate", "aug_rate", "augment", "no_shuffle", "classes", "prompts")
RESUME_ADVICE = "the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_train(train_parser(list(METHODS)).parse_args(argv))
    require("train.py", ("tensorboard",), "requirements.txt")
    accelerator = make_accelerator(settings.device, settings.precision)
    samples = select(read(settings.train_data_path, settings.meta_path)["test"], settings.classes)
    check_masks(samples, settings.train_data_path)
    save_path = result_folder(settings.save_path)
    last = checkpoint.to_resume(save_path) if settings.resume else None
    start = checkpoint.load(last or settings.init_checkpoint) if last or settings.init_checkpoint else None
    set_seed(settings.seed)
    detector = build_for_training(settings, accelerator, samples)
    description = checkpoint.describe(detector, settings)
    optimizer = torch.optim.Adam(detector.parameter_groups(settings.learning_rate), betas=settings.betas)
    if start:
        checkpoint.restore(start, detector, description)
    options = {key: getattr(settings, key) for key in TRAINING}
    options["samples"] = f"{len(samples)} images ({sha256(json.dumps(samples).encode()).hexdigest()[:8]})"
    validate = validator(settings, sources, detector.backbone, accelerator) if settings.val_dataset else None
    same = {**options, **detector.options, "dataset": settings.dataset, "image_size": description["image_size"]}
    done, history = resume(start, optimizer, same) if last else (0, [])
    begin(save_path, accelerator, resumes=last is not None)
    vars(settings).update(detector.options, image_size=description["image_size"])
    log_settings(settings, sources)
    if last:
        LOG.info("resumed after %s", last)
    elif settings.resume:
        LOG.info("nothing in %s to resume: the training starts from the beginning", save_path)
    if accelerator.is_main_process:
        write_config(save_path, settings, sources, description)
    detector.encode_names([sample.cls_name for sample in samples])
    meta = {**description, **options}
    training = Training(settings, detector, optimizer, accelerator, samples, meta, validate, done, history)
    training.resume()
    with HeldSignals() as signals:
        for epoch in range(done + 1, settings.epoch + 1):
            training.run(epoch, signals)
    training.curves.close()
    if detector.backbone.cache:
        detector.backbone.cache.log()
    shutdown(accelerator)


def begin(save_path: Path, accelerator, *, resumes: bool) -> None:
    """Make the folder ready, and write the log into it; a training that starts anew takes away what an earlier one
    left."""
    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        clear_leftovers(save_path)
        if not resumes:
            write_losses(save_path / "losses.csv", [])  # first: checkpoints of an earlier training are none of this one
            clear_results(save_path, (*validation.FILES, FOLDER, checkpoint.UNFINISHED))
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    log_to(save_path, append=resumes, quiet=not accelerator.is_main_process)


class Training:
    """A training under way: its epochs, and what is written and drawn after them.

    Args:
        meta: of the checkpoints.
        validate: scores another dataset after each checkpoint; None where none is wanted.
        done: epochs that are behind it.
        history: all steps so far; those of the epoch in which it was interrupted among them.
    """

    def __init__(self, settings, detector, optimizer, accelerator, samples, meta, validate, done, history):
        self._settings, self._detector, self._accelerator = settings, detector, accelerator
        self._samples, self._meta, self._validate, self._done = samples, meta, validate, done
        self._folder, self._history = Path(settings.save_path), history
        self._dataset = AnomalyDataset(
            settings.train_data_path,
            samples,
            meta["image_size"],
            mosaic_rate=settings.aug_rate,
            mosaic_of=settings.mosaic_of,
            augmented=settings.augment,
            seed=settings.seed,
        )
        self._sampler = EpochSampler(len(self._dataset), settings.seed, shuffle=not settings.no_shuffle)
        # --batch_size is that of all processes together, so that the same command gives the same losses on any number.
        self._rounds = DistributedBatchSampler(
            self._sampler, settings.batch_size, accelerator.process_index, accelerator.num_processes
        )
        self._loader = DataLoader(
            self._dataset,
            batch_sampler=self._rounds,
            num_workers=settings.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=isolate_signals,
        )
        self._optimizer = accelerator.prepare(optimizer)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._known = [step for step in history if step.epoch > done]
        # Where it goes on after a saved epoch, what was drawn after that may be lost.
        self._at_end = done > 0 and not self._known
        drawn = len(history) - len(self._known) - self._at_end
        self.curves = TensorBoardLogger(self._folder if accelerator.is_main_process else None, drawn)

    def resume(self) -> None:
        """Do what an interrupted training had still to do after its last checkpoint."""
        resumed = self._done > 0 or self._known
        scored = self._validate.resume(self._done) if self._validate and resumed else None
        if self._at_end:
            self.curves.epoch(self._history[-1:], self._rates)
            self._draw_pictures()
            if self._validate:
                self.curves.validation(scored or self._validate(self._detector.trainable_state(), self._done))

    def run(self, epoch: int, signals: HeldSignals) -> None:
        """One epoch; raises Stopped, with the checkpoint written, where a signal ends it."""
        settings = self._settings
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
            before_step=partial(seed_step, settings.seed, epoch, self._accelerator.process_index),
            stop=lambda: signals.number > 0,
        )
        self._history += steps
        if stopped and (len(steps) < left or epoch < settings.epoch):
            self._stop(steps[-1], signals.number or signal.SIGTERM)
        steps = known + steps
        self.curves.epoch(steps, self._rates)
        if epoch % settings.print_freq == 0:
            LOG.info("epoch [%d/%d], loss:%.4f", epoch, settings.epoch, sum(s.loss for s in steps) / len(steps))
        if epoch % settings.save_freq == 0 or epoch == settings.epoch:
            self._save_epoch(epoch)
            self._draw_pictures()
            if self._validate:
                with signals.released():  # which takes long, and is done again by --resume
                    self.curves.validation(self._validate(self._detector.trainable_state(), epoch))

    def _stop(self, last: Step, number: int) -> None:
        path = self._folder / checkpoint.UNFINISHED
        if self._accelerator.is_main_process:
            self._save(path, epoch=last.epoch - 1, losses=losses_text(self._history))
        LOG.info("saved %s after step %d of epoch %d", path, last.step, last.epoch)
        self.curves.close()
        shutdown(self._accelerator)
        raise Stopped(number)

    def _save_epoch(self, epoch: int) -> None:
        if not self._accelerator.is_main_process:
            return
        self.curves.flush()  # before the checkpoint: a training that goes on after it does not draw them again
        path = self._folder / f"epoch_{epoch}.pth"
        self._save(path, epoch=epoch)
        write_losses(self._folder / "losses.csv", self._history)
        (self._folder / checkpoint.UNFINISHED).unlink(missing_ok=True)
        LOG.info("saved %s", path)

    def _save(self, path: Path, **progress) -> None:
        meta = {**self._meta, **progress, "optimizer": self._optimizer.state_dict()}
        checkpoint.save(path, self._detector.trainable_state(), meta)

    def _draw_pictures(self) -> None:
        if self._accelerator.is_main_process:
            root = self._settings.train_data_path
            self.curves.pictures(watched(self._detector, self._accelerator, root, self._samples))


def validator(settings, sources, backbone, accelerator) -> validation.Validation:
    root = settings.val_data_path
    samples = read(root, settings.val_meta_path)["test"]
    options = validation_options(settings, sources)
    words = options.pop("prompts")
    prompts = None if words is None else load_prompts(words)
    detector = build_on(backbone, settings.method, prompts=prompts, **options).to(accelerator.device)

    def load(samples) -> DataLoader:
        dataset = AnomalyDataset(root, samples, backbone.image_size)
        return batches(dataset, settings.batch_size, settings.num_workers, accelerator)

    folder, name, metric = Path(settings.save_path), settings.val_dataset, settings.val_metric
    return validation.Validation(detector, folder, name, metric, samples, load, ZERO_SHOT, accelerator)


def watched(detector, accelerator, root: str, samples) -> dict[str, np.ndarray]:
    """Overlays of a few anomalous images as the detector sees them now, zero-shot."""
    anomalous = [sample for sample in samples if sample.anomaly]
    pictures = {}
    detector.eval()
    for sample in anomalous[:: max(1, len(anomalous) // _WATCHED)][:_WATCHED]:
        (item,) = AnomalyDataset(root, [sample], detector.backbone.image_size)
        prediction = infer(detector, item["image"][None], sample.cls_name, None, accelerator)
        heat = prediction.maps[0].float().cpu().numpy()
        heat = (heat - heat.min()) / max(np.ptp(heat), 1e-6)
        captions = (sample.img_path, "anomaly map", "ground truth")
        pictures[sample.img_path] = overlay(
            load_image(Path(root, sample.img_path)), heat, item["mask"].numpy(), captions
        )
    return pictures


def check_masks(samples, root: str) -> None:
    for sample in samples:
        if sample.anomaly and not sample.mask_path:
            raise ValueError(f"training needs masks, and {sample.img_path} of {root} is anomalous without one")


def resume(last: checkpoint.Checkpoint, optimizer, run: dict) -> tuple[int, list[Step]]:
    """Restore the optimiser; returns the epoch that is done and the losses so far. run: what must be as
    it was."""
    checkpoint.check_compatible(f"checkpoint {last.path} was trained", last.meta, run, run)
    if "optimizer" not in last.meta:
        raise ValueError(f"checkpoint {last.path}: holds no optimiser to resume from; pass it by --init_checkpoint")
    done = last.meta.get("epoch")
    try:
        optimizer.load_state_dict(last.meta["optimizer"])
        fits = (
            type(done) is int
            and last.path.name in (f"epoch_{done}.pth", checkpoint.UNFINISHED)
            and all(
                isinstance(moments["step"], torch.Tensor)
                and moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape
                for parameter, moments in optimizer.state.items()
            )
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"checkpoint {last.path}: its optimiser or epoch is broken; pass it by --init_checkpoint")
    if "losses" in last.meta:
        return done, parse_losses(last.path, last.meta["losses"])
    path = last.path.parent / "losses.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return done, [step for step in parse_losses(path, text) if step.epoch <= done]


def seed_step(seed: int, epoch: int, rank: int, step: int) -> None:
    """What is drawn in a step (dropout; pictures have draws of their own) must not depend on how it was reached; each
    process draws for images of its own."""
    set_seed(random.Random(f"{seed}/{epoch}/{step}/{rank}").getrandbits(32))


def losses_text(history: list[Step]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Step)])
    writer.writeheader()
    writer.writerows(asdict(step) for step in history)
    return file.getvalue()


def write_losses(path: Path, history: list[Step]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(losses_text(history), encoding="utf-8", newline="")


def parse_losses(path: Path, text: str) -> list[Step]:
    """The losses that `losses_text` has written into a file."""
    try:
        rows = csv.DictReader(io.StringIO(text))
        steps = [Step(*(field.type(row[field.name]) for field in fields(Step))) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error):
        steps = []
    if not steps:
        raise ValueError(f"{path}: missing or broken, so there is nothing to go on from; train without --resume")
    return steps


if __name__ == "__main__":
    run_script(main, RESUME_ADVICE)
