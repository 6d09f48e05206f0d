"""Counts of pixels by map value: a table of order-preserving integer keys whose memory is bounded.

All of it is PyTorch, on the device of the maps. On the CPU numpy sorts and searches in place of PyTorch, on the same
memory and with the same result, since it is faster there.
"""

from typing import Any

import torch
from torch import Tensor

RESOLUTION = 3e-5  # a merged key holds about this share of the pixels above it; see `_depth`
NO_KEY = 2**31 - 1  # above the keys of all finite values


# Keys: the order of float32 values as the reverse order of int32, so that every sweep runs from the highest value.


def to_keys(values: Tensor) -> Tensor:
    """Float32 values -> int32 keys of the same shape, lower for higher values; equal values, equal keys."""
    bits = (values + 0).view(torch.int32)  # new memory; -0.0 + 0.0 is 0.0
    flip = bits >> 31
    flip &= 0x7FFFFFFF  # negative floats are sign and magnitude: turn their order round
    bits ^= flip
    return bits.bitwise_not_()


def to_values(keys: Tensor) -> Tensor:
    """The float32 values of keys, as float64."""
    bits = ~keys
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).double()


def split_pixels(maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Images, (B, H, W) float32 and integers -> keys, (B * H * W,) int32, NO_KEY where there is a defect; and of the
    defects, (d,) int64, key << 32 | area of the region: one sort orders both, so no sum depends on the order of images.
    """
    keys, regions = to_keys(maps).flatten(), regions.flatten()
    place = regions.nonzero()[:, 0]  # (d,)
    if not len(place):
        return keys, keys.new_empty(0, dtype=torch.int64)
    numbers = regions[place].long()
    image = torch.div(place, maps[0].numel(), rounding_mode="floor")
    labels = numbers + image * (numbers.max() + 1)  # no two images share one
    packed = (keys[place].long() << 32) | torch.bincount(labels)[labels]
    keys[place] = NO_KEY
    return keys, packed


def sort_in_place(values: Tensor) -> Tensor:
    """Integers, (n,), ascending in the same memory, which is returned."""
    if values.device.type == "cpu":
        values.numpy().sort()
        return values
    return values.copy_(values.sort().values)


def search(ascending: Tensor, values: Tensor, *, right: bool = False) -> Tensor:
    """How many of some ascending numbers lie below each value; with `right`, below it or at it. int64."""
    if values.device.type == "cpu":
        found = ascending.numpy().searchsorted(values.numpy(), "right" if right else "left")
        return torch.from_numpy(found)
    return torch.searchsorted(ascending, values, right=right)


class KeyTable:
    """How many pixels, and for defects how much region weight, fell on each key.

    keys: (K,) int32, distinct, ascending.
    mass: (C, K) float64: pixels; where C is 2 also the sum of 1 / area of the region of each pixel.
    cell: 0 while exact; of a sketch, the depth (see `_depth`) of a group when it is made. It may grow to twice that.
    """

    def __init__(self, columns: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.keys = torch.empty(0, dtype=torch.int32, device=device)
        self.mass = torch.zeros(columns, 0, dtype=torch.float64, device=device)
        self.capacity = capacity
        self.cell = 0.0

    def to(self, device: torch.device | str) -> None:
        """Move the table."""
        self.keys, self.mass = self.keys.to(device), self.mass.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, whose device may be another."""
        self.to("cpu")
        return self.__dict__

    def add(self, keys: Tensor, mass: Tensor | None = None) -> None:
        """Add keys (M,) in ascending order, repeats allowed, with their mass (C, M); None: each is one pixel."""
        if self.cell and len(keys):
            keys, mass = self._absorb(keys, mass)
        if len(keys):
            self.keys, self.mass = unite(self.keys, self.mass, *_distinct(keys, mass))
        if len(self.keys) > self.capacity:
            self._thin()

    def _absorb(self, keys: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Let the table's keys take what is nearest to them while they stay light; return the rest."""
        between = self.keys[:-1] + (self.keys.long().diff() // 2).int()
        edges = search(keys, between, right=True)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(keys))])  # (K + 1,)
        counts = edges.diff()
        grown = self.mass + (counts if mass is None else running_sums(mass)[:, edges].diff())
        room = _spans(grown) <= 2 * self.cell * RESOLUTION
        self.mass = torch.where(room, grown, self.mass, out=grown)
        full = (~room & (counts > 0)).nonzero()[:, 0]
        lengths = counts[full]
        ends = lengths.cumsum(0)
        rest = torch.repeat_interleave(edges[full] - ends + lengths, lengths)
        rest += torch.arange(len(rest), device=rest.device)
        return keys[rest], None if mass is None else mass[:, rest]

    def _thin(self) -> None:
        """Merge neighbours into groups until the table is well below its capacity."""
        depth = _depth(self.mass)
        self.cell = self.cell or 0.5
        groups = _groups(depth, self.cell)
        while (count := int(groups[-1]) + 1) > 0.75 * self.capacity:
            self.cell *= 2
            groups = _groups(depth, self.cell)
        pixels = running_sums(self.mass[:1])[0]
        starts = run_starts(groups)
        ends = torch.cat([starts[1:], starts.new_full((1,), len(groups))])
        middle = search(pixels[1:], (pixels[starts] + pixels[ends]) / 2)
        self.keys = self.keys[middle]  # half of a group lies above its key, so that its error has no direction
        self.mass = _sum_groups(self.mass, groups, count)


