"""MuSc: comparing the images of a set, beside the published loop on the same features.

The features are random, with what all images share and what they have of their own; no backbone runs. Each side is a
process of its own, with one thread; its time is that of the processor, and its peak memory what it takes beyond the
imports, the features included.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import PEAK_UNIT, Row, finish
from model.mutual_scoring import mutual_scores, neighborhood_means

LAYERS, NEIGHBORHOODS, LOWEST = 4, (1, 3, 5), 0.3
SIDES = ("ours", "published")


def measure(quick: bool) -> Iterator[Row]:
    """Rows of the table. With the preset's 37 x 37 patches of width 1024 a hundred images would take the published loop
    half a day on a core: these are few images there, and smaller ones for the rest."""
    preset, small = ((8, 64, 6), (6, 32, 20)) if quick else ((37, 1024, 8), (12, 768, 100))
    turns = 1 if quick else 2
    half = (*small[:2], small[2] // 2)
    seconds: dict[tuple, list[float]] = {}
    memory, scores = {}, {}
    with TemporaryDirectory() as folder:
        result = Path(folder, "scores.npy")
        for _ in range(turns):
            for side, size in [(side, size) for size in (preset, small) for side in SIDES] + [("ours", half)]:
                _, printed = finish(["-m", "benchmarks.mutual", side, *size, result], OMP_NUM_THREADS="1")
                taken, memory[side, size] = map(float, printed.split())
                seconds.setdefault((side, size), []).append(taken)
                scores[side, size] = np.load(result)
    fastest = {key: min(values) for key, values in seconds.items()}
    for size in (preset, small):
        grid, width, count = size
        own, theirs = fastest["ours", size], fastest["published", size]
        shown = f"{count} images, {grid} x {grid} patches of width {width}, {LAYERS} layers"
        yield Row(f"ours, {shown}", f"{own:.2f} s, {1000 * own / _pairs(count):.1f} ms a pair")
        ratio = f"{theirs / own:.2f} times ours"
        yield Row("the published loop", f"{theirs:.2f} s", ratio, ">= 1.8" if size == small else "")
        difference = np.abs(scores["ours", size] - scores["published", size]).max()
        yield Row("largest difference of a patch's score", f"{difference:.1e}", "", "<= 2e-5")
        own_peak, their_peak = memory["ours", size], memory["published", size]
        ratio = f"{own_peak / their_peak:.2f} times the published"
        yield Row("peak memory with the tokens, ours, published", f"{own_peak:.0f}, {their_peak:.0f} MiB", ratio,
                  "<= 0.5" if size == small else "")  # fmt: skip
    growth = fastest["ours", small] / fastest["ours", half]
    yield Row(f"from {half[2]} to {small[2]} images", f"{_pairs(small[2]) / _pairs(half[2]):.2f} times the pairs",
              f"{growth:.2f} times the time")  # fmt: skip


def _pairs(count: int) -> float:
    return count * (count - 1) / 2


def features(grid: int, width: int, count: int) -> Iterator[list[Tensor]]:
    """Per layer the tokens of the images, each (N, W)."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(LAYERS, grid**2, width, generator=generator)
    for layer in shared:
        yield [layer + 0.5 * torch.randn(grid**2, width, generator=generator) for _ in range(count)]


def ours(images: list[list[Tensor]], grid: tuple[int, int], kept: int) -> Tensor:
    """(n, N) in double"""
    found = [mutual_scores(layer, grid, NEIGHBORHOODS, kept, torch.device("cpu")) for layer in images]
    return torch.stack(found).double().mean((0, 1))


def published(images: list[list[Tensor]], grid: tuple[int, int], kept: int) -> Tensor:
    """As the published program goes about it: per size of neighbourhood the features of all layers, then per layer and
    image the distances to all patches of all others."""
    total = []
    for side in NEIGHBORHOODS:
        layers = [torch.cat([neighborhood_means(one[None], grid, side) for one in layer]) for layer in images]
        of_layers = []
        for every in layers:
            scores = []
            for number, one in enumerate(every):
                others = torch.cat([every[:number], every[number + 1 :]])  # (n - 1, N, W)
                distances = torch.cdist(one[None], others.flatten(0, 1)[None])[0]  # (N, (n - 1) * N)
                nearest = distances.unflatten(1, others.shape[:2]).amin(2)  # (N, n - 1)
                scores.append(nearest.topk(kept, dim=1, largest=False).values.mean(1))
            of_layers.append(torch.stack(scores))
        total.append(torch.stack(of_layers).mean(0).double())
    return torch.stack(total).mean(0)


def main() -> None:
    """One side, in a process of its own: prints its seconds and its peak memory in MiB without the imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    for name in ("grid", "width", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("result")
    args = parser.parse_args()
    before = peak()
    images = list(features(args.grid, args.width, args.count))
    start = time.process_time()
    side = {"ours": ours, "published": published}[args.side]
    scores = side(images, (args.grid, args.grid), int(LOWEST * (args.count - 1)))
    taken = time.process_time() - start
    print(taken, peak() - before)
    np.save(args.result, scores.numpy())


def peak() -> float:
    """MiB, the most that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT / 2**20


if __name__ == "__main__":
    sys.exit(main())
