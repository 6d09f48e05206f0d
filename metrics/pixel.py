"""Pixel metrics of one class, map by map."""

from typing import Any

import cv2
import numpy as np
import torch

from metrics.curves import (
    Points,
    ThresholdCurve,
    aupro,
    aupro_200,
    auroc,
    average_precision,
    best_f1,
    pr_points,
    pro_points,
    roc_points,
    sweep,
)
from metrics.histogram import KeyTable, merge_sorted, sort_pixels, split_pixels, to_keys
from metrics.image import as_array
from metrics.names import PIXEL

NORMAL_CAPACITY = 1_000_000  # keys, 12 bytes each
DEFECT_CAPACITY = 500_000  # keys, 20 bytes each
BUFFER_BYTES = 6_000_000  # pixels that wait to be sorted together


def label_regions(mask: Any) -> np.ndarray:
    """Number the defect regions of one mask.

    Args:
        mask: (H, W) array or tensor; any non-zero value is defect.

    Returns:
        (H, W) int32, 0 normal, 1..r the 8-connected regions.
    """
    defect = (as_array(mask) != 0).astype(np.uint8)
    if not defect.any():
        return np.zeros(defect.shape, np.int32)
    return cv2.connectedComponents(defect, connectivity=8, ltype=cv2.CV_32S)[1]


class PixelMetrics:
    """Pixel metrics of one class in one setting, map by map. Batches may be cut anywhere without changing a result."""

    def __init__(self) -> None:
        self._normal = KeyTable(columns=1, capacity=NORMAL_CAPACITY)
        self._defect = KeyTable(columns=2, capacity=DEFECT_CAPACITY)
        self._normal_waiting: list[np.ndarray] = []
        self._defect_waiting: list[np.ndarray] = []
        self._waiting_bytes = 0
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
        on_device = torch.is_tensor(maps) and maps.device.type != "cpu"
        if not on_device:
            maps, regions = as_array(maps, np.float32), as_array(regions)
        if maps.ndim != 3 or maps.shape != regions.shape:
            shapes = f"{tuple(maps.shape)} and {tuple(regions.shape)}"
            raise ValueError(f"maps and regions must share one shape (B, H, W), got {shapes}")
        low, high = (
            (as_array(maps.amin((1, 2))), as_array(maps.amax((1, 2))))
            if on_device
            else (maps.min(axis=(1, 2)), maps.max(axis=(1, 2)))
        )  # (B,), NaN where a map holds one
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.all():
            raise ValueError(f"map {int(np.argmin(finite))} of the batch holds NaN or infinite values")
        self._low = min(self._low, float(low.min(initial=np.inf)))
        self._high = max(self._high, float(high.max(initial=-np.inf)))
        if on_device:
            self._wait(*sort_pixels(maps, regions))
        else:
            for keys, labels in zip(to_keys(maps), regions, strict=True):
                self._wait(*split_pixels(keys, labels))

    def merge(self, other: "PixelMetrics") -> None:
        """Add the counts of another accumulator (another process, another part of the class), which keeps them."""
        self._fold()
        other._fold()
        self._swept = None
        self._normal.add(other._normal.keys, other._normal.mass)
        self._defect.add(other._defect.keys, other._defect.mass)
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
        self._fold()
        if self._swept is None and self._normal.keys.size and self._defect.keys.size:
            self._swept = sweep(self._normal, self._defect)
        return self._swept

    def _wait(self, normal: np.ndarray, packed: np.ndarray) -> None:
        """Queue pixels: keys (n,) int32 of normal ones; of defects, (d,) int64, key << 32 | area of the region."""
        self._normal_waiting.append(normal)
        self._defect_waiting.append(packed)
        self._waiting_bytes += normal.nbytes + packed.nbytes
        if self._waiting_bytes >= BUFFER_BYTES:
            self._fold()

    def _fold(self) -> None:
        """Move the waiting pixels into the tables."""
        if not self._waiting_bytes:
            return
        keys, packed = merge_sorted(self._normal_waiting), merge_sorted(self._defect_waiting)
        self._normal_waiting, self._defect_waiting, self._waiting_bytes = [], [], 0
        self._swept = None
        self._normal.add(keys, np.broadcast_to(1.0, (1, keys.size)))
        self._defect.add((packed >> 32).astype(np.int32), np.stack([np.ones(packed.size), 1 / (packed & 0xFFFFFFFF)]))
