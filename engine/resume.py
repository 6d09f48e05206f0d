"""Where an interrupted run resumes: a test after its finished classes, whose results are kept until all are there; a
training after its last checkpoint."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from data.meta import Sample
from data.references import FewShotSetting
from data.regions import mask_files
from engine import checkpoint
from engine.class_scores import ClassScores
from engine.loss_log import Step, parse_losses
from metrics.names import IMAGE, PIXEL, Measures
from prompt_ensemble import load_prompts
from utils.files import file_digest, read_json, write_json
from utils.logs import LOG
from utils.provenance import provenance

FOLDER = "finished"
# Settings on which no result depends, or whose files are looked at instead.
NEUTRAL_SETTINGS = (
    "save_path", "save_memory", "submission", "resume", "num_workers", "feature_cache", "feature_cache_size",
    "meta_path", "follow_links", "checkpoint_path", "trained_on", "references", "memory", "prompts",
)  # fmt: skip


class ClassResult(NamedTuple):
    """A class under all settings: scores and metrics, and what the report keeps of it for its page.

    page: setting -> values that JSON can hold, which are passed through unread.
    """

    scores: list[ClassScores]
    page: dict[int, Any]


class FinishedClasses:
    """The results of finished classes, a JSON file each, which appears when the last picture of the class is there.

    Args:
        folder: of the results.
        identity: all that the results depend on, as JSON can hold it; results of anything else are not taken.
        classes: the classes of the test, in order.
        measures: what is measured beside the usual metrics.
    """

    def __init__(self, folder: Path, identity: Any, classes: Sequence[str], measures: Measures | None = None):
        self._folder, self._classes, self._measures = folder / FOLDER, list(classes), measures or Measures()
        self.identity = sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def load(
        self,
        pictures: Mapping[str, Sequence[Path]],
        check_page: Callable[[Any], object],
        samples: Sequence[Sample],
        settings: int,
    ) -> dict[str, ClassResult]:
        """Class -> what an interrupted test has kept of it; says in the log what cannot be used.

        Args:
            pictures: class -> the files that it has written besides, without which it is scored anew.
            check_page: raises ValueError for a value of `ClassResult.page` that the report cannot use.
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
                page = {int(setting): value for setting, value in held["page"].items()}
                for value in page.values():
                    check_page(value)
                if not page.keys() <= set(range(settings)):
                    raise ValueError("pictures of settings that are none")
                scores = [ClassScores(**row) for row in held["scores"]]
                indices = [index for index, sample in enumerate(samples) if sample.cls_name == name]
                _check_scores(scores, name, indices, settings, self._measures)
                found[name] = ClassResult(scores, page)
            except (AttributeError, KeyError, OSError, TypeError, ValueError):
                LOG.warning("%s is broken: '%s' is scored anew", path, name)
        return found

    def keep(self, name: str, finished: ClassResult) -> None:
        """Write the results of a class."""
        held = {
            "identity": self.identity,
            "scores": [asdict(one) for one in finished.scores],
            "page": finished.page,
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


def _check_scores(
    scores: Sequence[ClassScores], name: str, indices: Sequence[int], settings: int, measures: Measures
) -> None:
    """Raises ValueError where scores from a file are not those of a class under all settings: whoever can write into
    the folder can have written them."""
    sound = [result.setting for result in scores] == list(range(settings))
    for result in scores:
        sound = sound and result.name == name and result.indices == indices
        sound = sound and result.metrics.keys() == {*PIXEL, *IMAGE, *measures.metric_names()}
        sound = sound and all(value is None or _is_number(value) for value in result.metrics.values())
        rows = [result.scores, *result.score_components.values()]
        sound = sound and all(_are_numbers(row) and len(row) == len(indices) for row in rows)
        sound = sound and list(result.image_measures) == list(measures.per_image())
        for values in result.image_measures.values():
            known = [value for value in values if value is not None]
            sound = sound and _are_numbers(known) and len(values) == len(indices)
        for x, y in result.curves.values():
            sound = sound and _are_numbers(x) and _are_numbers(y) and len(x) == len(y) > 0
    if not sound:
        raise ValueError("not the scores of this class")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def run_identity(
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
    accelerator: Accelerator,
    root: str,
    samples: Sequence[Sample],
    shots: Sequence[FewShotSetting],
    checkpoint_path: Path | None,
    memory: str | None,
) -> dict[str, Any]:
    """All that the results of a class depend on.

    settings: by name; those of NEUTRAL_SETTINGS are passed over.
    """
    own = {key: value for key, value in settings.items() if key not in NEUTRAL_SETTINGS}
    prompts = None if settings["prompts"] is None else load_prompts(settings["prompts"])
    files = {"checkpoint_path": checkpoint_path, "memory": memory}
    held = {key: file_digest([path]) for key, path in files.items() if path}
    versions = {key: value for key, value in provenance().items() if key != "git"}
    # Batches, and with them the last bits of results, follow from the number of processes and the device.
    where = (accelerator.num_processes, accelerator.device.type)
    images = {sample.img_path for sample in samples}
    images |= {path for shot in shots for paths in shot.references.values() for path in paths}
    paths = {Path(root, path) for path in images}
    paths |= {file for sample in samples if sample.mask_path for file in mask_files(Path(root, sample.mask_path))}
    stamps = file_stamps(sorted(paths))
    return {"settings": own, "prompts": prompts, "files": held, "description": description, "versions": versions,
            "where": where, "samples": samples, "shots": shots, "images": stamps}  # fmt: skip


def resume_training(
    last: checkpoint.Checkpoint, optimizer: torch.optim.Optimizer, run: Mapping[str, Any], names: Sequence[str]
) -> tuple[int, list[Step]]:
    """Restore the optimiser; returns the epoch that is done and the steps so far.

    Args:
        run: settings that must be as they were.
        names: of the parts of the loss.

    Raises:
        ValueError: another setting, or a broken file; names both.
    """
    checkpoint.check_compatible(f"checkpoint {last.path} was trained", last.meta, run, run)
    if "optimizer" not in last.meta:
        raise ValueError(f"checkpoint {last.path}: holds no optimiser to resume from; pass it by --init_checkpoint")
    done: Any = last.meta.get("epoch")
    try:
        optimizer.load_state_dict(last.meta["optimizer"])
        fits = (
            type(done) is int
            and last.path.name in (f"epoch_{done}.pth", checkpoint.UNFINISHED)
            and all(
                isinstance(moments["step"], Tensor)
                and moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape
                for parameter, moments in optimizer.state.items()
            )
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"checkpoint {last.path}: its optimiser or epoch is broken; pass it by --init_checkpoint")
    if "losses" in last.meta:
        return done, parse_losses(last.path, last.meta["losses"], names)
    path = last.path.parent / "losses.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return done, [step for step in parse_losses(path, text, names) if step.epoch <= done]
