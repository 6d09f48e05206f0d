"""Memories of every class and few-shot setting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.meta import PixelSettings
from data.references import ZERO_SHOT, FewShotSetting, choose_shots, draw_shots, load_shots, parse_shots
from dataset import AnomalyDataset, Sample
from engine.encoding import Timer, encode_all, select_rows
from engine.evaluation import batches
from model import capabilities
from model.interface import Memory, ScoringDetector
from model.memory_bank import Memories

MemorySource = Callable[[str], list[Memory | None]]  # class name -> a Memory per setting; None for zero-shot


class References:
    """Memories of every class and setting; each reference image is encoded once, when its class is first asked for.

    Of several processes each encodes the references of the classes that it has images of: a few images take less time
    than their tokens, some megabytes each, would take from one process to another.

    Args:
        detector, accelerator: as for `score`.
        settings: few-shot settings with their references.
        root: of the dataset.
        batch_size, num_workers: see `evaluation.batches`.
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
        self._root, self._pixels = root, pixels or PixelSettings()
        self._batch_size, self._num_workers = batch_size, num_workers

    @torch.no_grad()
    def __call__(self, name: str) -> list[Memory | None]:
        """One Memory per setting; None for zero-shot."""
        wanted = [list(setting.references.get(name, ())) for setting in self._settings]
        paths = list(dict.fromkeys(path for paths in wanted for path in paths))
        if not paths:
            return [None] * len(wanted)
        tokens = encode_all(self._detector, self._load(paths), self._accelerator, self._timer)
        row = {path: number for number, path in enumerate(paths)}
        return [self._memory(select_rows(tokens, [row[p] for p in one]), one) if one else None for one in wanted]

    def _load(self, paths: Sequence[str]) -> DataLoader[Any]:
        images = [Sample(path, "", "", "", 0) for path in paths]
        dataset = AnomalyDataset(
            self._root, images, self._detector.input_spec, bits=self._pixels.bits, upright=self._pixels.exif
        )
        return batches(dataset, self._batch_size, self._num_workers, self._accelerator, shared=False)

    def _memory(self, tokens: Any, paths: list[str]) -> Memory:
        return self._detector.build_memory(tokens)._replace(images=tuple(paths))


def few_shot_settings(
    references: str | None,
    k_shot: Sequence[int] | None,
    seed: Sequence[int] | None,
    dataset: str,
    meta: Mapping[str, list[Sample]],
    classes: Sequence[str],
) -> list[FewShotSetting]:
    """The settings asked for, from a file of --references or drawn; zero-shot is one of them.

    k_shot, seed: of the draw; with a file they choose among its settings, None takes all.
    """
    if references is not None:
        return load_shots(references, meta["train"] + meta["test"], classes, k_shot, seed, meta["test"])
    k_shot, seed = list(k_shot or ()), list(seed or ())
    return [ZERO_SHOT] * (0 in k_shot) + [
        draw_shots(dataset, meta["train"], classes, one_k, one_seed)
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
