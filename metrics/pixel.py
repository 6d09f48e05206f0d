"""Pixel metrics of one class, map by map."""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from metrics.curves import (
    Points,
    ThresholdCurve,
    aupro,
    aupro_200,
    auroc,
    average_precision,
    best_f1,
    f1_above,
    pr_points,
    pro_points,
    roc_points,
    sweep,
)
from metrics.histogram import NO_KEY, KeyTable, search, sort_in_place, split_pixels
from metrics.image import as_array
from metrics.names import PIXEL, PIXEL_GIVEN, Measures

NORMAL_CAPACITY = 750_000  # keys, 12 bytes each
DEFECT_CAPACITY = 500_000  # keys, 20 bytes each
BUFFER_BYTES = 16_000_000  # normal pixels that wait to be sorted together; half of them while the table is exact
DEFECT_BUFFER_BYTES = 4_000_000


def label_regions(mask: Any) -> np.ndarray:
    """Number the defect regions of one mask.

    Args:
        mask: (H, W) array or tensor; any non-zero value is defect.

    Returns:
        (H, W), 0 normal, 1..r the 8-connected regions. Up to 255 are uint8, since they travel between processes and to
        a GPU; more are int32.
    """
    defect = (as_array(mask) != 0).astype(np.uint8)
    if not defect.any():
        return np.zeros_like(defect)
    count, labels = cv2.connectedComponents(defect, connectivity=8, ltype=cv2.CV_32S)
    return labels.astype(np.uint8) if count <= 256 else labels


class PixelMetrics:
    """Pixel metrics of one class in one setting, map by map, counted on the device of the maps. Batches may be cut
    anywhere without changing a result."""

    def __init__(self) -> None:
        self._normal = Counts(1, NORMAL_CAPACITY, BUFFER_BYTES, torch.int32)
        self._defect = Counts(2, DEFECT_CAPACITY, DEFECT_BUFFER_BYTES, torch.int64)
        self._low, self._high = np.inf, -np.inf
        self._swept: ThresholdCurve | None = None  # of the tables as they are

    def update(self, maps: Any, regions: Any) -> None:
        """Count the pixels of a batch.

        Args:
            maps: (B, H, W) anomaly maps, tensor on any device or array, higher is more anomalous; taken as float32.
            regions: (B, H, W) integers, for each image as `label_regions` gives them.

        Raises:
            ValueError: the shapes differ or are not (B, H, W); a map holds NaN or infinity. Nothing is counted then.
        """
        maps = _tensor(maps, np.float32)
        regions = _tensor(regions, np.int32).to(maps.device, non_blocking=True)
        if maps.ndim != 3 or maps.shape != regions.shape:
            shapes = f"{tuple(maps.shape)} and {tuple(regions.shape)}"
            raise ValueError(f"maps and regions must share one shape (B, H, W), got {shapes}")
        if not maps.numel():
            return
        low, high = torch.stack([maps.amin((1, 2)), maps.amax((1, 2))]).cpu()  # (B,), NaN where a map holds one
        finite = low.isfinite() & high.isfinite()
        if not finite.all():
            raise ValueError(f"map {int((~finite).nonzero()[0])} of the batch holds NaN or infinite values")
        self._low, self._high = min(self._low, float(low.min())), max(self._high, float(high.max()))
        self._swept = None
        at_once = 1 if maps.device.type == "cpu" else len(maps)  # a single map stays in the caches
        for some, their_regions in zip(maps.split(at_once), regions.split(at_once), strict=True):
            keys, packed = split_pixels(some, their_regions)
            self._normal.add(keys)
            self._defect.add(packed)

    def merge(self, other: "PixelMetrics") -> None:
        """Add the counts of another accumulator (another process, another part of the class), which keeps them."""
        self._swept = None
        self._normal.merge(other._normal)
        self._defect.merge(other._defect)
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    def compute(self) -> dict[str, float | None]:
        """The metrics of all maps so far; counting may go on afterwards.

        Returns:
            The `PIXEL` keys, fractions in [0, 1] but for `threshold_px`, a map value. None is what cannot be computed:
            all without normal or without defect pixels, both AUPROs of constant maps, `aupro_200` of a curve that
            is one point.

            auroc_px: area under ROC, ties count half.
            ap_px: average precision, the step-wise sum of scikit-learn.
            f1_px, threshold_px: the best F1 over all thresholds and the lowest map value that reaches it.
            iou_px: IoU of {map >= threshold_px} with the mask.
            aupro: area under per-region overlap over false positive rate, up to 0.3 (Bergmann et al., MVTec AD, 2021),
                with every threshold, each region of the class at equal weight.
            aupro_200: the same in the form of the published tables, see `_aupro_200`.
        """
        curve = self._curve()
        if curve is None:
            return dict.fromkeys(PIXEL)
        f1, iou, threshold = best_f1(curve)
        row = {
            "auroc_px": auroc(curve),
            "f1_px": f1,
            "ap_px": average_precision(curve),
            "aupro": aupro(curve) if self._low < self._high else None,
            "aupro_200": aupro_200(curve, self._low, self._high),
            "iou_px": iou,
            "threshold_px": threshold,
        }
        return {name: None if value is None else float(value) for name, value in row.items()}

    def measures(self, measures: Measures, threshold: float | None = None) -> dict[str, float | None]:
        """What `measures` asks for of the same counts: AU-PRO to further limits, and the F1 at a threshold.

        Args:
            threshold: of the maps, where one is given: what is greater counts as defect. None: there is none.

        Returns:
            Its names; None is what cannot be computed, as in `compute`.
        """
        curve, names = self._curve(), measures.aupro()
        row: dict[str, float | None] = dict.fromkeys((*names, *(PIXEL_GIVEN if measures.given else ())))
        if curve is not None and self._low < self._high:
            row |= {name: aupro(curve, limit) for name, limit in names.items()}
        if measures.given and threshold is not None:
            row["threshold_px_given"] = threshold
            if curve is not None:
                row |= {"f1_px_given": f1_above(curve, threshold), "f1_px_oracle": best_f1(curve)[0]}
        return row

    def curves(self) -> dict[str, Points]:
        """The curves of all maps so far, thinned to at most CURVE_POINTS points each, to be drawn.

        Returns:
            roc: true over false positive rate. pr: precision over recall. pro: mean overlap of regions over false
            positive rate, up to 0.3. What cannot be computed is not there: nothing without normal or without defect
            pixels, no pro of constant maps.
        """
        curve = self._curve()
        if curve is None:
            return {}
        curves = {"roc": roc_points(curve), "pr": pr_points(curve)}
        return curves | ({"pro": pro_points(curve)} if self._low < self._high else {})

    def _curve(self) -> "ThresholdCurve | None":
        """What every metric and curve follows from; None where pixels of one kind are missing."""
        if self._swept is None:
            normal, defect = self._normal.counted(), self._defect.counted()
            if len(normal.keys) and len(defect.keys):
                self._swept = sweep(normal, defect)
        return self._swept

    def __getstate__(self) -> dict[str, Any]:  # for other processes: without what follows from the rest
        return {**self.__dict__, "_swept": None}


