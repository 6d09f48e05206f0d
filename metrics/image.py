"""Image metrics from labels and scores: those of pixels, on the curve of images."""

from typing import Any

import numpy as np
import torch

from metrics.curves import Points, ThresholdCurve, auroc, average_precision, best_f1, pr_points, roc_points
from metrics.names import IMAGE

ECE_BINS = 15


def image_metrics(labels: Any, scores: Any) -> dict[str, float | None]:
    """AUROC (ties count half), best F1 and average precision (the step-wise sum) of image scores, by every threshold.

    Args:
        labels: (N,) any non-zero value is anomalous.
        scores: (N,) higher is more anomalous.

    Returns:
        The `IMAGE` keys, fractions in [0, 1]; all None where only one label occurs.

    Raises:
        ValueError: the shapes differ or are not (N,); a score is NaN or infinite.
    """
    curve = _curve(labels, scores)
    if curve is None:
        return dict.fromkeys(IMAGE)
    return {"auroc_sp": auroc(curve), "f1_sp": best_f1(curve)[0], "ap_sp": average_precision(curve)}


def f1_above(labels: Any, scores: Any, threshold: float) -> float | None:
    """F1 of the images whose score is above a threshold that is given: greater, as a verdict takes it.

    Args, errors: as `image_metrics`. None where only one label occurs.
    """
    labels, scores = _checked(labels, scores)
    if not labels.any() or labels.all():
        return None
    alarms = scores > threshold
    return float(2 * (labels & alarms).sum() / (labels.sum() + alarms.sum()))


def fpr_at_tpr(labels: Any, scores: Any, percent: int = 95) -> float | None:
    """The share of normal images at or above the highest threshold that so many percent of the anomalous ones reach.

    Args, errors: as `image_metrics`. None where only one label occurs.
    """
    labels, scores = _checked(labels, scores)
    anomalous, normal = np.sort(scores[labels])[::-1], scores[~labels]
    if not anomalous.size or not normal.size:
        return None
    needed = -(-percent * anomalous.size // 100)  # in whole numbers, rounded up
    return float((normal >= anomalous[needed - 1]).mean())


def calibration_error(labels: Any, probabilities: Any) -> float | None:
    """Expected calibration error: the mean over images of the distance, in their bin, between mean probability and
    share of anomalous images (Naeini et al. 2015), in ECE_BINS bins of one width (Guo et al. 2017).

    Args, errors: as `image_metrics`; further a ValueError where a score is no probability. None without images.
    """
    labels, scores = _checked(labels, probabilities)
    if not scores.size:
        return None
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores from {scores.min():g} to {scores.max():g} are no probabilities")
    bins = np.minimum((scores * ECE_BINS).astype(int), ECE_BINS - 1)
    distance = np.bincount(bins, scores, ECE_BINS) - np.bincount(bins, labels, ECE_BINS)
    return float(np.abs(distance).sum() / scores.size)


def image_curves(labels: Any, scores: Any) -> dict[str, Points]:
    """Curves of image scores, thinned as `PixelMetrics.curves`.

    Args, errors: as `image_metrics`.

    Returns:
        roc: true over false positive rate. pr: precision over recall, where each precision holds for the recalls from
        the point before to its own, so that the area of the steps is the average precision. Nothing where only one
        label occurs.
    """
    curve = _curve(labels, scores)
    return {} if curve is None else {"roc": roc_points(curve), "pr": pr_points(curve)}


def _curve(labels: Any, scores: Any) -> ThresholdCurve | None:
    """The curve of images; None where only one label occurs."""
    labels, scores = _checked(labels, scores)
    if not labels.any() or labels.all():
        return None
    falling, place = np.unique(-scores, return_inverse=True)
    counts = (np.bincount(place[chosen], minlength=falling.size) for chosen in (~labels, labels))
    false, true = (torch.from_numpy(np.append(0.0, np.cumsum(one))) for one in counts)
    return ThresholdCurve(torch.from_numpy(-falling), false, true, torch.zeros_like(true))  # images have no regions


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = as_array(labels) != 0, as_array(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must share one shape (N,), got {labels.shape} and {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        raise ValueError(f"score {int(np.argmin(finite))} is {scores[np.argmin(finite)]}")
    return labels, scores


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    if torch.is_tensor(values):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the caller refuses
        return np.asarray(values, dtype)
