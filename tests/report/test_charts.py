"""Curves agree with the metrics whose area they are, and paths with the points they are made of."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from metrics.curves import CURVE_POINTS, FPR_LIMIT
from metrics.image import image_curves
from metrics.pixel import PixelMetrics, label_regions
from report import charts
from report.predictions import ScoredImage


def filled(count: int = 6, side: int = 64, sharpness: float = 1.5) -> PixelMetrics:
    dice = np.random.default_rng(0)
    masks = np.zeros((count, side, side), np.int32)
    for index in range(count - 1):
        masks[index, 5 : 9 + 5 * index, 10:20] = 1
        masks[index, 50:53, 50:55] = 1
    pixels = PixelMetrics()
    pixels.update(dice.normal(sharpness * masks), np.stack([label_regions(mask) for mask in masks]))
    return pixels


def area(points) -> float:
    return float(np.trapezoid(points[1], points[0]))


def test_areas_of_pixel_curves():
    pixels = filled()
    row, curves = pixels.compute(), pixels.curves()
    assert list(curves) == ["roc", "pr", "pro"]
    for points in curves.values():
        x, y = map(np.asarray, points)
        assert 2 <= x.size == y.size <= CURVE_POINTS and (np.diff(x) >= 0).all()
        assert x[0] == 0 and min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
    assert area(curves["roc"]) == pytest.approx(row["auroc_px"], abs=2e-3)
    assert area(curves["pr"]) == pytest.approx(row["ap_px"], abs=5e-3)
    assert area(curves["pro"]) / 0.3 == pytest.approx(row["aupro"], abs=5e-3)
    assert curves["pro"][0][-1] == 0.3 and curves["roc"][0][-1] == curves["pr"][0][-1] == 1


def test_curves_follow_what_is_counted_later():
    whole, parts = filled(), filled()
    before = parts.curves()
    parts.merge(filled(sharpness=4))
    assert parts.curves() != before
    maps, regions = np.zeros((1, 64, 64)), np.zeros((1, 64, 64), np.int32)
    whole.update(maps - 9, regions)
    assert whole.curves() != before
    fresh = filled()
    fresh.update(maps - 9, regions)
    assert whole.curves() == fresh.curves() and whole.compute() == fresh.compute()


def test_what_cannot_be_computed_has_no_curve():
    assert PixelMetrics().curves() == {}
    pixels = PixelMetrics()
    pixels.update(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), int))
    assert pixels.curves() == {}
    pixels.update(np.zeros((1, 4, 4)), np.eye(4, dtype=int)[None])
    assert list(pixels.curves()) == ["roc", "pr"]  # constant maps
    assert image_curves([1, 1], [0.1, 0.2]) == image_curves([0], [0.1]) == {}
    with pytest.raises(ValueError, match="score 1"):
        image_curves([0, 1], [0.1, np.nan])


@pytest.mark.parametrize("count", [2, 40, 3000])
def test_areas_of_image_curves(count):
    dice = np.random.default_rng(count)
    labels = np.arange(count) % 2
    scores = np.round(dice.normal(labels), 2)
    curves = image_curves(labels, scores)
    assert area(curves["roc"]) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    recall, precision = map(np.asarray, curves["pr"])
    steps = float(np.dot(np.diff(recall), precision[1:]))
    assert steps == pytest.approx(average_precision_score(labels, scores), abs=1e-3 if count < 100 else 2e-2)
    assert len(recall) <= CURVE_POINTS


def test_path():
    assert charts.path([[0, 0.5, 1], [0, 1, 1]]) == "M0 200L100 0 200 0"
    assert charts.path([[0, 0.15, 0.3], [0, 0.25, 1]], 0.3) == "M0 200L100 150 200 0"
    assert charts.path([[0, 0.5, 1], [1, 1, 0.5]], steps=True) == "M0 0V0H100V100H200"


def image(kind: str, score: float) -> ScoredImage:
    return ScoredImage(f"{score}.png", "nut", kind, int(kind != "good"), 0, None, score)


def test_histogram():
    drawn = charts.histogram([image("hole", 1.0), image("good", 0.0), image("good", 0.01), image("", 0.5)])
    assert [(row.kind, row.anomaly, row.images) for row in drawn.rows] == [
        ("good", 0, 2), ("defect", 1, 1), ("hole", 1, 1)
    ]  # fmt: skip
    assert (drawn.low, drawn.high) == (0, 1)
    assert [row.path for row in drawn.rows] == ["M0 1V0h1V1z", "M15 1V0h1V1z", "M29 1V0h1V1z"]


def test_histogram_of_equal_scores():
    (row,) = charts.histogram([image("good", 0.3)]).rows
    assert row.path == "M15 1V0h1V1z" and row.low == row.median == row.high == 0.3


def test_limit_of_pro_is_that_of_the_metric():
    (chart,) = charts.charts({"image": [{}], "pixel": [{"pro": [[0, FPR_LIMIT], [0, 1]]}]})
    assert chart.title == "PRO" and chart.x_max == 0.3 and chart.lines == [("pixel", "M0 200L200 0")]
