"""VCP-CLIP's texts of a batch: together and as long as the sentences, against image by image over the whole context.

    python -m benchmarks.prompted_text

Random weights of ViT-L-14's text tower (12 blocks, width 768), 8 images, two states each. The second side is how the
published program goes about it: all 77 tokens, once per image.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import machine
from model import build

IMAGES, REPEATS = 8, 5
ARCHITECTURE = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "text-of-vit-l-14.json"
        config.write_text(json.dumps(ARCHITECTURE))
        detector = build("vcp_clip", model=config.stem, config_path=str(config), features_list=[1]).eval()
    pooled = torch.randn(IMAGES, 768)
    times, results = {"whole context, image by image": [], "together": []}, {}
    with torch.no_grad():
        for _ in range(REPEATS):
            for name, side in zip(times, (one_by_one, lambda d, p: d.text_features(p)), strict=True):
                start = time.perf_counter()
                results[name] = side(detector, pooled)
                times[name].append(time.perf_counter() - start)
    difference = (results["together"] - results["whole context, image by image"]).abs().max()
    theirs, ours = (statistics.median(values) for values in times.values())
    print(f"{machine()}\ntexts of {IMAGES} images, ViT-L-14's text tower, median of {REPEATS}")
    print(f"| whole context, image by image | {theirs:.3f} s |\n| together | {ours:.3f} s |")
    print(f"| ratio | {theirs / ours:.1f} |\n| largest difference | {difference:.1e} |")


def one_by_one(detector, pooled: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, D, 2)"""
    backbone, prompts, features = detector.backbone, detector.text_prompts, []
    for row in pooled:
        context = detector.pre_vcp(row[None], use_global=True)
        texts, ends = [], []
        for before, after in detector.sentences:
            parts = backbone.embed_text(before, start=True)[None], context, backbone.embed_text(after, end=True)[None]
            text = torch.cat(parts, dim=1)
            ends.append(text.shape[1] - 1)
            learned = prompts.prompt_embeddings.shape[1]
            whole = backbone.context_length - learned
            texts.append(F.pad(text, (0, 0, 0, whole - text.shape[1])) + backbone.text_positions(whole))
        tokens = backbone.run_text(prompts.insert(torch.cat(texts)), prompts.exchange)
        tokens = prompts.remove(tokens)[torch.arange(2), ends]
        features.append(F.normalize(backbone.project_text(tokens), dim=-1).T)
    return torch.stack(features)


if __name__ == "__main__":
    main()
