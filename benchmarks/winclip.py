"""WinCLIP: time per image against a plain encode, against what the windows' tokens must cost, and against anomalib.

Random weights, fp32, images in memory, references encoded beforehand. The windows hold (1+4)(G-1)^2 + (1+9)(G-2)^2
tokens beside the image's 1+G^2: that factor is the floor (ours may lie below: the last block of a window computes
nothing but the class token). anomalib takes part where it is installed, with the same weights.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import Row, Timed, clip
from model import build_on
from model.backbones.clip import Backbone

NAME, SHOTS = "nut", 4


@torch.no_grad()
def measure(quick: bool) -> Iterator[Row]:
    batch, repeats = (SHOTS, 1) if quick else (8, 3)
    torch.manual_seed(0)
    backbone = clip(quick) if quick else Backbone("ViT-B-16-plus-240")  # the published one
    detector = build_on(backbone, "winclip").eval()
    detector.encode_names([NAME])
    grid = detector.backbone.grid
    factor = 1 + (5 * (grid - 1) ** 2 + 10 * (grid - 2) ** 2) / (1 + grid**2)
    size = detector.backbone.image_size
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    references = images[:SHOTS].flip(-1)
    theirs = {} if quick else anomalibs(detector, images, references)  # anomalib's has one model
    sides = {**ours(detector, images, references), **theirs}
    detector.backbone(images, (1,))  # warm
    turns = [{name: side() for name, side in sides.items()} for _ in range(repeats)]
    yield Row(f"tokens of the windows, {backbone.name}, batch {batch}", f"{factor:.2f} times the image's")
    for name in sides:
        seconds = statistics.median(turn[name] for turn in turns) / batch
        ratio = statistics.median(turn[name] / turn["plain encode"] for turn in turns)
        shown = "" if name == "plain encode" else f"{ratio:.2f} plain encodes, {ratio / factor:.3f} of the tokens' cost"
        yield Row(name, f"{seconds:.3f} s per image", shown)
    if not theirs:
        yield Row("anomalib", "not installed here, or --quick")


def ours(detector, images: torch.Tensor, references: torch.Tensor) -> dict[str, Callable[[], float]]:
    """One pass gives both settings, as in test.py; the second and third look up what the first has measured."""
    names = [NAME] * len(images)
    memories = {NAME: detector.build_memory([detector.encode(references)])}
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
        return {}

    def make(own_references: torch.Tensor | None):
        with tempfile.TemporaryDirectory() as folder:
            torch_model.PRETRAINED = str(Path(folder, "weights.pt"))  # instead of a download
            torch.save(detector.backbone.clip.state_dict(), torch_model.PRETRAINED)
            return torch_model.WinClipModel(NAME, own_references).eval()

    normal = detector.backbone.normalize
    sides = {"zero-shot": make(None), "4-shot": make(normal(references))}
    name_of = f"anomalib {version('anomalib')}"

    def timed(model) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            model(normal(images))
            return time.perf_counter() - start

        return run

    return {f"{name_of}, {name}": timed(model) for name, model in sides.items()}
