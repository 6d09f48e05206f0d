"""SubspaceAD beside the plain forward of its backbone: scoring images, and putting together a reference with its views.

Random weights, no decoding. The forward is that of the whole backbone; the method leaves out the blocks above the
layers that it aggregates.
"""

import statistics
from collections.abc import Iterator

import torch

from benchmarks.common import Row, in_turns, median_ratio, synchronize
from model import build
from model.interface import Memory, Prediction
from model.tokens import join_tokens

BATCH, VIEWS = 4, 32  # images at a time; views of a reference in one pass, about as many as published


@torch.no_grad()
def measure(quick: bool) -> Iterator[Row]:
    model, size, turns = ("vit_tiny_patch16_224", 224, 1) if quick else ("vit_small_patch14_dinov2", 448, 5)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = build("subspace_ad", model=model, image_size=size).eval().to(torch.device(device))
    images = torch.randint(0, 256, (VIEWS, 3, size, size), dtype=torch.uint8, device=device)
    batches = images.split(BATCH)

    def forward() -> None:
        for batch in batches:
            detector.backbone(batch, [detector.backbone.depth])
        synchronize()

    def fit() -> Memory:
        one_pass = join_tokens([detector.encode(batch) for batch in batches])
        memory = detector.build_memory([detector.summarize([one_pass])])
        synchronize()
        return memory

    memory = fit()

    def score() -> list[Prediction]:
        names = ["brick"] * BATCH
        found = [detector.few_shot(None, detector.encode(batch), names, {"brick": memory}) for batch in batches]
        synchronize()
        return found

    forward()  # warm
    seconds, _ = in_turns({"forward": forward, "scoring": score, "fit": fit}, turns)
    rows = len(memory.banks["components"])
    shown = f"{model} at {size}, layers {' '.join(map(str, detector.options['features_list']))}, batch {BATCH}"
    base = seconds["forward"]
    yield Row(f"plain forward, {shown}", f"{statistics.median(base) / VIEWS * 1e3:.1f} ms per image")
    for name, what in (("scoring", f"scoring, {rows} directions"), ("fit", f"fit of a reference in {VIEWS} views")):
        median = f"{statistics.median(seconds[name]) / VIEWS * 1e3:.1f} ms per image"
        yield Row(what, median, f"{median_ratio(seconds[name], base):.2f} times the forward", "<= 1.1")
