"""Anomaly metrics: pure functions, and one accumulator for pixels whose memory does not grow with the number of images.

Every pixel metric here follows from three counts at each threshold: the normal pixels above it, the defect pixels above
it, and the share of each region above it. So no map need be kept. Float32 values become int32 keys that sort as the
values do, with all 32 bits, and two tables (normal pixels, defect pixels) hold how often each key occurred: ties stay
ties, whatever the scale of the maps. One sweep over both tables, from the highest value down, gives every metric.

A table that outgrows its capacity becomes a sketch: neighbouring keys are merged where their pixels are few beside
those that rank higher (`RESOLUTION`), so that precision, recall and false positive rate hardly move at any cut; a key
that is heavy by itself stays alone. Later pixels join the nearest key that has room, or enter as keys of their own, so
that errors do not add up over the images. benchmarks/metrics.py measures speed and memory, benchmarks/accuracy.py how
far a sketch is from the exact numbers (below 3e-6 in every metric, for 400 maps of 518 x 518 in 12 kinds).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

PIXEL = ("auroc_px", "f1_px", "ap_px", "aupro", "aupro_200", "iou_px", "threshold_px")
IMAGE = ("auroc_sp", "f1_sp", "ap_sp")

FPR_LIMIT = 0.3
PUBLISHED_STEPS = 200
CURVE_POINTS = 120  # of a curve that is to be drawn

Points = list[list[float]]  # of a curve: [x, y], a list of fractions each

RESOLUTION = 3e-5  # a merged key holds about this share of the pixels above it; see `_depth`
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
    defect = (_numpy(mask) != 0).astype(np.uint8)
    if not defect.any():
        return np.zeros(defect.shape, np.int32)
    return cv2.connectedComponents(defect, connectivity=8, ltype=cv2.CV_32S)[1]


class PixelMetrics:
    """Pixel metrics of one class in one setting, map by map. Batches may be cut anywhere without changing a result."""

    def __init__(self) -> None:
        self._normal = _Table(columns=1, capacity=NORMAL_CAPACITY)
        self._defect = _Table(columns=2, capacity=DEFECT_CAPACITY)
        self._normal_waiting: list[np.ndarray] = []
        self._defect_waiting: list[np.ndarray] = []
        self._waiting_bytes = 0
        self._low, self._high = np.inf, -np.inf
        self._swept: _Curve | None = None  # of the tables as they are

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
            maps, regions = _numpy(maps, np.float32), _numpy(regions)
        if maps.ndim != 3 or maps.shape != regions.shape:
            shapes = f"{tuple(maps.shape)} and {tuple(regions.shape)}"
            raise ValueError(f"maps and regions must share one shape (B, H, W), got {shapes}")
        low, high = (
            (_numpy(maps.amin((1, 2))), _numpy(maps.amax((1, 2))))
            if on_device
            else (maps.min(axis=(1, 2)), maps.max(axis=(1, 2)))
        )  # (B,), NaN where a map holds one
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.all():
            raise ValueError(f"map {int(np.argmin(finite))} of the batch holds NaN or infinite values")
        self._low = min(self._low, float(low.min(initial=np.inf)))
        self._high = max(self._high, float(high.max(initial=-np.inf)))
        if on_device:
            self._wait(*_sorted_keys(maps, regions))
        else:
            for keys, labels in zip(_keys(maps), regions, strict=True):
                self._wait(*_split(keys, labels))

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
        f1, iou, threshold = _best_f1(curve)
        row = {
            "auroc_px": _auroc(curve),
            "f1_px": f1,
            "ap_px": _average_precision(curve),
            "aupro": _aupro(curve) if self._low < self._high else None,
            "aupro_200": _aupro_200(curve, self._low, self._high),
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
        curves = {"roc": _roc_points(curve), "pr": _pr_points(curve)}
        return curves | ({"pro": _pro_points(curve)} if self._low < self._high else {})

    def _curve(self) -> "_Curve | None":
        """What every metric and curve follows from; None where pixels of one kind are missing."""
        self._fold()
        if self._swept is None and self._normal.keys.size and self._defect.keys.size:
            self._swept = _sweep(self._normal, self._defect)
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
        keys, packed = _sorted(self._normal_waiting), _sorted(self._defect_waiting)
        self._normal_waiting, self._defect_waiting, self._waiting_bytes = [], [], 0
        self._swept = None
        self._normal.add(keys, np.broadcast_to(1.0, (1, keys.size)))
        self._defect.add((packed >> 32).astype(np.int32), np.stack([np.ones(packed.size), 1 / (packed & 0xFFFFFFFF)]))


def image_metrics(labels: Any, scores: Any) -> dict[str, float | None]:
    """AUROC, best F1 and average precision of image scores, by scikit-learn.

    Args:
        labels: (N,) any non-zero value is anomalous.
        scores: (N,) higher is more anomalous.

    Returns:
        The `IMAGE` keys, fractions in [0, 1]; all None where only one label occurs.

    Raises:
        ValueError: the shapes differ or are not (N,); a score is NaN or infinite.
    """
    labels, scores = _checked(labels, scores)
    if not labels.any() or labels.all():
        return dict.fromkeys(IMAGE)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)  # 0 / 0 counts as 0
    return {
        "auroc_sp": float(roc_auc_score(labels, scores)),
        "f1_sp": float(f1.max()),
        "ap_sp": float(average_precision_score(labels, scores)),
    }


def image_curves(labels: Any, scores: Any) -> dict[str, Points]:
    """Curves of image scores, thinned as `PixelMetrics.curves`.

    Args, errors: as `image_metrics`.

    Returns:
        roc: true over false positive rate. pr: precision over recall, where each precision holds for the recalls from
        the point before to its own, so that the area of the steps is the average precision. Nothing where only one
        label occurs.
    """
    labels, scores = _checked(labels, scores)
    if not labels.any() or labels.all():
        return {}
    fpr, tpr, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    precision, recall = precision[::-1].copy(), recall[::-1]
    precision[0] = precision[1]  # in place of scikit-learn's 1, which no threshold reaches
    return {
        "roc": _thinned(fpr, tpr, fpr + tpr),
        "pr": _thinned(recall, precision, recall + np.linspace(0, 1, recall.size)),
    }


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = _numpy(labels) != 0, _numpy(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must share one shape (N,), got {labels.shape} and {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        raise ValueError(f"score {int(np.argmin(finite))} is {scores[np.argmin(finite)]}")
    return labels, scores


def evaluate(
    maps: Sequence | None = None, masks: Sequence | None = None, labels: Any = None, scores: Any = None
) -> dict[str, float | None]:
    """All metrics of one class from arrays in memory; the numbers are those of `PixelMetrics` fed with the same maps.

    Args:
        maps: N anomaly maps (H, W), an (N, H, W) array or a sequence; sizes may differ between images.
        masks: N masks (H, W), any non-zero value is defect; without them the pixel metrics are None.
        labels, scores: (N,) as in `image_metrics`; without them the image metrics are None.

    Returns:
        The `PIXEL` and `IMAGE` keys.

    Raises:
        ValueError: maps and masks do not fit each other, or values are not finite.

    Example:
        >>> row = evaluate([[[0.1, 0.2], [0.3, 0.9]]], [[[0, 0], [0, 1]]])
        >>> row["auroc_px"], row["threshold_px"], row["auroc_sp"]
        (1.0, 0.8999999761581421, None)
    """
    row: dict[str, float | None] = dict.fromkeys(PIXEL + IMAGE)
    if maps is not None and masks is not None:
        row |= _evaluate_pixels(maps, masks)
    if labels is not None and scores is not None:
        row |= image_metrics(labels, scores)
    return row


def mean(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Plain mean over classes of every metric, over the classes that have it; None where none has."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    present = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in present.items()}


def _evaluate_pixels(maps: Sequence, masks: Sequence) -> dict[str, float | None]:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks")
    metrics = PixelMetrics()
    for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        try:
            metrics.update(_numpy(one, np.float32)[None], label_regions(mask)[None])
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from error
    return metrics.compute()


def _numpy(values: Any, dtype: Any = None) -> np.ndarray:
    if torch.is_tensor(values):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the caller refuses
        return np.asarray(values, dtype)


# Keys: the order of float32 values as the reverse order of int32, so that every sweep runs from the highest value.


def _keys(values: np.ndarray) -> np.ndarray:
    """Float32 values -> int32 keys of the same shape, lower for higher values; equal values, equal keys."""
    bits = (values + np.float32(0)).view(np.int32)  # a new array; -0.0 + 0.0 is 0.0
    flip = bits >> 31
    flip &= 0x7FFFFFFF  # negative floats are sign and magnitude: turn their order round
    bits ^= flip
    return np.invert(bits, out=bits)


def _split(keys: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image, keys (H, W) int32 and labels (H, W) -> keys of normal pixels, and keys of defects with the area of
    their regions in one number: one sort orders both, so no sum depends on the order of images."""
    defect = labels != 0
    normal, labels = keys[~defect], labels[defect]  # (n,), (d,)
    area = np.bincount(labels)[labels]  # (d,) of each pixel's region
    return normal, (keys[defect].astype(np.int64) << 32) | area


