"""The flags of images without labels: --unlabelled and --submission; contradictions are refused."""

import argparse
from typing import Any, Protocol

SERVED = "mvtec2"  # the dataset that has an evaluation server


class Values(Protocol):
    """Settings in the making, see `config.resolve`."""

    def decide(self, key: str, value: Any, source: str) -> None:
        """Take a value whatever there is."""


def decide_unlabelled(values: Values, args: argparse.Namespace, mode: str) -> None:
    """A submission scores what has no labels. Raises ValueError where flags contradict it."""
    if args.unlabelled and mode == "batched":
        raise ValueError(
            "--unlabelled: a method that scores sets of images takes each part by predict.py --mode batched; drop it"
        )
    if args.submission is None:
        return
    where = f"--submission {args.submission}"
    if not args.submission.strip():
        raise ValueError("--submission: names no folder")
    if args.dataset != SERVED:
        raise ValueError(
            f"{where}: is for the server of MVTec AD 2, which takes no {args.dataset}; use --dataset {SERVED}"
        )
    if mode == "batched":
        raise ValueError(
            f"{where}: images that are scored together have no threshold; a submission needs one of pixels"
        )
    if args.threshold is None:
        raise ValueError(f"{where}: needs a threshold of pixels; add --threshold (mean_std is the benchmark's own)")
    if args.classes is not None:
        raise ValueError(f"{where}: the server takes all classes at once; drop --class")
    values.decide("unlabelled", True, "--submission")
