"""A test run: what is scored, where an interrupted one resumes, every class scored once and kept until all are done."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from accelerate import Accelerator

from data.defect_kinds import DefectKind
from data.meta import PixelSettings, Sample, Samples, read, read_defects, read_settings
from data.references import FewShotSetting
from dataset import AnomalyDataset, OnRead, select
from engine.batched import score_sets
from engine.batches import batches
from engine.build import Built
from engine.class_scores import ClassScores
from engine.encoding import Timer
from engine.evaluation import score
from engine.ground_truth import Measuring
from engine.references import KeptReferences, MemorySource
from engine.resume import FOLDER, ClassResult, FinishedClasses
from model import memory_bank
from utils.distributed import gather
from utils.files import atomic_write, clear_leftovers, clear_results, read_json
from utils.logs import LOG, Lines, log_to

TABLES = ("table.md", "report.html", "metrics.json", "metrics.csv", "predictions.csv", "k_shot.json")
MORE = ("thresholds.json", "unlabelled.csv")  # of some runs
PICTURES = ("imgs", "maps", FOLDER)
PATIENCE = 10  # seconds that an interrupted test waits for the pictures of a class that is scored
WAITING = (".maps-*", ".thumbnails-*", "imgs/.maps-*")  # what a killed process leaves, of this version or an older one


class ScoredData(NamedTuple):
    """What is scored. everything: all samples of the dataset, by split; pixels: how its files are read; defects: class
    -> its kinds of defects, where the dataset knows them."""

    everything: Samples
    samples: list[Sample]
    classes: list[str]
    pixels: PixelSettings
    defects: Mapping[str, Mapping[int, DefectKind]]


def read_dataset(root: str, meta_path: str | None, classes: Sequence[str] | None, *, follow_links: bool) -> ScoredData:
    """The test split of the given classes (None: of all). Raises as `data.meta.read` and `dataset.select`."""
    everything = read(root, meta_path, follow_links=follow_links)
    samples = select(everything["test"], classes)
    names = list(dict.fromkeys(sample.cls_name for sample in samples))
    return ScoredData(everything, samples, names, read_settings(root, meta_path), read_defects(root, meta_path))


class MapSink(AbstractContextManager["MapSink"], Protocol):
    """Who takes the maps of a scoring pass, and makes of each finished class what is kept for the page, unread here.
    `report.map_files.MapFiles` is one.

    beside: whether pictures are drawn beside the pass, so that they lag.
    previews: who wants to see the images when they are read, known from `__enter__` on; None: nobody.
    """

    beside: bool
    previews: OnRead | None

    def keep(self, setting: int, index: int, one: np.ndarray, foreground: np.ndarray | None = None) -> None:
        """See `engine.class_scores.KeepMap`."""

    def finish(self, result: ClassScores) -> None:
        """All maps of a class under a setting have come."""

    def is_drawn(self, name: str, within: float) -> bool:
        """Whether `settle` will not have to wait, within so many seconds."""

    def settle(self, name: str) -> None:
        """Wait until all pictures of a class are there; of several processes each calls it."""

    def page_values(self, name: str) -> dict[int, Any]:
        """What is kept of a class for the page, by setting."""

    def restore(self, name: str, page: Mapping[int, Any]) -> None:
        """Take back what `page_values` gave in an interrupted run."""


@dataclass(frozen=True)
class TestFolder:
    """Where the results of a test go.

    Args:
        path: of --save_path.
        finished: what is kept of finished classes.
        expected: class -> the pictures and maps that it is to have.
        samples: what is scored; settings: number of the few-shot settings.
        few_shot: whether there are references.
        save_memory: the file of --save_memory.
        more: what there is besides when all is done.
    """

    __test__ = False  # no class of tests, whatever pytest takes its name for

    path: Path
    finished: FinishedClasses
    expected: Mapping[str, Sequence[Path]]
    samples: Sequence[Sample]
    settings: int
    few_shot: bool
    save_memory: str | None
    more: Sequence[Path] = ()

    def begin(
        self, accelerator: Accelerator, restore_page: Callable[[Any], Any], *, resume: bool
    ) -> dict[str, ClassResult] | None:
        """Prepare the folder and its log. Returns the results of classes that an interrupted test has finished; None
        where the whole test has ended already, and its results are left as they are.

        restore_page: what a finished class has kept for the page, from JSON.
        """
        is_main = accelerator.is_main_process
        if gather(resume and is_main and self._is_whole(), accelerator)[0]:
            log_to(self.path, append=True, quiet=not is_main)
            table = Lines((self.path / "table.md").read_text(encoding="utf-8"))
            LOG.info("%s\nnothing to resume: these results are in %s", table, self.path)
            self.finished.remove()  # of a test that was killed after the last table
            return None
        known = (
            self.finished.load(self.expected, restore_page, self.samples, self.settings) if resume and is_main else {}
        )
        if is_main:
            clear_results(self.path, (*TABLES, *MORE, *WAITING, *(() if known else PICTURES)))
            clear_leftovers(self.path, PICTURES)
        known = gather(known, accelerator)[0]  # nobody may write where the first process still clears
        log_to(self.path, append=bool(known), quiet=not is_main)
        return known

    def _is_whole(self) -> bool:
        """Whether a test of this identity has ended here, and all that it has written is there."""
        files = [self.path / name for name in TABLES if name != "k_shot.json" or self.few_shot]
        files += [Path(self.save_memory)] if self.save_memory else []
        files += self.more
        try:
            identity = read_json(self.path / "config.json")["description"]["identity"]
        except (KeyError, OSError, TypeError, ValueError):
            return False
        every = chain(files, *self.expected.values())
        return bool(identity == self.finished.identity) and all(path.is_file() for path in every)


def score_classes(
    built: Built,
    data: ScoredData,
    root: str,
    shots: Sequence[FewShotSetting],
    memories: MemorySource,
    accelerator: Accelerator,
    files: MapSink,
    folder: TestFolder,
    known: Mapping[str, ClassResult],
    *,
    batched: bool,
    num_workers: int,
    timer: Timer,
    measuring: Measuring | None = None,
) -> list[ClassScores]:
    """The results of all classes under all settings; those that are known are not scored again.

    Args:
        root: of the dataset.
        files: takes the maps.
        batched: score the images of a class together.
        num_workers: processes that read images.
        measuring: what is measured beside the usual metrics.
    """
    if hasattr(built.detector, "check_classes"):
        built.detector.check_classes(data.classes)
    samples, pixels = data.samples, data.pixels
    first = next((index for index, sample in enumerate(samples) if sample.cls_name not in known), len(samples))
    results = [result for one in known.values() for result in one.scores]
    for name, one in known.items():
        files.restore(name, one.page)
    with files:
        images = AnomalyDataset(
            root, samples, built.detector.input_spec, bits=pixels.bits, upright=pixels.exif,
            raw=accelerator.device.type == "cuda" and not batched, on_read=files.previews,
        )  # fmt: skip
        if batched:
            scored = score_sets(
                built.detector, images, samples, accelerator, files.keep, batch_size=built.batch_size,
                num_workers=num_workers, timer=timer, folder=folder.path, finished=known, measuring=measuring,
            )  # fmt: skip
        else:
            loader = batches(images, built.batch_size, num_workers, accelerator, first=first)
            rest = (accelerator, files.keep, timer, known, measuring)
            scored = score(built.detector, loader, samples, shots, memories, *rest)
        _collect(scored, results, len(shots), files, folder, accelerator)
    if first < len(samples):
        LOG.info("%d images in %.1f s, %.1f s of that in the backbone", len(samples) - first, *timer.seconds())
    if built.detector.backbone.cache:
        built.detector.backbone.cache.log()
    return results


def _collect(
    scored: Iterator[ClassScores],
    results: list[ClassScores],
    settings: int,
    files: MapSink,
    folder: TestFolder,
    accelerator: Accelerator,
) -> None:
    """Add what is scored to the results, and keep each class as soon as its pictures are there."""
    lagging: list[str] = []  # classes whose pictures may lag: one at most, which bounds what waits
    settle = functools.partial(_settle, results, files, folder, accelerator)
    try:
        for result in scored:
            files.finish(result)
            results.append(result)
            if result.setting == settings - 1:  # the last of its class
                lagging.append(result.name)
                while len(lagging) > files.beside:
                    settle(lagging.pop(0))
    except KeyboardInterrupt:
        for name in lagging if accelerator.num_processes == 1 else ():
            if files.is_drawn(name, PATIENCE):
                settle(name)
        raise
    for name in lagging:
        settle(name)


def _settle(
    results: Sequence[ClassScores], files: MapSink, folder: TestFolder, accelerator: Accelerator, name: str
) -> None:
    """Keep a class that is scored, as soon as its pictures are there."""
    files.settle(name)
    accelerator.wait_for_everyone()  # until each process has drawn its pictures
    if accelerator.is_main_process:
        own = [result for result in results if result.name == name]
        folder.finished.keep(name, ClassResult(own, files.page_values(name)))


def save_memories(
    path: str,
    memories: KeptReferences,
    classes: Sequence[str],
    shots: Sequence[FewShotSetting],
    description: Mapping[str, Any],
) -> None:
    """Write the memories of all classes and settings to one file; description: what they were made with."""
    for name in set(classes) - {name for _, name in memories.kept}:  # of which this process had no image
        memories(name)
    header = {**description, "shots": [shot.as_dict() for shot in shots]}
    with atomic_write(path) as temporary:
        memory_bank.save(temporary, memories.kept, header)
