"""Raw pictures on their way from the processes that read to the one that scores, in memory that they share from the
start: memory that is new for each batch comes page by page, which takes ten times as long as copying into it."""

import mmap
import multiprocessing
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from data.input_spec import MOST_RAW

_BYTES = 3 * MOST_RAW  # of a picture, at most


class Place(NamedTuple):
    """Where pictures of one shape are. start: in bytes; shape: (B, H, W, C)."""

    slot: int
    start: int
    shape: tuple[int, ...]


class SharedPictures:
    """Slots that are used in turn, each with room for so many pictures, see `SquareInput.raw`. Processes that are
    forked off afterwards have them, too."""

    def __init__(self, slots: int, pictures: int):
        size = pictures * _BYTES
        # Not a file in /dev/shm, which is small in containers. Pages that nobody writes to take no memory.
        self._memory = torch.frombuffer(mmap.mmap(-1, slots * size), dtype=torch.uint8).view(slots, size)

    def slot(self, number: int) -> Callable[[list[Tensor]], Place]:
        """Takes pictures of one shape, (H, W, C) uint8 each, and further ones behind them. number: of uses of all slots
        before this one."""
        slot, start = number % len(self._memory), 0

        def put(pictures: list[Tensor]) -> Place:
            nonlocal start
            place = Place(slot, start, (len(pictures), *pictures[0].shape))
            pixels = self.view(place)
            torch.stack(pictures, out=pixels)
            start += pixels.numel()
            return place

        return put

    def view(self, place: Place) -> Tensor:
        """The pictures, until the slot is used again; (B, H, W, C) uint8."""
        shape = torch.Size(place.shape)  # a list, where it has passed a thread of PyTorch
        return self._memory[place.slot, place.start : place.start + shape.numel()].view(shape)


def readers_are_forked() -> bool:
    """Whether the processes that read have the memory of this one, as on Linux before Python 3.14."""
    return (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"
