"""Thresholds from normal images: each rule keeps what it promises, on scores and on the pixels of maps."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from metrics.thresholds import NormalPixels, ThresholdRule, interval, mean_interval

RULES = [ThresholdRule("conformal", 0.1), ThresholdRule("mean_std"), ThresholdRule("quantile", 0.1, 1.0)]
RULES.append(ThresholdRule("quantile", 0.1, 1.1))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("count", [5, 30, 31])
def test_a_further_score_lies_above_as_often_as_promised(rule, count):
    rng, above, draws = np.random.default_rng(0), 0, 1500
    for _ in range(draws):
        *known, further = np.abs(rng.normal(10, 1, count + 1))
        threshold, promised = rule.of_scores(known)
        above += further > threshold
    low, high = interval(above, draws, 0.999)
    assert low <= promised
    assert promised <= high or rule.kind == "quantile"  # which lies above the score that the promise is of


def test_pixels_of_a_further_map_lie_above_as_often_as_promised():
    """Maps whose pixels depend on each other: what is promised is a share over many maps."""
    rng, shares, promised = np.random.default_rng(0), [], 0.0
    for _ in range(100):
        maps = rng.normal(0, 1, (13, 1, 1)) + rng.normal(0, 0.2, (13, 8, 8))
        pixels = NormalPixels()
        for one in maps[1:]:
            pixels.add(one)
        threshold, promised = pixels.threshold(RULES[0])
        shares.append((maps[0] > threshold).mean())
    error = np.std(shares) / len(shares) ** 0.5
    assert promised / 3 <= np.mean(shares) <= promised + 3 * error


def test_pixels_by_hand():
    """Against numpy, on all pixels of maps of two sizes, in any order."""
    rng = np.random.default_rng(1)
    maps = [rng.normal(5, 2, size).astype(np.float32) for size in [(9, 7)] * 12 + [(4, 30)] * 8]
    every = np.concatenate([one.ravel() for one in maps]).astype(np.float64)
    found = []
    for order in (maps, maps[::-1]):
        pixels = NormalPixels()
        for one in order:
            pixels.add(one)
        found.append([pixels.threshold(rule).value for rule in RULES])
    assert found[0] == pytest.approx(found[1], rel=1e-12)

    def share(above: Callable[[np.ndarray], np.ndarray]) -> float:
        """Of an image's pixels, on average over the images."""
        return float(np.mean([above(one.astype(np.float64)).mean() for one in maps]))

    conformal, mean_std, quantile, factored = found[0]
    allowed = (21 * 0.1 - 1) / 20  # of conformal risk control
    assert share(lambda one: one > conformal) <= allowed < share(lambda one: one >= conformal)
    assert mean_std == pytest.approx(every.mean() + 3 * every.std(ddof=1))
    assert share(lambda one: one > quantile) <= 0.1 < share(lambda one: one >= quantile)
    assert factored == pytest.approx(1.1 * quantile)


def test_what_is_not_known_is_not_promised():
    assert ThresholdRule("quantile", 0.1, 0.9).of_scores([1.0, 2.0, 3.0]).fpr is None
    assert ThresholdRule("quantile", 0.1, 1.1).of_scores([-3.0, -2.0, -1.0]).fpr is None
    assert ThresholdRule("quantile", 0.5, 1.0).of_scores([-3.0, -2.0, -1.0]) == (-2.0, 0.5)
    with pytest.raises(ValueError, match="mean_std: takes two normal images or more"):
        ThresholdRule("mean_std").of_scores([1.0])


@pytest.mark.parametrize(("events", "count"), [(0, 20), (1, 20), (7, 9), (9, 9)])
def test_interval_of_a_rate(events, count):
    exact = binomtest(events, count).proportion_ci(0.95, "exact")
    assert interval(events, count) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_interval_of_a_mean_of_shares():
    shares = [0.0, 0.01, 0.04, 0.02, 0.0]
    exact = ttest_1samp(shares, 0).confidence_interval(0.95)
    assert exact.low < 0 and mean_interval(shares) == pytest.approx((0, exact.high))
    assert mean_interval([0.9, 1.0])[1] == 1
    assert mean_interval([]) is mean_interval([0.2]) is mean_interval([0.0, 0.0]) is None
