"""A detector at work on images of one object, on a scale that no other test image moves."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.encoding import encode_all
from engine.evaluation import infer, leave_one_out
from inference.calibration import Calibration, limits_of, threshold_of
from report.heatmap import HeatScale

_STRETCH = 2.0  # of the colour scale beyond normal images
_MAPS = 256  # normal images whose maps give the colour scale


class ImageResult(NamedTuple):
    """What an image shows."""

    map: np.ndarray  # (S, S) float32, larger is more anomalous
    values: dict[str, Any]  # score; verdict, where there is a threshold; the terms that make the score

    @property
    def finite(self) -> bool:
        """Whether score and map are numbers, as they are unless weights are broken."""
        return bool(np.isfinite([self.values["score"], self.map.sum()]).all())


class Predictor:
    """Holds no references and no class: they come with every call, so one Inspector serves several users.

    Args:
        detector: as `model.interface.Detector` says.
        accelerator: device and precision.
        fpr: wanted share of normal images above a threshold.
        description: what identifies the detector; calibrations keep it.
    """

    def __init__(self, detector: Any, accelerator: Accelerator, fpr: float, description: Mapping[str, Any]):
        self.detector, self.accelerator, self.fpr, self.description = detector, accelerator, fpr, description

    def __call__(
        self, images: Tensor, name: str, memory: Any | None = None, calibration: Calibration | None = None
    ) -> list[ImageResult]:
        """What images of one class show.

        Args:
            images: (B, 3, S, S) uint8 RGB.
            name: of the class.
            memory: of its references; None for zero-shot.
            calibration: scale and threshold; without one the terms stay as they are and there is no verdict.
        """
        prediction = infer(self.detector, images, name, memory, self.accelerator)
        rows = _rows_of(self.detector, prediction, calibration)
        return list(map(ImageResult, prediction.maps.float().cpu().numpy(), rows))

    def build_memory(
        self, batches: Iterable[Mapping[str, Any]], count: int, name: str, source: str | None
    ) -> tuple[Any, Calibration | None]:
        """(memory of the references, calibration on them).

        Args:
            batches: of `dataset.UnlabeledImages` over the references; `count` images in all.
            name: of the class.
            source: where the references come from, for the calibration; None wants none. One image alone gives none:
                each is compared with the others.
        """
        tokens = encode_all(self.detector, batches, self.accelerator)
        memory = self.detector.build_memory(tokens)
        if source is None or count < 2:
            return memory, None
        return memory, self._calibration(leave_one_out(self.detector, tokens, count, name), source)

    def calibrate(
        self, batches: Iterable[Mapping[str, Any]], name: str, memory: Any | None, source: str
    ) -> Calibration:
        """Scale and threshold from batches of normal images that are none of the references."""
        predictions = (infer(self.detector, one["image"], name, memory, self.accelerator) for one in batches)
        return self._calibration(predictions, source)

    def _calibration(self, predictions: Iterable[Any], source: str) -> Calibration:
        """Of each prediction the terms are kept, and of some the pixels: normal images may be many."""
        parts, heat, seen = [], HeatScale(_MAPS), 0
        for one in predictions:
            self._check_finite(one, seen, source)
            seen += len(one.maps)
            parts.append({key: term.float().cpu() for key, term in one.score_components.items()})
            for each in () if heat.full else one.maps.float().cpu().numpy():
                heat.add(each)
        score_components = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        limits = limits_of({key: values.tolist() for key, values in score_components.items()})
        scores = self.detector.image_scores(score_components, limits).tolist()
        threshold, attained = threshold_of(scores, self.fpr)
        return Calibration(
            limits, threshold, attained, len(scores), source, heat.ends(_STRETCH), dict(self.description)
        )

    @staticmethod
    def _check_finite(prediction: Any, before: int, source: str) -> None:
        finite = prediction.maps.isfinite().flatten(1).all(1)
        for term in prediction.score_components.values():
            finite &= term.isfinite()
        if not finite.all():
            number = before + 1 + int((~finite).nonzero()[0])
            raise ValueError(
                f"normal image {number} of {source} has a map or score that is NaN or infinite; are the weights broken?"
            )


def _rows_of(detector: Any, prediction: Any, calibration: Calibration | None) -> list[dict[str, Any]]:
    """Per image: its score, the verdict where there is a threshold, and the terms that make the score."""
    score_components = {key: term.float().cpu() for key, term in prediction.score_components.items()}
    limits = calibration.limits if calibration else dict.fromkeys(score_components, (0.0, 1.0))
    if not score_components.keys() <= limits.keys():
        raise ValueError(
            f"the calibration has no limits of {', '.join(score_components.keys() - limits.keys())}; calibrate again"
        )
    scores = detector.image_scores(score_components, limits).tolist()
    rows = []
    for row, value in enumerate(scores):
        verdict = {"verdict": calibration.verdict(value)} if calibration else {}
        rows.append({"score": value, **verdict, **{key: term[row].item() for key, term in score_components.items()}})
    return rows


def readable(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Batches of `dataset.UnlabeledImages`, every image of which must be readable (ValueError)."""
    for batch in batches:
        for error in filter(None, batch["error"]):
            raise ValueError(error)
        yield batch
