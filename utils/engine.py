"""The training epoch and the scoring pass; they know a detector by its protocol alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.losses import dice, focal
from utils.metrics import PixelMetrics, Points, image_metrics, label_regions

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
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    epoch: int,
) -> list[Step]:
    """One pass over the data; the trainable parts minimise focal + dice, summed over the detector's maps.

    Raises:
        ValueError: the loss is NaN or infinite; the weights are those before that step.
    """
    detector.train()
    steps = []
    bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", disable=None if accelerator.is_main_process else True)
    for number, batch in enumerate(bar, start=1):
        images, masks = batch["image"].to(accelerator.device), batch["mask"].to(accelerator.device)
        with accelerator.autocast():
            probabilities = detector(images, batch["cls_name"])  # each (B, 2, S, S)
        focal_loss = torch.stack([focal(p.float(), masks) for p in probabilities]).sum()
        dice_loss = torch.stack([dice(p[:, 1].float(), masks) for p in probabilities]).sum()
        loss = focal_loss + dice_loss
        shown = accelerator.reduce(torch.stack([loss, focal_loss, dice_loss]).detach(), "mean").tolist()
        steps.append(Step(epoch, number, *shown))
        if not np.isfinite(steps[-1].loss):
            raise ValueError(
                f"the loss is {steps[-1].loss} at epoch {epoch}, step {number}; lower --learning_rate or use "
                "--precision fp32"
            )
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        bar.set_postfix(loss=f"{steps[-1].loss:.3f}")
    return steps


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


@dataclass
class _Pending:
    """What has been seen of a class under one setting."""

    pixels: PixelMetrics | None
    indices: list[int] = field(default_factory=list)
    terms: list[dict[str, Tensor]] = field(default_factory=list)


def score(
    detector: Any,
    loader: DataLoader,
    samples: Sequence[Any],
    settings: Sequence[Any],
    memories: Callable[[str], Sequence[Any]],
    accelerator: Accelerator,
    keep_map: Callable[[int, int, np.ndarray], None] | None = None,
) -> Iterator[ClassScores]:
    """Score all samples under all settings in one backbone pass; yields a class's results when it is complete.

    Args:
        detector: as `model.interface.Detector` says.
        loader: batches of `dataset.AnomalyDataset` over the samples, in order.
        samples: the samples; a class's follow each other.
        settings: few-shot settings; k_shot 0 is zero-shot.
        memories: class name -> a Memory per setting.
        accelerator: device and precision.
        keep_map: called with (setting, index of the sample, map (S, S) float32) for every map.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    left = _count_classes(samples)
    segmented = _classes_with_masks(samples)
    pending: dict[tuple[int, str], _Pending] = {}
    banks: dict[str, Sequence[Any]] = {}
    for batch in tqdm(loader, desc="score", unit="batch", disable=None if accelerator.is_main_process else True):
        names, indices = batch["cls_name"], batch["index"].tolist()
        regions = np.stack([label_regions(mask) for mask in batch["mask"].numpy()])  # (B, S, S)
        banks.update({name: memories(name) for name in dict.fromkeys(names) if name not in banks})
        for setting, prediction in enumerate(_predict(detector, batch["image"], names, settings, banks, accelerator)):
            maps = prediction.maps.float().cpu()
            _check_finite(maps, samples, indices)
            for term in prediction.terms.values():
                _check_finite(term.float().cpu()[:, None], samples, indices)
            for name in dict.fromkeys(names):
                rows = [row for row, other in enumerate(names) if other == name]
                state = pending.setdefault((setting, name), _Pending(PixelMetrics() if name in segmented else None))
                state.indices += [indices[row] for row in rows]
                state.terms.append({key: term[rows].float().cpu() for key, term in prediction.terms.items()})
                if state.pixels is not None:
                    state.pixels.update(maps[rows], regions[rows])
            if keep_map is not None:
                for index, one in zip(indices, maps.numpy(), strict=True):
                    keep_map(setting, index, one)
        for name in dict.fromkeys(names):
            left[name] -= names.count(name)
            if left[name] == 0:
                banks.pop(name)
                for setting in range(len(settings)):
                    yield _finish(detector, setting, name, pending.pop((setting, name)), samples)