def _sorted_keys(maps: torch.Tensor, regions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`_keys`, `_split` and the sort for a batch, (B, H, W) each, on the device that it is on."""
    bits = (maps.float() + 0).view(torch.int32)
    keys = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    regions = regions.to(keys.device, non_blocking=True).long()
    defect = regions != 0
    offsets = torch.arange(len(regions), device=keys.device)[:, None, None] * (regions.max() + 1)
    labels = (regions + offsets)[defect]  # (d,), no two images share one
    packed = (keys[defect].long() << 32) | torch.bincount(labels)[labels]
    return keys[~defect].sort().values.cpu().numpy(), packed.sort().values.cpu().numpy()


def _sorted(waiting: list[np.ndarray]) -> np.ndarray:
    """All that waits, ascending; a batch that a device has sorted may wait alone."""
    values = np.concatenate(waiting)
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


def _values(keys: np.ndarray) -> np.ndarray:
    """The float32 values of keys, as float64."""
    bits = ~keys
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32).astype(np.float64)


class _Table:
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
        grown = self.mass + np.diff(_cumulate(mass)[:, edges])
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
        starts = _starts(keys[1:] != keys[:-1])
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
        pixels = _cumulate(self.mass[:1])[0]
        ends = np.append(starts[1:], self.keys.size)
        middle = np.searchsorted(pixels[1:], (pixels[starts] + pixels[ends]) / 2)
        self.keys = self.keys[middle]  # half of a group lies above its key, so that its error has no direction
        self.mass = np.add.reduceat(self.mass, starts, axis=1)


def _cumulate(mass: np.ndarray) -> np.ndarray:
    """(C, K) -> (C, K + 1) running sums, starting at 0."""
    sums = np.zeros((mass.shape[0], mass.shape[1] + 1))
    np.cumsum(mass, axis=1, out=sums[:, 1:])
    return sums


def _depth(mass: np.ndarray) -> np.ndarray:
    """(C, K) -> (K + 1,) rank of the edges between keys, in a unit in which a merge that spans 1 does no harm.

    With n pixels above, 1 is n * RESOLUTION further pixels, or RESOLUTION of all region weight.
    """
    above = _cumulate(mass)
    depth = np.log1p(above[0])
    for weight in above[1:]:
        depth += weight / weight[-1]
    return depth / RESOLUTION


def _groups(depth: np.ndarray, cell: float) -> np.ndarray:
    """First index of each group when keys go by the cell of depth in which their middle lies; a heavy key is alone."""
    index = ((depth[1:] + depth[:-1]) * (0.5 / cell)).astype(np.int64)  # (K,)
    return _starts(index[1:] != index[:-1])


def _starts(change: np.ndarray) -> np.ndarray:
    """(K - 1,) where an element differs from the one before -> first index of each run."""
    return np.flatnonzero(np.concatenate([[True], change]))


class _Curve(NamedTuple):
    """What lies at or above each distinct map value, highest value first.

    values: (T,). false_positives, true_positives: (T + 1,) pixels, starting at 0. overlap: (T + 1,) sum over regions of
    the share of the region.
    """

    values: np.ndarray
    false_positives: np.ndarray
    true_positives: np.ndarray
    overlap: np.ndarray


def _sweep(normal: _Table, defect: _Table) -> _Curve:
    keys = np.sort(np.concatenate([normal.keys, defect.keys]))
    keys = keys[_starts(keys[1:] != keys[:-1])]
    normal_above, defect_above = (
        _cumulate(table.mass)[:, np.append(0, np.searchsorted(table.keys, keys, side="right"))]
        for table in (normal, defect)
    )
    return _Curve(_values(keys), normal_above[0], defect_above[0], defect_above[1])


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Trapezoidal area."""
    return np.dot(np.diff(x), y[1:] + y[:-1]) / 2


def _auroc(curve: _Curve) -> float:
    area = _area(curve.false_positives, curve.true_positives)
    return area / (curve.false_positives[-1] * curve.true_positives[-1])


def _average_precision(curve: _Curve) -> float:
    true, false = curve.true_positives, curve.false_positives
    precision = true[1:] / (true[1:] + false[1:])
    return np.dot(np.diff(true), precision) / true[-1]


def _best_f1(curve: _Curve) -> tuple[float, float, float]:
    """Best F1, the IoU and the threshold that belong to it; the lowest threshold where several are best."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    f1 = 2 * true / (true + false + true[-1])
    best = f1.size - 1 - int(np.argmax(f1[::-1]))
    return f1[best], true[best] / (true[-1] + false[best]), curve.values[best]


def _aupro(curve: _Curve) -> float:
    """Area under overlap over false positive rate from 0 to the limit, divided by the limit; every threshold."""
    fpr = curve.false_positives / curve.false_positives[-1]
    pro = curve.overlap / curve.overlap[-1]
    end = np.searchsorted(fpr, FPR_LIMIT, side="right")
    at_limit = np.interp(FPR_LIMIT, fpr, pro)
    return _area(np.append(fpr[:end], FPR_LIMIT), np.append(pro[:end], at_limit)) / FPR_LIMIT


def _roc_points(curve: _Curve) -> Points:
    fpr = curve.false_positives / curve.false_positives[-1]
    tpr = curve.true_positives / curve.true_positives[-1]
    return _thinned(fpr, tpr, fpr + tpr)


def _pr_points(curve: _Curve) -> Points:
    """The precision of the first few pixels jumps; on a logarithmic scale of pixels they do not take all points."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    pixels = np.log1p(true + false)
    recall, precision = true / true[-1], true / (true + false)
    recall, precision = np.append(0, recall), np.append(precision[0], precision)
    return _thinned(recall, precision, recall + np.append(0, pixels / pixels[-1]))


def _pro_points(curve: _Curve) -> Points:
    fpr = curve.false_positives / curve.false_positives[-1]
    pro = curve.overlap / curve.overlap[-1]
    end = np.searchsorted(fpr, FPR_LIMIT, side="right")
    fpr, pro = np.append(fpr[:end], FPR_LIMIT), np.append(pro[:end], np.interp(FPR_LIMIT, fpr, pro))
    return _thinned(fpr, pro, fpr / FPR_LIMIT + pro)


def _thinned(x: np.ndarray, y: np.ndarray, along: np.ndarray) -> Points:
    """At most CURVE_POINTS of the points, the ends among them, about equally far apart in `along`, which ascends."""
    if x.size > CURVE_POINTS:
        chosen = np.searchsorted(along, np.linspace(along[0], along[-1], CURVE_POINTS))
        chosen = np.unique(np.append(chosen[:-1], x.size - 1))
        x, y = x[chosen], y[chosen]
    return [np.round(values, 4).tolist() for values in (x, y)]


def _aupro_200(curve: _Curve, low: float, high: float) -> float | None:
    """AUPRO as the tables of CLIP-based methods have it (APRIL-GAN and others).

    200 thresholds, equally spaced from the class's lowest map value, the highest left out; above means greater; of the
    curve's points those below the limit, their false positive rate stretched to [0, 1]. None where they share one rate.
    """
    thresholds = low + np.arange(PUBLISHED_STEPS) * (high - low) / PUBLISHED_STEPS
    above = np.searchsorted(-curve.values, -thresholds[::-1])  # (200,) how many distinct values are greater
    fpr = curve.false_positives[above] / curve.false_positives[-1]
    pro = curve.overlap[above] / curve.overlap[-1]
    fpr, pro = fpr[fpr < FPR_LIMIT], pro[fpr < FPR_LIMIT]
    if fpr.size == 0 or fpr[0] == fpr[-1]:
        return None
    return _area(fpr, pro) / (fpr[-1] - fpr[0])
