"""Train the quickstart's CLIP from scratch on generated pictures.

    python tools/train_quickstart_clip.py [--seed 0] [--threads 1] [--save exps/quickstart/quickstart-clip.safetensors]

Draws 24,000 pictures (generated_images.py; the same for every seed), takes those fit for a beginner, and trains the
architecture of exps/quickstart/quickstart-clip.json on parts of 64 x 64 pixels, then on whole pictures. Writes the
weights in fp16; 3 GB of memory, on a GPU where one is there. Time, and what came out: exps/quickstart/README.md. Needs
torch 2.9 or newer (Muon).
"""

import argparse
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.torch import save_file  # noqa: E402 - the checkout is no installed package

from model.backbone import Backbone, register_architecture  # noqa: E402
from prompt_ensemble import APRIL_GAN, WINCLIP  # noqa: E402
from tools import generated_images  # noqa: E402
from utils import runtime  # noqa: E402

ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
SCALE = 100.0  # of the cosines, as the methods have it
PICTURES = 0  # seed of the pictures
BATCH = 48, 16  # parts, whole pictures

# --- captions -------------------------------------------------------------------------------------------------------

TEMPLATES = tuple(dict.fromkeys((
    *APRIL_GAN.templates, *WINCLIP.templates, "{}", "{}.", "a picture of {}.", "an image of a {}.",
    "a {} seen from above.", "inspection photo of a {}.", "the surface of the {}.", "close-up of {}.", "here is a {}.",
)))  # fmt: skip
NORMAL = (*APRIL_GAN.normal, "intact {}", "undamaged {}", "clean {}", "good {}", "normal {}", "{} in good condition",
           "defect-free {}", "spotless {}", "{} without anomaly", "faultless {}", "regular {}")  # fmt: skip
ABNORMAL = (
    *APRIL_GAN.abnormal, "defective {}", "faulty {}", "anomalous {}", "bad {}", "{} with an anomaly", "abnormal {}",
    "{} in bad condition", "flawed {}", "imperfect {}", "spoiled {}", "{} with a blemish",
)  # fmt: skip
KINDS = {
    "stain": ("stained {}", "{} with a stain", "dirty {}", "{} with oil"),
    "bleached": ("discoloured {}", "faded {}", "{} with a pale patch"),
    "deposit": ("contaminated {}", "{} with a spot", "{} with paint on it"),
    "pit": ("{} with a hole", "pitted {}", "{} with a dent"),
    "scratch": ("scratched {}", "{} with a scratch"),
    "crack": ("cracked {}", "{} with a crack"),
    "thread": ("{} with a hair", "{} with a thread"),
    "smear": ("smeared {}", "{} with a smear", "blurred {}"),
    "rough": ("worn {}", "rough {}", "{} with abrasion"),
    "displaced": ("misplaced {}", "{} with a misplaced piece"),
    "deformed": ("bent {}", "deformed {}", "warped {}"),
    "missing": ("{} with a missing part", "incomplete {}", "chipped {}"),
    "foreign": ("{} with a foreign object", "contaminated {}"),
    "patched": ("{} with a patch", "{} with a foreign material"),
    "band": ("uneven {}", "{} with a streak", "frayed {}"),
    "spots": ("spotted {}", "{} with spots"),
}


class Captions:
    """Captions of both states for a picture: the same template and noun, some real, some any word."""

    def __init__(self, tokenizer, dice: random.Random):
        self._tokenizer, self._dice = tokenizer, dice
        words = (key.removesuffix("</w>") for key in tokenizer.encoder if key.endswith("</w>"))
        self._words = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)

    def _noun(self, nouns: Sequence[str]) -> str:
        kind = self._dice.random()
        if kind < 0.45:
            noun = self._dice.choice(nouns)
        elif kind < 0.6:
            noun = self._dice.choice(generated_images.GENERIC)
        else:
            noun = " ".join(self._dice.choices(self._words, k=self._dice.choice((1, 1, 2))))
        return noun.replace(" ", "_") if self._dice.random() < 0.3 else noun

    def ids(self, nouns: Sequence[Sequence[str]], kinds: Sequence[str | None]) -> Tensor:
        """Token ids of both states, (2 B, length), the normal ones first."""
        normal, abnormal = [], []
        for names, kind in zip(nouns, kinds, strict=True):
            template, noun = self._dice.choice(TEMPLATES), self._noun(names)
            special = kind and self._dice.random() < 0.25
            normal.append(template.format(self._dice.choice(NORMAL).format(noun)))
            abnormal.append(template.format(self._dice.choice(KINDS[kind] if special else ABNORMAL).format(noun)))
        ids = self._tokenizer(normal + abnormal)
        return ids[:, : int(ids.argmax(-1).max()) + 1]


