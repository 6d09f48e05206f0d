"""From batches of images to tokens: the passes of the backbone, and how long they take."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from model.interface import Detector, ScoringDetector


class Timer:
    """How long scoring takes, and how much of that the backbone: seconds of wall time from the first batch on.

    On a GPU the backbone's time is what the device spends on it.
    """

    def __init__(self) -> None:
        self._start = self._stop = self._backbone = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """The first batch is there."""
        self._start = self._start or time.perf_counter()

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


def encode(detector: Detector, images: Tensor, accelerator: Accelerator, timer: Timer) -> Any:
    """Tokens of a batch, (B, 3, S, S) uint8 RGB, in the precision of the run."""
    images = images.to(accelerator.device, non_blocking=True)
    with timer.backbone(accelerator.device), accelerator.autocast():
        return detector.encode(images)


@torch.no_grad()
def encode_all(
    detector: Detector, batches: Iterable[Mapping[str, Any]], accelerator: Accelerator, timer: Timer | None = None
) -> Any:
    """Tokens of all images of some batches, as one bundle."""
    timer = timer or Timer()
    return _join([encode(detector, batch["image"], accelerator, timer) for batch in batches])


def _join(bundles: Sequence[Any]) -> Any:
    """Concatenate the tensors of equal bundles (nested tuples and dicts) along the batch."""
    first = bundles[0]
    if isinstance(first, Tensor):
        return torch.cat(list(bundles))
    if isinstance(first, Mapping):
        return {key: _join([bundle[key] for bundle in bundles]) for key in first}
    if hasattr(first, "_fields"):
        return type(first)(*map(_join, zip(*bundles, strict=True)))
    return first


def select_rows(bundle: Any, rows: list[int]) -> Any:
    """The given images of a bundle."""
    if isinstance(bundle, Tensor):
        return bundle[rows]
    if isinstance(bundle, Mapping):
        return {key: select_rows(value, rows) for key, value in bundle.items()}
    if hasattr(bundle, "_fields"):
        return type(bundle)(*(select_rows(value, rows) for value in bundle))
    return bundle
