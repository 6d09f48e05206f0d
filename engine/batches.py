"""Batches to be scored: read in parts by the workers, and put together in the order of the images."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.input_spec import SquareInput
from data.tiles import inputs_per_picture
from engine.shared_pictures import Place, SharedPictures, readers_are_forked
from metrics.pixel import label_regions
from utils.devices import side_stream
from utils.distributed import DistributedBatchSampler, begin_reading, readers

Group = dict[str, Any]
_AHEAD = 3  # parts that each worker has read or is to read; of single images 2
_RESIZED = 8  # pictures at a time, which take 33 MB each at most
_LARGE = ("picture", "image", "regions")  # what a GPU works on
_OWN_WAY = ("mask", "picture", "picture_size")  # of an item, what `default_collate` does not see


class Batches:
    """An iterable of batches, each as `collate` makes it, in the order of the images.

    The workers read a batch together, each a part of it: the first is soon there, and about three wait in memory,
    however many workers there are, unless there are more workers than images in a batch. Pictures that the dataset
    leaves raw become inputs here. On a GPU that is done in a stream beside the current one, which waits for it, and
    inputs and regions lie on the device.

    Args:
        dataset: `dataset.AnomalyDataset`, or any whose items lack the mask.
        batch_sampler: the batches of this process.
        part: images that a worker reads at a time.
        num_workers: processes that read; 0 reads in this one.
        device: that takes the batches.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: DistributedBatchSampler,
        part: int,
        num_workers: int,
        device: torch.device,
    ):
        self.batch_sampler, self._part, self._device = batch_sampler, part, device
        self._stream = side_stream(device, "reading") if device.type == "cuda" else None
        self._spec: SquareInput | None = getattr(dataset, "later", None)
        ahead = _AHEAD if part > 1 else 2
        slots = ahead * num_workers + 1  # parts that are read or to be read, and the one that is made of last
        forked = self._spec and num_workers and readers_are_forked()
        self._pictures = SharedPictures(slots, part) if forked else None
        self._parts = DataLoader(
            _Reader(dataset, self._pictures),
            batch_size=None,  # an item is a part already
            sampler=_Parts(batch_sampler, part),
            num_workers=num_workers,
            prefetch_factor=ahead if num_workers else None,
            collate_fn=_as_read,
            pin_memory=self._stream is not None,
            worker_init_fn=begin_reading,
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Group]]:
        parts = iter(self._parts)
        for batch in self.batch_sampler:
            read = [self._fetched(group) for _ in range(0, len(batch), self._part) for group in next(parts)]
            if self._stream is None:
                yield _joined(read)
                continue
            with torch.cuda.stream(self._stream):
                groups = _joined(read)
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in (group[key] for group in groups for key in _LARGE if key in group):
                tensor.record_stream(current)
            yield groups

    def _fetched(self, group: Group) -> Group:
        """The group of a part with inputs, on a GPU lying there; nothing of it stays in shared memory."""
        if self._pictures and isinstance(place := group.get("picture"), Place):
            group = {**group, "picture": self._pictures.view(place)}
        if self._stream is None:
            return _resized(group, self._spec)
        with torch.cuda.stream(self._stream):
            return _resized(_moved(group, self._device), self._spec)


class _Parts(Sampler[tuple[int, list[int]]]):
    """The batches of a sampler, cut into parts of at most so many images; the parts are counted."""

    def __init__(self, batches: DistributedBatchSampler, size: int):
        self._batches, self._size = batches, size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        number = itertools.count()
        for batch in self._batches:
            for first in range(0, len(batch), self._size):
                yield next(number), batch[first : first + self._size]


class _Reader(Dataset[Any]):
    """What the workers do: a part at a time, as `collate` makes it; raw pictures are left in shared memory."""

    def __init__(self, dataset: Dataset[Any], pictures: SharedPictures | None):
        self._dataset, self._pictures = dataset, pictures

    def __getitem__(self, part: tuple[int, list[int]]) -> list[Group]:
        number, indices = part
        items = [self._dataset[index] for index in indices]
        return collate(items, self._pictures.slot(number) if self._pictures else torch.stack)


def _as_read(groups: list[Group]) -> list[Group]:
    """collate_fn of parts that are groups already."""
    return groups


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
    return Batches(dataset, sampler, part, workers, accelerator.device)


def collate(
    items: Sequence[Mapping[str, Any]], stack: Callable[[list[Tensor]], Tensor | Place] = torch.stack
) -> list[Group]:
    """The items of a batch as groups, each of one image and map size: mostly one. A group is what `default_collate`
    makes of its items, with `map_size` a plain (H, W) and, where there are masks, instead of them their `regions` and
    the `sizes` of the pictures, (H, W) each.

    stack: raw pictures of one shape -> what the group has of them.
    """
    shapes: dict[tuple, list[Mapping[str, Any]]] = {}
    for item in items:
        shapes.setdefault((_pixels(item).shape, item["map_size"]), []).append(item)
    groups = []
    for (_, map_size), members in shapes.items():
        rest = [{key: value for key, value in item.items() if key not in _OWN_WAY} for item in members]
        group = {**default_collate(rest), "map_size": map_size}
        if "picture" in members[0]:
            group["picture"] = stack([item["picture"] for item in members])
        if "mask" in members[0]:
            group["regions"] = torch.from_numpy(np.stack([label_regions(item["mask"]) for item in members]))
            group["sizes"] = [item["picture_size"] for item in members]
        groups.append(group)
    return groups


def _pixels(item: Mapping[str, Any]) -> Tensor:
    """The input of an item or the inputs of a group, or the pictures that are to become inputs."""
    return item["picture"] if "picture" in item else item["image"]


def _moved(group: Group, device: torch.device) -> Group:
    """The group of a part on the device, by way of memory that the device copies from by itself."""
    moved = {key: group[key].pin_memory().to(device, non_blocking=True) for key in _LARGE if key in group}
    sizes = {"sizes": [(height, width) for height, width in group["sizes"]]} if "sizes" in group else {}
    height, width = group["map_size"]  # lists, where an older PyTorch has brought them there
    return {**group, **moved, **sizes, "map_size": (height, width)}


def _resized(group: Group, spec: SquareInput | None) -> Group:
    """The group with inputs in place of raw pictures, of which there are none without a specification."""
    if spec is None or "picture" not in group:
        return group
    rest = {key: value for key, value in group.items() if key != "picture"}
    images = [spec.from_raw(some) for some in group["picture"].split(_RESIZED)]
    return {**rest, "image": torch.cat(images)}


def _joined(groups: Sequence[Group]) -> list[Group]:
    """Groups of one image and map size as one."""
    alike: dict[tuple, list[Group]] = {}
    for group in groups:
        alike.setdefault((_pixels(group).shape[1:], group["map_size"]), []).append(group)
    return [_as_one(some) if len(some) > 1 else some[0] for some in alike.values()]


def _as_one(groups: Sequence[Group]) -> Group:
    joined: Group = {"map_size": groups[0]["map_size"]}
    for key in groups[0].keys() - joined.keys():
        values = [group[key] for group in groups]
        joined[key] = torch.cat(values) if torch.is_tensor(values[0]) else [one for some in values for one in some]
    return joined