class Counts:
    """Pixels of one kind: those that wait, in a buffer that is made once, and the table of those that are counted.

    Args:
        columns, capacity: of the table.
        buffer_bytes: of the buffer.
        kind: of what waits: int32 keys of normal pixels, NO_KEY among them; or int64, key << 32 | area of the region.
    """

    def __init__(self, columns: int, capacity: int, buffer_bytes: int, kind: torch.dtype) -> None:
        self.table = KeyTable(columns, capacity)
        self._size, self._kind = buffer_bytes // kind.itemsize, kind
        self._buffer: Tensor | None = None
        self._waiting = 0

    def add(self, pixels: Tensor) -> None:
        """Take pixels, (n,). When they are counted does not depend on how they come."""
        if self._buffer is None:
            self._buffer = torch.empty(self._size, dtype=self._kind, device=pixels.device)
            self.table.to(pixels.device)
        while len(pixels):
            # A table that is exact takes all keys, which needs memory; a sketch absorbs most of them.
            limit = self._size if self.table.cell else max(1, self._size // 2)
            some = pixels[: limit - self._waiting]
            self._buffer[self._waiting : self._waiting + len(some)] = some
            self._waiting += len(some)
            pixels = pixels[len(some) :]
            if self._waiting >= limit:
                self.counted()

    def counted(self) -> KeyTable:
        """The table, when all that waits is in it."""
        if self._buffer is not None and self._waiting:
            pixels = sort_in_place(self._buffer[: self._waiting])
            self._waiting = 0
            if self._kind == torch.int32:
                self.table.add(pixels[: int(search(pixels, pixels.new_tensor([NO_KEY])))])
            else:
                areas = (pixels & 0xFFFFFFFF).double()
                self.table.add((pixels >> 32).int(), torch.stack([torch.ones_like(areas), 1 / areas]))
        return self.table

    def merge(self, other: "Counts") -> None:
        """Add what another has counted, which keeps it."""
        own, theirs = self.counted(), other.counted()
        self.table.add(theirs.keys.to(own.keys.device), theirs.mass.to(own.keys.device))

    def __getstate__(self) -> dict[str, Any]:
        """For other processes."""
        self.counted()
        self._buffer = None  # made anew where counting goes on
        return self.__dict__


def _tensor(values: Any, kind: Any) -> Tensor:
    """A tensor on the CPU or a CUDA device; floats become float32."""
    if not torch.is_tensor(values):
        return torch.from_numpy(np.array(as_array(values, kind)))
    values = values.detach()
    if values.device.type not in ("cpu", "cuda"):  # others lack double precision
        values = values.cpu()
    return values.float() if kind == np.float32 else values
