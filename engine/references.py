"""Memories of every class and few-shot setting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.meta import PixelSettings
from data.references import (
    ZERO_SHOT,
    FewShotSetting,
    PublishedDraw,
    choose_shots,
    draw_as_published,
    draw_shots,
    load_shots,
    parse_shots,
)
from data.views import PLAIN, ImageViews
from dataset import ReferenceViews, Sample
from engine.batches import batches
from engine.encoding import Timer, encode_each
from model import capabilities
from model.interface import Memory, ScoringDetector
from model.memory_bank import Memories
from model.tokens import join_tokens, token_bytes
from utils.logs import LOG
from utils.progress import tracked

MemorySource = Callable[[str], list[Memory | None]]  # class name -> a Memory per setting; None for zero-shot


@torch.no_grad()
def read_references(
    detector: ScoringDetector,
    images: Sequence[tuple[Path, ImageViews]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    pixels: PixelSettings,
    timer: Timer | None = None,
) -> list[Any]:
    """Of each reference image what `FewShotDetector.build_memory` takes of it.

    Args:
        images: file and views of each.
        batch_size, num_workers: see `engine.batches.batches`; a view is an image.
        pixels: how the files are read.

    Raises:
        ValueError: a file that cannot be read; names it.
    """
    every = [(path, view) for path, views in images for one_pass in views for view in one_pass]
    dataset = ReferenceViews(every, detector.input_spec, bits=pixels.bits, upright=pixels.exif)
    loader = batches(dataset, batch_size, num_workers, accelerator, shared=False)
    tokens = encode_each(detector, loader, accelerator, timer)
    references = []
    # One after the other: of many views of large images not all fit into memory.
    for _, views in tracked(images, "references", "image", shown=accelerator.is_main_process, leave=False):
        passes = [join_tokens([next(tokens) for _ in one_pass]) for one_pass in views]
        references.append(detector.summarize(passes) if hasattr(detector, "summarize") else passes[0])
    return references


class References:
    """Memories of every class and setting; each reference image is encoded once in each of its views, when its class is
    first asked for.

    Of several processes each encodes the references of the classes that it has images of: a few images take less time
    than their tokens, some megabytes each, would take from one process to another.

    Args:
        detector, accelerator: as for `score`.
        settings: few-shot settings with their references.
        root: of the dataset.
        batch_size, num_workers: see `engine.batches.batches`.
        pixels: how the dataset's files are read.
        timer: measures.
    """

    def __init__(
        self,
        detector: ScoringDetector,
        settings: Sequence[FewShotSetting],
        accelerator: Accelerator,
        *,
        root: str | Path,
        batch_size: int,
        num_workers: int,
        pixels: PixelSettings | None = None,
        timer: Timer | None = None,
    ):
        self._detector, self._settings, self._accelerator, self._timer = detector, settings, accelerator, timer
        self._root, self._pixels = Path(root), pixels or PixelSettings()
        self._batch_size, self._num_workers = batch_size, num_workers

    def __call__(self, name: str) -> list[Memory | None]:
        """One Memory per setting; None for zero-shot."""
        wanted = [self._wanted(setting, name) for setting in self._settings]
        images = list(dict.fromkeys(image for one in wanted for image in one))
        if not images:
            return [None] * len(wanted)
        read = read_references(
            self._detector, [(self._root / path, views) for path, views in images], self._accelerator,
            batch_size=self._batch_size, num_workers=self._num_workers, pixels=self._pixels, timer=self._timer,
        )  # fmt: skip
        references = dict(zip(images, read, strict=True))
        labels = {
            (path, views): path if views == PLAIN else f"{path}, views {number}"
            for number, (path, views) in enumerate(images)
        }
        return [self._memory(one, references, labels) if one else None for one in wanted]

    def _wanted(self, setting: FewShotSetting, name: str) -> list[tuple[str, ImageViews]]:
        """Path and views of a setting's references."""
        paths = list(setting.references.get(name, ()))
        return list(zip(paths, setting.views.get(name, [PLAIN] * len(paths)), strict=True))

    def _memory(
        self,
        images: Sequence[tuple[str, ImageViews]],
        references: Mapping[tuple[str, ImageViews], Any],
        labels: Mapping[tuple[str, ImageViews], str],
    ) -> Memory:
        own = [references[image] for image in images]
        memory = self._detector.build_memory(own)
        equal = len({token_bytes(one) for one in own}) == 1  # parts of the banks
        return memory._replace(images=tuple(labels[image] for image in images)) if equal else memory


