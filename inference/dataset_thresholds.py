"""Thresholds of the classes of a dataset, from normal images alone, as predict.py makes them for one object.

They are fixed before a test image is scored, and handed to the scoring pass, which counts the pixels above them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.meta import Sample
from data.references import FewShotSetting
from dataset import UnlabeledImages
from engine.batches import batches
from engine.class_scores import ClassScores
from engine.references import MemorySource
from engine.test_run import ScoredData
from inference.calibration import Calibration
from inference.inputs import distinct
from inference.predictor import Predictor, readable
from inference.setup import log_too_few
from metrics.image import f1_above, image_metrics
from metrics.measures import Thresholds
from metrics.names import ABOVE, IMAGE_GIVEN
from report.judged import JudgedClass
from utils.distributed import gather
from utils.logs import LOG
from utils.progress import tracked


class DatasetThresholds:
    """Scale and threshold of each class under each few-shot setting: from the validation images of the dataset where
    it has them, else from the references, each compared with the others.

    Args:
        predictor: texts of the classes are encoded.
        data: what is scored; root: of the dataset.
        shots: the settings.
        memories: of their references.
        stored: whether these come from a file of --memory, so that the images of references are not at hand.
        num_workers: processes that read.
    """

    def __init__(
        self,
        predictor: Predictor,
        data: ScoredData,
        root: str,
        shots: Sequence[FewShotSetting],
        memories: MemorySource,
        *,
        stored: bool,
        num_workers: int,
    ):
        self._predictor, self._data, self._root, self._shots = predictor, data, Path(root), shots
        self._memories, self._stored, self._num_workers = memories, stored, num_workers
        self._known: dict[str, list[Calibration | str]] = {}

    def fix(self) -> "DatasetThresholds":
        """Calibrate all classes. Of several processes each takes some, and all know the result: each must call it."""
        accelerator = self._predictor.accelerator
        mine = self._data.classes[accelerator.process_index :: accelerator.num_processes]
        for part in gather({name: self.of_class(name) for name in mine}, accelerator):
            self._known |= part
        return self

    def __call__(self, setting: int, name: str) -> Thresholds:
        """What a scoring pass takes: the threshold of pixels. That of scores is on another scale than the pass's own
        scores, which it brings to the scale of the test set."""
        one = self.known(setting, name)
        return Thresholds() if isinstance(one, str) else Thresholds(one.pixel_threshold)

    def known(self, setting: int, name: str) -> Calibration | str:
        """The calibration that `fix` has made of a class under a setting, or why it has none."""
        return self._known[name][setting]

    def scores(self, one: Calibration, score_components: Mapping[str, Sequence[float]]) -> list[float]:
        """Image scores on the scale of a calibration's normal images."""
        terms = {key: torch.tensor(values) for key, values in score_components.items()}
        return self._predictor.detector.image_scores(terms, one.limits).tolist()  # type: ignore[no-any-return]

    def of_class(self, name: str) -> list[Calibration | str]:
        """The calibration of a class under each setting, or why it has none."""
        validation = [sample for sample in self._data.everything["validation"] if sample.cls_name == name]
        if validation:
            try:
                return [*self._on_validation(name, validation)]
            except ValueError as error:  # a file that cannot be read, or too few for the rule: the others have theirs
                return [str(error)] * len(self._shots)
        return [self._on_references(shot, name) for shot in self._shots]

    def _on_validation(self, name: str, samples: Sequence[Sample]) -> list[Calibration]:
        predictor, pixels = self._predictor, self._data.pixels
        files = distinct((self._root / sample.img_path for sample in samples), pixels.bits, upright=pixels.exif)[0]
        images = UnlabeledImages(
            list(files.values()), predictor.detector.input_spec, bits=pixels.bits, upright=pixels.exif
        )
        loader = batches(images, predictor.batch_size, self._num_workers, predictor.accelerator, shared=False)
        shown = predictor.accelerator.is_main_process
        read = tracked(loader, f"validation images of {name}", "batch", shown=shown, leave=False)
        return predictor.calibrate(readable(read), name, self._memories(name), "validation of the dataset")

    def _on_references(self, shot: FewShotSetting, name: str) -> Calibration | str:
        lacks = "the dataset has no validation images of it"
        if shot.k_shot == 0:
            return f"{lacks}, and zero-shot has no references"
        if self._stored:
            return f"{lacks}, and --memory holds no images of its references"
        files, pixels = [self._root / path for path in shot.references[name]], self._data.pixels
        first = set(distinct(files, pixels.bits, upright=pixels.exif)[0].values())
        rows = [row for row, file in enumerate(files) if file in first and file not in files[:row]]
        if len(rows) < 2:
            return f"{lacks}, and it has one reference; two give a threshold"
        views = shot.views.get(name)
        encoded = self._predictor.encode_references(
            [files[row] for row in rows], name, "references, each compared with the others", bits=pixels.bits,
            num_workers=self._num_workers, exif=pixels.exif, views=[views[row] for row in rows] if views else None,
        )  # fmt: skip
        if encoded.near_copies:
            LOG.warning(
                "%s: %d of %d references are nearly copies of others, so that its threshold may be too low",
                name, len(encoded.near_copies), len(rows),
            )  # fmt: skip
        assert encoded.calibration is not None  # of two references or more
        return encoded.calibration

    def judge(self, results: Sequence[ClassScores]) -> list[JudgedClass]:
        """The verdicts of all classes and settings, in the order of the results; logs where a rate is not kept."""
        judged = []
        for result in results:
            one = self.known(result.setting, result.name)
            if isinstance(one, str):
                judged.append(JudgedClass(result.setting, result.name, one))
                continue
            log_too_few(one, self._predictor.rule, f"{result.name}: ")
            scores = self.scores(one, result.score_components)
            kept = {key: value for key, value in one.as_dict().items() if key != "made_with"}
            labels = [self._data.samples[index].anomaly for index in result.indices]
            above = result.image_measures[ABOVE]
            judged.append(JudgedClass(result.setting, result.name, "", kept, one.promise(), scores, labels, above))
        return judged


def with_image_f1(results: Sequence[ClassScores], judged: Sequence[JudgedClass]) -> list[ClassScores]:
    """The results with the F1 of their verdicts, and the best of any threshold on the same scale of normal images."""
    found = []
    for result, one in zip(results, judged, strict=True):
        values: tuple[float | None, ...] = (None,) * len(IMAGE_GIVEN)
        if not one.reason:
            threshold, best = one.calibration["threshold"], image_metrics(one.labels, one.scores)["f1_sp"]
            values = (threshold, f1_above(one.labels, one.scores, threshold), best)
        found.append(replace(result, metrics={**result.metrics, **dict(zip(IMAGE_GIVEN, values, strict=True))}))
    return found
