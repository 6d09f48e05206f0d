"""The feature cache: the scoring pass without it, with it empty, and with it filled; APRIL-GAN, 4 shots."""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Row, clip, median_ratio, one_class, sample_data, scoring_pass
from data.references import draw_shots
from engine.feature_cache import FeatureCache
from model import build_on
from utils.devices import make_accelerator


def measure(quick: bool) -> Iterator[Row]:
    count, turns = 20, 1 if quick else 3  # all that the class has: the cache would find repeated images at once
    backbone = clip(quick)
    detector = build_on(backbone, "april_gan").eval()
    seconds: dict[str, list[float]] = {}
    with sample_data() as root, tempfile.TemporaryDirectory() as folder:
        root = root / "demo_textures"
        samples, train = one_class(root, count)
        shots = [draw_shots("demo_textures", train, ["brick"], 4, 1)]
        scoring_pass(detector, root, samples, shots, 8)  # warm
        accelerator = make_accelerator("auto", "fp32")
        for turn in range(turns):
            held = Path(folder, str(turn))
            for name in ("without", "empty", "filled"):
                backbone.cache = None if name == "without" else FeatureCache(held, 50, accelerator)
                one = scoring_pass(detector, root, samples, shots, 8)
                seconds.setdefault(name, []).append(one.seconds / count)
        size_of_one = sum(path.stat().st_size for path in held.rglob("*.safetensors")) / (count + 4)
    plain = seconds["without"]
    shown = f"{backbone.name} at {backbone.image_size}, 4-shot, {count} images, {size_of_one / 1e6:.2f} MB an image"
    yield Row(f"without a cache, {shown}", f"{statistics.median(plain):.3f} s per image")
    for name, what in (("empty", "first run"), ("filled", "second run")):
        ratio = f"{median_ratio(seconds[name], plain):.2f} times without"
        yield Row(f"{what} with --feature_cache", f"{statistics.median(seconds[name]):.4f} s per image", ratio)
