"""The scoring pass; knows a detector by its protocol alone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from data.meta import Sample
from data.references import FewShotSetting
from engine.encoding import Timer, encode
from metrics.curves import Points
from metrics.image import image_metrics
from metrics.pixel import PixelMetrics, label_regions
from model import memory_bank
from model.interface import Memory, Prediction, ScoringDetector, SimilarityCache
from utils.distributed import (
    DistributedBatchSampler,
    each_round,
    flatten,
    gather,
    gather_to,
    isolate_signals,
    readers,
    skipped_images,
)


@dataclass(frozen=True)
class ClassScores:
    """One class under one setting: metrics and, per image in the order of the samples, scores and their components."""

    setting: int  # index into the settings
    name: str
    metrics: dict[str, float | None]
    indices: list[int]  # of the images, into the samples
    scores: list[float]
    score_components: dict[str, list[float]]
    curves: dict[str, Points]  # of the pixels


@dataclass
class _Pending:
    """What one process has seen of a class under one setting."""

    pixels: PixelMetrics | None
    indices: list[int] = field(default_factory=list)
    # Numbers, no tensors: thousands of small ones that live long, between large ones that do not, scatter the heap.
    score_components: dict[str, list[float]] = field(default_factory=dict)


def batches(
    dataset: Any, batch_size: int, num_workers: int, accelerator: Accelerator, *, shared: bool = True, first: int = 0
) -> DataLoader:
    """Batches to be scored, in order. The workers read the images and label the regions of the masks.

    Args:
        dataset: `dataset.AnomalyDataset`, or any whose items lack the mask.
        batch_size: images at a time, in each process.
        num_workers: processes that read, at most; 0 reads in this one.
        shared: dealt to all processes, see `distributed.DistributedBatchSampler`; else every process has all of them.
        first: the first image that is needed; batches before it are left out, those that follow stay what they are.
    """
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if shared else (0, 1)
    per_round = batch_size * ranks
    sampler = DistributedBatchSampler(range(len(dataset)), per_round, rank, ranks, first // per_round)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=readers(num_workers, len(sampler)),
        collate_fn=_collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=isolate_signals,
    )


def _collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = default_collate(list(items))
    if "mask" in batch:
        batch["regions"] = _regions(batch["mask"])
    return batch


def _regions(masks: Tensor) -> Tensor:
    """(B, S, S) int32, for each mask as `label_regions` gives them."""
    return torch.from_numpy(np.stack([label_regions(mask) for mask in masks.numpy()]))


def score(
    detector: ScoringDetector,
    loader: DataLoader[Any],
    samples: Sequence[Sample],
    settings: Sequence[FewShotSetting],
    memories: Callable[[str], Sequence[Memory | None]],
    accelerator: Accelerator,
    keep_map: Callable[[int, int, np.ndarray], None] | None = None,
    timer: Timer | None = None,
    finished: Collection[str] = (),
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
        keep_map: called with (setting, index of the sample, map (S, S) float32) for every map of this process.
        timer: measures.
        finished: classes that need no results; the loader's images of them are seen, so that no number depends on it.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    timer = timer or Timer()
    classes = _Classes(samples, len(settings), finished)
    banks: dict[str, Sequence[Memory | None]] = {}
    done = skipped_images(loader)
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=len(samples), initial=min(done, len(samples)), desc="score", unit="image", disable=hidden)
    for length, batch in each_round(loader):
        timer.start()
        if batch is not None:
            names, indices = batch["cls_name"], batch["index"].tolist()
            banks.update({name: memories(name) for name in dict.fromkeys(names) if name not in banks})
            regions = batch["regions"] if "regions" in batch else _regions(batch["mask"])
            regions = regions.to(accelerator.device, non_blocking=True)
            predictions = _predict(detector, batch["image"], names, settings, banks, accelerator, timer)
            for setting, prediction in enumerate(predictions):
                _check_finite(prediction, samples, indices)
                classes.add(setting, names, indices, prediction, regions)
                if keep_map is not None:
                    for name, index, one in zip(names, indices, prediction.maps.float().cpu().numpy(), strict=True):
                        if name not in finished:
                            keep_map(setting, index, one)
        done += length
        bar.update(length)
        for name, pending in classes.complete(done):
            banks.pop(name, None)
            if pending:
                yield from _finish_class(detector, name, pending, samples, accelerator)
    bar.close()
    timer.stop()


class _Classes:
    """What this process has seen of the classes that are not complete yet.

    Args:
        samples: the samples; a class's follow each other.
        settings: number of the few-shot settings.
        finished: classes that need no results.
    """

    def __init__(self, samples: Sequence[Sample], settings: int, finished: Collection[str]):
        self._last = {sample.cls_name: index for index, sample in enumerate(samples)}
        self._segmented = _classes_with_masks(samples)
        self._settings, self._finished = settings, finished
        self._pending: dict[tuple[int, str], _Pending] = {}

    def add(
        self, setting: int, names: Sequence[str], indices: Sequence[int], prediction: Prediction, regions: Tensor
    ) -> None:
        """Count the maps of a batch, and keep its score components."""
        for name, rows in memory_bank.rows_by_name(names).items():
            if name in self._finished:
                continue
            pixels = PixelMetrics() if name in self._segmented else None
            state = self._pending.setdefault((setting, name), _Pending(pixels))
            state.indices += indices[rows] if isinstance(rows, slice) else [indices[row] for row in rows]
            for key, component in prediction.score_components.items():
                state.score_components.setdefault(key, []).extend(component[rows].tolist())
            if state.pixels is not None:
                state.pixels.update(prediction.maps[rows].float(), regions[rows])

    def complete(self, done: int) -> Iterator[tuple[str, list[_Pending]]]:
        """The classes whose last image is among the first `done`, with what was seen of them under each setting; with
        nothing where they need no results."""
        for name in [name for name, index in self._last.items() if index < done]:
            self._last.pop(name)
            if name in self._finished:
                yield name, []
            else:
                yield name, [self._pending.pop((number, name), _Pending(None)) for number in range(self._settings)]


@torch.no_grad()
def infer(
    detector: ScoringDetector, images: Tensor, name: str, memory: Memory | None, accelerator: Accelerator
) -> Prediction:
    """The prediction for images of one class, (B, 3, S, S) uint8; memory: its references, None for zero-shot."""
    tokens = encode(detector, images, accelerator, Timer())
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
def _predict(
    detector: ScoringDetector,
    images: Tensor,
    names: Sequence[str],
    settings: Sequence[FewShotSetting],
    banks: Mapping[str, Sequence[Memory | None]],
    accelerator: Accelerator,
    timer: Timer,
) -> Iterator[Prediction]:
    """One prediction per setting from one pass of the backbone, and one comparison with each reference image."""
    tokens = encode(detector, images, accelerator, timer)
    prediction, similarities = zero_shot(detector, tokens, names), SimilarityCache()
    for number, setting in enumerate(settings):
        if setting.k_shot == 0 and prediction is not None:
            yield prediction
        else:
            of_names = {name: banks[name][number] for name in dict.fromkeys(names)}
            memories = {name: memory for name, memory in of_names.items() if memory is not None}
            yield detector.few_shot(prediction, tokens, names, memories, similarities)


def _finish_class(
    detector: ScoringDetector,
    name: str,
    pending: Sequence[_Pending],
    samples: Sequence[Sample],
    accelerator: Accelerator,
) -> list[ClassScores]:
    """The results of a class under all settings, from what every process has seen of it. Each process computes those of
    some settings, so that none waits for a single one."""
    own = []
    for setting, state in enumerate(pending):
        parts = gather_to(state, setting % accelerator.num_processes, accelerator)
        if parts is not None:
            own.append(_finish(detector, setting, name, parts, samples))
    return sorted(flatten(gather(own, accelerator)), key=lambda result: result.setting)


def _finish(
    detector: ScoringDetector, setting: int, name: str, parts: Sequence[_Pending], samples: Sequence[Sample]
) -> ClassScores:
    """Merge what the processes have seen of a class, in the order of the samples."""
    parts = [part for part in parts if part.indices]
    indices = flatten(part.indices for part in parts)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    joined = {key: flatten(part.score_components[key] for part in parts) for key in parts[0].score_components}
    score_components = {key: [values[place] for place in order] for key, values in joined.items()}
    scores = detector.image_scores({key: torch.tensor(values) for key, values in score_components.items()}).tolist()
    pixels = parts[0].pixels or PixelMetrics()
    for other in parts[1:]:
        if other.pixels is not None:
            pixels.merge(other.pixels)
    indices = [indices[place] for place in order]
    metrics = {**pixels.compute(), **image_metrics([samples[index].anomaly for index in indices], scores)}
    return ClassScores(setting, name, metrics, indices, scores, score_components, pixels.curves())


def _classes_with_masks(samples: Sequence[Sample]) -> set[str]:
    """Classes of which every anomalous image has a mask: the others have no pixel metrics."""
    return {s.cls_name for s in samples} - {s.cls_name for s in samples if s.anomaly and not s.mask_path}


def _check_finite(prediction: Prediction, samples: Sequence[Sample], indices: Sequence[int]) -> None:
    """Raises ValueError where a map or term holds NaN or infinity; names the image."""
    ends = [
        prediction.maps.amin((1, 2)),
        prediction.maps.amax((1, 2)),
        *prediction.score_components.values(),
    ]  # NaN stays NaN
    finite = torch.stack([end.float() for end in ends]).isfinite().all(0).cpu()  # (B,)
    if not finite.all():
        image = samples[indices[int((~finite).nonzero()[0])]].img_path
        raise ValueError(
            f"the anomaly map or score of {image} holds NaN or infinity; are the weights or the checkpoint broken?"
        )
