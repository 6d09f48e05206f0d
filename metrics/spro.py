"""AU-sPRO, the area under saturated per-region overlap (Bergmann et al. 2022, "Beyond Dents and Scratches: Logical
Constraints in Unsupervised Anomaly Detection and Localization", IJCV 130, equation 1).

A region is overlapped whole as soon as its saturation, a number of pixels, lies above the threshold: sPRO(t) is the
mean over regions of min(pixels of the region at or above t / saturation, 1). With saturations that are the regions'
areas it is PRO. The false positive rate is that of all pixels in no region.

It follows from counts: the i-th highest pixel of a region adds min(i / s, 1) - min((i - 1) / s, 1) to its overlap.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.curves import ThresholdCurve, aupro, sweep
from metrics.histogram import NO_KEY, KeyTable, to_keys
from metrics.names import BOTH, KINDS, Measures, of_kind
from metrics.pixel import BUFFER_BYTES, DEFECT_CAPACITY, NORMAL_CAPACITY, Counts


class SaturatedRegion(NamedTuple):
    """One defect. Regions may overlap.

    mask: (H, W) bool.
    saturation: pixels of it that are enough, above 0; at the resolution of the mask.
    """

    mask: Tensor
    saturation: float


class SproCounts:
    """What AU-sPRO needs of the images of one class, image by image, apart for good images and kinds of anomalies."""

    def __init__(self) -> None:
        self._normal: dict[str, Counts] = {}
        self._regions: dict[str, KeyTable] = {}
        self._count: dict[str, int] = {}

    def update(self, one: Tensor, regions: Sequence[SaturatedRegion], group: str) -> None:
        """Count the pixels of an image.

        Args:
            one: (H, W) float32.
            regions: its defects; without a pixel they are none.
            group: "good", or the kind of its anomaly.

        Raises:
            ValueError: a region has another shape, or a saturation that is not above 0.
        """
        for region in regions:
            if region.mask.shape != one.shape or not region.saturation > 0:
                shapes = f"{tuple(region.mask.shape)} and {tuple(one.shape)}"
                raise ValueError(f"regions need the shape of their map and a saturation above 0; got {shapes}, "
                                 f"{region.saturation:g}")  # fmt: skip
        keys = to_keys(one)
        self._add_regions([(keys[region.mask], region.saturation) for region in regions], group)
        for region in regions:
            keys[region.mask] = NO_KEY
        normal = self._normal.setdefault(group, Counts(1, NORMAL_CAPACITY, BUFFER_BYTES, torch.int32))
        normal.add(keys.flatten())

    def _add_regions(self, regions: Iterable[tuple[Tensor, float]], group: str) -> None:
        """regions: keys of the pixels of each, (n,), and its saturation."""
        every, shares = [], []
        for keys, saturation in regions:
            if len(keys):
                every.append(keys.sort().values)
                ranks = torch.arange(len(keys) + 1, dtype=torch.float64, device=keys.device)
                shares.append((ranks / saturation).clamp_max(1).diff())
        if not every:
            return
        keys, order = torch.cat(every).sort()
        share = torch.cat(shares)[order]
        table = self._regions.setdefault(group, KeyTable(2, DEFECT_CAPACITY, keys.device))
        table.add(keys, torch.stack([torch.ones_like(share), share]))
        self._count[group] = self._count.get(group, 0) + len(every)

    def merge(self, other: "SproCounts") -> None:
        """Add what another process has counted of the same class."""
        for group, counts in other._normal.items():
            own = self._normal.setdefault(group, Counts(1, NORMAL_CAPACITY, BUFFER_BYTES, torch.int32))
            own.merge(counts)
        for group, table in other._regions.items():
            mine = self._regions.setdefault(group, KeyTable(2, DEFECT_CAPACITY))
            mine.add(table.keys.to(mine.keys.device), table.mass.to(mine.keys.device))
            self._count[group] = self._count.get(group, 0) + other._count[group]

    def compute(self, measures: Measures) -> dict[str, float | None]:
        """The AU-sPRO that `measures` asks for: of all anomalies, or of each kind with the good images, and the mean of
        the kinds. None where there is no region or no other pixel, or where all pixels have one value."""
        limits, row = measures.auspro(), {}
        for kind in measures.kinds():
            curve = self._curve(("good", kind))
            for name, limit in limits.items():
                value = None if curve is None else aupro(curve, limit, self._count[kind])
                row[of_kind(name, kind) if kind else name] = value
        return row | (mean_of_kinds(row, limits) if measures.by_kind else {})

    def _curve(self, groups: Sequence[str]) -> ThresholdCurve | None:
        normal, regions = KeyTable(1, NORMAL_CAPACITY), self._regions.get(groups[-1])
        for group in groups:
            if group in self._normal:
                table = self._normal[group].counted()
                normal.to(table.keys.device)
                normal.add(table.keys, table.mass)
        if regions is None or not len(normal.keys):
            return None
        regions.to(normal.keys.device)  # another process has seen all of them, perhaps
        curve = sweep(normal, regions)
        return curve if len(curve.values) > 1 else None


def mean_of_kinds(row: dict[str, float | None], names: Iterable[str]) -> dict[str, float | None]:
    """The mean of both kinds of some metrics, None where a kind lacks it."""
    found: dict[str, float | None] = {}
    for name in names:
        values = [row[of_kind(name, kind)] for kind in KINDS]
        known = [value for value in values if value is not None]
        found[of_kind(name, BOTH)] = sum(known) / len(known) if len(known) == len(values) else None
    return found
