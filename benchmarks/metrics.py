"""Pixel metrics: speed against the published formulas and against anomalib, and peak memory.

Smooth maps as a ViT gives them; regions found in the masks included. anomalib takes part where it is installed.
"""

import contextlib
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn.functional import interpolate

from benchmarks.common import PEAK_UNIT, Row, finish, in_turns
from metrics.pixel import PixelMetrics, label_regions

BATCH = 8
Batch = tuple[torch.Tensor, np.ndarray]  # maps (B, S, S) float32, masks (B, S, S) uint8
PEAK = "import sys; from benchmarks.metrics import peak; print(peak(*map(int, sys.argv[1:])))"


def measure(quick: bool) -> Iterator[Row]:
    images, size, turns = (6, 128, 1) if quick else (40, 518, 3)
    yield from memory(images, size)  # first: a process inherits the peak of its parent
    batches = list(stream(images, size))
    theirs = {
        "published formulas (scikit-learn, scikit-image)": published,
        f"anomalib {installed('anomalib')} AUPRO, torchmetrics {installed('torchmetrics')} AUROC and AP": anomalib(),
    }
    yield Row(f"{images} maps of {size} x {size}", defects(batches))
    for name, side in theirs.items():
        if side is None:
            yield Row("anomalib", "not installed here")
            continue
        seconds, rows = in_turns({"theirs": lambda side=side: side(batches), "ours": lambda: ours(batches)}, turns)
        differences = {key: abs(value - rows["ours"][key]) for key, value in rows["theirs"].items()}
        worst = max(differences, key=differences.get)
        ratio = f"{min(seconds['theirs']) / min(seconds['ours']):.0f} times ours"
        each = 1000 * min(seconds["ours"]) / images
        yield Row("ours, best turn", f"{min(seconds['ours']):.3f} s, {each:.1f} ms a map", "", "<= 10 ms a map")
        wanted = ">= 30 times" if side is published else ">= 10 times"
        yield Row(f"{name}, best turn", f"{min(seconds['theirs']):.2f} s", ratio, wanted)
        yield Row("largest difference", f"{differences[worst]:.1e} ({worst})", "", "<= 1e-5")
    yield from on_gpu(batches, turns)


def on_gpu(batches: Sequence[Batch], turns: int) -> Iterator[Row]:
    """Maps and regions that lie on the GPU already, as the scoring pass has them."""
    if not torch.cuda.is_available():
        yield Row("on a GPU", "no GPU here", "", "<= 1 ms a map")
        return
    regions = [torch.from_numpy(np.stack([label_regions(mask) for mask in masks])).cuda() for _, masks in batches]
    moved = [(maps.cuda(), one) for (maps, _), one in zip(batches, regions, strict=True)]

    def count() -> dict[str, float | None]:
        metrics = PixelMetrics()
        for maps, one in moved:
            metrics.update(maps, one)
        return metrics.compute()

    count()  # warm
    seconds, _ = in_turns({"ours": count}, turns)
    images = sum(len(maps) for maps, _ in moved)
    yield Row("on the GPU, best turn", f"{1000 * min(seconds['ours']) / images:.2f} ms a map", "", "<= 1 ms a map")


def installed(package: str) -> str:
    with contextlib.suppress(ImportError):
        return version(package)
    return "(absent)"


def memory(images: int, size: int) -> Iterator[Row]:
    peaks = {count: float(finish(["-c", PEAK, count, size])[1]) for count in (0, images, 10 * images)}
    shown = " / ".join(f"{peak / 2**20:.0f}" for peak in peaks.values())
    ratio = f"{peaks[10 * images] / peaks[images]:.3f} from {images} to {10 * images}"
    yield Row(f"peak memory: imports alone / {images} / {10 * images} maps", f"{shown} MiB", ratio, "0.95 to 1.05")


def peak(images: int, size: int) -> int:
    """Bytes, in this process."""
    ours(stream(images, size))  # nothing keeps a batch
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


# Maps


def stream(images: int, size: int, kind: str = "smooth") -> Iterator[Batch]:
    """Batches of maps as a ViT gives them (37 x 37 patches, upsampled), two of three images with 1 to 5 defects."""
    for start in range(0, images, BATCH):
        pairs = [one_image(index, images, size, kind) for index in range(start, min(start + BATCH, images))]
        yield torch.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def one_image(index: int, images: int, size: int, kind: str) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(index)
    good = index < images // 2 if kind == "normal images first" else index % 3 == 0
    mask = np.zeros((size, size), np.uint8)
    for _ in range(0 if good else random.integers(1, 6)):
        centre, axes = random.integers(0, size, 2), np.exp(random.uniform(math.log(2), math.log(60), 2))
        cv2.ellipse(mask, centre.tolist(), axes.astype(int).tolist(), random.uniform(0, 180), 0, 360, 1, -1)
    smooth = smooth_map(random, mask)
    return KINDS[kind](SimpleNamespace(random=random, mask=torch.from_numpy(mask), smooth=smooth, index=index)), mask