# --- pictures -------------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    images: np.ndarray  # (n, S, S, 3) uint8
    masks: np.ndarray  # (n, S, S) bool
    nouns: list[Sequence[str]]
    kinds: list[str | None]


def _draw(job: tuple[int, int, int]) -> generated_images.Picture:
    size, seed, index = job
    return generated_images.picture(size, np.random.default_rng((seed, index)))


def draw(count: int, size: int, seed: int) -> Pictures:
    """Of the first `count` pictures of a seed, drawn on all cores, those that are fit for a beginner.

    Left out are half of the objects, the scenes of many things, and defects that hardly differ from what is around
    them: with them a network of this size learns many times more slowly.
    """
    rng, kept = np.random.default_rng(seed), []
    with multiprocessing.get_context("spawn").Pool(initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for one in pool.imap(_draw, ((size, seed, index) for index in range(count)), chunksize=64):
            crowded = one.scene in ("clutter", "circuit") or (one.scene == "object" and rng.random() < 0.55)
            if not crowded and generated_images.telling(one):
                kept.append(one)
    images, masks, nouns, kinds, _ = zip(*kept, strict=True)
    return Pictures(np.stack(images), np.stack(masks), list(nouns), list(kinds))


class Batch(NamedTuple):
    images: Tensor  # (B, 3, s, s) in 0..1
    masks: Tensor  # (B, s, s) float, 1 = defect
    corners: Tensor  # (B, 2) row and column of the part's first patch in the full grid
    nouns: list[Sequence[str]]
    kinds: list[str | None]


def batches(pictures: Pictures, side: int, patch: int, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless random parts of side x side pixels, some reduced or enlarged, turned, mirrored, in new colours."""
    count, full = len(pictures.images), pictures.images.shape[1]
    while True:
        for rows in rng.permutation(count)[: count // size * size].reshape(-1, size):
            images, masks = zip(*(_part(pictures, row, side, rng) for row in rows), strict=True)
            corners = torch.from_numpy(rng.integers(0, (full - side) // patch + 1, (size, 2)))
            masks = torch.from_numpy(np.stack(masks))
            shown = masks.flatten(1).any(1).tolist()
            kinds = [pictures.kinds[row] if seen else None for row, seen in zip(rows, shown, strict=True)]
            images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            yield Batch(_recoloured(images, rng), masks.float(), corners, [pictures.nouns[row] for row in rows], kinds)


def _part(pictures: Pictures, row: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    image, mask = pictures.images[row], pictures.masks[row]
    full = len(mask)
    reach = side
    if rng.random() < 0.4:
        reach = int(rng.integers(int(0.7 * side), min(full, 2 * side) + 1))
    low, high = np.zeros(2, int), np.full(2, full - reach)
    if pictures.kinds[row] and rng.random() < 0.8 and reach < full:  # keep some of the defect in sight
        inside = np.argwhere(mask)
        spot = inside[rng.integers(len(inside))]
        low, high = np.clip(spot - reach + 4, 0, full - reach), np.clip(spot - 4, 0, full - reach)
    top, left = rng.integers(np.minimum(low, high), np.maximum(low, high) + 1)
    image, mask = image[top : top + reach, left : left + reach], mask[top : top + reach, left : left + reach]
    if reach != side:
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if reach > side else cv2.INTER_LINEAR)
        mask = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.4
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    if mirrored:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.rot90(image, turns), np.rot90(mask, turns)


def _recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    count = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    images = images[:, rng.permutation(3)] if rng.random() < 0.5 else images
    grey = (draw(0, 1) < 0.2).float()
    images = images + grey * (images.mean(1, keepdim=True) - images)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * draw(0.7, 1.3)) * draw(0.8, 1.2) * draw(0.93, 1.07, 3)
    return images.clamp(1e-4, 1) ** draw(0.8, 1.25)


# --- model ----------------------------------------------------------------------------------------------------------


def embed_part(backbone: Backbone, batch: Batch) -> Tensor:
    """Tokens before the first block, (B, 1 + n, W), with the positions that the part has in the full grid."""
    visual = backbone.clip.visual
    patches = visual.conv1((batch.images - backbone.mean) / backbone.std)  # (B, W, g, g)
    side, full = patches.shape[-1], backbone.grid
    steps = torch.arange(side, device=patches.device)
    rows, columns = batch.corners[:, :1] + steps, batch.corners[:, 1:] + steps  # each (B, g)
    places = (rows[:, :, None] * full + columns[:, None]).flatten(1)  # (B, n)
    positions = visual.positional_embedding
    patches = patches.flatten(2).transpose(1, 2) + positions[1:][places]
    class_token = (visual.class_embedding + positions[0]).expand(len(patches), 1, -1)
    return torch.cat([class_token, patches], dim=1)


def blocks(backbone: Backbone, tokens: Tensor) -> list[Tensor]:
    """The output of every block, each (B, 1 + n, W), in float32."""
    visual, outputs = backbone.clip.visual, []
    with torch.autocast(tokens.device.type, torch.bfloat16):
        x = visual.ln_pre(tokens)
        for block in visual.transformer.resblocks:
            x = block(x)
            outputs.append(x)
    return [x.float() for x in outputs]


def joint(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Tokens of the last block in the joint embedding, unit length."""
    return F.normalize(backbone.clip.visual.ln_post(tokens) @ backbone.clip.visual.proj, dim=-1)


def state_texts(backbone: Backbone, ids: Tensor) -> Tensor:
    """(2 B, length) -> (B, 2, D), unit length."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        texts = backbone._encode_ids(ids)
    normal, abnormal = F.normalize(texts.float(), dim=-1).chunk(2)
    return torch.stack([normal, abnormal], 1)


# --- losses ---------------------------------------------------------------------------------------------------------


def state_loss(logits: Tensor, share: Tensor, least: float) -> Tensor:
    """Cross-entropy of "abnormal" where a defect takes at least that share; less than that does not count."""
    target, counts = (share >= least).float(), ((share == 0) | (share >= least)).float()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * counts).sum() / counts.sum().clamp_min(1)


def map_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy + dice per patch, (B, n); a fifth of a patch makes it a defect."""
    target = (shares / 0.2).clamp_max(1)
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    found = torch.sigmoid(logits)
    dice = 1 - (2 * (found * target).sum(1) + 1) / (found.sum(1) + target.sum(1) + 1)
    return entropy + 0.5 * dice[target.amax(1) > 0].mean() if (target > 0).any() else entropy


def window_loss(backbone: Backbone, tokens: Tensor, shares: Tensor, direction: Tensor, side: int, rng) -> Tensor:
    """Windows of side x side patches through the encoder on their own, three per image."""
    grid = int(shares.shape[1] ** 0.5)
    steps = torch.arange(side, device=tokens.device)
    corner = torch.from_numpy(rng.integers(0, grid - side + 1, (2, len(tokens), 3, 1))).to(tokens.device)
    members = ((corner[0] + steps)[..., None] * grid + (corner[1] + steps)[:, :, None]).flatten(2)  # (B, 3, side**2)
    row = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    chosen = tokens[:, 1:][row, members].flatten(0, 1)  # (3 B, side**2, W)
    class_token = tokens[:, :1].expand(-1, 3, -1).reshape(-1, 1, tokens.shape[-1])
    pooled = joint(backbone, blocks(backbone, torch.cat([class_token, chosen], 1))[-1][:, 0])
    logits = SCALE * (pooled * direction.repeat_interleave(3, 0)).sum(-1)
    return state_loss(logits, shares[row, members].mean(-1).flatten(), 0.08)


def contrastive_loss(pooled: Tensor, texts: Tensor, abnormal: Tensor) -> Tensor:
    """Images against their own captions among those of the batch, and the opposite states as further negatives."""
    row = torch.arange(len(pooled), device=pooled.device)
    own, opposite = texts[row, abnormal.long()], texts[row, 1 - abnormal.long()]
    logits = 30 * pooled @ torch.cat([own, opposite]).T  # (B, 2 B)
    return F.cross_entropy(logits, row) + F.cross_entropy(logits[:, : len(row)].T, row)


def strengthened(batch: Batch, rate: float, rng: np.random.Generator) -> Batch:
    """At that rate, defects that are also brighter, darker or of another colour by up to eight tenths. Without their
    help at the start a transformer that knows nothing of edges takes most of the training to see any defect at all."""
    count = len(batch.images)
    masks = batch.masks[:, None]
    inside = (batch.images.mean(1, keepdim=True) * masks).sum((2, 3)) / masks.sum((2, 3)).clamp_min(1)  # (B, 1)
    away = np.where(inside.cpu().numpy() < 0.5, 1, -1) * np.where(rng.random((count, 1)) < 0.8, 1, -1)
    amount = away * rng.uniform(0.15, 0.8, (count, 1)) * (rng.random((count, 1)) < rate)
    wild = rng.uniform(-1, 1, (count, 3))
    wild = wild / np.abs(wild).max(1, keepdims=True)
    colour = np.where(rng.random((count, 1)) < 0.5, wild, 1.0)
    tint = torch.from_numpy((amount * colour).astype(np.float32)).to(batch.images.device)[..., None, None]
    return batch._replace(images=(batch.images + tint * masks).clamp(0, 1))


def total_loss(backbone: Backbone, heads: nn.ModuleList, batch: Batch, ids: Tensor, rng) -> tuple[Tensor, Tensor]:
    """The loss, and the parts that are shown: state, patches, middle blocks, windows, captions."""
    tokens = embed_part(backbone, batch)
    layers = blocks(backbone, tokens)
    texts = state_texts(backbone, ids)
    direction = texts[:, 1] - texts[:, 0]  # (B, D)
    patch = batch.masks.shape[-1] // int((tokens.shape[1] - 1) ** 0.5)
    shares = F.avg_pool2d(batch.masks[:, None], patch).flatten(1)  # (B, n)
    share = batch.masks.mean((1, 2))
    last = joint(backbone, layers[-1])
    logits = SCALE * torch.einsum("bnd,bd->bn", last, direction)
    state = state_loss(logits[:, 0], share, 12 / batch.masks[0].numel())
    patches = map_loss(logits[:, 1:], shares)
    middle = sum(map_loss(head(x[:, 1:])[..., 0], shares) for head, x in zip(heads, layers[:-1], strict=True))
    some = len(tokens) // 8
    windows = sum(window_loss(backbone, tokens[:some], shares[:some], direction[:some], side, rng) for side in (2, 3))
    captions = contrastive_loss(last[:, 0], texts, share > 0)
    parts = torch.stack([state, patches, middle, windows, captions])
    return (parts * parts.new_tensor((1.0, 1.0, 0.3, 0.2, 0.05))).sum(), parts.detach()


# --- training -------------------------------------------------------------------------------------------------------


def optimizers(backbone: Backbone, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    clip = backbone.clip
    matrices = [p for tower in (clip.visual.transformer, clip.transformer) for p in tower.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in (*clip.parameters(), *heads.parameters()) if id(p) not in taken and p is not clip.logit_scale]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(
    backbone: Backbone,
    pictures: Pictures,
    phases: Sequence[tuple[int, int, int]],
    seed: int,
    device: str,
) -> None:
    """Phases of (steps, side of the parts in pixels, batch size)."""
    rng, captions = np.random.default_rng(seed), Captions(backbone.tokenizer, random.Random(seed))
    clip = backbone.clip.train().requires_grad_(True)
    heads = nn.ModuleList(nn.Linear(backbone.width(1), 1) for _ in range(backbone.depth - 1)).to(device)
    optims = optimizers(backbone, heads)
    total, done, started, shown = sum(steps for steps, _, _ in phases), 0, time.time(), 0
    rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
    patch = clip.visual.patch_size[0]
    for steps, side, size in phases:
        source = batches(pictures, side, patch, size, rng)
        for _ in range(steps):
            batch = next(source)
            ids = captions.ids(batch.nouns, batch.kinds).to(device)
            batch = batch._replace(
                images=batch.images.to(device), masks=batch.masks.to(device), corners=batch.corners.to(device)
            )
            batch = strengthened(batch, max(0.4, 1 - 1.2 * done / total), rng)
            loss, parts = total_loss(backbone, heads, batch, ids, rng)
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
                print(f"{done}/{total} {time.time() - started:.0f} s  state patches middle windows captions: "
                      + " ".join(f"{part:.3f}" for part in shown.tolist()), flush=True)  # fmt: skip
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(SCALE))
    backbone.requires_grad_(False).eval()


def save(backbone: Backbone, path: str | Path) -> None:
    """The weights in fp16, as `Backbone(..., pretrained=path)` takes them."""
    state = {key: value.half().cpu().contiguous() for key, value in backbone.clip.state_dict().items()}
    with runtime.replacing(path) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is drawn from the pictures")
    parser.add_argument("--images", type=int, default=24000, help="pictures")
    parser.add_argument("--steps", type=int, nargs=2, default=(3300, 400), help="on parts, on whole pictures")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--save", default=str(ARCHITECTURE.with_suffix(".safetensors")), metavar="FILE")
    args = parser.parse_args(argv)
    if min(args.images, *args.steps) < 1 or args.images < max(BATCH):
        raise ValueError(f"--images and --steps must be positive, and --images at least {max(BATCH)}")
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"torch {torch.__version__} has no Muon; training needs 2.9 or newer")
    torch.set_num_threads(args.threads)
    runtime.set_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = Backbone(register_architecture(str(ARCHITECTURE))).to(device)
    size, started = backbone.image_size, time.time()
    pictures = draw(args.images, size, PICTURES)
    print(f"{args.images} pictures after {time.time() - started:.0f} s", flush=True)
    phases = ((args.steps[0], size // 2, BATCH[0]), (args.steps[1], size, BATCH[1]))
    train(backbone, pictures, phases, args.seed, device)
    save(backbone, args.save)
    print(f"wrote {args.save} after {time.time() - started:.0f} s")


if __name__ == "__main__":
    runtime.run(main)
