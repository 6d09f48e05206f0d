"""Measures that are asked for (--measures, --fpr_limits): each against plain loops over pixels, regions and images."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_curve

from metrics import pimo, pixel
from metrics.image import calibration_error, f1_above, fpr_at_tpr, image_metrics
from metrics.measures import PixelMeasures, image_measures
from metrics.names import AUPIMO, IMAGE_GIVEN, MEASURES, PIXEL_GIVEN, Measures, is_measure, split_kind
from metrics.pixel import PixelMetrics, label_regions
from metrics.spro import SaturatedRegion, SproCounts


def stream(seed: int, count: int = 4, size: tuple[int, int] = (9, 7), steps: int = 9) -> list[np.ndarray]:
    """Maps with many ties, in sixteenths: float32 holds them exactly."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, steps, size) / 16).astype(np.float32) for _ in range(count)]


def area_by_hand(x, y, limit: float) -> float:
    """Trapezoids up to the limit, over the limit."""
    area = 0.0
    for x0, y0, x1, y1 in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True):
        stop = min(x1, limit)
        if stop > x0:
            area += (stop - x0) * (y0 + y0 + (y1 - y0) * (stop - x0) / (x1 - x0)) / 2
    return area / limit


# --- AU-PRO and AU-sPRO -----------------------------------------------------------------------------------------------


def auspro_by_hand(maps, regions, limit: float) -> float:
    """Every threshold in turn; regions: per image, (mask, saturation)."""
    free = [~np.any([np.zeros(one.shape, bool), *(mask for mask, _ in own)], 0) for one, own in
            zip(maps, regions, strict=True)]  # fmt: skip
    fpr, spro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]:
        false = sum((one[free_of] >= threshold).sum() for one, free_of in zip(maps, free, strict=True))
        fpr.append(false / sum(free_of.sum() for free_of in free))
        shares = [min((one[mask] >= threshold).sum() / saturation, 1) for one, own in zip(maps, regions, strict=True)
                  for mask, saturation in own if mask.any()]  # fmt: skip
        spro.append(sum(shares) / len(shares))
    return area_by_hand(fpr, spro, limit)


def some_regions(seed: int, count: int, size: tuple[int, int]) -> list[list[tuple[np.ndarray, float]]]:
    """No region in the first image, overlapping ones in the others."""
    rng = np.random.default_rng(seed)
    found: list[list[tuple[np.ndarray, float]]] = [[]]
    for _ in range(count - 1):
        masks = [np.zeros(size, bool) for _ in range(2)]
        for mask in masks:
            mask[rng.integers(0, 3) :, rng.integers(0, 4) : rng.integers(4, 7)] = True
        found.append([(mask, float(rng.uniform(0.3, 1) * mask.sum())) for mask in masks])
    return found


def counted(maps, regions, groups, *, merged: bool = False) -> SproCounts:
    parts = [SproCounts(), SproCounts()]
    for number, (one, own, group) in enumerate(zip(maps, regions, groups, strict=True)):
        part = parts[number % 2 if merged else 0]
        part.update(torch.from_numpy(one), [SaturatedRegion(torch.from_numpy(m), s) for m, s in own], group)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    return parts[0]


@pytest.mark.parametrize("seed", range(4))
def test_auspro_and_aupro_by_hand(seed):
    limits = (0.05, 0.3, 0.62, 1.0)
    measures = Measures(("spro",), limits)
    maps, regions = stream(seed), some_regions(seed, 4, (9, 7))
    row = counted(maps, regions, ["good", "", "", ""], merged=seed % 2 == 1).compute(measures)
    assert list(row) == ["auspro_fpr0.05", "auspro_fpr0.3", "auspro_fpr0.62", "auspro_fpr1"]
    for limit, value in zip(limits, row.values(), strict=True):
        assert value == pytest.approx(auspro_by_hand(maps, regions, limit), abs=1e-12)
    # With regions that are apart and saturate when they are overlapped whole, it is AU-PRO.
    masks = [np.any([np.zeros((9, 7), bool), *(mask for mask, _ in own)], 0) for own in regions]
    numbered = [label_regions(mask) for mask in masks]
    whole = [[(n == k, float((n == k).sum())) for k in range(1, n.max() + 1)] for n in numbered]
    pixels = PixelMetrics()
    pixels.update(np.stack(maps), np.stack(numbered))
    own = pixels.measures(measures)
    assert list(own) == ["aupro_fpr0.05", "aupro_fpr0.62", "aupro_fpr1"]
    spro = counted(maps, whole, ["good", "", "", ""]).compute(measures)
    for limit in (0.05, 0.62, 1.0):
        assert own[f"aupro_fpr{limit:g}"] == pytest.approx(auspro_by_hand(maps, whole, limit), abs=1e-12)
        assert spro[f"auspro_fpr{limit:g}"] == pytest.approx(own[f"aupro_fpr{limit:g}"], abs=1e-12)
    assert spro["auspro_fpr0.3"] == pytest.approx(pixels.compute()["aupro"], abs=1e-12)