def smooth_map(random: np.random.Generator, mask: np.ndarray) -> torch.Tensor:
    """(S, S) probabilities, higher around most defects."""
    share = interpolate(torch.from_numpy(mask)[None, None].float(), (37, 37), mode="area")  # (1, 1, 37, 37)
    noise = torch.from_numpy(random.standard_normal((1, 1, 37, 37), dtype=np.float32))
    logits = 1.5 * noise + 4 * share - 2 + 0.5 * random.standard_normal()
    return interpolate(logits.sigmoid(), mask.shape, mode="bilinear", align_corners=True)[0, 0]


def normal_noise(image: SimpleNamespace) -> torch.Tensor:
    return torch.from_numpy(image.random.standard_normal(image.smooth.shape, dtype=np.float32))


def uniform_noise(image: SimpleNamespace) -> torch.Tensor:
    return torch.from_numpy(image.random.random(image.smooth.shape, dtype=np.float32))


KINDS: dict[str, Callable[[SimpleNamespace], torch.Tensor]] = {
    "smooth": lambda image: image.smooth,
    "clear defects": lambda image: image.smooth + 0.3 * image.mask,
    "normal images first": lambda image: image.smooth,
    "ever brighter": lambda image: image.smooth + 0.01 * image.index,
    "ever darker": lambda image: image.smooth - 0.01 * image.index,
    "narrow after 10 images": lambda image: image.smooth if image.index < 10 else 0.5 + 1e-3 * image.smooth,
    "uniform noise": lambda image: uniform_noise(image) + 0.3 * image.mask,
    "log-normal": lambda image: (2 * normal_noise(image) + 2 * image.mask).exp(),
    "near constant": lambda image: 2 + 1e-6 * (2 * uniform_noise(image) - 1 + 0.5 * image.mask),
    "heavy ties": lambda image: (100 * image.smooth).round() / 100,
    "half tied": lambda image: image.smooth.clamp(min=0.2),
    "one outlier": lambda image: image.smooth + 1e30 * (image.index == 133) * (image.smooth == image.smooth.max()),
}


def defects(batches: Sequence[Batch]) -> str:
    regions = sum(int(label_regions(mask).max()) for _, masks in batches for mask in masks)
    return f"{regions} regions, {np.mean([masks.mean() for _, masks in batches]):.1%} defect pixels"


# Sides of the comparison: batches -> metrics


def ours(batches: Sequence[Batch]) -> dict[str, float | None]:
    metrics = PixelMetrics()
    for maps, masks in batches:
        metrics.update(maps, np.stack([label_regions(mask) for mask in masks]))
    return metrics.compute()


def published(batches: Sequence[Batch]) -> dict[str, float | None]:
    """The formulas of the published programs: scikit-learn on all pixels, regions searched anew at every threshold."""
    maps = np.concatenate([maps.numpy() for maps, _ in batches])  # (N, S, S)
    masks = np.concatenate([masks for _, masks in batches])
    truth, values = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, values)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmax(2 * precision * recall / (precision + recall))
    return {
        "auroc_px": roc_auc_score(truth, values),
        "ap_px": average_precision_score(truth, values),
        "f1_px": f1,
        "aupro_200": published_aupro(maps, masks),
    }


def published_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    from skimage import measure

    rates, overlaps = [], []
    low, high = float(maps.min()), float(maps.max())
    for step in range(200):
        above = maps > low + step * (high - low) / 200
        shares = []
        for cut, mask in zip(above, masks, strict=True):
            for region in measure.regionprops(measure.label(mask)):
                shares.append(cut[region.coords[:, 0], region.coords[:, 1]].sum() / region.area)
        rates.append((above & (masks == 0)).sum() / (masks == 0).sum())
        overlaps.append(np.mean(shares))
    rates, overlaps = np.array(rates), np.array(overlaps)
    rates, overlaps = rates[rates < 0.3], overlaps[rates < 0.3]
    return auc((rates - rates.min()) / (rates.max() - rates.min()), overlaps)


def anomalib() -> Callable[[Sequence[Batch]], dict[str, float | None]] | None:
    try:
        with contextlib.redirect_stderr(None):
            from anomalib.metrics import AUPRO
            from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
    except ImportError:
        return None

    def side(batches: Sequence[Batch]) -> dict[str, float | None]:
        aupro, auroc, ap = AUPRO(fields=["maps", "masks"]), BinaryAUROC(), BinaryAveragePrecision()
        for maps, masks in batches:
            masks = torch.from_numpy(masks).long()
            aupro.update(SimpleNamespace(maps=maps, masks=masks))
            auroc.update(maps, masks)
            ap.update(maps, masks)
        return {"aupro": aupro.compute().item(), "auroc_px": auroc.compute().item(), "ap_px": ap.compute().item()}

    return side
