"""Batches to be scored: read in parts by the workers, and put together in the order of the images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from data.tiles import inputs_per_picture
from metrics.pixel import label_regions
from utils.distributed import DistributedBatchSampler, isolate_signals, readers

Group = dict[str, Any]


class Batches:
    """An iterable of batches, each as `collate` makes it, in the order of the images.

    The workers read a batch together, each a part of it: the first is soon there, and about two wait in memory, however
    many workers there are.

    Args:
        dataset: `dataset.AnomalyDataset`, or any whose items lack the mask.
        batch_sampler: the batches of this process.
        part: images that a worker reads at a time.
        num_workers: processes that read; 0 reads in this one.
        pinned: keep batches in memory that a GPU copies from by itself.
    """

    def __init__(
        self, dataset: Any, batch_sampler: DistributedBatchSampler, part: int, num_workers: int, *, pinned: bool
    ):
        self.batch_sampler, self._part, self._pinned = batch_sampler, part, pinned
        self._parts = DataLoader(
            dataset,
            batch_sampler=_Parts(batch_sampler, part),
            num_workers=num_workers,
            collate_fn=collate,
            worker_init_fn=isolate_signals,
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Group]]:
        parts = iter(self._parts)
        for batch in self.batch_sampler:
            yield _joined([group for _ in range(0, len(batch), self._part) for group in next(parts)], self._pinned)


class _Parts(Sampler[list[int]]):
    """The batches of a sampler, cut into parts of at most so many images."""

    def __init__(self, batches: DistributedBatchSampler, size: int):
        self._batches, self._size = batches, size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            for first in range(0, len(batch), self._size):
                yield batch[first : first + self._size]


def batches(
    dataset: Any, batch_size: int, num_workers: int, accelerator: Accelerator, *, shared: bool = True, first: int = 0
) -> Batches:
    """Batches to be scored. The workers read the images and label the regions of the masks.

    Args:
        dataset: see `Batches`.
        batch_size: images at a time, in each process; of pictures in tiles, tiles, but always whole pictures.
        num_workers: processes that read, at most.
        shared: dealt to all processes, see `distributed.DistributedBatchSampler`; else every process has all of them.
        first: the first image that is needed; batches before it are left out, those that follow stay what they are.
    """
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if shared else (0, 1)
    pictures = max(1, batch_size // inputs_per_picture(dataset))
    per_round = pictures * ranks
    sampler = DistributedBatchSampler(range(len(dataset)), per_round, rank, ranks, first // per_round)
    workers = readers(num_workers, len(sampler))
    part = math.ceil(pictures / max(1, workers))
    return Batches(dataset, sampler, part, workers, pinned=accelerator.device.type == "cuda")


def collate(items: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The items of a batch as groups, each of one image and map size: mostly one. A group is what `default_collate`
    makes of its items, with `map_size` a plain (H, W) and, where there are masks, instead of them their `regions` and
    the `sizes` of the pictures, (H, W) each."""
    shapes: dict[tuple, list[Mapping[str, Any]]] = {}
    for item in items:
        shapes.setdefault((item["image"].shape, item["map_size"]), []).append(item)
    groups = []
    for (_, map_size), members in shapes.items():
        rest = [{key: value for key, value in item.items() if key not in ("mask", "picture_size")} for item in members]
        group = {**default_collate(rest), "map_size": map_size}
        if "mask" in members[0]:
            group["regions"] = torch.from_numpy(np.stack([label_regions(item["mask"]) for item in members]))
            group["sizes"] = [item["picture_size"] for item in members]
        groups.append(group)
    return groups


def _joined(groups: Sequence[Group], pinned: bool) -> list[Group]:
    """The groups of the parts of a batch, those of one image and map size as one."""
    alike: dict[tuple, list[Group]] = {}
    for group in groups:
        alike.setdefault((group["image"].shape[1:], group["map_size"]), []).append(group)
    return [_as_one(some, pinned) for some in alike.values()]


def _as_one(groups: Sequence[Group], pinned: bool) -> Group:
    joined: Group = {"map_size": groups[0]["map_size"]}
    for key in groups[0].keys() - joined.keys():
        values = [group[key] for group in groups]
        if torch.is_tensor(values[0]):
            joined[key] = _cat(values, pinned)
        else:
            joined[key] = [value for some in values for value in some]
    return joined


def _cat(tensors: Sequence[Tensor], pinned: bool) -> Tensor:
    if not pinned:
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    shape = (sum(map(len, tensors)), *tensors[0].shape[1:])
    return torch.cat(list(tensors), out=torch.empty(shape, dtype=tensors[0].dtype, pin_memory=True))