def test_kinds_are_counted_apart():
    """Structural and logical anomalies, each with the good images, and the mean of the two."""
    maps, regions = stream(5, 5), some_regions(5, 5, (9, 7))
    kinds = ["good", "structural_anomalies", "logical_anomalies", "logical_anomalies", "structural_anomalies"]
    measures, labels, scores = Measures(("spro",), by_kind=True), [0, 1, 1, 1, 1], [0.3, 0.2, 0.5, 0.1, 0.6]
    pixels = PixelMeasures(measures, 1)
    for index, (one, own) in enumerate(zip(maps, regions, strict=True)):
        areas = [SaturatedRegion(torch.from_numpy(mask), saturation) for mask, saturation in own]
        defect = torch.zeros(9, 7)
        pixels.update(index, torch.from_numpy(one), defect, areas, anomalous=index > 0, kind=kinds[index])
    row = pixels.compute() | image_measures(measures, labels, scores, probabilities=False, kinds=kinds)
    assert set(row) == set(measures.metric_names()) and len(row) == 6
    for kind in ("structural", "logical"):
        chosen = [index for index in range(5) if kinds[index] in ("good", f"{kind}_anomalies")]
        own = [[values[index] for index in chosen] for values in (maps, regions, labels, scores)]
        assert row[f"auspro_fpr0.05.{kind}"] == pytest.approx(auspro_by_hand(own[0], own[1], 0.05), abs=1e-12)
        assert row[f"auroc_sp.{kind}"] == image_metrics(own[2], own[3])["auroc_sp"]
    for name in ("auspro_fpr0.05", "auroc_sp"):
        assert row[f"{name}.both"] == pytest.approx((row[f"{name}.structural"] + row[f"{name}.logical"]) / 2)


def test_auspro_that_cannot_be_computed():
    measures, one = Measures(("spro",)), np.full((9, 7), 0.5, np.float32)
    all_good = counted([one], [[]], ["good"]).compute(measures)
    constant = counted([one], some_regions(0, 2, (9, 7))[1:], [""]).compute(measures)
    assert all_good == constant == {"auspro_fpr0.05": None}
    mask = torch.ones(9, 7, dtype=torch.bool)
    for region in (SaturatedRegion(mask, 0.0), SaturatedRegion(mask[:3], 1.0)):
        with pytest.raises(ValueError, match="saturation above 0"):
            SproCounts().update(torch.from_numpy(one), [region], "")


# --- AUPIMO -----------------------------------------------------------------------------------------------------------


def aupimo_by_hand(normal, anomalous, mask, low: float, high: float) -> float | None:
    """Recall over the logarithm of the mean rate of normal images, at every value of any image."""
    points = []
    for threshold in np.unique(np.concatenate([one.ravel() for one in (*normal, anomalous)]))[::-1]:
        rate = sum((one >= threshold).mean() for one in normal) / len(normal)
        if rate > 0:
            points.append((math.log(rate), (anomalous[mask] >= threshold).mean()))
    start, end, area = math.log(low), math.log(high), 0.0
    if points[0][0] > start + 1e-9:
        return None
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        left, right = max(x0, start), min(x1, end)
        if right > left:
            ends = [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in (left, right)]
            area += (right - left) * sum(ends) / 2
    return area / (end - start)


def pimo_of(normal, anomalous, masks, *, parts: int = 1) -> pimo.PimoCounts:
    shards = [pimo.PimoCounts(len(normal)) for _ in range(parts)]
    for number, one in enumerate(normal):
        shards[number % parts].add_normal(torch.from_numpy(one))
    for index, (one, mask) in enumerate(zip(anomalous, masks, strict=True)):
        shards[index % parts].add_anomalous(index, torch.from_numpy(one), torch.from_numpy(mask))
    for other in shards[1:]:
        shards[0].merge(pickle.loads(pickle.dumps(other)))
    return shards[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 60), st.integers(1, 3))
