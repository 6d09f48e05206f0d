"""Few-shot testing: one pass of the backbone in batches, against encoding every image twice, one at a time.

    python -m benchmarks.few_shot [--model ViT-B-16] [--image_size 240]

Both sides run in this process on the same random weights, images and references, and measure the same maps: decoding,
backbone, distances, maps, pixel and image metrics. The second is how the published program goes about it, with the
metrics of this project, so that the ratio is that of the testing loop alone.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.common import machine, sample_data
from dataset import AnomalyDataset, Sample, Shots, draw_shots, read
from model import build
from utils import runtime
from utils.engine import References, score
from utils.metrics import PixelMetrics, image_metrics, label_regions


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image_size", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    detector = build("april_gan", model=args.model, image_size=args.image_size).eval()
    with sample_data() as root:
        root = root / "demo_textures"
        meta = read(root)
        # A class of a real dataset has about a hundred test images for its four references (MVTec AD: 115).
        samples = [sample for sample in meta["test"] if sample.cls_name == "brick"] * 5
        shots = draw_shots("demo_textures", meta["train"], ["brick"], 4, 42)
        detector.encode_names(sorted(shots.references))
        sides = {"one pass, batch 8": one_pass, "twice, batch 1": twice}
        times = {name: [] for name in sides}
        results = {}
        for _ in range(args.repeats):
            for name, side in sides.items():
                start = time.perf_counter()
                results[name] = side(detector, root, samples, shots)
                times[name].append((time.perf_counter() - start) / len(samples))
    difference = max(abs(np.subtract(*pair)) for pair in zip(*results.values(), strict=True))
    ours, theirs = (statistics.median(values) for values in times.values())
    print(f"{machine()}\n{args.model} at {args.image_size}, 4-shot, {len(samples)} images, median of {args.repeats}")
    print(f"| twice, batch 1 | {theirs:.3f} s per image |\n| one pass, batch 8 | {ours:.3f} s per image |")
    print(f"| ratio | {theirs / ours:.2f} |\n| largest difference of a metric | {difference:.1e} |")


def one_pass(detector, root, samples: Sequence[Sample], shots: Shots) -> list[float]:
    def load(chosen):
        return DataLoader(AnomalyDataset(root, chosen, detector.backbone.image_size), 8, num_workers=2)

    accelerator = runtime.accelerator("auto", "fp32")
    references = References(
        detector, [shots], lambda paths: load([Sample(p, "", "", "", 0) for p in paths]), accelerator
    )
    rows = score(detector, load(samples), samples, [shots], references, accelerator)
    return [value for row in rows for value in row.metrics.values()]


@torch.no_grad()
def twice(detector, root, samples: Sequence[Sample], shots: Shots) -> list[float]:
    """Image by image: one pass for the zero-shot part, another for the comparison with the references."""
    size, values = detector.backbone.image_size, []
    for name in dict.fromkeys(sample.cls_name for sample in samples):
        references = AnomalyDataset(root, [Sample(p, "", "", "", 0) for p in shots.references[name]], size)
        encoded = [detector.encode(item["image"][None]) for item in references]
        joined = {layer: torch.cat([one.patches[layer] for one in encoded]) for layer in encoded[0].patches}
        memory = {name: detector.remember(encoded[0]._replace(patches=joined))}
        own = [sample for sample in samples if sample.cls_name == name]
        pixels, terms = PixelMetrics(), []
        for item in AnomalyDataset(root, own, size):
            image = item["image"][None]
            zero_shot = detector.zero_shot(detector.encode(image), [name])
            prediction = detector.few_shot(zero_shot, detector.encode(image), [name], memory)
            pixels.update(prediction.maps, label_regions(item["mask"].numpy())[None])
            terms.append(prediction.terms)
        scores = detector.image_scores({key: torch.cat([term[key] for term in terms]) for key in terms[0]})
        row = {**pixels.compute(), **image_metrics([sample.anomaly for sample in own], scores.tolist())}
        values += row.values()
    return values


if __name__ == "__main__":
    main()
