"""The training epoch and the scoring pass; they know a detector by its protocol alone."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from utils.losses import dice, focal
from utils.metrics import PixelMetrics, Points, image_metrics, label_regions
from utils.processes import Rounds, apart, collect, each_round, flat, gather, skipped

CPU_BATCH = 16  # of --batch_size auto, where there is no memory of a GPU to fill
_LARGEST_BATCH = 128

# --- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """The losses of one training step; loss is what was minimised, the sum of the parts over all maps."""

    epoch: int
    step: int
    loss: float
    focal: float
    dice: float


def train_epoch(
    detector: torch.nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    epoch: int,
    *,
    first: int = 1,
    before_step: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Step], bool]:
    """One pass over the data; the trainable parts minimise focal + dice, summed over the detector's maps.

    Of several processes each takes its part of every batch. Losses are means over images, so a part counts by its share
    of the images, and losses and gradients, added up, are those of the whole batch in one process.

    Args:
        loader: on `processes.Rounds`; with one process, batches of any kind.
        first: number of the first step; the loader leaves out the batches before it.
        before_step: called with the number of the step that comes; seeds what is drawn in it.
        stop: asked in each step whether it is the last one; one process that says so stops all.

    Returns:
        The steps, and whether `stop` has ended them; the same on all processes.

    Raises:
        ValueError: the loss is NaN or infinite; the weights are those before that step.
    """
    detector.train()
    steps, stopping = [], 0.0
    bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", disable=None if accelerator.is_main_process else True)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, (length, batch) in enumerate(each_round(loader), start=first):
        before_step(number)
        if batch is None:  # takes part in the sums all the same
            parts = torch.stack([0 * sum(parameter.sum() for parameter in trained)] * 3)
        else:
            parts = _losses(detector, batch, accelerator) * (len(batch["cls_name"]) / length)
        told = torch.cat([parts.detach(), parts.new_tensor([stop()])])  # (4,)
        *shown, stopping = accelerator.reduce(told, "sum").tolist()
        steps.append(Step(epoch, number, *shown))
        if not np.isfinite(steps[-1].loss):
            raise ValueError(
                f"the loss is {steps[-1].loss} at epoch {epoch}, step {number}; lower --learning_rate or use "
                "--precision fp32"
            )
        optimizer.zero_grad()
        accelerator.backward(parts[0])
        _add_up_gradients(trained, accelerator)
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{steps[-1].loss:.3f}")
        if stopping:
            break
    bar.close()
    return steps, stopping > 0


def _losses(detector: torch.nn.Module, batch: Mapping[str, Any], accelerator: Accelerator) -> Tensor:
    """(3,): their sum, focal, dice."""
    images, masks = (batch[key].to(accelerator.device, non_blocking=True) for key in ("image", "mask"))
    with accelerator.autocast():
        probabilities = detector(images, batch["cls_name"])  # each (B, 2, S, S)
    focal_loss = torch.stack([focal(p.float(), masks) for p in probabilities]).sum()
    dice_loss = torch.stack([dice(p[:, 1].float(), masks) for p in probabilities]).sum()
    return torch.stack([focal_loss + dice_loss, focal_loss, dice_loss])


def _add_up_gradients(parameters: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Over all processes, in one message."""
    if accelerator.num_processes == 1:
        return
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    total = accelerator.reduce(torch.cat([one.flatten() for one in own]), "sum")
    for one, part in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one).clone()


# --- scoring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScores:
    """One class under one setting: its metrics and, per image in the order of the samples, scores and their terms."""

    setting: int  # index into the settings
    name: str
    metrics: dict[str, float | None]
    indices: list[int]  # of the images, into the samples
    scores: list[float]
    terms: dict[str, list[float]]
    curves: dict[str, Points]  # of the pixels


class Clock:
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


@dataclass
class _Pending:
    """What one process has seen of a class under one setting."""

    pixels: PixelMetrics | None
    indices: list[int] = field(default_factory=list)
    # Numbers, no tensors: thousands of small ones that live long, between large ones that do not, scatter the heap.
    terms: dict[str, list[float]] = field(default_factory=dict)


