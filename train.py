"""Fit a method's trainable parts on one dataset, to be tested on another.

    python train.py --dataset mvtec --train_data_path ./data/mvtec --save_path ./exps/visa/vit_large_14_518

Writes epoch_N.pth, losses.csv, tensorboard/, config.json and log.txt into --save_path; with --val_dataset also
validation.csv, and the best checkpoint as best.pth.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import csv
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from dataset import ZERO_SHOT, AnomalyDataset, EpochSampler, load_image, read, select
from model import METHODS, build, build_on
from prompt_ensemble import load_prompts
from utils import checkpoint, runtime, validation
from utils.config import detector_settings, log_settings, resolve_train, train_parser, validation_options
from utils.curves import FOLDER, Curves
from utils.engine import Step, batches, infer, train_epoch
from utils.feature_cache import FeatureCache
from utils.processes import Rounds
from utils.runtime import LOG
from utils.visualize import overlay

_WATCHED = 4  # anomalous images whose maps are drawn after each saved epoch
# Settings that a resumed training must share with what it resumes.
TRAINING = ("seed", "batch_size", "learning_rate", "aug_rate", "augment", "no_shuffle", "classes", "prompts")


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_train(train_parser(list(METHODS)).parse_args(argv))
    accelerator = runtime.accelerator(settings.device, settings.precision)
    samples = select(read(settings.train_data_path, settings.meta_path)["test"], settings.classes)
    check_masks(samples, settings.train_data_path)
    save_path = runtime.result_folder(settings.save_path)
    last = checkpoint.latest(save_path) if settings.resume else None
    start = checkpoint.load(last or settings.init_checkpoint) if last or settings.init_checkpoint else None
    runtime.set_seed(settings.seed)
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    detector = build(settings.method, prompts=prompts, **detector_settings(settings)).to(accelerator.device)
    batch = min(-(-settings.batch_size // accelerator.num_processes), len(samples))
    what = f"--batch_size {settings.batch_size}"
    detector.backbone.check_room(batch, accelerator.device, what, "lower it, or --image_size")
    if settings.compile:
        runtime.check_compiler(accelerator.device)
        detector.backbone.compile_encoder()
    detector.backbone.cache = FeatureCache.wanted(settings, accelerator)
    description = checkpoint.describe(detector, settings)
    optimizer = torch.optim.Adam(detector.parameter_groups(settings.learning_rate), betas=settings.betas)
    if start:
        checkpoint.restore(start, detector, description)
    training = {key: getattr(settings, key) for key in TRAINING}
    validate = validator(settings, sources, detector.backbone, accelerator) if settings.val_dataset else None
    same = {**training, **detector.options, "dataset": settings.dataset, "image_size": description["image_size"]}
    done, history = resume(start, optimizer, same) if last else (0, [])
    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process and not last:
        runtime.clear_results(save_path, (*validation.FILES, FOLDER))
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    runtime.log_to(save_path, append=last is not None, quiet=not accelerator.is_main_process)
    vars(settings).update(detector.options, image_size=description["image_size"])
    log_settings(settings, sources)
    if last:
        LOG.info("resumed after %s", last)
    if accelerator.is_main_process:
        runtime.write_config(save_path, settings, sources, description)

    dataset = AnomalyDataset(
        settings.train_data_path,
        samples,
        description["image_size"],
        mosaic_rate=settings.aug_rate,
        mosaic_of=settings.mosaic_of,
        augmented=settings.augment,
        seed=settings.seed,
    )
    sampler = EpochSampler(len(dataset), settings.seed, shuffle=not settings.no_shuffle)
    # --batch_size is that of all processes together, so that the same command gives the same losses on any number.
    rounds = Rounds(sampler, settings.batch_size, accelerator.process_index, accelerator.num_processes)
    pinned = accelerator.device.type == "cuda"
    loader = DataLoader(dataset, batch_sampler=rounds, num_workers=settings.num_workers, pin_memory=pinned)
    detector.encode_names([sample.cls_name for sample in samples])
    optimizer = accelerator.prepare(optimizer)
    curves = Curves(save_path if accelerator.is_main_process else None, len(history))
    if validate and last and not validate.go_on(done):
        curves.validation(validate(detector.trainable_state(), done))
    for epoch in range(done + 1, settings.epoch + 1):
        dataset.epoch = sampler.epoch = epoch
        # What is drawn in an epoch (dropout; pictures have draws of their own) must not depend on how it was reached;
        # each process draws for images of its own.
        runtime.set_seed(settings.seed + epoch + 1_000_003 * accelerator.process_index)
        steps = train_epoch(detector, loader, optimizer, accelerator, epoch)
        history += steps
        curves.epoch(steps, [group["lr"] for group in optimizer.param_groups])
        if epoch % settings.print_freq == 0:
            LOG.info("epoch [%d/%d], loss:%.4f", epoch, settings.epoch, sum(s.loss for s in steps) / len(steps))
        if epoch % settings.save_freq == 0 or epoch == settings.epoch:
            path = save_path / f"epoch_{epoch}.pth"
            if accelerator.is_main_process:
                progress = {**training, "epoch": epoch, "optimizer": optimizer.state_dict()}
                checkpoint.save(path, detector.trainable_state(), {**description, **progress})
                write_losses(save_path / "losses.csv", history)
                LOG.info("saved %s", path)
                curves.pictures(watched(detector, accelerator, settings.train_data_path, samples))
            if validate:
                curves.validation(validate(detector.trainable_state(), epoch))
    curves.close()
    if detector.backbone.cache:
        detector.backbone.cache.log()
    runtime.leave(accelerator)


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
    """Restore the optimiser; returns the epoch that is done and the losses until then. run: what must be as it was."""
    checkpoint.must_agree(f"checkpoint {last.path} was trained", last.meta, run, run)
    if "optimizer" not in last.meta:
        raise ValueError(f"checkpoint {last.path}: holds no optimiser to resume from; pass it by --init_checkpoint")
    done = last.meta.get("epoch")
    try:
        optimizer.load_state_dict(last.meta["optimizer"])
        fits = (
            type(done) is int
            and last.path.stem == f"epoch_{done}"
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
    return done, [step for step in read_losses(last.path.parent / "losses.csv") if step.epoch <= done]


def write_losses(path: Path, history: list[Step]) -> None:
    with runtime.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Step)])
        writer.writeheader()
        writer.writerows(asdict(step) for step in history)


def read_losses(path: Path) -> list[Step]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Step(*(field.type(row[field.name]) for field in fields(Step))) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(
            f"{path}: missing or broken, so there is nothing to go on from; train without --resume"
        ) from None


if __name__ == "__main__":
    runtime.run(main)
