"""Answers requests of the web page, one at a time, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.settings import AppSettings
from data.images import bits_hint, load_image
from dataset import UnlabeledImages
from engine.build import build_for_scoring
from engine.evaluation import batches
from inference.calibration import Calibration
from inference.inputs import distinct
from inference.predictor import OWN_IMAGES, EncodedReferences, ImageResult, Predictor, check_finite, readable
from inference.uploads import UploadLimits
from model import capabilities
from report.heatmap import HeatScale, on_scale, resize_longest_side
from utils.devices import make_accelerator
from utils.text import escape_controls

_SIDE = 768  # of the picture that is shown, in pixels
_KEPT = 4  # sets of encoded references


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


class InferenceService:
    """Answers requests, one at a time, so that memory is bounded. Knows no users: a request brings its references; the
    latest sets of them stay encoded, by what they show. Makes detector and accelerator of its own."""

    def __init__(self, settings: AppSettings):
        accelerator = make_accelerator(settings.device, settings.precision)
        built = build_for_scoring(settings, settings.batch_size, settings.checkpoint_path, OWN_IMAGES, accelerator)
        self.description = built.description
        self._predictor = Predictor(built.detector, accelerator, settings.fpr, built.description, built.batch_size)
        most = settings.max_references if capabilities(settings.method).few_shot else 0
        self.limits = UploadLimits(settings.max_megabytes, settings.max_pixels, most, built.detector.input_spec.side)
        self._bits = settings.bits
        self._worker = ThreadPoolExecutor(1)  # torch's memory is that of one thread
        self._encoded: OrderedDict[tuple[str, ...], EncodedReferences] = OrderedDict()

    def inspect(self, name: str, image: str | None, references: Sequence[str] = ()) -> Answer:
        """Score an image file, compared with normal ones if there are any.

        Raises:
            ValueError: a sentence for the user, see `UploadLimits.check`; a file that turns out to be broken.
        """
        checked = self.limits.check(name, image, references)
        try:
            return self._worker.submit(self._inspect, name.strip(), checked, references).result()
        except ValueError as error:  # names a file by where it lies here
            message = str(error)
            for path in (checked, *references):
                message = message.replace(str(path), escape_controls(Path(path).name))
            raise ValueError(message) from None

    def _inspect(self, name: str, image: str, references: Sequence[str]) -> Answer:
        start = time.perf_counter()
        first, copies = distinct(map(Path, references), self._bits)
        encoded = self._encode(name, first) if first else None
        memory, calibration = (encoded.memory, encoded.calibration) if encoded else (None, None)
        (group,) = readable(batches(self._images(Path(image)), 1, 0, self._predictor.accelerator, shared=False))
        picture = resize_longest_side(load_image(Path(image), upright=True, bits=self._bits), _SIDE)
        results = self._predictor.predict(group["image"], name, memory, calibration, group["map_size"])
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

    def _images(self, file: Path) -> UnlabeledImages:
        return UnlabeledImages([file], self._predictor.detector.input_spec, bits=self._bits)


def _view(picture: np.ndarray, one: np.ndarray, calibration: Calibration | None) -> View:
    """On the colour scale of normal images; without a calibration, on the image's own."""
    scale = HeatScale(1)
    scale.add(one)
    low, high = calibration.heat if calibration else scale.ends()
    return View(picture, on_scale(one, low, high).clip(0, 1).astype(np.float16))