def unite(keys: Tensor, mass: Tensor, others: Tensor, their_mass: Tensor) -> tuple[Tensor, Tensor]:
    """Two lists of distinct, ascending keys, (K,) and (M,), M <= K or not much more, with their mass, (C, K) and
    (C, M) -> the keys of both, each once, and the mass of both."""
    if not len(keys):
        return others, their_mass
    place = search(keys, others)  # (M,) before which of the keys each belongs
    known = keys[place.clamp_max(len(keys) - 1)] == others
    new = (~known).nonzero()[:, 0]
    old = torch.ones(len(keys) + len(new), dtype=torch.bool, device=keys.device)
    old[place[new] + torch.arange(len(new), device=new.device)] = False
    former, latter = old.nonzero()[:, 0], (~old).nonzero()[:, 0]
    united, sums = keys.new_empty(len(old)), mass.new_empty(len(mass), len(old))
    united[former], united[latter] = keys, others[new]
    sums[:, former], sums[:, latter] = mass, their_mass[:, new]
    sums[:, former[place[known]]] += their_mass[:, known]
    return united, sums


def running_sums(mass: Tensor) -> Tensor:
    """(C, K) -> (C, K + 1) running sums, starting at 0."""
    sums = mass.new_zeros(mass.shape[0], mass.shape[1] + 1)
    torch.cumsum(mass, 1, out=sums[:, 1:])
    return sums


def _distinct(keys: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ascending keys (M,) with their mass (C, M), or None -> each key once, with the mass of all its repeats."""
    starts = run_starts(keys)
    if mass is None:
        ends = torch.cat([starts[1:], starts.new_full((1,), len(keys))])
        return keys[starts], (ends - starts).double()[None]
    if len(starts) == len(keys):
        return keys, mass
    groups = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    groups[starts[1:]] = 1
    return keys[starts], _sum_groups(mass, groups.cumsum(0), len(starts))


def _sum_groups(mass: Tensor, groups: Tensor, count: int) -> Tensor:
    """(C, M) with the number of the group of each, (M,) -> (C, count)."""
    return torch.stack([torch.bincount(groups, row, minlength=count) for row in mass])


def _depth(mass: Tensor) -> Tensor:
    """(C, K) -> (K + 1,) rank of the edges between keys, in a unit in which a merge that spans 1 does no harm.

    With n pixels above, 1 is n * RESOLUTION further pixels, or RESOLUTION of all region weight.
    """
    above = running_sums(mass)
    depth = above[0].log1p()
    for weight in above[1:]:
        depth += weight / weight[-1]
    return depth / RESOLUTION


def _spans(mass: Tensor) -> Tensor:
    """(C, K) -> (K,) times RESOLUTION, the depth that each key spans, and a little more: log(1 + x) without the log."""
    spans = running_sums(mass[:1])[0, :-1]
    spans += 1
    torch.div(mass[0], spans, out=spans)  # in the same memory: here is the peak
    for weight in mass[1:]:
        spans += weight / weight.sum()
    return spans


def _groups(depth: Tensor, cell: float) -> Tensor:
    """(K + 1,) -> (K,) number of each key's group when keys go by the cell of depth in which their middle lies; a heavy
    key is alone."""
    index = ((depth[1:] + depth[:-1]) * (0.5 / cell)).long()  # (K,), ascending
    groups = torch.zeros_like(index)
    groups[1:] = index.diff() != 0
    return groups.cumsum(0)


def run_starts(values: Tensor) -> Tensor:
    """(K,) -> first index of each run of equal values."""
    change = torch.ones(len(values), dtype=torch.bool, device=values.device)
    torch.ne(values[1:], values[:-1], out=change[1:])
    return change.nonzero()[:, 0]
