"""Curves from two histograms, one sweep from the highest value down, and the metrics that they give."""

from typing import NamedTuple

import numpy as np

from metrics.histogram import KeyTable, run_starts, running_sums, to_values

FPR_LIMIT = 0.3
PUBLISHED_STEPS = 200
CURVE_POINTS = 120  # of a curve that is to be drawn
Points = list[list[float]]  # of a curve: [x, y], a list of fractions each


class ThresholdCurve(NamedTuple):
    """What lies at or above each distinct map value, highest value first.

    values: (T,). false_positives, true_positives: (T + 1,) pixels, starting at 0. overlap: (T + 1,) sum over regions of
    the share of the region.
    """

    values: np.ndarray
    false_positives: np.ndarray
    true_positives: np.ndarray
    overlap: np.ndarray


def sweep(normal: KeyTable, defect: KeyTable) -> ThresholdCurve:
    keys = np.sort(np.concatenate([normal.keys, defect.keys]))
    keys = keys[run_starts(keys[1:] != keys[:-1])]
    normal_above, defect_above = (
        running_sums(table.mass)[:, np.append(0, np.searchsorted(table.keys, keys, side="right"))]
        for table in (normal, defect)
    )
    return ThresholdCurve(to_values(keys), normal_above[0], defect_above[0], defect_above[1])


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Trapezoidal area."""
    return np.dot(np.diff(x), y[1:] + y[:-1]) / 2


def auroc(curve: ThresholdCurve) -> float:
    area = _area(curve.false_positives, curve.true_positives)
    return area / (curve.false_positives[-1] * curve.true_positives[-1])


def average_precision(curve: ThresholdCurve) -> float:
    true, false = curve.true_positives, curve.false_positives
    precision = true[1:] / (true[1:] + false[1:])
    return np.dot(np.diff(true), precision) / true[-1]


def best_f1(curve: ThresholdCurve) -> tuple[float, float, float]:
    """Best F1, the IoU and the threshold that belong to it; the lowest threshold where several are best."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    f1 = 2 * true / (true + false + true[-1])
    best = f1.size - 1 - int(np.argmax(f1[::-1]))
    return f1[best], true[best] / (true[-1] + false[best]), curve.values[best]


def aupro(curve: ThresholdCurve) -> float:
    """Area under overlap over false positive rate from 0 to the limit, divided by the limit; every threshold."""
    fpr = curve.false_positives / curve.false_positives[-1]
    pro = curve.overlap / curve.overlap[-1]
    end = np.searchsorted(fpr, FPR_LIMIT, side="right")
    at_limit = np.interp(FPR_LIMIT, fpr, pro)
    return _area(np.append(fpr[:end], FPR_LIMIT), np.append(pro[:end], at_limit)) / FPR_LIMIT


def roc_points(curve: ThresholdCurve) -> Points:
    fpr = curve.false_positives / curve.false_positives[-1]
    tpr = curve.true_positives / curve.true_positives[-1]
    return thinned(fpr, tpr, fpr + tpr)


def pr_points(curve: ThresholdCurve) -> Points:
    """The precision of the first few pixels jumps; on a logarithmic scale of pixels they do not take all points."""
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    pixels = np.log1p(true + false)
    recall, precision = true / true[-1], true / (true + false)
    recall, precision = np.append(0, recall), np.append(precision[0], precision)
    return thinned(recall, precision, recall + np.append(0, pixels / pixels[-1]))


def pro_points(curve: ThresholdCurve) -> Points:
    fpr = curve.false_positives / curve.false_positives[-1]
    pro = curve.overlap / curve.overlap[-1]
    end = np.searchsorted(fpr, FPR_LIMIT, side="right")
    fpr, pro = np.append(fpr[:end], FPR_LIMIT), np.append(pro[:end], np.interp(FPR_LIMIT, fpr, pro))
    return thinned(fpr, pro, fpr / FPR_LIMIT + pro)


def thinned(x: np.ndarray, y: np.ndarray, along: np.ndarray) -> Points:
    """At most CURVE_POINTS of the points, the ends among them, about equally far apart in `along`, which ascends."""
    if x.size > CURVE_POINTS:
        chosen = np.searchsorted(along, np.linspace(along[0], along[-1], CURVE_POINTS))
        chosen = np.unique(np.append(chosen[:-1], x.size - 1))
        x, y = x[chosen], y[chosen]
    return [np.round(values, 4).tolist() for values in (x, y)]


def aupro_200(curve: ThresholdCurve, low: float, high: float) -> float | None:
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
