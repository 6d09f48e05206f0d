"""Fit a method's trainable parts on one dataset, to be tested on another.

    python train.py --dataset mvtec --train_data_path ./data/mvtec --save_path ./exps/visa/vit_large_14_518

Writes epoch_N.pth, losses.csv, tensorboard/, config.json and log.txt into --save_path; with --val_dataset also
validation.csv, and the best checkpoint as best.pth. Interrupted by Ctrl-C or SIGTERM it finishes its step and writes
last.pth, from which the same command with --resume goes on; last.pth goes when a later checkpoint is there.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import train_parser

if __name__ == "__main__":
    train_parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

# isort: split
import json
from collections.abc import Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator

from config.resolve import resolve_train
from config.settings import TrainSettings, log_settings
from data.defects import defect_pixels
from data.meta import PixelSettings, Sample, read, read_settings
from dataset import AnomalyDataset, select
from engine import checkpoint, validation
from engine.batches import batches
from engine.build import build_for_training
from engine.encoding import encode_texts
from engine.feature_cache import FeatureCache
from engine.loss_log import Step, write_losses
from engine.resume import resume_training
from engine.training import Trainer, TrainingPlan, reported_steps
from model import build_on
from model.interface import TrainableDetector
from prompt_ensemble import load_prompts
from report.tensorboard import FOLDER, TensorBoardLogger
from utils.devices import make_accelerator, set_seed
from utils.distributed import shutdown
from utils.errors import run_script
from utils.files import check_results_of, clear_leftovers, clear_results, lock_folder, result_folder
from utils.logs import LOG, log_to
from utils.packages import require
from utils.provenance import write_config

# Settings that a resumed training must share with what it resumes.
RESUMED = ("seed", "batch_size", "learning_rate", "aug_rate", "augment", "no_shuffle", "classes", "prompts")
RESUME_ADVICE = "the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_train(train_parser().parse_args(argv))
    require("train.py", ("tensorboard",), "requirements.txt")
    accelerator = make_accelerator(settings.device, settings.precision)
    root = settings.train_data_path
    meta_file = read(root, settings.meta_path, follow_links=settings.follow_links)
    samples, pixels = select(meta_file["test"], settings.classes), read_settings(root, settings.meta_path)
    check_masks(samples, root)
    save_path = result_folder(settings.save_path)
    check_results_of(save_path, "train.py")
    last = checkpoint.to_resume(save_path) if settings.resume else None
    first = last or settings.init_checkpoint
    start = checkpoint.load(first) if first else None
    set_seed(settings.seed)
    cache = FeatureCache.of(settings.feature_cache, settings.feature_cache_size, accelerator)
    detector = build_for_training(settings, settings.batch_size, len(samples), cache, accelerator, start)
    description = checkpoint.describe(detector, settings.method, settings.dataset)
    check_defects(root, samples, description["image_size"])
    optimizer = torch.optim.Adam(detector.parameter_groups(settings.learning_rate), betas=settings.betas)
    if start:
        checkpoint.restore(start, detector, description)
    meta = {**description, **{key: getattr(settings, key) for key in RESUMED}, "samples": identity_of(samples, pixels)}
    validate = validator(settings, detector, accelerator)
    done, history = 0, list[Step]()
    if start and last:
        same = {key: meta[key] for key in (*RESUMED, "samples", *detector.options, "dataset", "image_size")}
        done, history = resume_training(start, optimizer, same, detector.LOSSES)
    with lock_folder(save_path):
        if settings.resume and checkpoint.to_resume(save_path) != last:
            raise ValueError(f"{save_path}: another run has just written there; start again")
        begin(save_path, accelerator, detector.LOSSES, resumes=last is not None)
        decided = {
            **settings.as_dict(),
            **detector.options,
            "image_size": description["image_size"],
            **pixels._asdict(),
        }
        log_settings(decided, sources)
        if last:
            LOG.info("resumed after %s", last)
        elif settings.resume:
            LOG.info("nothing in %s to resume: the training starts from the beginning", save_path)
        observer = None
        if accelerator.is_main_process:
            write_config(save_path, decided, sources, description)
            observer = TensorBoardLogger(save_path, Path(root), pixels, reported_steps(done, history))
        encode_texts(detector, [sample.cls_name for sample in samples])
        plan = plan_of(settings, pixels)
        Trainer(
            detector, optimizer, accelerator, plan, samples, save_path, meta,
            observer=observer, validate=validate, done=done, history=history,
        ).fit()  # fmt: skip
        if cache:
            cache.log()
        shutdown(accelerator)


def plan_of(settings: TrainSettings, pixels: PixelSettings) -> TrainingPlan:
    own = [field.name for field in fields(TrainingPlan) if field.name not in ("root", "pixels")]
    values = {name: getattr(settings, name) for name in own}
    return TrainingPlan(root=settings.train_data_path, pixels=pixels, **values)


def check_masks(samples: Sequence[Sample], root: str) -> None:
    """Raises ValueError for an anomalous image without a mask."""
    for sample in samples:
        if sample.anomaly and not sample.mask_path:
            raise ValueError(f"training needs masks, and {sample.img_path} of {root} is anomalous without one")


def check_defects(root: str, samples: Sequence[Sample], image_size: int) -> None:
    """Raises ValueError where no sample has a defect pixel at the image size; says which masks are empty there."""
    found = defect_pixels(root, samples, image_size)
    lost = len(found.empty) + len(found.vanished)
    if set(found.classes_without) == {sample.cls_name for sample in samples}:
        raise ValueError(
            f"{root}: nothing to learn from: {sum(sample.anomaly for sample in samples)} anomalous images, and no "
            f"defect pixel in their masks at {image_size} x {image_size} pixels"
        )
    if lost:
        LOG.warning(
            "%d masks hold no defect pixel at %d x %d pixels (%d are empty, %d defects are too small), such as %s",
            lost, image_size, image_size, len(found.empty), len(found.vanished), (found.empty + found.vanished)[0],
        )  # fmt: skip


def identity_of(samples: Sequence[Sample], pixels: PixelSettings) -> str:
    """How many samples there are, and a digest of them and of how they are read."""
    content = samples if pixels == PixelSettings() else [samples, pixels]
    return f"{len(samples)} images ({sha256(json.dumps(content).encode()).hexdigest()[:8]})"


def begin(save_path: Path, accelerator: Accelerator, losses: Sequence[str], *, resumes: bool) -> None:
    """Prepare the folder and its log; a training that starts anew removes what an earlier one left."""
    if accelerator.is_main_process:
        clear_leftovers(save_path)
        if not resumes:
            # First: checkpoints of an earlier training are none of this one.
            write_losses(save_path / "losses.csv", [], losses)
            clear_results(save_path, (*validation.FILES, FOLDER, checkpoint.UNFINISHED))
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    log_to(save_path, append=resumes, quiet=not accelerator.is_main_process)


def validator(
    settings: TrainSettings, trained: TrainableDetector, accelerator: Accelerator
) -> validation.Validation | None:
    """Scores --val_dataset, zero-shot, with the options that the method has there, and those that it is trained with;
    None where none is named."""
    if settings.val_dataset is None or settings.val_data_path is None or settings.val_metric is None:
        return None
    root = settings.val_data_path
    samples = read(root, settings.val_meta_path, follow_links=settings.follow_links)["test"]
    bits, upright = read_settings(root, settings.val_meta_path)
    prompts = None if settings.val_prompts is None else load_prompts(settings.val_prompts)
    shared = {option.name: trained.options[option.name] for option in trained.OPTIONS if option.trained}
    other = build_on(trained.backbone, settings.method, prompts=prompts, **{**settings.val_options, **shared})
    detector = cast(TrainableDetector, other).to(accelerator.device)
    dataset = AnomalyDataset(root, samples, detector.input_spec, bits=bits, upright=upright)
    loader = batches(dataset, settings.batch_size, settings.num_workers, accelerator)
    folder, name, metric = Path(settings.save_path), settings.val_dataset, settings.val_metric
    return validation.Validation(detector, folder, name, metric, samples, loader, accelerator)


if __name__ == "__main__":
    run_script(main, RESUME_ADVICE)
