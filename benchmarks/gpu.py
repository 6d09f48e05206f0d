"""The backbone on a GPU: ViT-L-14-336 at 518 in bf16, batch 32, random weights, images already decoded.

Its arithmetic, as torch counts it, over its time, beside the rate that the device reaches on large bf16 matrix
products; and the share of a zero-shot pass of APRIL-GAN outside the backbone.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, Timed, synchronize
from data.references import ZERO_SHOT
from dataset import Sample
from engine.encoding import Timer
from engine.evaluation import score
from metrics.pixel import label_regions
from model import build
from utils.devices import make_accelerator


def measure(quick: bool) -> Iterator[Row]:
    if not torch.cuda.is_available():
        yield Row("no GPU here", "")
        return
    model, size, batch, count, side = ("ViT-B-32", 64, 4, 3, 1024) if quick else ("ViT-L-14-336", 518, 32, 20, 8192)
    accelerator = make_accelerator("auto", "bf16")
    yield from share_of_peak(accelerator, model, size, batch, count, side)


@torch.no_grad()
def share_of_peak(accelerator: Accelerator, model: str, size: int, batch: int, count: int, side: int) -> Iterator[Row]:
    """count: batches; side: of the square matrices."""
    torch.manual_seed(0)
    device = accelerator.device
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    peak = 2 * side**3 / per_call(lambda: square @ square, 30)
    yield Row(f"bf16 matrix product, {side} x {side}", f"{peak / 1e12:.1f} TFLOP/s")
    detector = build("april_gan", model=model, image_size=size).to(device).eval()
    images = on_host(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), device)
    moved = images.to(device)

    def encode() -> Any:
        with accelerator.autocast():
            return detector.encode(moved)

    with FlopCounterMode(display=False) as counter:
        encode()
    seconds = per_call(encode, 10)
    rate = counter.get_total_flops() / seconds
    shown = f"backbone, {model} at {size}, bf16, batch {batch}"
    yield Row(shown, f"{batch / seconds:.1f} images/s, {rate / 1e12:.1f} TFLOP/s", f"{rate / peak:.1%} of that",
              ">= 45%")  # fmt: skip
    yield outside(detector, images, count, accelerator, model)


def outside(detector: Any, images: torch.Tensor, count: int, accelerator: Accelerator, model: str) -> Row:
    size, batch = images.shape[-1], len(images)
    masks = torch.zeros(batch, size, size, dtype=torch.uint8)
    masks[::2, size // 4 : size // 2, size // 4 : size // 2] = 1
    samples = [Sample("", "mask" if row % 2 == 0 else "", "nut", "", int(row % 2 == 0)) for row in range(batch)] * count
    regions = on_host(torch.from_numpy(np.stack([label_regions(mask) for mask in masks])), accelerator.device)
    shared = {"image": images, "regions": regions, "map_size": (size, size), "cls_name": ["nut"] * batch,
              "sizes": [(size, size)] * batch}  # fmt: skip
    batches = [[{**shared, "index": torch.arange(batch) + batch * number}] for number in range(count)]
    detector.encode_names(["nut"])
    shares = []
    for _ in range(4):
        timer = Timer()
        list(score(detector, batches, samples, [ZERO_SHOT], lambda _: [None], accelerator, timer=timer))
        seconds, encoding = timer.seconds()
        shares.append(1 - encoding / seconds)
    return Row(f"april_gan, zero-shot, {model} at {size}, batch {batch}, {batch * count} images",
               "", f"{statistics.median(shares[1:]):.1%} outside", "<= 15%")  # fmt: skip


def on_host(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor where `engine.batches` has what a device copies."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def per_call(function: Callable[[], Any], calls: int) -> float:
    """Median seconds of a call, after one to warm up."""
    timed, seconds = Timed(function), []
    timed()
    synchronize()
    for _ in range(calls):
        timed.seconds = 0.0
        timed()
        seconds.append(timed.seconds)
    return statistics.median(seconds)
