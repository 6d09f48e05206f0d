"""Measures of test.py --measures, --fpr_limits and --metric_size: what each takes beside the usual pixel metrics, and
the memory at the size of the pictures.

The maps are those of the part `metrics`; regions are found in the masks beforehand. anomalib's AUPIMO takes part where
it is installed.
"""

import contextlib
import resource
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import PEAK_UNIT, PHOTOGRAPH, Row, finish, in_turns
from benchmarks.metrics import Batch, installed, stream
from engine.ground_truth import resized
from metrics.image import calibration_error, fpr_at_tpr
from metrics.measures import PixelMeasures
from metrics.names import Measures
from metrics.pixel import PixelMetrics, label_regions
from metrics.spro import SaturatedRegion

PEAK = "import sys; from benchmarks.measures import peak; print(peak(*map(int, sys.argv[1:])))"
Image = tuple[Tensor, Tensor, list[SaturatedRegion]]  # map (H, W), regions (H, W), each with its saturation


def measure(quick: bool) -> Iterator[Row]:
    images, size, turns = (6, 128, 1) if quick else (40, 518, 3)
    yield from memory(quick)  # first: a process inherits the peak of its parent
    batches = list(stream(images, size))
    prepared = [one_image(*pair) for maps, masks in batches for pair in zip(maps, masks, strict=True)]
    sides: dict[str, Callable[[], object]] = {
        "the usual pixel metrics": lambda: usual(prepared).compute(),
        "the same with AU-PRO to three further limits": lambda: further_limits(prepared),
        "AUPIMO alone": lambda: alone("aupimo", prepared).compute(),
        "AU-sPRO alone": lambda: alone("spro", prepared).compute(),
    }
    seconds, _ = in_turns(sides, turns)
    for name, taken in seconds.items():
        ratio = min(taken) / min(seconds["the usual pixel metrics"])
        yield Row(f"{images} maps of {size} x {size}: {name}, best turn", f"{1000 * min(taken) / images:.1f} ms a map",
                  f"{ratio:.2f} times the usual")  # fmt: skip
    yield from at_picture_size(prepared, turns)
    yield from image_scores(turns)
    yield from against_anomalib(batches, prepared)


def one_image(one: Tensor, mask: np.ndarray) -> Image:
    regions = torch.from_numpy(label_regions(mask))
    areas = [regions == number for number in range(1, int(regions.max()) + 1)]
    return one, regions, [SaturatedRegion(area, 0.5 * float(area.sum())) for area in areas]


def usual(images: Sequence[Image]) -> PixelMetrics:
    metrics = PixelMetrics()
    for one, regions, _ in images:
        metrics.update(one[None], regions[None])
    return metrics


def further_limits(images: Sequence[Image]) -> None:
    counted = usual(images)
    counted.compute()
    counted.measures(Measures(fpr_limits=(0.01, 0.05, 0.1)))


def alone(name: str, images: Sequence[Image]) -> PixelMeasures:
    counted = PixelMeasures(Measures((name,)), sum(not areas for _, _, areas in images))
    for index, (one, regions, areas) in enumerate(images):
        counted.update(index, one, regions, areas, anomalous=bool(areas), kind="")
    return counted


def at_picture_size(images: Sequence[Image], turns: int) -> Iterator[Row]:
    size = PHOTOGRAPH[::-1]
    large = torch.zeros(1, 1, dtype=torch.int32).expand(size)
    masks = [
        resized(regions.sign().float(), size).round().int() if areas else large for _, regions, areas in images[:8]
    ]

    def count() -> None:
        metrics = PixelMetrics()
        for (one, _, _), regions in zip(images[:8], masks, strict=True):
            metrics.update(resized(one, size)[None], regions[None])
        metrics.compute()

    seconds, _ = in_turns({"own": count}, turns)
    each = 1000 * min(seconds["own"]) / 8
    yield Row(f"--metric_size image: a map brought to {size[1]} x {size[0]} and counted, best turn", f"{each:.0f} ms")


def image_scores(turns: int) -> Iterator[Row]:
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 1000), random.random(1000)
    sides = {"FPR at 95% TPR": lambda: fpr_at_tpr(labels, scores), "ECE": lambda: calibration_error(labels, scores)}
    seconds, _ = in_turns(sides, turns)
    for name, taken in seconds.items():
        yield Row(f"{name} of 1000 scores, best turn", f"{1e6 * min(taken):.0f} microseconds")


def memory(quick: bool) -> Iterator[Row]:
    counts = (2, 4) if quick else (8, 40)
    peaks = {count: float(finish(["-c", PEAK, count])[1]) for count in counts}
    shown = " / ".join(f"{peak / 2**20:.0f}" for peak in peaks.values())
    width, height = PHOTOGRAPH
    what = f"peak memory, all measures: {counts[0]} / {counts[1]} maps of {2 * width} x {2 * height}"
    yield Row(what, f"{shown} MiB", f"{peaks[counts[1]] / peaks[counts[0]]:.3f}", "<= 1.15")


def peak(images: int) -> int:
    """Bytes, in this process."""
    size = tuple(2 * side for side in PHOTOGRAPH[::-1])
    metrics, counted = PixelMetrics(), PixelMeasures(Measures(("aupimo", "spro")), images // 2)
    for index in range(images):
        maps, masks = next(stream(1, 128 + index))
        one = resized(maps[0], size)
        mask = torch.zeros(size, dtype=torch.int32)
        if index % 2:
            mask[:600, :900] = 1
        metrics.update(one[None], mask[None])
        areas = [SaturatedRegion(mask != 0, 1000.0)] if index % 2 else []
        counted.update(index, one, mask, areas, anomalous=bool(index % 2), kind="")
    metrics.compute(), counted.compute()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


def against_anomalib(batches: Sequence[Batch], images: Sequence[Image]) -> Iterator[Row]:
    """The largest difference of an image's AUPIMO."""
    try:
        with contextlib.redirect_stderr(None):
            from anomalib.metrics import AUPIMO
    except ImportError:
        yield Row("anomalib's AUPIMO", "not installed here")
        return
    theirs = AUPIMO(num_thresholds=100_000, return_average=False, fields=["anomaly_map", "gt_mask"])
    for maps, masks in batches:
        theirs.update(SimpleNamespace(anomaly_map=maps, gt_mask=torch.from_numpy(masks).bool()))
    values = theirs.compute()[1].aupimos
    own = alone("aupimo", images).per_image()["aupimo"]
    worst = max(abs(value - float(values[index])) for index, value in own.items())
    yield Row(f"anomalib {installed('anomalib')} AUPIMO: largest difference of an image", f"{worst:.1e}", "", "<= 1e-2")