def test_aupimo_by_hand(seed, steps, parts):
    """Images of two sizes, each with the same weight; bounds that a few pixels can tell."""
    rng, bounds = np.random.default_rng(seed), pimo.BOUNDS
    normal = [rng.integers(0, steps, (6, 5 + 3 * (n % 2))).astype(np.float32) for n in range(3)]
    anomalous = [rng.integers(0, steps + 2, (5, 5)).astype(np.float32) for _ in range(3)]
    masks = [rng.integers(0, 2, (5, 5)).astype(np.uint8) for _ in range(2)] + [np.zeros((5, 5), np.uint8)]
    pimo.BOUNDS = (0.05, 0.3)
    try:
        found = pimo_of(normal, anomalous, masks, parts=parts).compute()
    finally:
        pimo.BOUNDS = bounds
    for index, (one, mask) in enumerate(zip(anomalous, masks, strict=True)):
        value = aupimo_by_hand(normal, one, mask > 0, 0.05, 0.3) if mask.any() else None
        assert found.get(index) == (None if value is None else pytest.approx(value, abs=1e-9))


def test_aupimo_at_the_published_bounds(monkeypatch):
    """Large enough maps; what is kept of them is little, and a sketch of it hardly moves the result."""
    rng = np.random.default_rng(0)
    normal = [rng.normal(size=(300, 200)).astype(np.float32) for _ in range(3)]
    anomalous = [rng.normal(1.5 + n, 1.2, (80, 60)).astype(np.float32) for n in range(2)]
    masks = [np.pad(np.ones((40, 30), np.uint8), ((0, 40), (0, 30)))] * 2
    expected = [highest_by_hand(normal, one[mask > 0], 1e-5, 1e-4) for one, mask in zip(anomalous, masks, strict=True)]
    counts = pimo_of(normal, anomalous, masks)
    assert list(counts.compute().values()) == pytest.approx(expected, abs=1e-9)
    assert 0.01 < expected[0] < expected[1] < 0.9 and counts._normal.table.mass[0].sum() < 0.001 * 180_000
    monkeypatch.setattr(pimo, "RANKS", 700)
    assert list(pimo_of(normal, anomalous, masks).compute().values()) == pytest.approx(expected, abs=1 / 700)
    row = pimo.spread(expected)
    assert tuple(row) == AUPIMO and row["aupimo"] == pytest.approx(sum(expected) / 2)
    assert expected[0] < row["aupimo_q1"] < row["aupimo_median"] < row["aupimo_q3"] < expected[1]


def highest_by_hand(normal, defects, low: float, high: float) -> float:
    """The same integral, of images of one size without ties, over the highest normal pixels alone."""
    values = np.sort(np.concatenate([one.ravel() for one in normal]))[::-1]
    last, area = int(high * values.size) + 2, 0.0
    rates, recall = [math.log(n / values.size) for n in range(1, last)], [(defects >= v).mean() for v in values[:last]]
    start, end = math.log(low), math.log(high)
    for step in range(1, last - 1):
        left, right = np.clip(rates[step - 1 : step + 1], start, end)
        area += (right - left) * recall[step]  # no defect pixel equals a normal one
    return area / (end - start)


def test_aupimo_without_enough_normal_pixels():
    rng = np.random.default_rng(0)
    one, mask = rng.random((300, 300), np.float32), np.ones((300, 300), np.uint8)
    assert pimo_of([], [one], [mask]).compute() == {}
    assert pimo_of([one], [one], [mask]).compute() == {}  # 90,000 pixels
    assert len(pimo_of([one, 1 - one], [one], [mask]).compute()) == 1
    assert pimo_of([one.clip(max=0.9)] * 2, [one], [mask]).compute() == {}  # a tenth shares the highest value
    assert pimo.spread([]) == dict.fromkeys(AUPIMO)
    counts = pimo_of([one], [], [])
    with pytest.raises(ValueError, match="more than the 1 that were announced"):
        counts.add_normal(torch.from_numpy(one))


