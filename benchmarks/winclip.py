"""WinCLIP: time per image against a plain encode, against what the windows' tokens must cost, and against anomalib.

    python -m benchmarks.winclip [--batch 8] [--repeats 3]

Random weights, fp32, images in memory, references encoded beforehand. The windows hold (1+4)(G-1)^2 + (1+9)(G-2)^2
tokens beside the image's 1+G^2: that factor is the floor. All sides take turns within one run; figures are medians of
the ratios of one turn. anomalib takes part where it is installed (in an environment of its own: pip install anomalib
-r requirements.txt), with the same weights.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import machine
from model import build

MODEL, NAME, SHOTS = "ViT-B-16-plus-240", "nut", 4


class Timed:
    """A function that adds up the time spent in it."""

    def __init__(self, function: Callable):
        self.function, self.seconds = function, 0.0

    def __call__(self, *args):
        start = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - start
        return result


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    detector = build("winclip", model=MODEL).eval()
    detector.encode_names([NAME])
    grid = detector.backbone.grid
    factor = 1 + (5 * (grid - 1) ** 2 + 10 * (grid - 2) ** 2) / (1 + grid**2)
    size = detector.backbone.image_size
    images = torch.randint(0, 256, (args.batch, 3, size, size), dtype=torch.uint8)
    references = images[:SHOTS].flip(-1)
    sides = {**ours(detector, images, references), **anomalibs(detector, images, references)}
    turns: list[dict[str, float]] = []
    detector.backbone(images, (1,))  # warm
    for _ in range(args.repeats):
        turns.append({name: side() for name, side in sides.items()})
    print(f"{machine()}\n{MODEL}, batch {args.batch}, {args.repeats} turns; factor of the tokens {factor:.2f}\n")
    print("| side | s per image | times a plain encode | times factor x plain encode |\n|---|---|---|---|")
    for name in sides:
        seconds = statistics.median(turn[name] for turn in turns) / args.batch
        ratio = statistics.median(turn[name] / turn["plain encode"] for turn in turns)
        print(f"| {name} | {seconds:.3f} | {ratio:.2f} | {ratio / factor:.2f} |")
    shares = [turn["ours, outside the transformer"] / turn["ours, 4-shot"] for turn in turns]
    print(f"\nours, share outside the transformer: {statistics.median(shares):.2%}")


def ours(detector, images: torch.Tensor, references: torch.Tensor) -> dict[str, Callable[[], float]]:
    """One pass gives both settings, as in test.py; the second and third look up what the first has measured."""
    names = [NAME] * len(images)
    memories = {NAME: detector.remember(detector.encode(references))}
    parts = [Timed(detector.backbone.encode), Timed(detector.backbone.pool)]
    detector.backbone.encode, detector.backbone.pool = parts
    measured: dict[str, float] = {}

    def zero_shot() -> float:
        for part in parts:
            part.seconds = 0.0
        start = time.perf_counter()
        tokens = detector.encode(images)
        prediction = detector.zero_shot(tokens, names)
        measured["zero"] = time.perf_counter() - start
        detector.few_shot(prediction, tokens, names, memories)
        measured["few"] = time.perf_counter() - start
        return measured["zero"]

    def plain() -> float:
        start = time.perf_counter()
        detector.backbone(images, (detector.backbone.depth,))
        return time.perf_counter() - start

    return {
        "plain encode": plain,
        "ours, zero-shot": zero_shot,
        "ours, 4-shot": lambda: measured["few"],
        "ours, outside the transformer": lambda: measured["few"] - sum(part.seconds for part in parts),
    }


def anomalibs(detector, images: torch.Tensor, references: torch.Tensor) -> dict[str, Callable[[], float]]:
    try:
        from anomalib.models.image.winclip import torch_model
    except ImportError:
        print("anomalib is not installed: its side is left out")
        return {}

    def make(own_references: torch.Tensor | None):
        with tempfile.TemporaryDirectory() as folder:
            torch_model.PRETRAINED = str(Path(folder, "weights.pt"))  # instead of a download
            torch.save(detector.backbone.clip.state_dict(), torch_model.PRETRAINED)
            return torch_model.WinClipModel(NAME, own_references).eval()

    normal = detector.backbone.normalize
    sides = {"zero-shot": make(None), "4-shot": make(normal(references))}

    def timed(model) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            model(normal(images))
            return time.perf_counter() - start

        return run

    return {f"anomalib, {name}": timed(model) for name, model in sides.items()}


if __name__ == "__main__":
    main()
