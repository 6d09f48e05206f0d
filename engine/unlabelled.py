"""Scoring images without labels: the parts of a dataset whose labels somebody else has. No metric is computed of them.

A class of a part is a set here, and is kept when it is scored, so that an interrupted run goes on after it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accelerate import Accelerator
from torch import Tensor

from data.meta import PixelSettings, Sample, Unlabelled, UnlabelledImage
from data.references import FewShotSetting
from dataset import AnomalyDataset
from engine.batches import batches
from engine.build import Built
from engine.class_scores import check_finite
from engine.encoding import Timer
from engine.evaluation import Step, predictions
from engine.ground_truth import Size
from engine.one_ahead import one_ahead
from engine.references import MemorySource
from engine.resume import FOLDER
from model.interface import Memory
from utils.distributed import flatten, gather
from utils.files import read_json, write_json
from utils.logs import LOG
from utils.progress import Progress


class UnlabelledSet(NamedTuple):
    """The images of a class in a part of a dataset."""

    part: str
    name: str  # of the class
    images: list[UnlabelledImage]

    def samples(self) -> list[Sample]:
        """The same as a dataset takes them, with a label that nobody reads."""
        return [Sample(image.img_path, "", self.name, image.specie_name, 0) for image in self.images]


@dataclass(frozen=True)
class UnlabelledScores:
    """A set under one few-shot setting; per image, in the order of the set, what its score is made of."""

    setting: int
    score_components: dict[str, list[float]]


Scored = list[UnlabelledScores]  # of a set, one per setting


class KeepUnlabelledMap(Protocol):
    """Takes the maps of the pass."""

    def __call__(self, one: UnlabelledSet, image: UnlabelledImage, map_: Tensor, picture: Size) -> None:
        """One map, (H, W), under the only setting that there is; picture: the size of the image."""


def sets_of(parts: Unlabelled, classes: Sequence[str]) -> list[UnlabelledSet]:
    """The sets of some classes, class by class."""
    every = [UnlabelledSet(part, name, [image for image in images if image.cls_name == name])
             for name in classes for part, images in parts.items()]  # fmt: skip
    return [one for one in every if one.images]


class KeptSets:
    """What is kept of scored sets until the end of the run, a JSON file each.

    Args:
        folder: of the results.
        identity: of the run, see `FinishedClasses`.
        settings: number of the few-shot settings.
    """

    def __init__(self, folder: Path, identity: str, settings: int):
        self._folder, self._identity, self._settings = folder / FOLDER / "unlabelled", identity, settings

    def load(
        self, sets: Sequence[UnlabelledSet], files: Mapping[int, Sequence[Path]], accelerator: Accelerator
    ) -> dict[int, Scored]:
        """Number of a set -> what an interrupted run has kept of it. Left out is what is of other settings, what is not
        sound, and where one of the files that were written besides is missing."""
        found = {}
        if accelerator.is_main_process:
            loaded = {number: self._load(number, len(one.images)) for number, one in enumerate(sets)
                      if all(file.is_file() for file in files.get(number, ()))}  # fmt: skip
            found = {number: scores for number, scores in loaded.items() if scores is not None}
        return gather(found, accelerator)[0]

    def _load(self, number: int, images: int) -> Scored | None:
        try:
            held = read_json(self._file(number))
            scores = [UnlabelledScores(**row) for row in held["scores"]]
            sound = held["identity"] == self._identity and [row.setting for row in scores] == [*range(self._settings)]
            for values in (values for row in scores for values in row.score_components.values()):
                sound = sound and len(values) == images and all(map(_is_number, values))
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            sound = False
        return scores if sound else None

    def is_of_this_run(self) -> bool:
        """Whether anything is kept of a run of this identity."""
        return any(self._is_own(file) for file in self._folder.glob("*.json"))

    def _is_own(self, file: Path) -> bool:
        try:
            return bool(read_json(file)["identity"] == self._identity)
        except (KeyError, OSError, TypeError, ValueError):
            return False

    def keep(self, number: int, scores: Scored) -> None:
        """Write the scores of a set."""
        write_json(self._file(number), {"identity": self._identity, "scores": [asdict(row) for row in scores]})

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.json"  # a class name may be no name for a file


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def score_unlabelled(
    built: Built,
    sets: Sequence[UnlabelledSet],
    root: str | Path,
    pixels: PixelSettings,
    settings: Sequence[FewShotSetting],
    memories: MemorySource,
    accelerator: Accelerator,
    kept: KeptSets,
    *,
    num_workers: int,
    keep_map: KeepUnlabelledMap | None = None,
    files: Mapping[int, Sequence[Path]] | None = None,
    resume: bool = False,
) -> Iterator[Scored]:
    """The scores of each set under all settings. Of several processes each takes a part of the images, and all get the
    scores of all.

    Args:
        root: of the dataset; pixels: how its files are read.
        keep_map: takes the maps; of a single setting.
        files: number of a set -> what `keep_map` writes of it.
        resume: take what is kept.

    Raises:
        ValueError: an image that cannot be read, or whose map holds NaN or infinity; names it.
    """
    timer = Timer()
    known = kept.load(sets, files or {}, accelerator) if resume else {}
    banks: dict[str, list[Memory | None]] = {}  # of one class, whose sets follow each other

    def kept_memories(name: str) -> list[Memory | None]:
        if name not in banks:
            banks.clear()
            banks[name] = memories(name)
        return banks[name]

    with Progress(len(sets), "unlabelled", "set", done=len(known), shown=accelerator.is_main_process) as progress:
        for number, one in enumerate(sets):
            if number in known:
                yield known[number]
                continue
            samples = one.samples()
            images = AnomalyDataset(root, samples, built.detector.input_spec, bits=pixels.bits, upright=pixels.exif)
            loader = batches(images, built.batch_size, num_workers, accelerator)
            own: list[tuple[int, int, dict[str, float]]] = []  # setting, index, components
            steps = predictions(built.detector, loader, settings, kept_memories, accelerator, timer)
            for step, reading in one_ahead(steps, accelerator.device):
                with reading:
                    own += _read(step, one, samples, keep_map)
            scores = _joined(flatten(gather(own, accelerator)), len(settings))
            if accelerator.is_main_process:
                kept.keep(number, scores)
            progress.update()
            yield scores
    timer.stop()
    count = sum(len(one.images) for number, one in enumerate(sets) if number not in known)
    if count:
        LOG.info("%d images without labels in %.1f s, %.1f s of that in the backbone", count, *timer.seconds())


def _read(
    step: Step, one: UnlabelledSet, samples: Sequence[Sample], keep_map: KeepUnlabelledMap | None
) -> list[tuple[int, int, dict[str, float]]]:
    """(setting, index, components) of the images of a step, whose maps are handed out."""
    if step.group is None or step.prediction is None:
        return []
    found, indices = [], step.group["index"].tolist()
    check_finite(step.prediction, samples, indices)
    components = {key: values.tolist() for key, values in step.prediction.score_components.items()}
    for row, index in enumerate(indices):
        found.append((step.setting, index, {key: values[row] for key, values in components.items()}))
        if keep_map is not None:
            keep_map(one, one.images[index], step.prediction.maps[row], step.group["sizes"][row])
    return found


def _joined(rows: Sequence[tuple[int, int, dict[str, float]]], settings: int) -> Scored:
    """Setting by setting, in the order of the images."""
    found, ordered = [], sorted(rows, key=lambda row: row[:2])
    for setting in range(settings):
        own = [components for number, _, components in ordered if number == setting]
        found.append(UnlabelledScores(setting, {key: [row[key] for row in own] for key in own[0]}))
    return found
