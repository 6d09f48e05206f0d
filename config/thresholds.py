"""The flags of thresholds: which rule, with which numbers; contradictions are refused."""

import argparse
from typing import Any, Protocol

from config.unlabelled import decide_unlabelled
from metrics.thresholds import STEPS

FLAGS = ("threshold", "threshold_factor", "fpr")
_FPR = 0.05
_FACTOR = 1.0


class Values(Protocol):
    """Settings in the making, see `config.resolve`."""

    def __getitem__(self, key: str) -> Any: ...

    def default(self, key: str, value: Any, source: str = "default") -> None:
        """Take a value where there is none."""

    def decide(self, key: str, value: Any, source: str) -> None:
        """Take a value whatever there is."""


def decide_threshold(values: Values, args: argparse.Namespace) -> None:
    """Fill in what no flag gives. Raises ValueError where flags contradict each other, or a rate is none."""
    rule, calibration = args.threshold, getattr(args, "calibration", None)
    for key in FLAGS if calibration is not None else ():
        if getattr(args, key) is not None:
            raise ValueError(
                f"--{key} {_words(args, key)}: the threshold of --calibration {calibration} has its own; drop one"
            )
    if args.threshold_factor is not None and rule != "quantile":
        raise ValueError(
            f"--threshold_factor {args.threshold_factor:g}: only --threshold quantile takes a factor; add it"
        )
    if rule == "mean_std":
        if args.fpr is not None:
            raise ValueError(
                f"--fpr {args.fpr:g}: --threshold mean_std is {STEPS:g} standard deviations above the mean, whatever "
                "the rate; drop one"
            )
        return
    if rule == "quantile":
        values.default("threshold_factor", _FACTOR)
    values.default("fpr", _FPR, "default; --calibration has its own" if calibration is not None else "default")
    if not 0 < values["fpr"] < 1:
        raise ValueError(f"--fpr {values['fpr']:g}: must be a rate between 0 and 1")


def decide_class_thresholds(values: Values, args: argparse.Namespace, mode: str) -> None:
    """Of test.py, where there are none unless a rule is named; and of the flags that take them, see
    `config.unlabelled`. Raises as `decide_threshold`."""
    if args.threshold is not None and mode == "batched":
        raise ValueError(
            f"--threshold {args.threshold}: images that are scored together have no threshold; drop --threshold"
        )
    for key in FLAGS if args.threshold is None else ():
        if getattr(args, key) is not None:
            raise ValueError(f"--{key} {_words(args, key)}: requires --threshold, which names the rule")
    if args.threshold is not None:
        decide_threshold(values, args)
    decide_unlabelled(values, args, mode)


def _words(args: argparse.Namespace, key: str) -> str:
    value = getattr(args, key)
    return value if isinstance(value, str) else f"{value:g}"
