"""Overlays: how many a core draws, and how much longer a run takes with them.

Photographs of 1500 x 1000 pixels, as JPEG, with masks. The first row is processor time, so that other work on the
machine counts less; the runs are APRIL-GAN, zero-shot, random weights, ViT-B-16 at 240. Best turns.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import Row, Sample, clip, in_turns, photographs, sample_data, whole_run
from data.box import WHOLE
from data.images import load_image
from data.references import ZERO_SHOT
from data.regions import read_mask
from model import build_on
from report.pictures import Drawn, PictureJob, Previews, draw
from utils.launch import worker_count


def measure(quick: bool) -> Iterator[Row]:
    count, turns = (48, 1) if quick else (96, 3)
    with sample_data() as data, tempfile.TemporaryDirectory() as folder:
        samples = photographs(data / "demo_textures", Path(folder), count)
        yield from one_core(Path(folder), samples[:20], turns)
        detector = build_on(clip(quick), "april_gan").eval()
        sides = {
            name: lambda wanted=wanted: (
                whole_run(detector, Path(folder), samples, [ZERO_SHOT], 16, pictures=wanted).seconds
            )
            for name, wanted in (("without", False), ("with", True))
        }
        seconds, _ = in_turns(sides, turns)
    without, drawn = min(seconds["without"]), min(seconds["with"])
    shown = f"{detector.backbone.name} at {detector.backbone.image_size}, {count} images"
    yield Row(f"a run without overlays, {shown}", f"{without:.2f} s")
    ratio = f"{drawn / without:.2f} times that"
    yield Row(f"with overlays, {worker_count()} processes draw", f"{drawn:.2f} s", ratio, "<= 1.15")


def one_core(root: Path, samples: Sequence[Sample], turns: int) -> Iterator[Row]:
    """In this process, on one thread: keeping what is shown of images that the backbone needs anyway, and drawing."""
    cv2.setNumThreads(1)
    coarse = np.random.default_rng(0).random((12, 12), dtype=np.float32)
    np.save(root / "map.npy", cv2.resize(coarse, (518, 518)))
    previews = Previews(root, WHOLE)
    images = [load_image(root / one.img_path) for one in samples]
    masks = [read_mask(root / one.mask_path) if one.mask_path else None for one in samples]
    for settings in (1, 12):
        best = float("inf")
        for _ in range(turns):
            start = time.process_time()
            for number, sample in enumerate(samples):
                previews(number, images[number], masks[number])
                maps = [Drawn(root / "map.npy", 0.5, (0.0, 1.0), root / f"out-{n}.png", False) for n in range(settings)]
                draw(PictureJob(root, sample, maps, preview=previews.file(number)))
            best = min(best, time.process_time() - start)
        rate = settings * len(samples) / best
        what = "overlays of 1500 x 1000 photographs" + (", 12 settings of each image" if settings > 1 else "")
        yield Row(what, f"{rate:.1f} a second and core", "", ">= 25")
