"""Settings -> a detector with its checkpoint and its feature cache."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from data.references import FewShotSetting
from engine import checkpoint
from engine.encoding import Timer, encode
from engine.feature_cache import FeatureCache
from model import METHODS, build, memory_bank
from prompt_ensemble import load_prompts
from utils import memory_check
from utils.devices import CPU_BATCH, check_compiler
from utils.distributed import gather
from utils.logs import LOG

_LARGEST_BATCH = 128


@torch.no_grad()
def fitting_batch_size(detector: Any, image_size: int, accelerator: Accelerator) -> int:
    """How many images go through the backbone at a time: on a GPU the largest power of two, up to 128, whose pass takes
    no more than half of the memory that is free, which leaves the rest to references, distances and maps; on the CPU
    CPU_BATCH."""
    device = accelerator.device
    if device.type != "cuda":
        return CPU_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    size = 1
    while size < _LARGEST_BATCH:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        encode(detector, torch.zeros(size, 3, image_size, image_size, dtype=torch.uint8), accelerator, Timer())
        if 2 * (torch.cuda.max_memory_allocated(device) - before) > free / 2:  # what twice as many would take
            break
        size *= 2
    torch.cuda.empty_cache()
    return min(gather(size, accelerator))


def load_detector(settings, accelerator: Accelerator, stored) -> tuple:
    """(detector, its description), with the checkpoint in it; refuses what contradicts the run."""
    trainable = METHODS[settings.method].TRAINABLE
    if trainable and settings.checkpoint_path is None:
        others = ", ".join(name for name, method in METHODS.items() if not method.TRAINABLE)
        raise ValueError(
            f"{settings.method} needs --checkpoint_path: what train.py or its authors have trained; by --method, these "
            f"need none: {others}"
        )
    if not trainable and settings.checkpoint_path is not None:
        raise ValueError(f"{settings.method} has nothing to train: drop --checkpoint_path {settings.checkpoint_path}")
    trained = checkpoint.load(settings.checkpoint_path) if trainable else None
    if trained:
        settings.checkpoint_path = str(trained.path)
        origin = {key: trained.meta[key] for key in ("dataset", "epoch") if key in trained.meta}
        LOG.info("checkpoint %s %s", trained.path, origin or "(a published file: says nothing of its origin)")
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    detector = build(settings.method, prompts=prompts, **detector_settings(settings)).to(accelerator.device).eval()
    if settings.compile:
        check_compiler(accelerator.device)
        detector.backbone.compile_encoder()
    if settings.batch_size == "auto":
        settings.batch_size = fitting_batch_size(detector, detector.backbone.image_size, accelerator)
    detector.backbone.cache = FeatureCache.wanted(settings, accelerator)  # last: the images above are no images
    description = checkpoint.describe(detector, settings)
    if trained:
        checkpoint.restore(trained, detector, description)
    if stored:
        keys = ("method", "model", "weights", "quick_gelu", "image_size", *detector.options)
        absent = dict.fromkeys(keys, "nothing known")  # a file of ours says all of them
        checkpoint.check_compatible(f"memory {settings.memory} was made", absent | stored[0], description, keys)
        memory_bank.check(settings.memory, stored[1], detector.bank_widths)
    return detector, description


def check_room(
    settings, accelerator: Accelerator, detector, samples, shots: Sequence[FewShotSetting], classes: int
) -> None:
    """Refuse batches and references that cannot fit into memory."""
    batch = min(settings.batch_size, len(samples))
    detector.backbone.check_room(batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size")
    images = sum(shot.k_shot for shot in shots)
    if images:
        advice = "lower --k_shot or --image_size, or give fewer seeds"
        memory_check.check_bank(detector, images, accelerator.device, "the references of a class", advice)
        if settings.save_memory:
            memory_check.check_bank(detector, classes * images, "cpu", "--save_memory", f"{advice} or classes")


def build_for_training(settings, accelerator, samples):
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    detector = build(settings.method, prompts=prompts, **detector_settings(settings)).to(accelerator.device)
    batch = min(-(-settings.batch_size // accelerator.num_processes), len(samples))
    what = f"--batch_size {settings.batch_size}"
    detector.backbone.check_room(batch, accelerator.device, what, "lower it, or --image_size")
    if settings.compile:
        check_compiler(accelerator.device)
        detector.backbone.compile_encoder()
    detector.backbone.cache = FeatureCache.wanted(settings, accelerator)
    return detector


def detector_settings(settings: Any) -> dict[str, Any]:
    """The settings that `model.build` takes beside the method; options of other methods too, which it refuses."""
    options = (option for method in METHODS.values() for option in method.OPTIONS)
    keys = ("model", "pretrained", "config_path", "image_size", "quick_gelu", *options)
    return {key: getattr(settings, key, None) for key in keys}
