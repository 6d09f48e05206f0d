"""Few-shot testing, APRIL-GAN, random weights: twelve settings (k 1 2 4, four seeds) in one pass of the backbone.

Decoding, references, maps and metrics are in it, no overlays; one more row has overlays and report of all settings. The
published loop encodes every image twice, one at a time; here it has the metrics of this project, so that the ratio is
that of the loop alone.
"""

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.common import Row, clip, in_turns, median_ratio, one_class, sample_data, scoring_pass, whole_run
from data.references import FewShotSetting, draw_shots
from dataset import AnomalyDataset, Sample
from metrics.image import image_metrics
from metrics.pixel import PixelMetrics, label_regions
from model import build_on


def measure(quick: bool) -> Iterator[Row]:
    count, turns = (20, 1) if quick else (100, 3)
    backbone = clip(quick)
    detector = build_on(backbone, "april_gan").eval()
    with sample_data() as root:
        root = root / "demo_textures"
        # A class of a real dataset has about a hundred test images for its four references (MVTec AD: 115).
        samples, train = one_class(root, count)
        twelve = [draw_shots("demo_textures", train, ["brick"], k, seed) for k in (1, 2, 4) for seed in (1, 2, 3, 4)]
        one = twelve[-1]

        def one_pass(*shots: FewShotSetting) -> list[float]:
            return values(scoring_pass(detector, root, samples, shots, 8).rows[-1].metrics)

        sides = {
            "one setting": lambda: one_pass(one),
            "twelve settings, one pass": lambda: one_pass(*twelve),
            "one setting, every image encoded twice, one at a time": lambda: twice(detector, root, samples, one),
        }
        one_pass(one)  # warm
        seconds, results = in_turns(sides, turns)
        pictures, _ = in_turns(
            {
                "one": lambda: whole_run(detector, root, samples, [one], 8),
                "twelve": lambda: whole_run(detector, root, samples, twelve, 8),
            },
            turns,
        )
        start = time.perf_counter()
        for shots in twelve:
            one_pass(shots)
        runs = time.perf_counter() - start
    base, together = seconds["one setting"], seconds["twelve settings, one pass"]
    shown = f"{backbone.name} at {backbone.image_size}, {count} images, batch 8"
    yield Row(f"one setting (4 shots), {shown}", f"{statistics.median(base):.2f} s")
    ratio = f"{median_ratio(together, base):.2f} times one setting"
    yield Row(
        "twelve settings (k 1 2 4, four seeds), one pass", f"{statistics.median(together):.2f} s", ratio, "<= 1.3"
    )
    yield Row(
        "the same with overlays of all settings, and report",
        f"{min(pictures['twelve']):.2f} s",
        f"{min(pictures['twelve']) / min(pictures['one']):.2f} times one setting, with overlays too",
        "<= 1.3",
    )
    yield Row(
        "the same as twelve runs (once)", f"{runs:.2f} s", f"{runs / statistics.median(together):.1f} times one pass"
    )
    for name in list(sides)[2:]:
        ratio = f"{median_ratio(seconds[name], base):.2f} times one setting"
        yield Row(name, f"{statistics.median(seconds[name]):.2f} s", ratio)
    difference = max(np.abs(np.subtract(result, results["one setting"])).max() for result in results.values())
    yield Row("largest difference of a metric between them", f"{difference:.1e}")


def values(metrics: dict[str, float | None]) -> list[float]:
    return [value for value in metrics.values() if value is not None]


@torch.no_grad()
def twice(detector, root, samples: Sequence[Sample], shots: FewShotSetting) -> list[float]:
    """Image by image: one pass for the zero-shot part, another for the comparison with the references."""
    size, name = detector.backbone.image_size, samples[0].cls_name
    references = AnomalyDataset(root, [Sample(path, "", "", "", 0) for path in shots.references[name]], size)
    tokens = detector.encode(torch.stack([item["image"] for item in references]))
    memory = {name: detector.build_memory([tokens])}
    pixels, score_components = PixelMetrics(), []
    for item in AnomalyDataset(root, samples, size):
        image = item["image"][None]
        zero_shot = detector.zero_shot(detector.encode(image), [name])
        prediction = detector.few_shot(zero_shot, detector.encode(image), [name], memory)
        pixels.update(prediction.maps, label_regions(item["mask"].numpy())[None])
        score_components.append(prediction.score_components)
    scores = detector.image_scores(
        {key: torch.cat([term[key] for term in score_components]) for key in score_components[0]}
    )
    return values({**pixels.compute(), **image_metrics([sample.anomaly for sample in samples], scores.tolist())})
