"""The scoring pass; knows a detector by its protocol alone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from data.meta import Sample
from data.references import FewShotSetting
from engine.batches import Batches
from engine.class_scores import Classes, ClassScores, KeepMap, check_finite, finish_class, keep_maps
from engine.encoding import Timer, encode
from engine.ground_truth import Measuring
from engine.one_ahead import one_ahead
from model.interface import Memory, Prediction, ScoringDetector, SimilarityCache
from utils.distributed import each_round, skipped_images
from utils.progress import Progress


class Step(NamedTuple):
    """What a group of images gives under one setting.

    group: see `batches.collate`; None where this process sits a round out.
    prediction: of its images; regions: of their masks, (B, H, W), where there are any; both on the device.
    images: with the last step of a round, how many images it has in all processes; else 0.
    """

    group: Mapping[str, Any] | None
    setting: int
    prediction: Prediction | None
    regions: Tensor | None
    images: int


def predictions(
    detector: ScoringDetector,
    loader: Batches,
    settings: Sequence[FewShotSetting],
    memories: Callable[[str], Sequence[Memory | None]],
    accelerator: Accelerator,
    timer: Timer,
) -> Iterator[Step]:
    """One pass of the backbone over the batches of this process, round by round. Arguments as of `score`."""
    banks: dict[str, Sequence[Memory | None]] = {}
    for length, batch in each_round(loader):
        timer.start()
        if not batch:
            yield Step(None, 0, None, None, length)
            continue
        names = dict.fromkeys(name for group in batch for name in group["cls_name"])
        banks = {name: banks[name] if name in banks else memories(name) for name in names}
        for number, group in enumerate(batch, 1):
            regions = group["regions"].to(accelerator.device, non_blocking=True) if "regions" in group else None
            found = predict_settings(detector, group, settings, banks, accelerator, timer)
            for setting, prediction in enumerate(found):
                is_last = number == len(batch) and setting == len(settings) - 1
                yield Step(group, setting, prediction, regions, length if is_last else 0)


def score(
    detector: ScoringDetector,
    loader: Batches,
    samples: Sequence[Sample],
    settings: Sequence[FewShotSetting],
    memories: Callable[[str], Sequence[Memory | None]],
    accelerator: Accelerator,
    keep_map: KeepMap | None = None,
    timer: Timer | None = None,
    finished: Collection[str] = (),
    measuring: Measuring | None = None,
) -> Iterator[ClassScores]:
    """Score all samples under all settings in one backbone pass; yields a class's results when it is complete.

    Of several processes each scores its batches. What they counted is merged when the last image of a class has been
    seen, and every process yields the same results: consume them on all.

    Args:
        detector: see `model.interface.Detector`.
        loader, samples: `batches.batches` over the samples; those of a class follow each other.
        settings: few-shot settings; k_shot 0 is zero-shot.
        memories: class name -> a Memory per setting.
        accelerator: device, precision and processes.
        keep_map: takes every map of this process.
        timer: measures.
        finished: classes that need no results; the loader's images of them are seen, so that no number depends on it.
        measuring: what is measured beside the usual metrics.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    timer = timer or Timer()
    classes = Classes(samples, len(settings), finished, measuring)
    done = skipped_images(loader)
    shown, already = accelerator.is_main_process, min(done, len(samples))
    steps = predictions(detector, loader, settings, memories, accelerator, timer)
    with Progress(len(samples), "score", "image", done=already, shown=shown) as progress:
        for step, reading in one_ahead(steps, accelerator.device):
            found: list[ClassScores] = []
            with reading:
                if step.group is not None:
                    assert step.prediction is not None and step.regions is not None  # of a dataset with masks
                    names, indices = step.group["cls_name"], step.group["index"].tolist()
                    check_finite(step.prediction, samples, indices)
                    classes.add(step.setting, names, indices, step.prediction, step.regions, step.group["sizes"])
                    if keep_map is not None:
                        keep_maps(keep_map, step.setting, names, indices, step.prediction, finished)
                done += step.images
                for name, pending in classes.complete(done) if step.images else ():
                    if pending:
                        found += finish_class(detector, name, pending, samples, accelerator, measuring)
            progress.update(step.images)
            yield from found
    timer.stop()


@torch.no_grad()
def infer(
    detector: ScoringDetector,
    images: Tensor,
    name: str,
    memory: Memory | None,
    accelerator: Accelerator,
    map_size: tuple[int, int] | None = None,
) -> Prediction:
    """The prediction for images of one class, (B, 3, h, w) uint8; memory: its references, None for zero-shot; map_size:
    see `encode`."""
    tokens = encode(detector, images, accelerator, Timer(), map_size)
    return fuse(detector, tokens, [name] * len(images), memory)


def fuse(detector: ScoringDetector, tokens: Any, names: list[str], memory: Memory | None) -> Prediction:
    """The prediction for tokens of images of one class, as `infer`."""
    return next(fuse_each(detector, tokens, names, [memory]))


def fuse_each(
    detector: ScoringDetector,
    tokens: Any,
    names: list[str],
    memories: Sequence[Memory | None],
    found: SimilarityCache | None = None,
) -> Iterator[Prediction]:
    """The same with each of some memories; found: an empty one, with which each reference is compared once."""
    prediction = zero_shot(detector, tokens, names)
    for memory in memories:
        if memory is not None:
            yield detector.few_shot(prediction, tokens, names, {names[0]: memory}, found)
        elif prediction is None:
            raise ValueError("this method requires reference images")
        else:
            yield prediction


def zero_shot(detector: ScoringDetector, tokens: Any, names: Sequence[str]) -> Prediction | None:
    """None of a method that requires references."""
    return detector.zero_shot(tokens, names) if hasattr(detector, "zero_shot") else None


@torch.no_grad()
def predict_settings(
    detector: ScoringDetector,
    group: Mapping[str, Any],
    settings: Sequence[FewShotSetting],
    banks: Mapping[str, Sequence[Memory | None]],
    accelerator: Accelerator,
    timer: Timer,
) -> Iterator[Prediction]:
    """One prediction per setting from one pass of the backbone, and one comparison with each reference image.

    group: see `batches.collate`. banks: class -> the memory of each setting.
    """
    names = group["cls_name"]
    tokens = encode(detector, group["image"], accelerator, timer, group["map_size"])
    prediction, similarities = zero_shot(detector, tokens, names), SimilarityCache()
    for number, setting in enumerate(settings):
        if setting.k_shot == 0 and prediction is not None:
            yield prediction
        else:
            of_names = {name: banks[name][number] for name in dict.fromkeys(names)}
            memories = {name: memory for name, memory in of_names.items() if memory is not None}
            yield detector.few_shot(prediction, tokens, names, memories, similarities)
