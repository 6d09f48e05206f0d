"""From batches of images to tokens: the passes of the backbone, and how long they take."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from model.interface import Detector, ScoringDetector
from model.tokens import split_tokens


class Timer:
    """How long scoring takes, and how much of that the backbone: seconds of wall time from the first batch on.

    On a GPU the backbone's time is what the device spends on it.
    """

    def __init__(self) -> None:
        self._start = self._stop = self._backbone = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """The first batch is there. What the backbone has done before it, as for thresholds, does not count."""
        if not self._start:
            self._start, self._backbone = time.perf_counter(), 0.0
            self._events.clear()

    def stop(self) -> None:
        """The last metrics are there."""
        self._stop = time.perf_counter()

    @contextlib.contextmanager
    def backbone(self, device: torch.device) -> Iterator[None]:
        """Around a call of the backbone."""
        if device.type == "cuda":  # which only takes note of work here, and does it later
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
            yield
            self._events[-1][1].record()
        else:
            start = time.perf_counter()
            yield
            self._backbone += time.perf_counter() - start

    def seconds(self) -> tuple[float, float]:
        """(in all, in the backbone)"""
        if self._events:
            torch.cuda.synchronize()
        on_device = sum(before.elapsed_time(after) for before, after in self._events) / 1000
        return self._stop - self._start, self._backbone + on_device


def encode_texts(detector: ScoringDetector, names: Sequence[str]) -> None:
    """Encode the texts of class names, of a method that compares images with texts."""
    if detector.needs_text:
        detector.encode_names(names)


def encode(
    detector: Detector, images: Tensor, accelerator: Accelerator, timer: Timer, map_size: tuple[int, int] | None = None
) -> Any:
    """Tokens of a batch, (B, 3, h, w) uint8 RGB, in the precision of the run.

    map_size: (H, W) of the wanted maps, of a detector whose maps are as large as the pictures.
    """
    images = images.to(accelerator.device, non_blocking=True)
    with timer.backbone(accelerator.device), accelerator.autocast():
        if detector.input_spec.keeps_shape:
            return detector.encode(images, map_size)  # type: ignore[call-arg]
        return detector.encode(images)


@torch.no_grad()
def encode_each(
    detector: Detector,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    accelerator: Accelerator,
    timer: Timer | None = None,
) -> Iterator[Any]:
    """The tokens of each image of some batches, a bundle of one, in the order of the images."""
    timer = timer or Timer()
    for batch in batches:
        found: dict[int, Any] = {}
        for group in batch:
            tokens = encode(detector, group["image"], accelerator, timer, group["map_size"])
            found.update(zip(group["index"].tolist(), split_tokens(tokens, len(group["image"])), strict=True))
        yield from (found[index] for index in sorted(found))
