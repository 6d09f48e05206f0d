"""What is seen of a class while it is scored, and its results once all of it has been seen."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from data.meta import Sample
from engine.ground_truth import Measuring, Size, resized
from metrics.curves import Points
from metrics.image import image_metrics
from metrics.measures import PixelMeasures, image_measures
from metrics.names import ABOVE, FPR_GIVEN
from metrics.pixel import PixelMetrics
from model import memory_bank
from model.image_scores import PROBABILITY
from model.interface import Prediction, ScoringDetector
from utils.distributed import flatten, gather, gather_to


@dataclass(frozen=True)
class ClassScores:
    """One class under one setting: metrics and, per image in the order of the samples, scores and their components, and
    the measures that an image has a value of (None: it cannot be computed)."""

    setting: int  # index into the settings
    name: str
    metrics: dict[str, float | None]
    indices: list[int]  # of the images, into the samples
    scores: list[float]
    score_components: dict[str, list[float]]
    curves: dict[str, Points]  # of the pixels
    image_measures: dict[str, list[float | None]] = field(default_factory=dict)


class KeepMap(Protocol):
    """Takes the maps of a scoring pass."""

    def __call__(self, setting: int, index: int, one: np.ndarray, foreground: np.ndarray | None = None) -> None:
        """One map, (H, W) float32, of a sample under a few-shot setting; foreground: see `Prediction`, (G, G)."""


@dataclass
class Pending:
    """What one process has seen of a class under one setting.

    above: image -> the share of its pixels above the given threshold, where there is one.
    """

    pixels: PixelMetrics | None
    measures: PixelMeasures | None = None
    indices: list[int] = field(default_factory=list)
    # Numbers, no tensors: thousands of small ones that live long, between large ones that do not, scatter the heap.
    score_components: dict[str, list[float]] = field(default_factory=dict)
    above: dict[int, float] = field(default_factory=dict)


def keep_maps(
    keep_map: KeepMap,
    setting: int,
    names: Sequence[str],
    indices: Sequence[int],
    prediction: Prediction,
    finished: Collection[str],
) -> None:
    """Hand out the maps of a group, but for those of classes that need no results."""
    maps = _to_host(prediction.maps.float()).numpy()
    foreground = None if prediction.foreground is None else prediction.foreground.cpu().numpy()
    for row, (name, index) in enumerate(zip(names, indices, strict=True)):
        if name not in finished:
            keep_map(setting, index, maps[row], None if foreground is None else foreground[row])


def _to_host(tensor: Tensor) -> Tensor:
    """A tensor in main memory; from a GPU to where its copies go several times as fast."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


class Classes:
    """What this process has seen of the classes that are not complete yet.

    Args:
        samples: the samples; a class's follow each other.
        settings: number of the few-shot settings.
        finished: classes that need no results.
        measuring: what is measured beside the usual metrics.
    """

    def __init__(
        self, samples: Sequence[Sample], settings: int, finished: Collection[str], measuring: Measuring | None = None
    ):
        self._last = {sample.cls_name: index for index, sample in enumerate(samples)}
        self._segmented = _classes_with_masks(samples)
        self._settings, self._finished = settings, finished
        self._pending: dict[tuple[int, str], Pending] = {}
        self._measuring = measuring
        self._normal = Counter(sample.cls_name for sample in samples if not sample.anomaly)

    def add(
        self,
        setting: int,
        names: Sequence[str],
        indices: Sequence[int],
        prediction: Prediction,
        regions: Tensor,
        sizes: Sequence[Size],
    ) -> None:
        """Count the maps of a batch, and keep its score components. sizes: of the pictures."""
        for name, rows in memory_bank.rows_by_name(names).items():
            if name in self._finished:
                continue
            state = self._pending.setdefault((setting, name), self._begun(name))
            numbers = range(len(names))[rows] if isinstance(rows, slice) else rows
            state.indices += [indices[row] for row in numbers]
            for key, component in prediction.score_components.items():
                state.score_components.setdefault(key, []).extend(component[rows].tolist())
            own_size = self._measuring is not None and self._measuring.truth.own_size
            if state.pixels and not own_size:
                state.pixels.update(prediction.maps[rows].float(), regions[rows])
            threshold = self._measuring.thresholds(setting, name).pixel if self._measuring else None
            one_by_one = threshold is not None or (state.pixels and (own_size or state.measures))
            for row in numbers if one_by_one else ():
                self._measure(state, indices[row], prediction.maps[row], regions[row], sizes[row], threshold)

    def _begun(self, name: str) -> Pending:
        if name not in self._segmented:
            return Pending(None)
        measures = self._measuring.measures if self._measuring else None
        counted = measures is not None and measures.counts_pixels()
        return Pending(PixelMetrics(), PixelMeasures(measures, self._normal[name]) if measures and counted else None)

    def _measure(
        self, state: Pending, index: int, one: Tensor, regions: Tensor, size: Size, threshold: float | None
    ) -> None:
        """Count the map of one image, at the size at which it is measured."""
        assert self._measuring is not None  # see `add`
        truth, sample = self._measuring.truth, self._measuring.truth.samples[index]
        one = resized(one, truth.size(size)) if truth.own_size else one.float()
        if threshold is not None:
            state.above[index] = int((one > threshold).count_nonzero()) / one.numel()
        if state.pixels and truth.own_size:
            regions = truth.regions(index, size).to(one.device)
            state.pixels.update(one[None], regions[None])
        if state.measures:
            wanted = "spro" in self._measuring.measures.chosen
            areas = (
                [area._replace(mask=area.mask.to(one.device)) for area in truth.areas(index, size)] if wanted else []
            )
            state.measures.update(index, one, regions, areas, anomalous=bool(sample.anomaly), kind=sample.specie_name)

    def complete(self, done: int) -> Iterator[tuple[str, list[Pending]]]:
        """The classes whose last image is among the first `done`, with what was seen of them under each setting; with
        nothing where they need no results."""
        for name in [name for name, index in self._last.items() if index < done]:
            self._last.pop(name)
            if name in self._finished:
                yield name, []
            else:
                yield name, [self._pending.pop((number, name), Pending(None)) for number in range(self._settings)]


