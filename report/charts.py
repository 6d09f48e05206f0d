"""Curves and histograms as paths for SVG: pure functions; report/templates/macros.html.j2 draws axes and words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metrics.curves import Points
from metrics.names import FPR_LIMIT
from report.predictions import ScoredImage

SIDE = 200  # of a chart's plot, in the units of its SVG
BINS = 30
KINDS = 12  # rows of a histogram; rarer kinds share one more row


class Chart(NamedTuple):
    """One chart: lines of two kinds ("image", "pixel"), several of a kind where there are several seeds."""

    title: str
    x_label: str
    y_label: str
    x_max: float
    lines: list[tuple[str, str]]  # kind, SVG path


class Histogram(NamedTuple):
    """Scores of one class; a row per kind, bars in units of a bin by the row's own highest bin."""

    low: float
    high: float
    rows: list["HistogramRow"]


class HistogramRow(NamedTuple):
    """The images of one kind: how many, and their scores."""

    kind: str
    anomaly: int
    images: int
    low: float
    median: float
    high: float
    path: str  # BINS wide, 1 high


def charts(curves: Mapping[str, Sequence[Mapping[str, Points]]]) -> list[Chart]:
    """ROC, PR and PRO of a class; a chart without any line is left out.

    Args:
        curves: "image" and "pixel" -> per seed, what `metrics.image_curves` or `PixelMetrics.curves` gives.
    """
    drawn = [
        Chart("ROC", "false positive rate", "true positive rate", 1.0, _lines(curves, "roc", 1.0)),
        Chart("Precision and recall", "recall", "precision", 1.0, _lines(curves, "pr", 1.0)),
        Chart("PRO", "false positive rate", "mean overlap of regions", FPR_LIMIT, _lines(curves, "pro", FPR_LIMIT)),
    ]
    return [chart for chart in drawn if chart.lines]


def _lines(curves: Mapping[str, Sequence[Mapping[str, Points]]], name: str, x_max: float) -> list[tuple[str, str]]:
    return [
        (kind, path(one[name], x_max, steps=(kind, name) == ("image", "pr")))
        for kind, seeds in curves.items()
        for one in seeds
        if name in one
    ]


def path(points: Points, x_max: float = 1.0, *, steps: bool = False) -> str:
    """SVG path of a curve in a square of SIDE, y upwards. steps: y holds from the x before to its own."""
    x, y = (np.round(np.asarray(values) * SIDE / end, 1) for values, end in zip(points, (x_max, 1.0), strict=True))
    pairs = [f"{left:g} {SIDE - up:g}" for left, up in zip(x, y, strict=True)]
    if steps:
        rest = [f"V{SIDE - up:g}H{left:g}" for left, up in zip(x[1:], y[1:], strict=True)]
        return f"M{pairs[0]}" + "".join(rest)
    return f"M{pairs[0]}L" + " ".join(pairs[1:])


def histogram(images: Iterable[ScoredImage]) -> Histogram:
    """Image scores of one class by kind of defect, normal images first; images: at least one."""
    groups: dict[tuple[int, str], list[float]] = {}
    for image in images:
        groups.setdefault((image.anomaly, image.kind), []).append(image.score)
    groups = _largest(groups)
    every = np.concatenate(list(groups.values()))
    low, high = float(every.min()), float(every.max())
    return Histogram(low, high, [_row(*key, np.array(scores), low, high) for key, scores in groups.items()])


def _largest(groups: dict[tuple[int, str], list[float]]) -> dict[tuple[int, str], list[float]]:
    """Normal first, then by name; beyond KINDS the smallest kinds of defect become one."""
    by_size = sorted(groups, key=lambda key: (key[0], -len(groups[key])))
    kept = {key: groups[key] for key in sorted(by_size[:KINDS])}
    rest = by_size[KINDS:]
    if rest:
        kept[1, f"{len(rest)} other kinds"] = [score for key in rest for score in groups[key]]
    return kept


def _row(anomaly: int, kind: str, scores: NDArray[np.float64], low: float, high: float) -> HistogramRow:
    # Scores that are all equal stand in the middle.
    place = (scores - low) / (high - low) if high > low else np.full(scores.shape, 0.5)
    counts = np.bincount(np.minimum((place * BINS).astype(int), BINS - 1), minlength=BINS)
    bars = "".join(
        f"M{left} 1V{1 - count / counts.max():.3g}h1V1z" for left, count in enumerate(counts.tolist()) if count
    )
    return HistogramRow(kind, anomaly, scores.size, scores.min(), float(np.median(scores)), scores.max(), bars)
