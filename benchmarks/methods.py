"""Every method through the scoring pass of test.py, random weights: images per second, share outside the backbone.

Outside the backbone is the wall time from the first batch to the metrics, less the time in `encode`. Decoding counts as
far as the workers do not hide it; there are no overlays.
"""

import statistics
from collections.abc import Iterator

import torch

from benchmarks.common import Row, clip, one_class, sample_data, scoring_pass
from data.references import ZERO_SHOT, draw_shots
from model import build_on

METHODS = ("april_gan", "winclip", "sdp", "sdp_plus", "vcp_clip", "anomaly_clip")
WANTED = {("april_gan", 0): 0.10, ("april_gan", 4): 0.20}  # on the CPU


def measure(quick: bool) -> Iterator[Row]:
    count, turns = (16, 1) if quick else (96, 3)
    backbone = clip(quick)
    shown = f"{backbone.name} at {backbone.image_size}"
    with sample_data() as root:
        root = root / "demo_textures"
        for method in METHODS:
            # WinCLIP takes thirteen times as long.
            samples, train = one_class(root, max(16, count // 6) if method == "winclip" else count)
            detector = build_on(backbone, method)
            for k_shot in (0, 4) if hasattr(detector, "few_shot") else (0,):
                shots = [draw_shots("demo_textures", train, ["brick"], k_shot, 1)] if k_shot else [ZERO_SHOT]
                scoring_pass(detector, root, samples[:16], shots, 16)  # warm
                passes = [scoring_pass(detector, root, samples, shots, 16) for _ in range(turns)]
                rate = statistics.median(len(samples) / one.seconds for one in passes)
                outside = statistics.median(one.outside for one in passes)
                wanted = WANTED.get((method, k_shot)) if not torch.cuda.is_available() else None
                yield Row(
                    f"{method}, {k_shot or 'zero'}-shot, {shown}, batch 16, {len(samples)} images",
                    f"{rate:.2f} images/s",
                    f"{outside:.1%} outside",
                    f"<= {wanted:.0%}" if wanted else "",
                )
