"""Counts of pixels by map value: a table of order-preserving integer keys whose memory is bounded."""

import numpy as np
import torch

RESOLUTION = 3e-5  # a merged key holds about this share of the pixels above it; see `_depth`


# Keys: the order of float32 values as the reverse order of int32, so that every sweep runs from the highest value.


def to_keys(values: np.ndarray) -> np.ndarray:
    """Float32 values -> int32 keys of the same shape, lower for higher values; equal values, equal keys."""
    bits = (values + np.float32(0)).view(np.int32)  # a new array; -0.0 + 0.0 is 0.0
    flip = bits >> 31
    flip &= 0x7FFFFFFF  # negative floats are sign and magnitude: turn their order round
    bits ^= flip
    return np.invert(bits, out=bits)


def split_pixels(keys: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image, keys (H, W) int32 and labels (H, W) -> keys of normal pixels, and keys of defects with the area of
    their regions in one number: one sort orders both, so no sum depends on the order of images."""
    defect = labels != 0
    normal, labels = keys[~defect], labels[defect]  # (n,), (d,)
    area = np.bincount(labels)[labels]  # (d,) of each pixel's region
    return normal, (keys[defect].astype(np.int64) << 32) | area


def sort_pixels(maps: torch.Tensor, regions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`_keys`, `_split` and the sort for a batch, (B, H, W) each, on the device that it is on."""
    bits = (maps.float() + 0).view(torch.int32)
    keys = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    regions = regions.to(keys.device, non_blocking=True).long()
    defect = regions != 0
    offsets = torch.arange(len(regions), device=keys.device)[:, None, None] * (regions.max() + 1)
    labels = (regions + offsets)[defect]  # (d,), no two images share one
    packed = (keys[defect].long() << 32) | torch.bincount(labels)[labels]
    return keys[~defect].sort().values.cpu().numpy(), packed.sort().values.cpu().numpy()


def merge_sorted(waiting: list[np.ndarray]) -> np.ndarray:
    """All that waits, ascending; a batch that a device has sorted may wait alone."""
    values = np.concatenate(waiting)
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


def to_values(keys: np.ndarray) -> np.ndarray:
    """The float32 values of keys, as float64."""
    bits = ~keys
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32).astype(np.float64)


class KeyTable:
    """How many pixels, and for defects how much region weight, fell on each key.

    keys: (K,) int32, distinct, ascending.
    mass: (C, K) float64: pixels; where C is 2 also the sum of 1 / area of the region of each pixel.
    cell: 0 while exact; of a sketch, the depth (see `_depth`) of a group when it is made. It may grow to twice that.
    """

    def __init__(self, columns: int, capacity: int) -> None:
        self.keys = np.empty(0, np.int32)
        self.mass = np.zeros((columns, 0))
        self.capacity = capacity
        self.cell = 0.0

    def add(self, keys: np.ndarray, mass: np.ndarray) -> None:
        """Add keys (M,) in ascending order, repeats allowed, with their mass (C, M)."""
        if self.cell and keys.size:
            keys, mass = self._absorb(keys, mass)
        if keys.size:
            self._unite(keys, mass)
        if self.keys.size > self.capacity:
            self._thin()

    def _absorb(self, keys: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Let the table's keys take what is nearest to them while they stay light; return the rest."""
        between = self.keys[:-1] + (np.diff(self.keys.astype(np.int64)) // 2).astype(np.int32)
        edges = np.concatenate([[0], np.searchsorted(keys, between, side="right"), [keys.size]])
        grown = self.mass + np.diff(running_sums(mass)[:, edges])
        room = np.diff(_depth(grown)) <= 2 * self.cell
        self.mass = np.where(room, grown, self.mass)
        rest = np.repeat(~room, np.diff(edges))
        return keys[rest], mass[:, rest]

    def _unite(self, keys: np.ndarray, mass: np.ndarray) -> None:
        # Each array goes as soon as it is of no more use: here is the peak of the memory.
        own, keys = self.keys.size, np.concatenate([self.keys, keys])
        order = np.argsort(keys, kind="stable")  # two ascending runs, which this kind merges in linear time
        keys, new = keys[order], order >= own
        del order
        united = np.empty((len(mass), keys.size))
        united[:, new], united[:, ~new] = mass, self.mass
        del new
        starts = run_starts(keys[1:] != keys[:-1])
        self.keys = keys[starts]
        del keys
        self.mass = united if starts.size == united.shape[1] else np.add.reduceat(united, starts, axis=1)

    def _thin(self) -> None:
        """Merge neighbours into groups until the table is well below its capacity."""
        depth = _depth(self.mass)
        self.cell = self.cell or 0.5
        starts = _groups(depth, self.cell)
        while starts.size > 0.75 * self.capacity:
            self.cell *= 2
            starts = _groups(depth, self.cell)
        pixels = running_sums(self.mass[:1])[0]
        ends = np.append(starts[1:], self.keys.size)
        middle = np.searchsorted(pixels[1:], (pixels[starts] + pixels[ends]) / 2)
        self.keys = self.keys[middle]  # half of a group lies above its key, so that its error has no direction
        self.mass = np.add.reduceat(self.mass, starts, axis=1)


def running_sums(mass: np.ndarray) -> np.ndarray:
    """(C, K) -> (C, K + 1) running sums, starting at 0."""
    sums = np.zeros((mass.shape[0], mass.shape[1] + 1))
    np.cumsum(mass, axis=1, out=sums[:, 1:])
    return sums


def _depth(mass: np.ndarray) -> np.ndarray:
    """(C, K) -> (K + 1,) rank of the edges between keys, in a unit in which a merge that spans 1 does no harm.

    With n pixels above, 1 is n * RESOLUTION further pixels, or RESOLUTION of all region weight.
    """
    above = running_sums(mass)
    depth = np.log1p(above[0])
    for weight in above[1:]:
        depth += weight / weight[-1]
    return depth / RESOLUTION


def _groups(depth: np.ndarray, cell: float) -> np.ndarray:
    """First index of each group when keys go by the cell of depth in which their middle lies; a heavy key is alone."""
    index = ((depth[1:] + depth[:-1]) * (0.5 / cell)).astype(np.int64)  # (K,)
    return run_starts(index[1:] != index[:-1])


def run_starts(change: np.ndarray) -> np.ndarray:
    """(K - 1,) where an element differs from the one before -> first index of each run."""
    return np.flatnonzero(np.concatenate([[True], change]))
