"""A detector at work on images of one object, on a scale that no other test image moves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from data.meta import PixelSettings
from data.views import PLAIN, ImageViews
from dataset import ReferenceViews
from engine.batches import batches
from engine.encoding import Timer, encode, encode_each
from engine.evaluation import fuse, fuse_each, infer, zero_shot
from engine.references import read_references
from inference.calibration import Calibration, limits_of
from metrics.thresholds import NormalPixels, ThresholdRule
from model.interface import Memory, Prediction, ScoringDetector, SimilarityCache, TokenPasses
from report.heatmap import HeatScale
from utils.progress import tracked

OWN_IMAGES = "own images"  # stands where results of datasets have its name
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
    foreground: np.ndarray | None = None  # (G, G) bool, of a method that masks the background

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


class _NormalResults:
    """What is kept of results of normal images without a scale, which may be many: of each the components of its score,
    and of some pixels of the map.

    Attributes:
        source: where the images come from.
        count: of the images.
        components: name -> a value of each.
        heat: ends of the colour scale.
        pixels: None where the rule has no threshold of pixels.
    """

    def __init__(self, rule: ThresholdRule, source: str):
        self.source, self.count, self.components = source, 0, dict[str, list[float]]()
        self.heat, self.pixels = HeatScale(_HEAT_IMAGES), NormalPixels() if rule.pixels else None

    def add(self, results: Sequence[ImageResult]) -> None:
        """Raises ValueError where a result holds NaN or infinity."""
        numbers = range(self.count + 1, self.count + len(results) + 1)
        check_finite(results, [f"normal image {number} of {self.source}" for number in numbers])
        self.count += len(results)
        for result in results:
            for key, value in result.score_components.items():
                self.components.setdefault(key, []).append(value)
            if not self.heat.full:
                self.heat.add(result.map)
            if self.pixels:
                self.pixels.add(result.map)


class Predictor:
    """Holds no references and no class: they come with every call, so one predictor serves several users.

    Args:
        detector: with its weights.
        accelerator: device and precision.
        rule: of thresholds.
        description: what identifies the detector; calibrations keep it.
        batch_size: references at a time.
    """

    def __init__(
        self,
        detector: ScoringDetector,
        accelerator: Accelerator,
        rule: ThresholdRule,
        description: Mapping[str, Any],
        batch_size: int,
    ):
        self.detector, self.accelerator, self.rule, self.description = detector, accelerator, rule, description
        self.batch_size = batch_size

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        name: str,
        memory: Memory | None = None,
        calibration: Calibration | None = None,
        map_size: tuple[int, int] | None = None,
    ) -> list[ImageResult]:
        """Map, score and verdict of images of one class.

        Args:
            images: (B, 3, h, w) uint8 RGB.
            name: of the class.
            memory: of its references; None for zero-shot.
            calibration: scale and threshold; without one the terms stay as they are and there is no verdict.
            map_size: (H, W) of the maps, see `engine.encoding.encode`.

        Raises:
            ValueError: a calibration that lacks a term of the score.
        """
        return self._results(infer(self.detector, images, name, memory, self.accelerator, map_size), calibration)

    @torch.no_grad()
    def predict_set(self, tokens: TokenPasses, name: str) -> Iterator[list[ImageResult]]:
        """Map and score of images that are scored together, bundle by bundle of a pass; see
        `model.interface.BatchedDetector`. Each score is made of the image's own components."""
        self._check_class(name)
        for prediction in self.detector.score_set(tokens, name):
            yield self._results(prediction, None)

    @torch.no_grad()
    def encode_references(
        self,
        files: Sequence[Path],
        name: str,
        source: str | None,
        *,
        bits: int | None,
        num_workers: int = 0,
        exif: bool = True,
        views: Sequence[ImageViews] | None = None,
    ) -> EncodedReferences:
        """The memory of references, and a calibration on them: each is compared with all others.

        Args:
            files: the references.
            name: of the class.
            source: where the references come from, for the calibration; None wants none. One image alone gives none.
            bits: see `load_image`.
            num_workers: processes that read.
            exif: turn pictures as their EXIF orientation says.
            views: of each file; None: drawn by the method.

        Raises:
            ValueError: a file that cannot be read.
        """
        self._check_class(name)
        count, pixels = len(files), PixelSettings(exif=exif, bits=bits)

        def read(views: Sequence[ImageViews]) -> list[Any]:
            return read_references(
                self.detector, list(zip(files, views, strict=True)), self.accelerator, batch_size=self.batch_size,
                num_workers=num_workers, pixels=pixels,
            )  # fmt: skip

        references = read(self._views(files, name) if views is None else views)
        memory = self.detector.build_memory(references)
        if source is None or count < 2:
            return EncodedReferences(memory, None, [])
        images = self._tokens(files, pixels, num_workers) if hasattr(self.detector, "summarize") else references
        distances: list[float] = []  # of each to the nearest other

        normal = _NormalResults(self.rule, source)
        shown = self.accelerator.is_main_process
        for row in tracked(range(count), "compare references", "image", shown=shown, leave=False):
            others = [other for other in range(count) if other != row]
            prediction, distance = self._compare(images[row], [references[other] for other in others], name)
            distances.append(distance)
            normal.add(self._results(prediction, None))
        bound = max(_ALL_BUT_ZERO, _NEAR_COPY * self._usual_distance(images, references, name))
        near = [row for row, distance in enumerate(distances) if distance < bound]
        return EncodedReferences(memory, self._calibration(normal), near)

    def _check_class(self, name: str) -> None:
        if hasattr(self.detector, "check_classes"):
            self.detector.check_classes([name])

    def _views(self, files: Sequence[Path], name: str) -> Sequence[ImageViews]:
        if not hasattr(self.detector, "draw_views"):
            return [PLAIN] * len(files)
        return self.detector.draw_views({name: list(map(str, files))}, OWN_IMAGES, 0)[name]  # type: ignore[no-any-return]

    def _tokens(self, files: Sequence[Path], pixels: PixelSettings, num_workers: int) -> list[Any]:
        """Of each image as it is scored, of a method that keeps something else of references."""
        dataset = ReferenceViews(
            [(path, ()) for path in files], self.detector.input_spec, bits=pixels.bits, upright=pixels.exif
        )
        loader = batches(dataset, self.batch_size, num_workers, self.accelerator, shared=False)
        return list(encode_each(self.detector, loader, self.accelerator))

    def _compare(self, tokens: Any, others: Sequence[Any], name: str) -> tuple[Prediction, float]:
        """(the prediction for an image, compared with some references; its largest distance to them)."""
        few_shot = fuse(self.detector, tokens, [name], self.detector.build_memory(others))
        without = zero_shot(self.detector, tokens, [name])
        return few_shot, float((few_shot.maps if without is None else few_shot.maps - without.maps).amax())

    def _usual_distance(self, images: Sequence[Any], references: Sequence[Any], name: str) -> float:
        """Between references that are not copies: the median, over some of them, of the largest distance to one of a
        few others; 0 where there are only two."""
        count = len(images)
        steps = range(1, min(_OTHERS, count - 1) + 1)
        rows = range(0, count, max(1, -(-count // _COMPARED)))
        largest = [
            max(self._compare(images[row], [references[(row + step) % count]], name)[1] for step in steps)
            for row in rows
        ]
        return float(np.median(largest)) if count > 2 else 0.0

    @torch.no_grad()
    def calibrate(
        self, groups: Iterable[Mapping[str, Any]], name: str, memories: Sequence[Memory | None], source: str
    ) -> list[Calibration]:
        """Scale and threshold with each of some memories (None: zero-shot), from groups of normal images (see
        `readable`) that are none of the references. The images are encoded once.

        Raises:
            ValueError: an image that cannot be read, or whose map holds NaN or infinity; too few for the rule; no
                memory for a method that requires references.
        """
        found = [_NormalResults(self.rule, source) for _ in memories]
        for group in groups:
            names, images = [name] * len(group["image"]), group["image"]
            predictions = fuse_each(  # which alone holds the tokens, so that they go before the next ones come
                self.detector, encode(self.detector, images, self.accelerator, Timer(), group["map_size"]), names,
                memories, SimilarityCache(),
            )  # fmt: skip
            for one, prediction in zip(found, predictions, strict=True):
                one.add(self._results(prediction, None))
        return [self._calibration(one) for one in found]

    def _calibration(self, normal: _NormalResults) -> Calibration:
        limits = limits_of(normal.components)
        terms = {key: torch.tensor(values) for key, values in normal.components.items()}
        threshold, rate = self.rule.of_scores(self.detector.image_scores(terms, limits).tolist())
        ends, described = normal.heat.ends(_STRETCH), dict(self.description)
        own = Calibration(limits, threshold, rate, normal.count, normal.source, ends, described)
        if normal.pixels is None:
            return own
        pixel_threshold, pixel_rate = normal.pixels.threshold(self.rule)
        return replace(own, rule=str(self.rule), pixel_threshold=pixel_threshold, pixel_fpr=pixel_rate)

    def _results(self, prediction: Prediction, calibration: Calibration | None) -> list[ImageResult]:
        components = {key: term.float().cpu() for key, term in prediction.score_components.items()}
        limits = calibration.limits if calibration else dict.fromkeys(components, (0.0, 1.0))
        if absent := components.keys() - limits.keys():
            raise ValueError(f"the calibration has no limits of {', '.join(sorted(absent))}; calibrate again")
        scores = self.detector.image_scores(components, limits).tolist()
        maps = prediction.maps.float().cpu().numpy()
        foreground = None if prediction.foreground is None else prediction.foreground.cpu().numpy()
        return [
            ImageResult(
                maps[row],
                score,
                calibration.verdict(score) if calibration else None,
                {key: term[row].item() for key, term in components.items()},
                None if foreground is None else foreground[row],
            )
            for row, score in enumerate(scores)
        ]


def readable(batches: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
    """The groups of batches of `dataset.UnlabeledImages`, every image of which must be readable (ValueError)."""
    for group in chain.from_iterable(batches):
        for error in filter(None, group["error"]):
            raise ValueError(error)
        yield group
