"""Answers requests of the web page, one at a time, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from config.settings import AppSettings
from data.images import bits_hint, load_image
from dataset import UnlabeledImages
from engine.batched import SetPasses
from engine.batches import batches
from engine.build import build_for_scoring
from engine.encoding import Timer
from inference.calibration import Calibration
from inference.inputs import distinct
from inference.predictor import OWN_IMAGES, EncodedReferences, ImageResult, Predictor, check_finite, readable
from inference.uploads import UploadLimits
from model import capabilities
from report.heatmap import HeatScale, blend_heatmap, crop, on_scale, resize_longest_side
from report.pictures import shrink_map
from utils.devices import make_accelerator
from utils.text import escape_controls

_SIDE = 768  # of the picture that is shown, in pixels
_SET_SIDE = 384  # of each picture of a set
_KEPT = 4  # sets of encoded references
_NO_NAME = "object"  # where none is given, of a method without texts


class View(NamedTuple):
    """What is needed to colour a picture anew."""

    picture: np.ndarray  # (H, W, 3) uint8 RGB, the longer side _SIDE
    heat: np.ndarray  # (S, S) float16, 0 and 1 are the ends of the colour scale


class Answer(NamedTuple):
    """The answer to one request."""

    view: View
    result: ImageResult
    calibration: Calibration | None
    notes: list[str]  # what the user must know of the images, a sentence each
    seconds: float


class RankedImage(NamedTuple):
    """An image of a set."""

    path: str
    score: float
    picture: np.ndarray  # (H, W, 3) uint8 RGB, coloured where it is unusual


class RankedSet(NamedTuple):
    """The answer to a request that brings a set of images."""

    images: list[RankedImage]  # the highest score first
    notes: list[str]
    seconds: float


class InferenceService:
    """Answers requests, one at a time, so that memory is bounded. Knows no users: a request brings its references; the
    latest sets of them stay encoded, by what they show. Makes detector and accelerator of its own."""

    def __init__(self, settings: AppSettings):
        accelerator = make_accelerator(settings.device, settings.precision)
        self._predictor = _predictor(settings, accelerator)
        alone = settings.without_references
        self._without = self._predictor if alone is None else _predictor(alone, accelerator)
        self.description = self._predictor.description
        most = settings.max_references if capabilities(settings.method).few_shot else 0
        detector = self._predictor.detector
        self.limits = UploadLimits(settings.max_megabytes, settings.max_pixels, most, detector.input_spec.side)
        self._bits, self.most = settings.bits, settings.max_set
        self.least: int = getattr(detector, "SET_MINIMUM", 1)
        self._worker = ThreadPoolExecutor(1)  # torch's memory is that of one thread
        self._encoded: OrderedDict[tuple[str, ...], EncodedReferences] = OrderedDict()

    def inspect(self, name: str, image: str | None, references: Sequence[str] = ()) -> Answer:
        """Score an image file, compared with normal ones if there are any.

        Raises:
            ValueError: a sentence for the user, see `UploadLimits.check`; a file that turns out to be broken.
        """
        predictor = self._predictor if references else self._without
        checked = self.limits.check(name, image, references, needs_name=predictor.detector.needs_text)
        name = name.strip() or _NO_NAME
        with _named_by_themselves([checked, *references]):
            return self._worker.submit(self._inspect, predictor, name, checked, references).result()

    def rank(self, images: Sequence[str]) -> RankedSet:
        """Score image files together, of a method that does that.

        Raises:
            ValueError: as `inspect`, see `UploadLimits.check_set`.
        """
        self.limits.check_set(images, self.least, self.most)
        with _named_by_themselves(images):
            return self._worker.submit(self._rank, list(images)).result()

    def _rank(self, files: list[str]) -> RankedSet:
        start = time.perf_counter()
        dataset = UnlabeledImages(list(map(Path, files)), self._predictor.detector.input_spec, bits=self._bits)
        for index in range(len(dataset)):
            if error := dataset[index]["error"]:
                raise ValueError(error)
        accelerator = self._predictor.accelerator
        passes = SetPasses(
            self._predictor.detector, dataset, files, accelerator, Timer(), batch_size=self._predictor.batch_size,
            num_workers=0, folder=None,
        )  # fmt: skip
        results = list(chain.from_iterable(self._predictor.predict_set(passes, "object")))
        indices = list(chain.from_iterable(group.indices for group in passes.groups))
        check_finite(results, [Path(files[index]).name for index in indices])
        scale = HeatScale(len(results))
        for result in results:
            scale.add(result.map)
        ends = scale.ends()
        found = [
            RankedImage(files[index], result.score, self._coloured(files[index], result.map, ends))
            for index, result in zip(indices, results, strict=True)
        ]
        copies = len(distinct(map(Path, files), self._bits)[1])
        notes = [f"{copies} of the images are copies of others, so that both score too low."] if copies else []
        found.sort(key=lambda image: -image.score)
        return RankedSet(found, notes, time.perf_counter() - start)

    def _coloured(self, file: str, one: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
        return blend_heatmap(self._picture(self._predictor, Path(file), _SET_SIDE), on_scale(one, *ends))

    def _picture(self, predictor: Predictor, file: Path, side: int) -> np.ndarray:
        """What a map shows of an image, the longer side as given, (H, W, 3) uint8 RGB."""
        whole = load_image(file, upright=True, bits=self._bits)
        return resize_longest_side(crop(whole, predictor.detector.input_spec.shown), side)

    def _inspect(self, predictor: Predictor, name: str, image: str, references: Sequence[str]) -> Answer:
        start = time.perf_counter()
        first, copies = distinct(map(Path, references), self._bits)
        encoded = self._encode(name, first) if first else None
        memory, calibration = (encoded.memory, encoded.calibration) if encoded else (None, None)
        images = UnlabeledImages([Path(image)], predictor.detector.input_spec, bits=self._bits)
        (group,) = readable(batches(images, 1, 0, predictor.accelerator, shared=False))
        picture = self._picture(predictor, Path(image), _SIDE)
        results = predictor.predict(group["image"], name, memory, calibration, group["map_size"])
        check_finite(results, [Path(image).name])
        (result,) = results
        notes = self._notes(Path(image), list(first.values()), copies, encoded)
        view = _view(picture, result.map, calibration)
        return Answer(view, result, calibration, notes, time.perf_counter() - start)

    def _encode(self, name: str, references: dict[str, Path]) -> EncodedReferences:
        """references: digest of the pixels -> file."""
        key = (name, *sorted(references))
        if key not in self._encoded:
            self._encoded[key] = self._predictor.encode_references(
                list(references.values()), name, "references", bits=self._bits
            )
        self._encoded.move_to_end(key)
        while len(self._encoded) > _KEPT:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _notes(
        self, image: Path, references: Sequence[Path], copies: Sequence[Path], encoded: EncodedReferences | None
    ) -> list[str]:
        notes = []
        if copies:
            count = len(references) + len(copies)
            notes.append(f"{len(copies)} of the {count} normal images are copies of others and left out.")
        if encoded and encoded.near_copies:
            notes.append(
                f"{len(encoded.near_copies)} of the normal images are nearly copies of others, so that the threshold "
                "is too low; take each photograph anew."
            )
        if references and distinct([*references, image], self._bits)[1]:
            notes.append("The image is one of the normal images, so that its score is too low.")
        hint = bits_hint([image, *references]) if self._bits is None else None
        if hint:
            notes.append(
                f"The images seem to hold {hint.bits} bits in files of 16: start app.py with --bits {hint.bits}."
            )
        return notes


def _predictor(settings: AppSettings, accelerator: Accelerator) -> Predictor:
    built = build_for_scoring(
        settings, settings.batch_size, settings.checkpoint_path, OWN_IMAGES, accelerator, tiling=settings.tiling
    )
    return Predictor(built.detector, accelerator, settings.rule, built.description, built.batch_size)


@contextmanager
def _named_by_themselves(paths: Sequence[str]) -> Iterator[None]:
    """Messages of ValueError name files as users do, not by where they lie here."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for path in paths:
            message = message.replace(str(path), escape_controls(Path(path).name))
        raise ValueError(message) from None


def _view(picture: np.ndarray, one: np.ndarray, calibration: Calibration | None) -> View:
    """On the colour scale of normal images; without a calibration, on the image's own."""
    scale = HeatScale(1)
    scale.add(one)
    low, high = calibration.heat if calibration else scale.ends()
    one = shrink_map(one, max(picture.shape))  # of an image that may be much larger
    return View(picture, on_scale(one, low, high).clip(0, 1).astype(np.float16))
