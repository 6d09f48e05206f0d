"""The scoring pass; knows a detector by its protocol alone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from data.meta import Sample
from data.references import FewShotSetting
from data.tiles import inputs_per_picture
from engine.class_scores import Classes, ClassScores, KeepMap, check_finite, finish_class, keep_maps
from engine.encoding import Timer, encode
from engine.ground_truth import Measuring
from metrics.pixel import label_regions
from model.interface import Memory, Prediction, ScoringDetector, SimilarityCache
from utils.distributed import DistributedBatchSampler, each_round, isolate_signals, readers, skipped_images


def batches(
    dataset: Any, batch_size: int, num_workers: int, accelerator: Accelerator, *, shared: bool = True, first: int = 0
) -> DataLoader:
    """Batches to be scored, in order, as `collate` makes them. The workers read the images and label the regions of the
    masks.

    Args:
        dataset: `dataset.AnomalyDataset`, or any whose items lack the mask.
        batch_size: images at a time, in each process; of pictures in tiles, tiles, but always whole pictures.
        num_workers: processes that read, at most; 0 reads in this one.
        shared: dealt to all processes, see `distributed.DistributedBatchSampler`; else every process has all of them.
        first: the first image that is needed; batches before it are left out, those that follow stay what they are.
    """
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if shared else (0, 1)
    per_round = max(1, batch_size // inputs_per_picture(dataset)) * ranks
    sampler = DistributedBatchSampler(range(len(dataset)), per_round, rank, ranks, first // per_round)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=readers(num_workers, len(sampler)),
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=isolate_signals,
    )


def collate(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of a batch as groups, each of one image and map size: mostly one. A group is what `default_collate`
    makes of its items, with `map_size` a plain (H, W) and, where there are masks, their `regions` and the `sizes` of
    the pictures, (H, W) each."""
    shapes: dict[tuple, list[Mapping[str, Any]]] = {}
    for item in items:
        shapes.setdefault((item["image"].shape, item["map_size"]), []).append(item)
    groups = []
    for (_, map_size), members in shapes.items():
        group: dict[str, Any] = {**default_collate([dict(item) for item in members]), "map_size": map_size}
        if "mask" in group:
            group["regions"] = _regions(group["mask"])
            group["sizes"] = [item["picture_size"] for item in members]
        groups.append(group)
    return groups


def _regions(masks: Tensor) -> Tensor:
    """(B, H, W) int32, for each mask as `label_regions` gives them."""
    return torch.from_numpy(np.stack([label_regions(mask) for mask in masks.numpy()]))


def score(
    detector: ScoringDetector,
    loader: DataLoader[Any],
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
        loader, samples: `batches` over the samples; those of a class follow each other.
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
    banks: dict[str, Sequence[Memory | None]] = {}
    done = skipped_images(loader)
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=len(samples), initial=min(done, len(samples)), desc="score", unit="image", disable=hidden)
    for length, batch in each_round(loader):
        timer.start()
        for group in batch or ():
            names, indices = group["cls_name"], group["index"].tolist()
            banks.update({name: memories(name) for name in dict.fromkeys(names) if name not in banks})
            regions = group["regions"].to(accelerator.device, non_blocking=True)
            for setting, prediction in enumerate(
                predict_settings(detector, group, settings, banks, accelerator, timer)
            ):
                check_finite(prediction, samples, indices)
                classes.add(setting, names, indices, prediction, regions, group["sizes"])
                if keep_map is not None:
                    keep_maps(keep_map, setting, names, indices, prediction, finished)
        done += length
        bar.update(length)
        for name, pending in classes.complete(done):
            banks.pop(name, None)
            if pending:
                yield from finish_class(detector, name, pending, samples, accelerator, measuring)
    bar.close()
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
    prediction = zero_shot(detector, tokens, names)
    if memory is not None:
        return detector.few_shot(prediction, tokens, names, {names[0]: memory})
    if prediction is None:
        raise ValueError("this method requires reference images")
    return prediction


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

    group: see `collate`. banks: class -> the memory of each setting.
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