def with_views(
    detector: ScoringDetector, method: str, settings: Sequence[FewShotSetting], dataset: str, classes: Sequence[str]
) -> list[FewShotSetting]:
    """The settings for some classes, with the views of their references: those that a file recorded of this method,
    else drawn by it."""
    own = [one._replace(references={name: one.references[name] for name in classes}) if one.k_shot else one
           for one in settings]  # fmt: skip
    takes = hasattr(detector, "draw_views")
    foreign = [one for one in own if one.views and not (takes and one.views_of in (None, method))]
    if foreign:
        instead = f"{method} draws its own" if takes else f"{method} sees references as they are"
        LOG.warning("--references: the views of %s are not used; %s", foreign[0].views_of or "the file", instead)
    return [_with_views(detector, method, one, dataset, takes and one.k_shot > 0, one in foreign) for one in own]


def _with_views(
    detector: Any, method: str, setting: FewShotSetting, dataset: str, takes: bool, foreign: bool
) -> FewShotSetting:
    if not takes:
        return setting._replace(views={}, views_of=None)
    if setting.views and not foreign:
        LOG.info("views of references are those that the file recorded, whatever flags say of them")
        return setting._replace(views={name: setting.views[name] for name in setting.references}, views_of=method)
    views = detector.draw_views(setting.references, dataset, setting.seed)
    return setting._replace(views=views, views_of=method)


def few_shot_settings(
    references: str | None,
    k_shot: Sequence[int] | None,
    seed: Sequence[int] | None,
    dataset: str,
    meta: Mapping[str, list[Sample]],
    classes: Sequence[str],
    published: PublishedDraw | None = None,
) -> list[FewShotSetting]:
    """The settings asked for, from a file of --references or drawn; zero-shot is one of them.

    k_shot, seed: of the draw; with a file they choose among its settings, None takes all.
    published: the method's own draw, instead of this toolkit's.
    """
    if references is not None:
        return load_shots(references, meta["train"] + meta["test"], classes, k_shot, seed, meta["test"])
    k_shot, seed = list(k_shot or ()), list(seed or ())
    return [ZERO_SHOT] * (0 in k_shot) + [
        draw_shots(dataset, meta["train"], classes, one_k, one_seed)
        if published is None
        else draw_as_published(published, dataset, meta["train"], classes, one_k, one_seed)
        for one_k in dict.fromkeys(k_shot)
        for one_seed in dict.fromkeys(seed)
        if one_k > 0
    ]


def check_settings(method: str, settings: Sequence[FewShotSetting]) -> None:
    """Raises ValueError where one of the settings is zero-shot and the method is not."""
    if not capabilities(method).zero_shot and any(setting.k_shot == 0 for setting in settings):
        raise ValueError(f"{method} requires references, and one of the settings has none; leave 0 out of --k_shot")


def stored_settings(
    path: str,
    header: Mapping[str, Any],
    memories: Memories,
    k_shot: Sequence[int] | None,
    seed: Sequence[int] | None,
    classes: Sequence[str],
) -> tuple[list[FewShotSetting], "StoredReferences"]:
    """The settings of a file of --save_memory that the flags ask for (all, where they are None), and their memories.

    header, memories: see `memory_bank.load`.
    """
    try:
        every = parse_shots(header["shots"])
    except (KeyError, ValueError):
        raise ValueError(f"memory {path}: does not say which settings it holds") from None
    shots = choose_shots(f"memory {path}", every, k_shot, seed)
    held: Memories = {}
    for new, shot in enumerate(shots):
        for name in classes if shot.k_shot > 0 else ():
            memory = memories.get((every.index(shot), name))
            if memory is None:
                raise ValueError(f"memory {path}: holds no references of class '{name}'")
            held[new, name] = memory
    return shots, StoredReferences(held, len(shots))


class StoredReferences:
    """Memories out of a file, as `References` gives them."""

    def __init__(self, held: Memories, settings: int):
        self._held, self._settings = held, settings

    def __call__(self, name: str) -> list[Memory | None]:
        """One Memory per setting; None for zero-shot."""
        return [self._held.get((number, name)) for number in range(self._settings)]


class KeptReferences:
    """What another source gives, kept in main memory in `kept` for --save_memory."""

    def __init__(self, source: MemorySource):
        self._source = source
        self.kept: Memories = {}

    def __call__(self, name: str) -> list[Memory | None]:
        """One Memory per setting; None for zero-shot."""
        memories = self._source(name)
        self.kept.update({(number, name): one.cpu() for number, one in enumerate(memories) if one is not None})
        return memories
