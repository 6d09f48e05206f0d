"""MuSc: comparing the images of a set, beside the published loop on the same features.

The features are random, with what all images share and what they have of their own; no backbone runs. Each side is a
process of its own; its peak memory is what it takes beyond the imports, the features included.
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

LAYERS, SIDES, LOWEST = 4, (1, 3, 5), 0.3


def measure(quick: bool) -> Iterator[Row]:
    """Rows of the table; the published loop takes an hour at the size of the preset, so grid and width are smaller."""
    grid, width, counts, turns = (6, 32, (10, 20), 1) if quick else (16, 768, (50, 100), 3)
    many = counts[-1]
    seconds: dict[tuple[str, int], list[float]] = {}
    memory, scores = {}, {}
    with TemporaryDirectory() as folder:
        for _ in range(turns):
            for side, count in [*(("ours", count) for count in counts), ("published", many)]:
                result = Path(folder, f"{side}.npy")
                _, printed = finish(["-m", "benchmarks.mutual", side, grid, width, count, result])
                taken, memory[side, count] = map(float, printed.split())
                seconds.setdefault((side, count), []).append(taken)
                scores[side] = np.load(result)
    own = {count: min(seconds["ours", count]) for count in counts}
    theirs = min(seconds["published", many])
    shown = f"{grid} x {grid} patches of width {width}, {LAYERS} layers, neighbourhoods 1 3 5"
    pairs = {count: count * (count - 1) / 2 for count in counts}
    for count in counts:
        yield Row(f"{count} images, {shown}", f"{own[count]:.2f} s, {1000 * own[count] / pairs[count]:.2f} ms a pair")
    growth = f"{own[many] / own[counts[0]]:.2f} times, pairs {pairs[many] / pairs[counts[0]]:.2f} times"
    yield Row(f"from {counts[0]} to {many} images", "", growth)
    yield Row(f"{many} images, the published loop", f"{theirs:.2f} s", f"{theirs / own[many]:.2f} times ours", ">= 1.8")
    own_peak, their_peak = memory["ours", many], memory["published", many]
    ratio = f"{own_peak / their_peak:.2f} times the published"
    yield Row(f"peak memory, ours, published ({many} images, features included)",
              f"{own_peak:.0f}, {their_peak:.0f} MiB", ratio, "<= 0.5")  # fmt: skip
    difference = np.abs(scores["ours"] - scores["published"]).max()
    yield Row("largest difference of a patch's score", f"{difference:.1e}", "", "<= 2e-5")


def features(grid: int, width: int, count: int) -> Iterator[list[Tensor]]:
    """Per layer the tokens of the images, each (N, W)."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(LAYERS, grid**2, width, generator=generator)
    for layer in shared:
        yield [layer + 0.5 * torch.randn(grid**2, width, generator=generator) for _ in range(count)]


def ours(images: list[list[Tensor]], grid: tuple[int, int], kept: int) -> Tensor:
    """(n, N) in double"""
    found = [mutual_scores(layer, grid, SIDES, kept, torch.device("cpu")) for layer in images]
    return torch.stack(found).double().mean((0, 1))


def published(images: list[list[Tensor]], grid: tuple[int, int], kept: int) -> Tensor:
    """As the published program goes about it: per size of neighbourhood the features of all layers, then per layer and
    image the distances to all patches of all others."""
    total = []
    for side in SIDES:
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
    parser.add_argument("side", choices=("ours", "published"))
    for name in ("grid", "width", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("result")
    args = parser.parse_args()
    before = peak()
    images = list(features(args.grid, args.width, args.count))
    start = time.perf_counter()
    side = {"ours": ours, "published": published}[args.side]
    scores = side(images, (args.grid, args.grid), int(LOWEST * (args.count - 1)))
    taken = time.perf_counter() - start
    print(taken, peak() - before)
    np.save(args.result, scores.numpy())


def peak() -> float:
    """MiB, the most that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT / 2**20


if __name__ == "__main__":
    sys.exit(main())
