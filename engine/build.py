"""Settings -> a detector with its checkpoint, its stored memories checked, and its feature cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator

from data.references import FewShotSetting
from data.tiles import WHOLE_PICTURES, Tiling, inputs_per_picture
from engine import checkpoint
from engine.encoding import Timer, encode
from engine.feature_cache import FeatureCache
from engine.tiling import tiled
from model import METHODS, build, capabilities, memory_bank
from model.interface import ScoringDetector, TrainableDetector
from model.memory_bank import Memories
from prompt_ensemble import load_prompts
from utils import memory_check
from utils.devices import CPU_BATCH, check_compiler
from utils.distributed import gather
from utils.logs import LOG

_LARGEST_BATCH = 128


class BuildSettings(Protocol):
    """What a detector is built from; `config.settings.DetectorSettings` has these fields."""

    @property
    def method(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def pretrained(self) -> str: ...

    @property
    def config_path(self) -> str | None: ...

    @property
    def image_size(self) -> int | None: ...

    @property
    def quick_gelu(self) -> str: ...

    @property
    def position_rule(self) -> str: ...

    @property
    def mean(self) -> Sequence[float] | None: ...

    @property
    def std(self) -> Sequence[float] | None: ...

    @property
    def prompts(self) -> str | None: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def compile(self) -> bool: ...


@dataclass(frozen=True)
class Built:
    """A detector ready to score images.

    description: what identifies it, see `checkpoint.describe`, and `tiles`.
    batch_size: images, or tiles, at a time.
    checkpoint: the file of its trained parts; None where there are none.
    """

    detector: ScoringDetector
    description: Mapping[str, Any]
    batch_size: int
    checkpoint: Path | None

    @property
    def decided(self) -> dict[str, Any]:
        """Settings that were decided while building, by name, for the log and config.json."""
        sizes = {"image_size": self.description["image_size"], "batch_size": self.batch_size}
        found = {"checkpoint_path": str(self.checkpoint)} if self.checkpoint else {}
        return {**self.detector.options, **sizes, **found}


def build_detector(
    settings: BuildSettings, accelerator: Accelerator, trained: checkpoint.Checkpoint | None = None
) -> ScoringDetector:
    """A detector on its device, without trained parts, not compiled yet.

    trained: the checkpoint that is to be loaded, whose shapes may say some of the options.
    """
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    return build(
        settings.method,
        model=settings.model,
        pretrained=settings.pretrained,
        config_path=settings.config_path,
        image_size=settings.image_size,
        quick_gelu=settings.quick_gelu,
        position_rule=settings.position_rule,
        mean=settings.mean,
        std=settings.std,
        prompts=prompts,
        **_options(settings, trained),
    ).to(accelerator.device)


def _options(settings: BuildSettings, trained: checkpoint.Checkpoint | None) -> dict[str, Any]:
    """The options of the settings, and where they leave one open, what the checkpoint says of it.

    Raises:
        ValueError: the settings contradict the checkpoint.
    """
    options_of = getattr(METHODS[settings.method], "options_of", None)
    if trained is None or options_of is None:
        return dict(settings.options)
    found = options_of(trained.state)
    given = [key for key in found if settings.options.get(key) is not None]
    checkpoint.check_compatible(f"checkpoint {trained.path} was trained", found, settings.options, given)
    read = [f"{key} {value}" for key, value in found.items() if key not in given]
    if read:
        LOG.info("checkpoint %s says %s", trained.path, ", ".join(read))
    return {**settings.options, **found}


def _compile(detector: ScoringDetector, settings: BuildSettings, accelerator: Accelerator) -> None:
    if settings.compile:
        check_compiler(accelerator.device)
        detector.backbone.compile_encoder()


def build_for_training(
    settings: BuildSettings,
    batch_size: int,
    images: int,
    feature_cache: FeatureCache | None,
    accelerator: Accelerator,
    start: checkpoint.Checkpoint | None,
) -> TrainableDetector:
    """A detector to be trained on so many images; refuses batches that cannot fit into memory (ValueError).

    start: the checkpoint that the training starts from or resumes.
    """
    detector = cast(TrainableDetector, build_detector(settings, accelerator, start))
    own = min(-(-batch_size // accelerator.num_processes), images)
    detector.backbone.check_room(own, accelerator.device, f"--batch_size {batch_size}", "lower it, or --image_size")
    _compile(detector, settings, accelerator)
    detector.backbone.cache = feature_cache
    return detector


def build_for_scoring(
    settings: BuildSettings,
    batch_size: int | str,
    checkpoint_path: str | None,
    dataset: str,
    accelerator: Accelerator,
    feature_cache: FeatureCache | None = None,
    tiling: Tiling = WHOLE_PICTURES,
) -> Built:
    """A detector with its checkpoint in it.

    Args:
        batch_size: "auto" takes `fitting_batch_size`.
        dataset: name of what is scored, for the description.
        tiling: how pictures are cut.

    Raises:
        ValueError: no checkpoint for a method that needs one, or one for a method that has nothing to train; a
            checkpoint that contradicts the settings.
    """
    trained = _load_checkpoint(settings.method, checkpoint_path)
    detector = build_detector(settings, accelerator, trained).eval()
    _compile(detector, settings, accelerator)
    if isinstance(batch_size, str):
        batch_size = fitting_batch_size(detector, accelerator)
    detector.backbone.cache = feature_cache  # last: the images above are no images
    description = checkpoint.describe(detector, settings.method, dataset)
    if trained:
        checkpoint.restore(trained, detector, description)
    description["tiles"] = str(tiling)
    return Built(tiled(detector, tiling, batch_size), description, batch_size, trained.path if trained else None)


def _load_checkpoint(method: str, path: str | None) -> checkpoint.Checkpoint | None:
    if not capabilities(method).trains:
        if path is not None:
            raise ValueError(f"{method} has nothing to train: drop --checkpoint_path {path}")
        return None
    if path is None:
        others = ", ".join(name for name in METHODS if not capabilities(name).trains)
        raise ValueError(
            f"{method} requires --checkpoint_path: what train.py or its authors have trained; methods that need none: "
            f"{others}"
        )
    trained = checkpoint.load(path)
    origin = {key: trained.meta[key] for key in ("dataset", "epoch") if key in trained.meta}
    LOG.info("checkpoint %s %s", trained.path, origin or "(a published file: does not say what it was trained on)")
    return trained


def check_memories(path: str, header: Mapping[str, Any], memories: Memories, built: Built) -> None:
    """Refuse stored memories that were made with something else than the detector, or that it cannot use (ValueError).

    header, memories: see `memory_bank.load`.
    """
    backbone = ("model", "weights", "quick_gelu", "position_rule", "normalization", "image_size")
    keys = ("method", *backbone, "tiles", *built.detector.options)
    made_with = dict.fromkeys(keys, "nothing known") | checkpoint.complete(header, built.description)
    checkpoint.check_compatible(f"memory {path} was made", made_with, built.description, keys)
    memory_bank.check(path, memories, built.detector.bank_widths)


def check_room(
    built: Built, accelerator: Accelerator, images: int, shots: Sequence[FewShotSetting], classes_kept: int = 0
) -> None:
    """Refuse batches and references that cannot fit into memory.

    Args:
        images: how many are scored.
        shots: few-shot settings whose references are encoded.
        classes_kept: classes whose references stay in main memory until the end; 0 where none do.
    """
    batch = min(built.batch_size, images * inputs_per_picture(built.detector))
    built.detector.backbone.check_room(batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size")
    if (tiles := inputs_per_picture(built.detector)) > batch:  # what they give is kept until the picture is done
        what = f"the {tiles} tiles of a picture"
        built.detector.backbone.check_room(tiles, accelerator.device, what, "lower --tiles, or --image_size")
    references = sum(shot.k_shot for shot in shots)
    if references:
        advice = "lower --k_shot or --image_size, or give fewer seeds"
        memory_check.check_bank(built.detector, references, accelerator.device, "the references of a class", advice)
        if classes_kept:
            kept = classes_kept * references
            memory_check.check_bank(built.detector, kept, "cpu", "--save_memory", f"{advice} or classes")


@torch.no_grad()
def fitting_batch_size(detector: ScoringDetector, accelerator: Accelerator) -> int:
    """How many images go through the backbone at a time: on a GPU the largest power of two, up to 128, whose pass takes
    no more than half of the memory that is free, which leaves the rest to references, distances and maps; on the CPU
    CPU_BATCH."""
    device = accelerator.device
    if device.type != "cuda":
        return CPU_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    size, image, side = 1, detector.input_spec.blank(), detector.input_spec.side
    while size < _LARGEST_BATCH:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        encode(detector, image.expand(size, *image.shape), accelerator, Timer(), (side, side))
        if 2 * (torch.cuda.max_memory_allocated(device) - before) > free / 2:  # what twice as many would take
            break
        size *= 2
    torch.cuda.empty_cache()
    return min(gather(size, accelerator))
