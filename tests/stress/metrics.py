"""All metrics on thousands of random cases against scikit-learn and a brute force over every distinct value.

    python tests/stress/metrics.py                   # 20,000 cases, some 10 minutes
    python tests/stress/metrics.py --count 500 --seed 7

The cases have ties, one label alone, no image at all, values that are tiny, huge, nearly equal or far apart, and up to
five images of up to 24 x 24 pixels. The second implementation is that of tests/metrics/test_metrics.py, where a smaller
number of small cases runs each time. Ends with exit code 1 at the first case that differs, and says which it is.
"""

import argparse
import importlib.util
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as a script, beside the packages of the checkout
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from metrics import evaluate
from metrics.image import IMAGE
from metrics.pixel import PIXEL

_spec = importlib.util.spec_from_file_location("by_hand", Path(__file__).parents[1] / "metrics/test_metrics.py")
by_hand = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(by_hand)

VALUES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "two values": lambda rng, shape: rng.integers(0, 2, shape),
    "few values": lambda rng, shape: rng.integers(-3, 4, shape) / 4,
    "constant": lambda rng, shape: np.full(shape, rng.normal()),
    "tiny": lambda rng, shape: rng.normal(size=shape) * 1e-40,
    "huge": lambda rng, shape: rng.normal(size=shape) * 5e37,
    "far apart": lambda rng, shape: rng.choice([-1, 1], shape) * 10 ** rng.uniform(-38, 37, shape),
    "nearly equal": lambda rng, shape: 2 + rng.integers(-4, 5, shape) * 2.0**-22,
    "one outlier": lambda rng, shape: np.where(rng.random(shape) < 1e-2, 1e30, rng.random(shape)),
    "signed zeros": lambda rng, shape: rng.choice([-0.0, 0.0, 1e-45, -1e-45], shape),
    "as the mask": None,
}
MASKS = {"few": 0.02, "some": 0.2, "most": 0.9, "none": 0.0, "all": 1.0}


def case(seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """(what it is, maps (N, H, W) float32, masks (N, H, W) uint8)"""
    rng = np.random.default_rng(seed)
    values, share = rng.choice(list(VALUES)), rng.choice(list(MASKS), p=[0.35, 0.35, 0.2, 0.05, 0.05])
    shape = tuple(rng.integers([0 if seed % 50 == 0 else 1, 1, 1], [6, 25, 25]))
    masks = np.uint8(rng.random(shape) < MASKS[share]) * rng.choice(np.uint8([1, 7, 255]))
    if rng.random() < 0.5:  # regions of some size instead of single pixels
        masks = np.repeat(np.repeat(masks[:, ::3, ::3], 3, 1), 3, 2)[:, : shape[1], : shape[2]]
    make = VALUES[values] or (lambda rng, shape: masks + rng.normal(size=shape) * rng.choice([0, 0.3]))
    return f"{values}, {share}", make(rng, shape).astype(np.float32), masks


def check(seed: int) -> str:
    """Compare one case; returns what it is. Raises AssertionError where an implementation differs."""
    what, maps, masks = case(seed)
    if not len(maps):
        assert evaluate(maps, masks, [], []) == dict.fromkeys(PIXEL + IMAGE)
        return "empty"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an overflow or a division by zero of ours is a fault, too
        own = evaluate(maps, masks)
    by_hand.assert_same({name: own[name] for name in PIXEL}, by_hand.by_hand(maps, masks))
    labels, scores = masks.any((1, 2)), maps.max((1, 2)).astype(np.float64)
    own = evaluate(None, None, labels, scores)
    if labels.all() or not labels.any():
        expected = dict.fromkeys(PIXEL + IMAGE)
        what += "; one label"
    else:
        precision, recall, _ = precision_recall_curve(labels, scores)
        f1 = [0.0 if p + r == 0 else 2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
        values = (roc_auc_score(labels, scores), max(f1), average_precision_score(labels, scores))
        expected = {**dict.fromkeys(PIXEL), **dict(zip(IMAGE, values, strict=True))}
    by_hand.assert_same(own, expected)
    return what


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="cases")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    args = parser.parse_args()
    kinds, start = Counter(), time.perf_counter()
    warnings.simplefilter("ignore")  # scikit-learn's sums overflow
    for seed in range(args.seed, args.seed + args.count):
        try:
            kinds[check(seed).partition(",")[0]] += 1
        except Exception as error:
            print(f"case {seed} ({case(seed)[0]}): {type(error).__name__}: {error}")
            return 1
    print(f"{args.count} cases agree within 1e-9, {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
