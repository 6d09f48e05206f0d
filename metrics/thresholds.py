"""Thresholds from normal images alone: the rules, as functions of scores and of maps, and the rate of false alarms that
each promises.

With n normal values and a further one of the same kind:

    conformal   the ceil((n + 1)(1 - fpr))-th of the sorted values. Split conformal prediction: whatever the
                distribution, the further value lies above it with a probability of at most fpr, or 1 / (n + 1) where n
                is too small for that. Of pixels: the lowest value above which at most ((n + 1) fpr - 1) / n of an
                image's pixels lie, on average over n images, so that of a further image an expected share of at most
                fpr does (conformal risk control; Angelopoulos et al., 2022).
    mean_std    mean + 3 standard deviations, the threshold of the MVTec AD 2 benchmark (Heckler-Kram et al., 2025). Its
                rate is that of Student's t, and holds as far as the values are normally distributed.
    quantile    the (1 - fpr) quantile times a factor. Its rate is that of the order statistic below the quantile, or
                of conformal risk control; below a factor of 1, or of a negative quantile, none is known.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv, stdtr, stdtrit

from metrics.histogram import KeyTable, search, sort_in_place, to_keys, to_values
from metrics.pixel import NORMAL_CAPACITY

RULES = ("conformal", "mean_std", "quantile")
STEPS = 3.0  # standard deviations above the mean
_ROUNDING = 1e-9  # of the product of a rate and a count


class Threshold(NamedTuple):
    """What is greater than value is anomalous; fpr: the promised rate of false alarms, None where none is known."""

    value: float
    fpr: float | None


class ThresholdRule(NamedTuple):
    """A rule with its numbers.

    kind: of RULES.
    fpr: wanted rate, in (0, 1); not of mean_std.
    factor: of quantile.
    pixels: whether the pixels of the maps get a threshold, too.
    """

    kind: str = "conformal"
    fpr: float = 0.05
    factor: float = 1.0
    pixels: bool = False

    def __str__(self) -> str:
        numbers = {
            "conformal": f"at a rate of {self.fpr:g}",
            "mean_std": f"mean + {STEPS:g} standard deviations",
            "quantile": f"{1 - self.fpr:g} times {self.factor:g}",
        }
        return f"{self.kind}, {numbers[self.kind]}"

    def of_scores(self, scores: Sequence[float]) -> Threshold:
        """The threshold of image scores. Raises ValueError where there are too few for the rule."""
        if self.kind == "mean_std":
            if len(scores) < 2:
                raise ValueError(
                    "--threshold mean_std: takes two normal images or more, and there is 1; name more, or use conformal"
                )
            return mean_std(len(scores), float(np.mean(scores)), float(np.std(scores, ddof=1)))
        if self.kind == "quantile":
            return quantile(scores, self.fpr, self.factor)
        return conformal(scores, self.fpr)


def conformal(scores: Sequence[float], fpr: float) -> Threshold:
    """The lowest threshold above which a further normal image falls with a probability of at most `fpr`, if it is like
    the given ones: see the head of this file. With few images it is the highest score, and the rate 1 / (n + 1)."""
    ordered = sorted(scores)
    rank = min(math.ceil((len(ordered) + 1) * (1 - fpr) - _ROUNDING), len(ordered))
    return Threshold(ordered[rank - 1], max(fpr, 1 / (len(ordered) + 1)))


def images_needed(fpr: float) -> int:
    """How many normal images it takes for `conformal` to keep the rate."""
    return math.ceil(1 / fpr - 1 - _ROUNDING)


def mean_std(count: int, mean: float, std: float) -> Threshold:
    """From count >= 2 values; std: that of a sample, divided by count - 1."""
    return Threshold(mean + STEPS * std, float(stdtr(count - 1, -STEPS / math.sqrt(1 + 1 / count))))


def quantile(scores: Sequence[float], fpr: float, factor: float) -> Threshold:
    """The (1 - fpr) quantile, linear between scores, times a factor."""
    count, value = len(scores), float(np.quantile(scores, 1 - fpr))
    below = max(1, math.floor((1 - fpr) * (count - 1) + _ROUNDING) + 1)  # rank of the score that it does not fall below
    return _scaled(value, factor, (count + 1 - below) / (count + 1))


def _scaled(value: float, factor: float, fpr: float) -> Threshold:
    kept = factor == 1 or (factor > 1 and value >= 0)  # else the threshold falls
    return Threshold(value * factor, fpr if kept else None)


class NormalPixels:
    """The pixels of normal maps, in bounded memory: as exact as `KeyTable`, mean and standard deviation exact."""

    def __init__(self) -> None:
        self._table = KeyTable(1, NORMAL_CAPACITY)
        self._images = self._count = self._size = 0  # size: pixels of the first map
        self._mean = self._squares = 0.0  # squares: sum of squared distances to the mean

    def add(self, one: Any) -> None:
        """Count a map, (H, W), taken as float32."""
        values = np.asarray(one, np.float32).ravel()
        self._size = self._size or len(values)
        # Images count alike, however many pixels they have. In pixels of the first one, as the table's precision wants.
        mass = None if len(values) == self._size else torch.full((1, len(values)), self._size / len(values)).double()
        self._table.add(sort_in_place(to_keys(torch.from_numpy(values))), mass)
        exact = values.astype(np.float64)
        count, mean = len(exact), float(exact.mean())
        total, step = self._count + count, mean - self._mean
        self._squares += float(np.square(exact - mean).sum()) + step**2 * self._count * count / total
        self._mean += step * count / total
        self._count, self._images = total, self._images + 1

    def threshold(self, rule: ThresholdRule) -> Threshold:
        """The threshold of pixels; of one map or more."""
        if rule.kind == "mean_std":
            return mean_std(self._count, self._mean, math.sqrt(self._squares / (self._count - 1)))
        images = self._images
        if rule.kind == "quantile":
            return _scaled(self._highest_but(rule.fpr), rule.factor, (images * rule.fpr + 1) / (images + 1))
        value = self._highest_but(max(0.0, ((images + 1) * rule.fpr - 1) / images))
        return Threshold(value, max(rule.fpr, 1 / (images + 1)))

    def _highest_but(self, share: float) -> float:
        """The lowest value of a map above which at most this share of an image's pixels lies, on average over all."""
        above = self._table.mass[0].cumsum(0) - self._table.mass[0]  # (K,) pixels above each value, the highest first
        most = share * self._images * self._size + _ROUNDING
        place = int(search(above, above.new_tensor([most]), right=True)) - 1
        return float(to_values(self._table.keys[place : place + 1]))


def interval(events: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a rate of which `events` of `count` were seen (Clopper and Pearson, 1934): exact, so it covers
    the rate with a probability of at least `level`. count >= 1."""
    tail = (1 - level) / 2
    low = 0.0 if events == 0 else float(betaincinv(events, count - events + 1, tail))
    high = 1.0 if events == count else float(betaincinv(events + 1, count - events, 1 - tail))
    return low, high


def mean_interval(shares: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The interval of the mean of shares, one of each image, by Student's t: approximate where most of them are 0. None
    of fewer than two, and where all are one value, which tells nothing of how they differ."""
    if len(set(shares)) < 2:
        return None
    mean, error = float(np.mean(shares)), float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    reach = float(stdtrit(len(shares) - 1, (1 + level) / 2)) * error
    return max(0.0, mean - reach), min(1.0, mean + reach)
