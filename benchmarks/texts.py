"""VCP-CLIP's texts of a batch: together and as long as the sentences, against image by image over the whole context.

Random weights of ViT-L-14's text tower (12 blocks, width 768), two states an image. The second side is how the
published program goes about it: all 77 tokens, once per image.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import Row, in_turns, median_ratio
from model import build

ARCHITECTURE = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}


@torch.no_grad()
def measure(quick: bool) -> Iterator[Row]:
    images, turns = (2, 1) if quick else (8, 5)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "text-of-vit-l-14.json"
        config.write_text(json.dumps(ARCHITECTURE))
        detector = build("vcp_clip", model=config.stem, config_path=str(config), features_list=[1]).eval()
    pooled = torch.randn(images, 768)
    sides = {"together": lambda: detector.text_features(pooled), "by image": lambda: one_by_one(detector, pooled)}
    seconds, results = in_turns(sides, turns)
    ours, theirs = seconds["together"], seconds["by image"]
    yield Row(f"texts of {images} images together, ViT-L-14's text tower", f"{statistics.median(ours):.3f} s")
    ratio = f"{median_ratio(theirs, ours):.1f} times that"
    yield Row("image by image over the whole context, as published", f"{statistics.median(theirs):.3f} s", ratio)
    yield Row("largest difference of a feature", f"{(results['together'] - results['by image']).abs().max():.1e}")


def one_by_one(detector, pooled: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, D, 2)"""
    backbone, prompts, features = detector.backbone, detector.text_prompts, []
    for row in pooled:
        context = detector.pre_vcp(row[None], use_global=True)
        texts, ends = [], []
        for before, after in detector.sentences:
            parts = backbone.text.embed(before, start=True)[None], context, backbone.text.embed(after, end=True)[None]
            text = torch.cat(parts, dim=1)
            ends.append(text.shape[1] - 1)
            learned = prompts.prompt_embeddings.shape[1]
            whole = backbone.text.context_length - learned
            texts.append(F.pad(text, (0, 0, 0, whole - text.shape[1])) + backbone.text.positions(whole))
        tokens = backbone.text.run(prompts.insert(torch.cat(texts)), prompts.exchange)
        tokens = prompts.remove(tokens)[torch.arange(2), ends]
        features.append(F.normalize(backbone.text.project(tokens), dim=-1).T)
    return torch.stack(features)
