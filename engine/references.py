"""Memories of every class and few-shot setting."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.references import ZERO_SHOT, FewShotSetting, choose_shots, draw_shots, load_shots, parse_shots
from dataset import AnomalyDataset, Sample
from engine.encoding import Timer, encode_all, select_rows
from engine.evaluation import batches
from model.memory_bank import Memories


class References:
    """Memories of every class and setting; each reference image is encoded once, when its class is first asked for.

    Of several processes each encodes the references of the classes that it has images of: a few images take less time
    than their tokens, some megabytes each, would take from one process to another.

    Args:
        detector, accelerator: as for `score`.
        settings: few-shot settings with their references.
        load: image paths -> batches of `dataset.AnomalyDataset` over them, in order.
        clock: measures.
    """

    def __init__(
        self,
        detector: Any,
        settings: Sequence[Any],
        load: Callable[[Sequence[str]], DataLoader],
        accelerator: Accelerator,
        clock: Timer | None = None,
    ):
        self._detector, self._settings, self._load, self._accelerator = detector, settings, load, accelerator
        self._clock = clock

    @torch.no_grad()
    def __call__(self, name: str) -> list[Any]:
        """One Memory per setting; None for zero-shot."""
        wanted = [list(setting.references.get(name, ())) for setting in self._settings]
        paths = list(dict.fromkeys(path for paths in wanted for path in paths))
        if not paths:
            return [None] * len(wanted)
        tokens = encode_all(self._detector, self._load(paths), self._accelerator, self._clock)
        row = {path: number for number, path in enumerate(paths)}
        return [self._memory(select_rows(tokens, [row[p] for p in one]), one) if one else None for one in wanted]

    def _memory(self, tokens: Any, paths: list[str]) -> Any:
        return self._detector.build_memory(tokens)._replace(images=tuple(paths))


def drawn_settings(settings, meta: dict[str, list[Sample]], classes: Sequence[str]) -> list[FewShotSetting]:
    """The few-shot settings asked for, from --references or drawn; zero-shot is one of them."""
    if settings.references is not None:
        everything = meta["train"] + meta["test"]
        return load_shots(settings.references, everything, classes, settings.k_shot, settings.seed, meta["test"])
    return [ZERO_SHOT] * (0 in settings.k_shot) + [
        draw_shots(settings.dataset, meta["train"], classes, k_shot, seed)
        for k_shot in dict.fromkeys(settings.k_shot)
        for seed in dict.fromkeys(settings.seed)
        if k_shot > 0
    ]


def stored_settings(settings, stored, classes: Sequence[str]) -> tuple[list[FewShotSetting], Memories]:
    """The settings of a file of memories that the flags ask for (all, where they say nothing), and their memories."""
    header, memories = stored
    try:
        every = parse_shots(header["shots"])
    except (KeyError, ValueError):
        raise ValueError(f"memory {settings.memory}: does not say which settings it holds") from None
    shots = choose_shots(f"memory {settings.memory}", every, settings.k_shot, settings.seed)
    held = {}
    for new, shot in enumerate(shots):
        for name in classes if shot.k_shot > 0 else ():
            held[new, name] = memories.get((every.index(shot), name))
            if held[new, name] is None:
                raise ValueError(f"memory {settings.memory}: holds no references of class '{name}'")
    return shots, held


def draw_memories(
    settings, accelerator: Accelerator, detector, shots: Sequence[FewShotSetting], clock: Timer
) -> References:
    def load(paths: Sequence[str]) -> DataLoader:
        images = [Sample(path, "", "", "", 0) for path in paths]
        dataset = AnomalyDataset(settings.data_path, images, settings.image_size)
        return batches(dataset, settings.batch_size, settings.num_workers, accelerator, shared=False)

    return References(detector, shots, load, accelerator, clock)


def keep_memories(memories_of: Callable[[str], list], kept: dict, settings) -> Callable[[str], list]:
    """`build_memory`, which keeps what it gave where --save_memory asks for it."""

    def kept_memories(name: str) -> list:
        memories = memories_of(name)
        if settings.save_memory:
            kept.update({(number, name): one.cpu() for number, one in enumerate(memories) if one is not None})
        return memories

    return kept_memories