def finish_class(
    detector: ScoringDetector,
    name: str,
    pending: Sequence[Pending],
    samples: Sequence[Sample],
    accelerator: Accelerator,
    measuring: Measuring | None = None,
) -> list[ClassScores]:
    """The results of a class under all settings, from what every process has seen of it. Each process computes those of
    some settings, so that none waits for a single one."""
    own = []
    for setting, state in enumerate(pending):
        parts = gather_to(state, setting % accelerator.num_processes, accelerator)
        if parts is not None:
            own.append(finish(detector, setting, name, parts, samples, measuring))
    return sorted(flatten(gather(own, accelerator)), key=lambda result: result.setting)


def finish(
    detector: ScoringDetector,
    setting: int,
    name: str,
    parts: Sequence[Pending],
    samples: Sequence[Sample],
    measuring: Measuring | None = None,
) -> ClassScores:
    """Merge what the processes have seen of a class, in the order of the samples."""
    parts = [part for part in parts if part.indices]
    indices = flatten(part.indices for part in parts)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    joined = {key: flatten(part.score_components[key] for part in parts) for key in parts[0].score_components}
    score_components = {key: [values[place] for place in order] for key, values in joined.items()}
    scores = detector.image_scores({key: torch.tensor(values) for key, values in score_components.items()}).tolist()
    first = Pending(parts[0].pixels or PixelMetrics(), parts[0].measures, above=parts[0].above)
    for other in parts[1:]:
        _merge(first, other)
    assert first.pixels is not None
    indices = [indices[place] for place in order]
    metrics = {**first.pixels.compute(), **image_metrics([samples[index].anomaly for index in indices], scores)}
    result = ClassScores(setting, name, metrics, indices, scores, score_components, first.pixels.curves())
    return result if measuring is None else _with_measures(result, first, samples, measuring)


def _merge(first: Pending, other: Pending) -> None:
    if first.pixels is not None and other.pixels is not None:
        first.pixels.merge(other.pixels)
    if first.measures is not None and other.measures is not None:
        first.measures.merge(other.measures)
    first.above.update(other.above)


def _with_measures(result: ClassScores, seen: Pending, samples: Sequence[Sample], measuring: Measuring) -> ClassScores:
    """The result with what is measured beside the usual metrics; what cannot be computed is None."""
    measures, thresholds = measuring.measures, measuring.thresholds(result.setting, result.name)
    of_images = image_measures(
        measures,
        [samples[index].anomaly for index in result.indices],
        result.scores,
        probabilities=result.scores == result.score_components.get(PROBABILITY),
        kinds=[samples[index].specie_name for index in result.indices],
        threshold=thresholds.image,
    )
    assert seen.pixels is not None
    of_pixels = seen.pixels.measures(measures, thresholds.pixel) | (seen.measures.compute() if seen.measures else {})
    normal = [share for index, share in seen.above.items() if not samples[index].anomaly]
    found = of_images | of_pixels | ({FPR_GIVEN: math.fsum(normal) / len(normal)} if normal else {})
    per_image = {**(seen.measures.per_image() if seen.measures else {}), ABOVE: seen.above}
    return replace(
        result,
        metrics={**result.metrics, **{key: found.get(key) for key in measures.metric_names()}},
        image_measures={
            name: [per_image.get(name, {}).get(index) for index in result.indices] for name in measures.per_image()
        },
    )


def _classes_with_masks(samples: Sequence[Sample]) -> set[str]:
    """Classes of which every anomalous image has a mask: the others have no pixel metrics."""
    return {s.cls_name for s in samples} - {s.cls_name for s in samples if s.anomaly and not s.mask_path}


def check_finite(prediction: Prediction, samples: Sequence[Sample], indices: Sequence[int]) -> None:
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
