"""Backbones of timm, random weights: images per second, and what we add to timm's own forward."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import Row, in_turns, median_ratio, synchronize
from model.backbones.timm import TimmBackbone
from utils.devices import make_accelerator


def measure(quick: bool) -> Iterator[Row]:
    device = make_accelerator("auto", "fp32").device
    models = ("resnet18",) if quick else ("vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "resnet50")
    for name in models:
        torch.manual_seed(0)
        backbone = TimmBackbone(name, image_size=64 if quick else 448).to(device)
        side = backbone.image_size
        images = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, device=device)
        layers = [backbone.depth]

        @torch.no_grad()
        def plain(backbone: Any = backbone, images: Any = images) -> None:
            backbone.taps.model.forward_features(backbone.normalize(images))
            synchronize()

        def tokens(backbone: Any = backbone, images: Any = images, layers: Any = layers) -> None:
            backbone(images, layers)
            synchronize()

        tokens()  # warm
        seconds, _ = in_turns({"plain": plain, "tokens": tokens}, 2 if quick else 7)
        ratio = f"{median_ratio(seconds['tokens'], seconds['plain']):.2f} times timm's forward"
        yield Row(
            f"{name} at {side}, batch 1", f"{1 / statistics.median(seconds['tokens']):.2f} images per second", ratio
        )
