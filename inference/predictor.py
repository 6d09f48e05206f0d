"""A detector at work on images of one object, on a scale that no other test image moves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.encoding import encode_all, select_rows
from engine.evaluation import fuse, infer, zero_shot
from inference.calibration import Calibration, limits_of, threshold_of
from model.interface import Memory, Prediction, ScoringDetector
from report.heatmap import HeatScale

_STRETCH = 2.0  # of the colour scale beyond normal images
_HEAT_IMAGES = 256  # normal images whose maps give the colour scale
# A reference is nearly a copy of another one where its distance to the nearest is less than this part of the distance
# between references: JPEG leaves 2% (quality 95) to 7% (75), photographs of different objects 70% and more.
_NEAR_COPY = 0.1
_ALL_BUT_ZERO = 1e-4  # the same where there are only two, which leaves nothing to compare their distance with
_COMPARED, _OTHERS = 16, 3  # references whose distance to each of some others is looked at


class ImageResult(NamedTuple):
    """The map, score and verdict of one image."""

    map: np.ndarray  # (S, S) float32, larger is more anomalous
    score: float
    verdict: str | None  # "anomalous" or "normal"; None where there is no threshold
    score_components: dict[str, float]  # what the score is made of

    @property
    def values(self) -> dict[str, float | str]:
        """Score, verdict (where there is one) and components, as scores.csv has them."""
        verdict = {} if self.verdict is None else {"verdict": self.verdict}
        return {"score": self.score, **verdict, **self.score_components}

    @property
    def is_finite(self) -> bool:
        """Whether map, score and components are numbers, as they are unless weights are broken."""
        return bool(np.isfinite(self.map).all() and np.isfinite([self.score, *self.score_components.values()]).all())


def check_finite(results: Sequence[ImageResult], names: Sequence[str]) -> None:
    """Raises ValueError where a result holds NaN or infinity; names: of the images, one is named."""
    for result, name in zip(results, names, strict=True):
        if not result.is_finite:
            raise ValueError(
                f"the anomaly map or score of {name} holds NaN or infinity; are the weights or the checkpoint broken?"
            )


class EncodedReferences(NamedTuple):
    """Normal images of one class, ready to be compared with."""

    memory: Memory
    calibration: Calibration | None  # on the references themselves; None of a single one, or where none is wanted
    near_copies: list[int]  # those that are nearly a copy of another one, as indices


class Predictor:
    """Holds no references and no class: they come with every call, so one predictor serves several users.

    Args:
        detector: with its weights.
        accelerator: device and precision.
        fpr: wanted share of normal images above a threshold.
        description: what identifies the detector; calibrations keep it.
    """

    def __init__(self, detector: ScoringDetector, accelerator: Accelerator, fpr: float, description: Mapping[str, Any]):
        self.detector, self.accelerator, self.fpr, self.description = detector, accelerator, fpr, description

    @torch.no_grad()
    def predict(
        self, images: Tensor, name: str, memory: Memory | None = None, calibration: Calibration | None = None
    ) -> list[ImageResult]:
        """Map, score and verdict of images of one class.

        Args:
            images: (B, 3, S, S) uint8 RGB.
            name: of the class.
            memory: of its references; None for zero-shot.
            calibration: scale and threshold; without one the terms stay as they are and there is no verdict.

        Raises:
            ValueError: a calibration that lacks a term of the score.
        """
        return self._results(infer(self.detector, images, name, memory, self.accelerator), calibration)

    @torch.no_grad()
    def encode_references(
        self, batches: Iterable[Mapping[str, Any]], count: int, name: str, source: str | None
    ) -> EncodedReferences:
        """The memory of references, and a calibration on them: each is compared with all others.

        Args:
            batches: of `dataset.UnlabeledImages` over the references; `count` images in all.
            name: of the class.
            source: where the references come from, for the calibration; None wants none. One image alone gives none.
        """
        tokens = encode_all(self.detector, batches, self.accelerator)
        memory = self.detector.build_memory(tokens)
        if source is None or count < 2:
            return EncodedReferences(memory, None, [])
        distances: list[float] = []  # of each to the nearest other

        def leave_one_out() -> Iterator[list[ImageResult]]:
            for row in range(count):
                others = [other for other in range(count) if other != row]
                prediction, distance = self._compare(tokens, row, others, name)
                distances.append(distance)
                yield self._results(prediction, None)

        calibration = self._calibration(leave_one_out(), source)
        bound = max(_ALL_BUT_ZERO, _NEAR_COPY * self._usual_distance(tokens, count, name))
        near = [row for row, distance in enumerate(distances) if distance < bound]
        return EncodedReferences(memory, calibration, near)

    def _compare(self, tokens: Any, row: int, others: list[int], name: str) -> tuple[Prediction, float]:
        """(the prediction for one of some images, compared with others; its largest distance to them)."""
        own, names = select_rows(tokens, [row]), [name]
        few_shot = fuse(self.detector, own, names, self.detector.build_memory(select_rows(tokens, others)))
        without = zero_shot(self.detector, own, names)
        return few_shot, float((few_shot.maps if without is None else few_shot.maps - without.maps).amax())

    def _usual_distance(self, tokens: Any, count: int, name: str) -> float:
        """Between references that are not copies: the median, over some of them, of the largest distance to one of a
        few others; 0 where there are only two."""
        steps = range(1, min(_OTHERS, count - 1) + 1)
        rows = range(0, count, max(1, -(-count // _COMPARED)))
        largest = [max(self._compare(tokens, row, [(row + step) % count], name)[1] for step in steps) for row in rows]
        return float(np.median(largest)) if count > 2 else 0.0

    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[Mapping[str, Any]], name: str, memory: Memory | None, source: str
    ) -> Calibration:
        """Scale and threshold from batches of normal images that are none of the references."""
        return self._calibration((self.predict(batch["image"], name, memory) for batch in batches), source)

    def _calibration(self, batches: Iterable[list[ImageResult]], source: str) -> Calibration:
        """From results of normal images without a scale. Of each the terms are kept, and of some pixels of the map:
        normal images may be many."""
        components: dict[str, list[float]] = {}
        heat, seen = HeatScale(_HEAT_IMAGES), 0
        for results in batches:
            check_finite(results, [f"normal image {seen + row} of {source}" for row in range(1, len(results) + 1)])
            seen += len(results)
            for result in results:
                for key, value in result.score_components.items():
                    components.setdefault(key, []).append(value)
                if not heat.full:
                    heat.add(result.map)
        limits = limits_of(components)
        terms = {key: torch.tensor(values) for key, values in components.items()}
        scores = self.detector.image_scores(terms, limits).tolist()
        threshold, rate = threshold_of(scores, self.fpr)
        return Calibration(limits, threshold, rate, seen, source, heat.ends(_STRETCH), dict(self.description))

    def _results(self, prediction: Prediction, calibration: Calibration | None) -> list[ImageResult]:
        components = {key: term.float().cpu() for key, term in prediction.score_components.items()}
        limits = calibration.limits if calibration else dict.fromkeys(components, (0.0, 1.0))
        if absent := components.keys() - limits.keys():
            raise ValueError(f"the calibration has no limits of {', '.join(sorted(absent))}; calibrate again")
        scores = self.detector.image_scores(components, limits).tolist()
        maps = prediction.maps.float().cpu().numpy()
        return [
            ImageResult(
                maps[row],
                score,
                calibration.verdict(score) if calibration else None,
                {key: term[row].item() for key, term in components.items()},
            )
            for row, score in enumerate(scores)
        ]


def readable(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Batches of `dataset.UnlabeledImages`, every image of which must be readable (ValueError)."""
    for batch in batches:
        for error in filter(None, batch["error"]):
            raise ValueError(error)
        yield batch