def batches(
    dataset: Any, batch_size: int, num_workers: int, accelerator: Accelerator, *, shared: bool = True, first: int = 0
) -> DataLoader:
    """Batches to be scored, in order. The workers read the images and label the regions of the masks.

    Args:
        dataset: `dataset.AnomalyDataset`, or any whose items lack the mask.
        batch_size: images at a time, in each process.
        num_workers: processes that read; 0 reads in this one.
        shared: dealt to all processes, see `processes.Rounds`; else every process has all of them.
        first: the first image that is needed; batches before it are left out, those that follow stay what they are.
    """
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if shared else (0, 1)
    return DataLoader(
        dataset,
        batch_sampler=Rounds(range(len(dataset)), batch_size * ranks, rank, ranks, first // (batch_size * ranks)),
        num_workers=min(num_workers, len(dataset)),
        collate_fn=_collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=apart,
    )


def _collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    batch = default_collate(items)
    if "mask" in batch:
        batch["regions"] = _regions(batch["mask"])
    return batch


def _regions(masks: Tensor) -> Tensor:
    """(B, S, S) int32, for each mask as `label_regions` gives them."""
    return torch.from_numpy(np.stack([label_regions(mask) for mask in masks.numpy()]))


def score(
    detector: Any,
    loader: DataLoader,
    samples: Sequence[Any],
    settings: Sequence[Any],
    memories: Callable[[str], Sequence[Any]],
    accelerator: Accelerator,
    keep_map: Callable[[int, int, np.ndarray], None] | None = None,
    clock: Clock | None = None,
    finished: Collection[str] = (),
) -> Iterator[ClassScores]:
    """Score all samples under all settings in one backbone pass; yields a class's results when it is complete.

    Of several processes each scores its batches. What they counted is merged when the last image of a class has been
    seen, and every process yields the same results: consume them on all.

    Args:
        detector: as `model.interface.Detector` says.
        loader: `batches` over the samples.
        samples: the samples; a class's follow each other.
        settings: few-shot settings; k_shot 0 is zero-shot.
        memories: class name -> a Memory per setting.
        accelerator: device, precision and processes.
        keep_map: called with (setting, index of the sample, map (S, S) float32) for every map of this process.
        clock: measures.
        finished: classes that need no results. Those of their images that the loader has are seen all the same, so
            that no number depends on them.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    clock = clock or Clock()
    last = {sample.cls_name: index for index, sample in enumerate(samples)}
    segmented = _classes_with_masks(samples)
    pending: dict[tuple[int, str], _Pending] = {}
    banks: dict[str, Sequence[Any]] = {}
    done = skipped(loader)
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=len(samples), initial=min(done, len(samples)), desc="score", unit="image", disable=hidden)
    for length, batch in each_round(loader):
        clock.start()
        if batch is not None:
            names, indices = batch["cls_name"], batch["index"].tolist()
            banks.update({name: memories(name) for name in dict.fromkeys(names) if name not in banks})
            regions = batch["regions"] if "regions" in batch else _regions(batch["mask"])
            regions = regions.to(accelerator.device, non_blocking=True)
            predictions = _predict(detector, batch["image"], names, settings, banks, accelerator, clock)
            for setting, prediction in enumerate(predictions):
                _check_finite(prediction, samples, indices)
                for name, rows in _rows_by_name(names).items():
                    if name in finished:
                        continue
                    state = pending.setdefault((setting, name), _Pending(PixelMetrics() if name in segmented else None))
                    state.indices += indices[rows] if isinstance(rows, slice) else [indices[row] for row in rows]
                    for key, term in prediction.terms.items():
                        state.terms.setdefault(key, []).extend(term[rows].tolist())
                    if state.pixels is not None:
                        state.pixels.update(prediction.maps[rows].float(), regions[rows])
                if keep_map is not None:
                    for name, index, one in zip(names, indices, prediction.maps.float().cpu().numpy(), strict=True):
                        if name not in finished:
                            keep_map(setting, index, one)
        done += length
        bar.update(length)
        for name in [name for name, index in last.items() if index < done]:
            last.pop(name)
            banks.pop(name, None)
            if name in finished:
                continue
            found = [pending.pop((setting, name), _Pending(None)) for setting in range(len(settings))]
            yield from _finish_class(detector, name, found, samples, accelerator)
    bar.close()
    clock.stop()


@torch.no_grad()
def infer(detector: Any, images: Tensor, name: str, memory: Any | None, accelerator: Accelerator) -> Any:
    """The prediction for images of one class, (B, 3, S, S) uint8; memory: its references, None for zero-shot."""
    tokens = _encode(detector, images, accelerator, Clock())
    return _fuse(detector, tokens, [name] * len(images), memory)


def _fuse(detector: Any, tokens: Any, names: list[str], memory: Any | None) -> Any:
    zero_shot = detector.zero_shot(tokens, names)
    return zero_shot if memory is None else detector.few_shot(zero_shot, tokens, names, {names[0]: memory})


@torch.no_grad()
def leave_one_out(detector: Any, tokens: Any, count: int, name: str) -> Iterator[Any]:
    """Predictions for the references themselves, each compared with all others: what normal images look like.

    Args:
        tokens: of the references, see `encode_all`.
        count: how many references there are, two or more.
    """
    for row in range(count):
        others = detector.remember(_rows(tokens, [other for other in range(count) if other != row]))
        yield _fuse(detector, _rows(tokens, [row]), [name], others)


@torch.no_grad()
def _predict(detector, images: Tensor, names, settings, banks, accelerator: Accelerator, clock: Clock) -> Iterator[Any]:
    """One prediction per setting from one pass of the backbone, and one comparison with each reference image."""
    tokens = _encode(detector, images, accelerator, clock)
    zero_shot, found = detector.zero_shot(tokens, names), {}
    for number, setting in enumerate(settings):
        if setting.k_shot == 0:
            yield zero_shot
        else:
            memories = {name: banks[name][number] for name in dict.fromkeys(names)}
            yield detector.few_shot(zero_shot, tokens, names, memories, found)


def _encode(detector: Any, images: Tensor, accelerator: Accelerator, clock: Clock) -> Any:
    images = images.to(accelerator.device, non_blocking=True)
    with clock.backbone(accelerator.device), accelerator.autocast():
        return detector.encode(images)


def _rows_by_name(names: Sequence[str]) -> dict[str, slice | list[int]]:
    """Class name -> its rows in a batch; a slice, which copies nothing, where there is one class."""
    if len(set(names)) == 1:
        return {names[0]: slice(None)}
    return {name: [row for row, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}


def _finish_class(
    detector: Any, name: str, found: Sequence[_Pending], samples: Sequence[Any], accelerator: Accelerator
) -> list[ClassScores]:
    """The results of a class under all settings, from what every process has seen of it. Each process computes those of
    some settings, so that none waits for a single one."""
    own = []
    for setting, state in enumerate(found):
        parts = collect(state, setting % accelerator.num_processes, accelerator)
        if parts is not None:
            own.append(_finish(detector, setting, name, parts, samples))
    return sorted(flat(gather(own, accelerator)), key=lambda result: result.setting)


def _finish(detector, setting: int, name: str, parts: Sequence[_Pending], samples: Sequence[Any]) -> ClassScores:
    """Merge what the processes have seen of a class, in the order of the samples."""
    parts = [part for part in parts if part.indices]
    indices = flat(part.indices for part in parts)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    joined = {key: flat(part.terms[key] for part in parts) for key in parts[0].terms}
    terms = {key: [values[place] for place in order] for key, values in joined.items()}
    scores = detector.image_scores({key: torch.tensor(values) for key, values in terms.items()}).tolist()
    pixels = parts[0].pixels or PixelMetrics()
    for other in parts[1:]:
        if other.pixels is not None:
            pixels.merge(other.pixels)
    indices = [indices[place] for place in order]
    metrics = {**pixels.compute(), **image_metrics([samples[index].anomaly for index in indices], scores)}
    return ClassScores(setting, name, metrics, indices, scores, terms, pixels.curves())


def _classes_with_masks(samples: Sequence[Any]) -> set[str]:
    """Classes of which every anomalous image has a mask: the others have no pixel metrics."""
    return {s.cls_name for s in samples} - {s.cls_name for s in samples if s.anomaly and not s.mask_path}


def _check_finite(prediction: Any, samples: Sequence[Any], indices: Sequence[int]) -> None:
    """Raises ValueError where a map or term holds NaN or infinity; names the image."""
    ends = [prediction.maps.amin((1, 2)), prediction.maps.amax((1, 2)), *prediction.terms.values()]  # NaN stays NaN
    finite = torch.stack([end.float() for end in ends]).isfinite().all(0).cpu()  # (B,)
    if not finite.all():
        image = samples[indices[int((~finite).nonzero()[0])]].img_path
        raise ValueError(
            f"the anomaly map or score of {image} holds NaN or infinity; are the weights or the checkpoint broken?"
        )


@torch.no_grad()
def fitting_batch(detector: Any, image_size: int, accelerator: Accelerator) -> int:
    """How many images go through the backbone at a time: on a GPU the largest power of two, up to 128, whose pass takes
    no more than half of the memory that is free, which leaves the rest to references, distances and maps; on the CPU
    CPU_BATCH."""
    device = accelerator.device
    if device.type != "cuda":
        return CPU_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    size = 1
    while size < _LARGEST_BATCH:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _encode(detector, torch.zeros(size, 3, image_size, image_size, dtype=torch.uint8), accelerator, Clock())
        if 2 * (torch.cuda.max_memory_allocated(device) - before) > free / 2:  # what twice as many would take
            break
        size *= 2
    torch.cuda.empty_cache()
    return min(gather(size, accelerator))


# --- references -----------------------------------------------------------------------------------------------------


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
        clock: Clock | None = None,
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
        return [self._memory(_rows(tokens, [row[p] for p in one]), one) if one else None for one in wanted]

    def _memory(self, tokens: Any, paths: list[str]) -> Any:
        return self._detector.remember(tokens)._replace(images=tuple(paths))


@torch.no_grad()
def encode_all(
    detector: Any, batches: Iterable[Mapping[str, Any]], accelerator: Accelerator, clock: Clock | None = None
) -> Any:
    """Tokens of all images of some batches, as one bundle."""
    clock = clock or Clock()
    return _join([_encode(detector, batch["image"], accelerator, clock) for batch in batches])


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


def _rows(bundle: Any, rows: list[int]) -> Any:
    """The given images of a bundle."""
    if isinstance(bundle, Tensor):
        return bundle[rows]
    if isinstance(bundle, Mapping):
        return {key: _rows(value, rows) for key, value in bundle.items()}
    if hasattr(bundle, "_fields"):
        return type(bundle)(*(_rows(value, rows) for value in bundle))
    return bundle