def test_aupimo_has_a_bounded_table(monkeypatch):
    """Many normal images of which much must be kept: a sketch."""
    monkeypatch.setattr(pimo, "NORMAL_CAPACITY", 3000)
    monkeypatch.setattr(pimo, "DEFECT_BUFFER_BYTES", 8000)
    monkeypatch.setattr(pimo, "BOUNDS", (1e-3, 1e-1))
    rng = np.random.default_rng(1)
    normal = [rng.normal(size=(60, 50)).astype(np.float32) for _ in range(12)]
    one, mask = rng.normal(1, 1, (60, 50)).astype(np.float32), np.ones((60, 50), np.uint8)
    counts = pimo_of(normal, [one], [mask])
    assert counts._normal.table.cell and len(counts._normal.table.keys) <= 3000
    assert counts.compute()[0] == pytest.approx(highest_by_hand(normal, one[mask > 0], 1e-3, 1e-1), abs=2e-3)


# --- images, thresholds, names ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_image_measures_by_hand(seed, count):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    scores = np.round(rng.random(count), 2).clip(0, 1)
    row = image_measures(Measures(("ece", "fpr95"), given=True), labels, scores, probabilities=True, threshold=0.4)
    ece = 0.0
    for number in range(15):
        own = [i for i in range(count) if min(int(scores[i] * 15), 14) == number]
        if own:
            ece += len(own) / count * abs(np.mean(scores[own]) - np.mean(labels[own]))
    assert row["ece_sp"] == pytest.approx(ece, abs=1e-12)
    if len(set(labels.tolist())) == 1:
        assert row["fpr95_sp"] is None and row["f1_sp_given"] is None and row["f1_sp_oracle"] is None
        return
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert row["fpr95_sp"] == pytest.approx(min(f for f, t in zip(fpr, tpr, strict=True) if t >= 0.95 - 1e-12))
    assert row["f1_sp_given"] == pytest.approx(f1_score(labels, scores > 0.4, zero_division=0))
    assert row["threshold_sp_given"] == 0.4
    best = max(2 * (labels * (scores >= v)).sum() / (labels.sum() + (scores >= v).sum()) for v in scores)
    assert row["f1_sp_oracle"] == pytest.approx(best) and row["f1_sp_given"] <= best + 1e-12


def test_f1_of_pixels_at_a_threshold():
    maps, masks = np.stack(stream(3)), np.zeros((4, 9, 7), np.uint8)
    masks[1:, 2:6, 1:5] = 1
    pixels, measures = PixelMetrics(), Measures(given=True)
    assert pixels.measures(measures, 0.2) == {**dict.fromkeys(PIXEL_GIVEN), "threshold_px_given": 0.2}
    pixels.update(maps, np.stack([label_regions(mask) for mask in masks]))
    for threshold in (-1.0, 0.0, 0.24, 0.25, 0.5, 9.0):  # on values of the maps, between and beyond them
        row = pixels.measures(measures, threshold)
        truth, cut = masks.ravel() > 0, maps.ravel() > threshold
        assert row["f1_px_given"] == pytest.approx(f1_score(truth, cut, zero_division=0), abs=1e-12)
        assert row["threshold_px_given"] == threshold and row["f1_px_oracle"] == pixels.compute()["f1_px"]
    assert pixels.measures(measures) == dict.fromkeys(PIXEL_GIVEN) and pixels.measures(Measures()) == {}


def test_scores_that_are_no_probabilities():
    assert image_measures(Measures(("ece",)), [0, 1], [0.2, 3.0], probabilities=False) == {"ece_sp": None}
    with pytest.raises(ValueError, match="from 0.2 to 3 are no probabilities"):
        calibration_error([0, 1], [0.2, 3.0])
    assert calibration_error([], []) is None and fpr_at_tpr([], []) is None and f1_above([1], [1], 0) is None


def test_names():
    plain = Measures(MEASURES, (0.3, 0.05), given=True)
    assert plain.metric_names() == (
        "aupro_fpr0.05", *PIXEL_GIVEN, *AUPIMO, "auspro_fpr0.3", "auspro_fpr0.05", *IMAGE_GIVEN, "fpr95_sp", "ece_sp"
    )  # fmt: skip
    assert Measures().metric_names() == () and Measures(fpr_limits=(0.3,)).metric_names() == ()
    loco = Measures(("spro",), by_kind=True).metric_names()
    assert [split_kind(key) for key in loco] == [
        (name, kind) for kind in ("structural", "logical", "both") for name in ("auroc_sp", "auspro_fpr0.05")
    ]
    assert all(map(is_measure, (*plain.metric_names(), *loco)))
    assert not any(map(is_measure, ("auroc_sp", "aupro", "<b>", "aupimo.logic", "aupro_fpr<b>", "f1_px")))
    assert split_kind("aupro_fpr0.05") == ("aupro_fpr0.05", "") and pixel.PIXEL[3] == "aupro"