@torch.no_grad()
def infer(detector: Any, images: Tensor, name: str, memory: Any | None, accelerator: Accelerator) -> Any:
    """The prediction for images of one class, (B, 3, S, S) uint8; memory: its references, None for zero-shot."""
    with accelerator.autocast():
        tokens = detector.encode(images.to(accelerator.device))
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
def _predict(detector, images: Tensor, names, settings, banks, accelerator: Accelerator) -> Iterator[Any]:
    """One prediction per setting from one pass of the backbone."""
    with accelerator.autocast():
        tokens = detector.encode(images.to(accelerator.device))
    zero_shot = detector.zero_shot(tokens, names)
    for number, setting in enumerate(settings):
        if setting.k_shot == 0:
            yield zero_shot
        else:
            memories = {name: banks[name][number] for name in dict.fromkeys(names)}
            yield detector.few_shot(zero_shot, tokens, names, memories)


def _finish(detector, setting: int, name: str, state: _Pending, samples: Sequence[Any]) -> ClassScores:
    terms = {key: torch.cat([part[key] for part in state.terms]) for key in state.terms[0]}  # each (n,)
    scores = detector.image_scores(terms).tolist()
    pixels = PixelMetrics() if state.pixels is None else state.pixels
    metrics = {**pixels.compute(), **image_metrics([samples[index].anomaly for index in state.indices], scores)}
    values = {key: term.tolist() for key, term in terms.items()}
    return ClassScores(setting, name, metrics, state.indices, scores, values, pixels.curves())


def _count_classes(samples: Sequence[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.cls_name] = counts.get(sample.cls_name, 0) + 1
    return counts


def _classes_with_masks(samples: Sequence[Any]) -> set[str]:
    """Classes of which every anomalous image has a mask: the others have no pixel metrics."""
    return {s.cls_name for s in samples} - {s.cls_name for s in samples if s.anomaly and not s.mask_path}


def _check_finite(maps: Tensor, samples: Sequence[Any], indices: Sequence[int]) -> None:
    finite = maps.isfinite().flatten(1).all(1)
    if not finite.all():
        image = samples[indices[int((~finite).nonzero()[0])]].img_path
        raise ValueError(
            f"the anomaly map or score of {image} holds NaN or infinity; are the weights or the checkpoint broken?"
        )


# --- references -----------------------------------------------------------------------------------------------------


class References:
    """Memories of every class and setting; each reference image is encoded once, when its class is first asked for.

    Args:
        detector, accelerator: as for `score`.
        settings: few-shot settings with their references.
        load: image paths -> batches of `dataset.AnomalyDataset` over them, in order.
    """

    def __init__(
        self,
        detector: Any,
        settings: Sequence[Any],
        load: Callable[[Sequence[str]], DataLoader],
        accelerator: Accelerator,
    ):
        self._detector, self._settings, self._load, self._accelerator = detector, settings, load, accelerator

    @torch.no_grad()
    def __call__(self, name: str) -> list[Any]:
        """One Memory per setting; None for zero-shot."""
        wanted = [list(setting.references.get(name, ())) for setting in self._settings]
        paths = list(dict.fromkeys(path for paths in wanted for path in paths))
        if not paths:
            return [None] * len(wanted)
        tokens = encode_all(self._detector, self._load(paths), self._accelerator)
        row = {path: number for number, path in enumerate(paths)}
        return [self._detector.remember(_rows(tokens, [row[p] for p in one])) if one else None for one in wanted]


@torch.no_grad()
def encode_all(detector: Any, batches: Iterable[Mapping[str, Any]], accelerator: Accelerator) -> Any:
    """Tokens of all images of some batches, as one bundle."""
    encoded = []
    for batch in batches:
        with accelerator.autocast():
            encoded.append(detector.encode(batch["image"].to(accelerator.device)))
    return _join(encoded)


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
