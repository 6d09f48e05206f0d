"""Curves from two histograms, one sweep from the highest value down, and the metrics that they give: PyTorch, on the
device of the tables, from which only numbers and the points of drawn curves come to the host."""

from typing import NamedTuple

import torch
from torch import Tensor

from metrics.histogram import KeyTable, running_sums, search, to_values, unite
from metrics.names import FPR_LIMIT

PUBLISHED_STEPS = 200
CURVE_POINTS = 120  # of a curve that is to be drawn
Points = list[list[float]]  # of a curve: [x, y], a list of fractions each


class ThresholdCurve(NamedTuple):
    """What lies at or above each distinct value of a map or image, highest value first.

    values: (T,). false_positives, true_positives: (T + 1,) pixels or images, starting at 0. overlap: (T + 1,) sum over
    regions of the share of the region.
    """

    values: Tensor
    false_positives: Tensor
    true_positives: Tensor
    overlap: Tensor


def sweep(normal: KeyTable, defect: KeyTable) -> ThresholdCurve:
    """The curve of two tables, neither of them empty."""
    of_normal = torch.cat([normal.mass, normal.mass.new_zeros(2, len(normal.keys))])  # (3, K)
    of_defect = torch.cat([defect.mass.new_zeros(1, len(defect.keys)), defect.mass])  # (3, M)
    keys, mass = unite(normal.keys, of_normal, defect.keys, of_defect)  # (T,), (3, T)
    return ThresholdCurve(to_values(keys), *running_sums(mass))


def _from_zero(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values])


def _area(x: Tensor, y: Tensor) -> float:
    """Trapezoidal area."""
    return float(torch.dot(x.diff(), y[1:] + y[:-1]) / 2)


def auroc(curve: ThresholdCurve) -> float:
    area = _area(curve.false_positives, curve.true_positives)
    return area / float(curve.false_positives[-1] * curve.true_positives[-1])


def average_precision(curve: ThresholdCurve) -> float:
    true, false = curve.true_positives, curve.false_positives
    precision = true[1:] / (true[1:] + false[1:])
    return float(torch.dot(true.diff(), precision) / true[-1])


def best_f1(curve: ThresholdCurve) -> tuple[float, float, float]:
    """Best F1, the IoU and the threshold that belong to it; the lowest threshold where several are best."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    f1 = 2 * true / (true + false + true[-1])
    best = len(f1) - 1 - int(f1.flip(0).argmax())
    return float(f1[best]), float(true[best] / (true[-1] + false[best])), float(curve.values[best])


def f1_above(curve: ThresholdCurve, threshold: float) -> float:
    """F1 of the pixels above a threshold that is given: greater, as a verdict takes it."""
    above = search(-curve.values, -curve.values.new_tensor([threshold]))  # (1,) how many distinct values are greater
    true, false = curve.true_positives[above], curve.false_positives[above]
    return float(2 * true / (true + false + curve.true_positives[-1]))


def _pro(curve: ThresholdCurve, at_most: float, regions: float | None = None) -> tuple[Tensor, Tensor]:
    """False positive rates up to the limit, and the mean overlap of regions there: every threshold, and the limit."""
    fpr = curve.false_positives / curve.false_positives[-1]
    pro = curve.overlap / (curve.overlap[-1] if regions is None else regions)
    limit = fpr.new_tensor([at_most])
    end = int(search(fpr, limit, right=True))  # at least 1, since the first rate is 0
    if end == len(fpr):  # the limit is 1
        return fpr, pro
    share = (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    at_limit = pro[end - 1] + share * (pro[end] - pro[end - 1])
    return torch.cat([fpr[:end], limit]), torch.cat([pro[:end], at_limit])


def aupro(curve: ThresholdCurve, limit: float = FPR_LIMIT, regions: float | None = None) -> float:
    """Area under overlap over false positive rate from 0 to the limit, divided by the limit; every threshold.

    regions: how many there are; None: the overlap of the lowest threshold, where each is overlapped whole.
    """
    return _area(*_pro(curve, limit, regions)) / limit


def roc_points(curve: ThresholdCurve) -> Points:
    fpr = curve.false_positives / curve.false_positives[-1]
    tpr = curve.true_positives / curve.true_positives[-1]
    return thinned(fpr, tpr, fpr + tpr)


def pr_points(curve: ThresholdCurve) -> Points:
    """The precision of the first few pixels jumps; on a logarithmic scale of pixels they do not take all points."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    pixels = (true + false).log1p()
    recall, precision = _from_zero(true / true[-1]), true / (true + false)
    precision = torch.cat([precision[:1], precision])
    return thinned(recall, precision, recall + _from_zero(pixels / pixels[-1]))


def pro_points(curve: ThresholdCurve) -> Points:
    fpr, pro = _pro(curve, FPR_LIMIT)
    return thinned(fpr, pro, fpr / FPR_LIMIT + pro)


def thinned(x: Tensor, y: Tensor, along: Tensor) -> Points:
    """At most CURVE_POINTS of the points, the ends among them, about equally far apart in `along`, which ascends."""
    if len(x) > CURVE_POINTS:
        steps = torch.arange(CURVE_POINTS, dtype=along.dtype, device=along.device) / (CURVE_POINTS - 1)
        chosen = search(along, along[0] + steps * (along[-1] - along[0]))
        chosen[-1] = len(x) - 1
        chosen = chosen.unique()
        x, y = x[chosen], y[chosen]
    return [values.double().round(decimals=4).tolist() for values in (x, y)]


def aupro_200(curve: ThresholdCurve, low: float, high: float) -> float | None:
    """AUPRO as the tables of CLIP-based methods have it (APRIL-GAN and others).

    200 thresholds, equally spaced from the class's lowest map value, the highest left out; above means greater; of the
    curve's points those below the limit, their false positive rate stretched to [0, 1]. None where they share one rate.
    """
    steps = torch.arange(PUBLISHED_STEPS, dtype=torch.float64, device=curve.values.device)
    thresholds = low + steps * (high - low) / PUBLISHED_STEPS
    above = search(-curve.values, -thresholds.flip(0))  # (200,) how many distinct values are greater
    fpr = curve.false_positives[above] / curve.false_positives[-1]
    pro = curve.overlap[above] / curve.overlap[-1]
    fpr, pro = fpr[fpr < FPR_LIMIT], pro[fpr < FPR_LIMIT]
    if not len(fpr) or bool(fpr[0] == fpr[-1]):
        return None
    return _area(fpr, pro) / float(fpr[-1] - fpr[0])
