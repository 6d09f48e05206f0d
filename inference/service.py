"""Answers requests of the web page, one at a time, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from data.images import load_image, pictures_in
from dataset import UnlabeledImages
from engine.build import load_detector
from inference.calibration import Calibration
from inference.predictor import Predictor, readable
from inference.uploads import UploadLimits
from model import METHODS
from report.heatmap import HeatScale, on_scale, resize_longest_side
from utils.devices import make_accelerator
from utils.files import file_digest

_SIDE = 768  # of the picture that is shown, in pixels
_KEPT = 4  # sets of encoded references


class View(NamedTuple):
    """What is needed to colour a picture anew."""

    picture: np.ndarray  # (H, W, 3) uint8 RGB, the longer side _SIDE
    heat: np.ndarray  # (S, S) float16, 0 and 1 are the ends of the colour scale


class Result(NamedTuple):
    """The answer to one request."""

    view: View
    values: dict[str, Any]  # see `inference.predictor.ImageResult`
    calibration: Calibration | None
    seconds: float


class InferenceService:
    """Answers requests, one at a time, so that memory is bounded. Knows no users: a request brings its references; the
    latest sets of them stay encoded, under what their files hold. settings: see `config.settings.resolve_app`."""

    def __init__(self, settings):
        accelerator = make_accelerator(settings.device, settings.precision)
        detector, description = load_detector(settings, accelerator, None)
        self.inspector = Predictor(detector, accelerator, settings.fpr, description)
        most = settings.max_references if METHODS[settings.method].FEW_SHOT else 0
        self.limits = UploadLimits(settings.max_megabytes, settings.max_pixels, most, pictures_in)
        self._image_size, self._batch_size = description["image_size"], settings.batch_size
        self._worker, self._known = ThreadPoolExecutor(1), OrderedDict()  # torch's memory is that of one thread

    def inspect(self, name: str, image: str | None, references: Sequence[str] = ()) -> Result:
        """What an image file shows, compared with normal ones if there are any.

        Raises:
            ValueError: a sentence for the user, see `UploadLimits.check`; a file that turns out to be broken.
        """
        self.limits.check(name, image, references)
        try:
            return self._worker.submit(self._inspect, name.strip(), image, references).result()
        except ValueError as error:  # names a file by where it lies here
            message = str(error)
            for path in (image, *references):
                message = message.replace(str(path), Path(path).name)
            raise ValueError(message) from None

    def _inspect(self, name: str, image: str, references: Sequence[str]) -> Result:
        start = time.perf_counter()
        memory, calibration = self._build_memory(name, references) if references else (None, None)
        (batch,) = readable(self._batches([image]))
        picture = resize_longest_side(load_image(Path(image), upright=True), _SIDE)
        (finding,) = self.inspector(batch["image"], name, memory, calibration)
        if not finding.finite:
            raise ValueError("The anomaly map holds NaN or infinity; are the weights broken?")
        view = _view(picture, finding.map, calibration)
        return Result(view, finding.values, calibration, time.perf_counter() - start)

    def _build_memory(self, name: str, references: Sequence[str]) -> tuple[Any, Calibration | None]:
        key = name, file_digest(references)
        if key not in self._known:
            batches = readable(self._batches(references))
            self._known[key] = self.inspector.build_memory(batches, len(references), name, "references")
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return self._known[key]

    def _batches(self, files: Sequence[str]) -> DataLoader:
        return DataLoader(UnlabeledImages([Path(file) for file in files], self._image_size), self._batch_size)


def _view(picture: np.ndarray, one: np.ndarray, calibration: Calibration | None) -> View:
    """On the colour scale of normal images; without a calibration, on the image's own."""
    scale = HeatScale(1)
    scale.add(one)
    low, high = calibration.heat if calibration else scale.ends()
    return View(picture, on_scale(one, low, high).clip(0, 1).astype(np.float16))
