"""Several processes: who takes which images, and how results come together. With one process nothing is sent."""

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, TypeVar

import torch.distributed as distributed
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from utils.heap import keep_freed_memory

T = TypeVar("T")


class Order(Sized, Iterable[int], Protocol):
    """Indices in an order, which may be another one in each epoch."""


class DistributedBatchSampler(Sampler[list[int]]):
    """The batches of one process: indices are cut into rounds, and each round into consecutive parts, one per process.

    The parts of a round are as equal as can be; nothing is repeated to fill them up, and a process whose part is empty
    sits that round out.

    Args:
        order: the indices.
        size: of a round, in all processes together.
        rank, ranks: number of this process, and how many there are.
        skip: how many rounds are left out at the start, since an interrupted run has done them.
    """

    def __init__(self, order: Order, size: int, rank: int, ranks: int, skip: int = 0):
        self._order, self.size, self._rank, self._ranks, self.skip = order, size, rank, ranks, skip

    def __len__(self) -> int:
        return sum(start < stop for _, start, stop in self._parts())

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for _, start, stop in self._parts():
            if start < stop:
                yield order[start:stop]

    def lengths(self) -> list[tuple[int, int]]:
        """Per round: how many images it has, and how many of them are of this process."""
        return [(length, stop - start) for length, start, stop in self._parts()]

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Per round: its length, and where the own part starts and stops in the order."""
        total = len(self._order)
        for first in range(self.skip * self.size, total, self.size):
            length = min(self.size, total - first)
            start, stop = (first + length * rank // self._ranks for rank in (self._rank, self._rank + 1))
            yield length, start, stop


def readers(wanted: int, batches: int) -> int:
    """How many processes are to read so many batches: no more than there are, and none for a single one, whose images
    are not worth their start."""
    return min(wanted, batches) if batches > 1 else 0


def begin_reading(_: int) -> None:
    """worker_init_fn of a DataLoader: signals to the process group, such as Ctrl-C, are for the main process alone, and
    memory is kept for the next picture."""
    os.setpgid(0, 0)
    keep_freed_memory()


def each_round(loader: DataLoader[Any] | Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Per round of a loader: how many images it has, and the batch of this process (None: none).

    Batches that are not on `DistributedBatchSampler` are all of one process.
    """
    rounds = getattr(loader, "batch_sampler", None)
    if not isinstance(rounds, DistributedBatchSampler):
        yield from ((_images(batch), batch) for batch in loader)
        return
    batches = iter(loader)
    for length, own in rounds.lengths():
        yield length, next(batches) if own else None


def _images(batch: Any) -> int:
    """How many images a batch has: one dict, or a list of them (see `engine.batches.collate`)."""
    return sum(len(group["cls_name"]) for group in ([batch] if isinstance(batch, dict) else batch))


def skipped_images(loader: DataLoader[Any] | Iterable[Any]) -> int:
    """How many images of a loader an interrupted run has seen."""
    rounds = getattr(loader, "batch_sampler", None)
    return rounds.skip * rounds.size if isinstance(rounds, DistributedBatchSampler) else 0


def gather(value: T, accelerator: Accelerator) -> list[T]:
    """The values of all processes in their order, on every process; each must call it."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    distributed.all_gather_object(values, value)
    return values


class Processes:
    """Processes that work on something together.

    accelerator: None: this one alone.

    Attributes:
        rank, ranks: number of this process, and how many there are.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index if accelerator else 0
        self.ranks: int = accelerator.num_processes if accelerator else 1

    def gather(self, value: T) -> list[T]:
        """See `gather`."""
        return gather(value, self._accelerator) if self._accelerator else [value]


def gather_to(value: T, owner: int, accelerator: Accelerator) -> list[T] | None:
    """As `gather`, but on one process alone; None on the others."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] | None = [None] * accelerator.num_processes if accelerator.process_index == owner else None
    distributed.gather_object(value, values, dst=owner)
    return values


def flatten(parts: Iterable[Sequence[T]]) -> list[T]:
    """The elements of all parts."""
    return [value for part in parts for value in part]


def shutdown(accelerator: Accelerator) -> None:
    """The end of a run in which all went well: no process may leave while another still talks to it."""
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
