"""Scoring sets: the unlabelled images of a class are scored together, by methods that look at them all."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from data.meta import Sample
from dataset import AnomalyDataset
from engine.class_scores import Classes, ClassScores, KeepMap, check_finite, finish, keep_maps
from engine.encoding import Timer, encode
from engine.evaluation import batches
from engine.ground_truth import Measuring, Size
from model.interface import Prediction, ScoringDetector
from model.tokens import to_device, token_bytes
from utils import memory_check
from utils.distributed import gather
from utils.logs import LOG

_SHARE = 0.5  # of the free memory that the tokens of a set may take, in all processes of a machine together
_SMALL = torch.iinfo(torch.int16).max  # regions that a mask kept in half the space may have


class ImageGroup(NamedTuple):
    """Images of a set that are encoded together: their places in the dataset, and what is known of their masks."""

    indices: list[int]
    regions: Tensor | None  # (B, H, W) as `label_regions` gives them; None of images without masks
    sizes: list[Size]  # of their pictures; [] of images without masks


class SetPasses:
    """`model.interface.TokenPasses` over the batches of a loader. Tokens are encoded once where half of the free memory
    holds them, else in every pass.

    Args:
        detector, accelerator, timer: as for `engine.encoding.encode`.
        loader: batches of the set, see `evaluation.collate`.
        paths: of the images, in order.

    Attributes:
        groups: what each bundle of tokens is of, known after the first pass.
    """

    def __init__(
        self, detector: Any, loader: DataLoader[Any], paths: Sequence[str], accelerator: Accelerator, timer: Timer
    ):
        self._detector, self._loader, self._accelerator, self._timer = detector, loader, accelerator, timer
        self.paths = paths
        self.groups: list[ImageGroup] = []
        self._kept: list[Any] = []
        # Known after the first bundle; a method that goes through them once holds itself what it needs.
        self._fits: bool | None = False if detector.SET_PASSES == 1 else None
        self._complete = False  # whether all bundles are kept

    def __call__(self) -> Iterator[Any]:
        """A pass: the tokens of all images, bundle by bundle."""
        if self._complete:
            yield from (to_device(tokens, self._accelerator.device) for tokens in self._kept)
            return
        self.groups, self._kept = [], []
        for batch in self._loader:
            for group in batch:
                for error in filter(None, group.get("error", ())):  # of a file that could be read before
                    raise ValueError(error)
                self._timer.start()
                tokens = encode(self._detector, group["image"], self._accelerator, self._timer, group["map_size"])
                self.groups.append(
                    ImageGroup(group["index"].tolist(), _small(group.get("regions")), group.get("sizes", []))
                )
                if self._fits is None:
                    self._fits = self._room_for(tokens, len(group["image"]))
                if self._fits:
                    self._kept.append(to_device(tokens, "cpu"))
                yield tokens
        self._complete = bool(self._fits)

    def _room_for(self, tokens: Any, images: int) -> bool:
        regions = self.groups[-1].regions
        own = token_bytes(tokens) + (0 if regions is None else token_bytes(regions))
        need = own / images * len(self.paths) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        free = memory_check.free_bytes("cpu")
        if need > _SHARE * free:
            LOG.info(
                "the features of %d images take %.1f GB, and %.1f GB of memory are free: they are computed anew in "
                "every pass", len(self.paths), need / 1e9, free / 1e9,
            )  # fmt: skip
            return False
        return True


def _small(regions: Tensor | None) -> Tensor | None:
    """The same in half the space, where that holds the numbers."""
    return regions.to(torch.int16) if regions is not None and regions.max() <= _SMALL else regions


def check_sets(detector: ScoringDetector, method: str, counts: dict[str, int]) -> None:
    """Raises ValueError where a set is too small. counts: class -> images."""
    for name, count in counts.items():
        if count < detector.SET_MINIMUM:
            raise ValueError(
                f"{method} scores the images of a class together and takes {detector.SET_MINIMUM} or more; class "
                f"'{name}' has {count}"
            )


@torch.no_grad()
def score_sets(
    detector: ScoringDetector,
    dataset: AnomalyDataset,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    keep_map: KeepMap,
    *,
    batch_size: int,
    num_workers: int,
    timer: Timer,
    finished: Collection[str] = (),
    measuring: Measuring | None = None,
) -> Iterator[ClassScores]:
    """Score each class as one set; yields its results when it is complete, as `evaluation.score` does. Of several
    processes each scores classes of its own.

    Args:
        dataset: of the samples; their labels and masks serve the metrics alone.
        batch_size: images at a time in the backbone; num_workers: processes that read.
        keep_map, timer, finished, measuring: as for `evaluation.score`.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    indices: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        if sample.cls_name not in finished:
            indices.setdefault(sample.cls_name, []).append(index)
    names, ranks = list(indices), accelerator.num_processes
    if ranks > 1:  # the classes of a round should take as long as each other, since the processes wait for them all
        names.sort(key=lambda name: -len(indices[name]))
    for first in range(0, len(names), ranks):
        own = names[first + accelerator.process_index :][:1] if accelerator.process_index < len(names) - first else []
        results = [
            _score_set(
                detector, Subset(dataset, indices[name]), name, samples, accelerator, keep_map, batch_size,
                num_workers, timer, measuring,
            )
            for name in own
        ]  # fmt: skip
        for of_rank in gather(results, accelerator):
            yield from of_rank
    timer.stop()


def _score_set(
    detector: ScoringDetector,
    dataset: Subset,
    name: str,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    keep_map: KeepMap,
    batch_size: int,
    num_workers: int,
    timer: Timer,
    measuring: Measuring | None,
) -> ClassScores:
    LOG.info("%s: %d images are scored together", name, len(dataset))
    paths = [samples[index].img_path for index in dataset.indices]
    loader = batches(dataset, batch_size, num_workers, accelerator, shared=False)
    passes = SetPasses(detector, loader, paths, accelerator, timer)
    classes = Classes([samples[index] for index in dataset.indices], 1, (), measuring)
    for number, prediction in enumerate(detector.score_set(passes, name)):
        _add(classes, passes.groups[number], prediction, name, samples, accelerator, keep_map)
    ((_, (pending,)),) = classes.complete(len(paths))
    return finish(detector, 0, name, [pending], samples, measuring)


def _add(
    classes: Classes,
    group: ImageGroup,
    prediction: Prediction,
    name: str,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    keep_map: KeepMap,
) -> None:
    names = [name] * len(group.indices)
    check_finite(prediction, samples, group.indices)
    assert group.regions is not None  # of a dataset with masks
    classes.add(0, names, group.indices, prediction, group.regions.int().to(accelerator.device), group.sizes)
    keep_maps(keep_map, 0, names, group.indices, prediction, ())
