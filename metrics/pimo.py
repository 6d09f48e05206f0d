"""AUPIMO, a measure of each anomalous image at very low false positive rates (Bertoldo et al. 2024, "AUPIMO: Redefining
Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance").

The false positive rate of a threshold is that of normal images alone: the mean over them of the share of their pixels
at or above it. The recall of an anomalous image is the share of its defect pixels at or above the threshold. AUPIMO is
the mean recall while the rate goes from 1e-5 to 1e-4 on a logarithmic axis, between thresholds linear in the logarithm.

Every threshold counts: none are sampled. Of normal images only the pixels that may lie above a rate of 1e-4 are kept,
of an anomalous image at most RANKS of its defect pixels, evenly spaced in order, which moves a recall by less than
4e-5. So memory does not grow with the size of the images.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from metrics.histogram import running_sums, sort_in_place, to_keys
from metrics.names import AUPIMO
from metrics.pixel import DEFECT_BUFFER_BYTES, NORMAL_CAPACITY, Counts

BOUNDS = (1e-5, 1e-4)  # of the false positive rate
RANKS = 1 << 14
_ROUNDING = 1e-9  # of sums of shares


class PimoCounts:
    """What AUPIMO needs of the images of one class, image by image.

    Args:
        normal_images: how many of its images are normal: the fewer, the less is kept of each.
    """

    def __init__(self, normal_images: int) -> None:
        self._share = min(1.0, BOUNDS[1] * normal_images)  # of an image: what may lie above the upper rate
        self._normal_images = normal_images
        self._seen = 0
        self._normal = Counts(2, NORMAL_CAPACITY, DEFECT_BUFFER_BYTES, torch.int64)
        self._defects: dict[int, np.ndarray] = {}  # image -> keys, ascending

    def add_normal(self, one: Tensor) -> None:
        """Count the pixels of a normal image. Raises ValueError where there are more of them than was said.

        one: (H, W) float32.
        """
        if self._seen == self._normal_images:
            raise ValueError(f"a normal image more than the {self._normal_images} that were announced")
        self._seen += 1
        keys = to_keys(one).flatten()
        kept = int(self._share * len(keys)) + 1
        if kept < len(keys):
            keys = keys[keys <= _nth(keys, kept)]  # with all that equal the last one
        self._normal.add(keys.long() << 32 | one.numel())

    def add_anomalous(self, index: int, one: Tensor, defect: Tensor) -> None:
        """Take the defect pixels of an anomalous image; one without any has no AUPIMO.

        Args:
            index: of the image.
            one: (H, W) float32.
            defect: (H, W) non-zero where there is a defect.
        """
        keys = sort_in_place(to_keys(one[defect != 0]))
        if len(keys) > RANKS:
            places = (torch.arange(RANKS, dtype=torch.float64, device=keys.device) + 0.5) * (len(keys) / RANKS)
            keys = keys[places.long()]
        if len(keys):
            self._defects[index] = keys.cpu().numpy()

    def merge(self, other: "PimoCounts") -> None:
        """Add what another process has counted of the same class."""
        self._normal.merge(other._normal)
        self._seen += other._seen
        self._defects |= other._defects

    def compute(self) -> dict[int, float]:
        """Image -> AUPIMO, in [0, 1], of the anomalous images with defect pixels.

        None of them has one where the normal images cannot tell a rate of 1e-5: where there are none, where they have
        fewer than 100,000 pixels together, or where more than one in 100,000 of their pixels share the highest value.
        """
        table = self._normal.counted()
        if not len(table.keys):
            return {}
        rates = (running_sums(table.mass)[1, 1:] / self._seen).cpu().numpy()  # (K,) at or above each value
        low, high = np.log(BOUNDS)
        if rates[0] > BOUNDS[0] * (1 + _ROUNDING):
            return {}
        end = int(np.searchsorted(rates, BOUNDS[1])) + 1
        x, keys = np.log(rates[:end]), table.keys[:end].cpu().numpy()
        x[0] = min(x[0], low)
        return {index: _area(x, keys, defects, low, high) for index, defects in sorted(self._defects.items())}


def _nth(keys: Tensor, number: int) -> int:
    """The number-th lowest key, counted from 1."""
    if keys.device.type == "cpu":
        return int(np.partition(keys.numpy(), number - 1)[number - 1])
    return int(keys.kthvalue(number).values)


def _area(x: np.ndarray, keys: np.ndarray, defects: np.ndarray, low: float, high: float) -> float:
    """Mean recall between two ends of x.

    Args:
        x: (T,) logarithm of the rate at each distinct value of the normal images, the highest value first.
        keys: (T,) of these values.
        defects: (m,) keys of an image's defect pixels, ascending.
    """
    before = np.searchsorted(defects, keys[1:], "left") / len(defects)  # (T - 1,) recall just above each value
    at = np.searchsorted(defects, keys[1:], "right") / len(defects)  # and at the value, where the rate steps
    left, right = np.clip(x[:-1], low, high), np.clip(x[1:], low, high)
    middle = ((left + right) / 2 - x[:-1]) / np.diff(x)
    return float(np.sum((right - left) * (before + middle * (at - before))) / (high - low))


def spread(values: Iterable[float]) -> Mapping[str, float | None]:
    """Mean and quartiles (linear between values) of the AUPIMO of images, by the names of AUPIMO; None without any."""
    known = np.array(list(values))
    if not known.size:
        return dict.fromkeys(AUPIMO)
    numbers = (known.mean(), *np.percentile(known, (25, 50, 75)))
    return dict(zip(AUPIMO, map(float, numbers), strict=True))
