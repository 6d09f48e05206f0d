"""Train the quickstart's CLIP from scratch on generated pictures.

    python -m tools.quickstart_clip.train [--seed 0] [--threads 1] [--save exps/quickstart/quickstart-clip.safetensors]

Draws 19,000 pictures (scenes.py; the same for every seed), takes those fit for a beginner, and trains the
architecture of exps/quickstart/quickstart-clip.json on parts of 64 x 64 pixels, then on whole pictures. Writes the
weights in fp16; 3 GB of memory, on a GPU where one is there. Time, and what came out: exps/quickstart/README.md. Needs
torch 2.9 or newer (Muon).
"""

import argparse
import contextlib
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from tools.quickstart_clip.captions import Captions
from tools.quickstart_clip.losses import SCALE, prepare, total_loss
from tools.quickstart_clip.pictures import PAIRS, PICTURES, Pictures, batches, draw, strengthened
from utils.devices import set_seed
from utils.errors import run_script
from utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"


# --- training -------------------------------------------------------------------------------------------------------


def optimizers(backbone: Backbone, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    clip = backbone.clip
    matrices = [p for tower in (clip.visual.transformer, clip.transformer) for p in tower.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in (*clip.parameters(), *heads.parameters()) if id(p) not in taken and p is not clip.logit_scale]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(
    backbone: Backbone,
    pictures: Pictures,
    phases: Sequence[tuple[int, int, int]],
    seed: int,
    device: str,
) -> None:
    """Phases of (steps, side of the parts in pixels, pairs in a batch)."""
    rng, captions = np.random.default_rng(seed), Captions(backbone.text.tokenizer, random.Random(seed))
    prepare(backbone, pictures.flawless, rng)
    clip = backbone.clip.train().requires_grad_(True)
    heads = nn.ModuleList(nn.Linear(backbone.width(1), 1) for _ in range(backbone.depth - 1)).to(device)
    optims = optimizers(backbone, heads)
    total, done, started, shown = sum(steps for steps, _, _ in phases), 0, time.time(), 0
    rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
    patch = clip.visual.patch_size[0]
    # The fused attention of CPUs is made for long sequences: its way back takes a third of a step on these.
    with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext():
        for steps, side, size in phases:
            source = batches(pictures, side, patch, size, rng)
            for _ in range(steps):
                batch = next(source)
                ids = captions.ids(batch.nouns, batch.kinds).to(device)
                batch = batch._replace(
                    images=batch.images.to(device), masks=batch.masks.to(device), corners=batch.corners.to(device)
                )
                # Full-scale logits of an untrained network are far off, and the first steps would only shrink them.
                scale = SCALE * min(1, 0.2 + 1.6 * done / total)
                batch = strengthened(batch, 1 - 0.5 * done / total, rng)
                loss, parts = total_loss(backbone, heads, batch, ids, scale, rng)
                factor = min(1, (done + 1) / 100) * min(1, (total - done) / (0.7 * total))
                for optim, own in zip(optims, rates, strict=True):
                    for group, rate in zip(optim.param_groups, own, strict=True):
                        group["lr"] = rate * factor
                    optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(clip.parameters(), 5.0)
                for optim in optims:
                    optim.step()
                done += 1
                shown = parts if done == 1 else 0.99 * shown + 0.01 * parts
                if done % 100 == 0:
                    print(f"{done}/{total} {time.time() - started:.0f} s  state order patches middle windows captions: "
                          + " ".join(f"{part:.3f}" for part in shown.tolist()), flush=True)  # fmt: skip
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(SCALE))
    backbone.requires_grad_(False).eval()


def save(backbone: Backbone, path: str | Path) -> None:
    """The weights in fp16, as `Backbone(..., pretrained=path)` takes them."""
    state = {key: value.half().cpu().contiguous() for key, value in backbone.clip.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is drawn from the pictures")
    parser.add_argument("--images", type=int, default=19000, help="pictures")
    parser.add_argument("--steps", type=int, nargs=2, default=(3000, 1200), help="on parts, on whole pictures")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--save", default=str(ARCHITECTURE.with_suffix(".safetensors")), metavar="FILE")
    args = parser.parse_args(argv)
    if min(args.images, *args.steps) < 1 or args.images < 1000:
        raise ValueError("--images and --steps must be positive, and --images at least 1000")
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"torch {torch.__version__} has no Muon; training needs 2.9 or newer")
    torch.set_num_threads(args.threads)
    set_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = Backbone(register_architecture(str(ARCHITECTURE))).to(device)
    size, started = backbone.image_size, time.time()
    pictures = draw(args.images, size, PICTURES)
    print(f"{args.images} pictures after {time.time() - started:.0f} s", flush=True)
    phases = ((args.steps[0], size // 2, PAIRS[0]), (args.steps[1], size, PAIRS[1]))
    train(backbone, pictures, phases, args.seed, device)
    save(backbone, args.save)
    print(f"wrote {args.save} after {time.time() - started:.0f} s")


if __name__ == "__main__":
    run_script(main)
