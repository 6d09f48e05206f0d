"""A test run without its start (reading, scoring, metrics, overlays, report), beside the backbone alone on as many
images that are decoded already. APRIL-GAN, random weights, photographs of 1500 x 1000 pixels. Best turns; shares are
medians of the turns, whose two sides see about the same machine.

On the CPU ViT-B-16 at 240, one class, zero-shot and 4-shot. On a GPU ViT-L-14-336 at 518, bf16, batch 32, and as many
images and classes as MVTec AD has: the device would be done with one class before its pictures are begun.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, clip, median_ratio, one_class, photographs, sample_data, synchronize, whole_run
from data.references import ZERO_SHOT, draw_shots
from model import build, build_on
from utils.devices import make_accelerator

MVTEC = (1725, 15)  # test images, classes


def measure(quick: bool) -> Iterator[Row]:
    turns = 1 if quick else 3
    with sample_data() as data, tempfile.TemporaryDirectory() as folder:
        textures = data / "demo_textures"
        if torch.cuda.is_available():
            samples = photographs(textures, Path(folder), *((64, 2) if quick else MVTEC))
            detector = build("april_gan", model="ViT-L-14-336", image_size=518).eval()
            yield from compare(detector, Path(folder), samples, [ZERO_SHOT], 32, "bf16", 0.85, turns)
            return
        samples = photographs(textures, Path(folder), 16 if quick else 96)
        detector = build_on(clip(quick), "april_gan").eval()
        yield from compare(detector, Path(folder), samples, [ZERO_SHOT], 16, "fp32", 0.9, turns)
        shots = draw_shots("demo_textures", one_class(textures, 1)[1], ["brick"], 4, 1)
        yield from compare(detector, Path(folder), samples, [shots], 16, "fp32", 0.8, turns, textures)
        yield Row("on a GPU", "no GPU here", "", ">= 85%")


def compare(
    detector: Any, root: Path, samples: list, shots: list, batch: int, precision: str, wanted: float, turns: int,
    references: Path | None = None,
) -> Iterator[Row]:  # fmt: skip
    encoded = len(samples) + sum(len(paths) for one in shots for paths in one.references.values())
    alone, runs = [], []
    for _ in range(turns):
        alone.append(backbone_alone(detector, encoded, batch, precision))
        runs.append(whole_run(detector, root, samples, shots, batch, precision=precision, references=references))
    whole = [run.seconds for run in runs]
    shown = f"{detector.backbone.name} at {detector.backbone.image_size}, {precision}, batch {batch}"
    kind = f"{shots[0].k_shot}-shot" if shots[0].k_shot else "zero-shot"
    yield Row(f"the backbone alone, {encoded} images, {shown}", f"{min(alone):.2f} s")
    share = f"{median_ratio(alone, whole):.1%} in the backbone"
    yield Row(f"a run with overlays and report, {kind}", f"{min(whole):.2f} s", share, f">= {wanted:.0%}")
    own = median_ratio([run.encoding for run in runs], whole)
    yield Row("time in the backbone within the run, which those who read and draw slow down", "", f"{own:.1%}")


@torch.no_grad()
def backbone_alone(detector: Any, count: int, batch: int, precision: str) -> float:
    """Seconds for so many images."""
    accelerator = make_accelerator("auto", precision)
    detector.to(accelerator.device)
    side = detector.backbone.image_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=accelerator.device)
    for timed in (False, True):
        synchronize()
        start = time.perf_counter()
        for first in range(0, count if timed else 1, batch):
            with accelerator.autocast():
                detector.encode(images[: min(batch, count - first)])
        synchronize()
    return time.perf_counter() - start
