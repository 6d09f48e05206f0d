"""The results of the classes that a test has finished, kept until all are, so that an interrupted test goes on."""

import base64
import io
import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from PIL import Image

from data.references import FewShotSetting
from dataset import Sample
from engine.evaluation import ClassScores
from metrics.image import IMAGE
from metrics.pixel import PIXEL
from prompt_ensemble import load_prompts
from report.gallery import SelectedImages
from utils.files import file_digest, read_json, write_json
from utils.logs import LOG
from utils.provenance import provenance

FOLDER = "finished"
_LARGEST_PICTURE = 4096  # pixels of a side; far above what the page shows
# Settings on which no result depends, or whose files are looked at instead.
NEUTRAL_SETTINGS = (
    "save_path", "save_memory", "resume", "num_workers", "feature_cache", "feature_cache_size", "meta_path",
    "checkpoint_path", "references", "memory", "prompts",
)  # fmt: skip


class ClassResult(NamedTuple):
    """A class under all settings: scores and metrics, and the pictures of report.html by setting."""

    scores: list[ClassScores]
    galleries: dict[int, SelectedImages]


class FinishedClasses:
    """The results of finished classes, a JSON file each, which appears when the last picture of the class is there.

    Args:
        folder: of the results.
        identity: all that the results depend on, as JSON can hold it; results of anything else are not taken.
        classes: the classes of the test, in order.
    """

    def __init__(self, folder: Path, identity: Any, classes: Sequence[str]):
        self._folder, self._classes = folder / FOLDER, list(classes)
        self.identity = sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def load(
        self, pictures: Mapping[str, Sequence[Path]], samples: Sequence[Sample], settings: int
    ) -> dict[str, ClassResult]:
        """Class -> what an interrupted test has kept of it; says in the log what cannot be used.

        Args:
            pictures: class -> the files that it has written besides, without which it is scored anew.
            samples: the images of the test.
            settings: how many few-shot settings there are.
        """
        found = {}
        for number, name in enumerate(self._classes):
            path = self._file(number)
            if not path.is_file():
                continue
            try:
                held = read_json(path)
                if held["identity"] != self.identity:
                    LOG.info("%s is of other settings, weights or images: '%s' is scored anew", path, name)
                    continue
                missing = next((path for path in pictures[name] if not path.is_file()), None)
                if missing:
                    LOG.info("%s is missing: '%s' is scored anew", missing, name)
                    continue
                indices = [index for index, sample in enumerate(samples) if sample.cls_name == name]
                scores = [ClassScores(**row) for row in held["scores"]]
                _check_scores(scores, name, indices, settings)
                galleries = {int(setting): _decoded(lists, samples) for setting, lists in held["galleries"].items()}
                if not galleries.keys() <= set(range(settings)):
                    raise ValueError("pictures of settings that are none")
                found[name] = ClassResult(scores, galleries)
            except (AttributeError, KeyError, OSError, TypeError, ValueError, Image.DecompressionBombError):
                LOG.warning("%s is broken: '%s' is scored anew", path, name)
        return found

    def keep(self, name: str, finished: ClassResult) -> None:
        """Write the results of a class."""
        held = {
            "identity": self.identity,
            "scores": [asdict(one) for one in finished.scores],
            "galleries": {setting: _encoded(chosen) for setting, chosen in finished.galleries.items()},
        }
        write_json(self._file(self._classes.index(name)), held)

    def remove(self) -> None:
        """What is kept of all classes, once the results are written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.json"  # a class name may be no name for a file


def file_stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells whether files have changed, without reading them: path, bytes, time of the last change; those that are
    there."""
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _check_scores(scores: Sequence[ClassScores], name: str, indices: Sequence[int], settings: int) -> None:
    """Raises ValueError where scores from a file are not those of a class under all settings: whoever can write into
    the folder can have written them."""
    sound = [result.setting for result in scores] == list(range(settings))
    for result in scores:
        sound = sound and result.name == name and result.indices == indices
        sound = sound and result.metrics.keys() == {*PIXEL, *IMAGE}
        sound = sound and all(value is None or _is_number(value) for value in result.metrics.values())
        rows = [result.scores, *result.score_components.values()]
        sound = sound and all(_are_numbers(row) and len(row) == len(indices) for row in rows)
        for x, y in result.curves.values():
            sound = sound and _are_numbers(x) and _are_numbers(y) and len(x) == len(y) > 0
    if not sound:
        raise ValueError("not the scores of this class")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _encoded(chosen: SelectedImages) -> list[list[dict[str, Any]]]:
    return [[{**row, "picture": base64.b64encode(row["picture"]).decode()} for row in rows] for rows in chosen]


def _decoded(lists: Sequence[Sequence[Mapping[str, Any]]], samples: Sequence[Sample]) -> SelectedImages:
    """Raises ValueError, KeyError or TypeError where rows from a file are none of images of the test with a picture."""
    return SelectedImages(*([_decoded_row(row, samples) for row in rows] for rows in lists))


def _decoded_row(row: Mapping[str, Any], samples: Sequence[Sample]) -> Mapping[str, Any]:
    picture = base64.b64decode(row["picture"], validate=True)
    sample = {key: row[key] for key in ("img_path", "cls_name", "specie_name", "anomaly")}
    own = samples[row["index"]] if row["index"] in range(len(samples)) else None
    if own is None or any(getattr(own, key) != value for key, value in sample.items()) or not _is_number(row["score"]):
        raise ValueError("not an image of the test")
    with Image.open(io.BytesIO(picture), formats=["WEBP"]) as opened:  # OSError: no such picture
        if max(opened.size) > _LARGEST_PICTURE:
            raise ValueError("not a picture of the page")
    return {**row, "picture": picture}


def run_identity(
    settings: Any,
    description: Mapping[str, Any],
    accelerator: Accelerator,
    samples: Collection[Sample],
    shots: Sequence[FewShotSetting],
) -> dict[str, Any]:
    """All that the results of a class depend on."""
    own = {key: value for key, value in vars(settings).items() if key not in NEUTRAL_SETTINGS}
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    held = {key: file_digest([path]) for key in ("checkpoint_path", "memory") if (path := getattr(settings, key))}
    versions = {key: value for key, value in provenance().items() if key != "git"}
    # Batches, and with them the last bits of results, follow from the number of processes and the device.
    where = (accelerator.num_processes, accelerator.device.type)
    images = {path for sample in samples for path in (sample.img_path, sample.mask_path) if path}
    images |= {path for shot in shots for paths in shot.references.values() for path in paths}
    files = file_stamps([Path(settings.data_path, path) for path in sorted(images)])
    return {"settings": own, "prompts": prompts, "files": held, "description": description, "versions": versions,
            "where": where, "samples": samples, "shots": shots, "images": files}  # fmt: skip
