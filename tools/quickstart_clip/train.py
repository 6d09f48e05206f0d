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
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from prompt_ensemble import APRIL_GAN, WINCLIP
from tools.quickstart_clip import scenes
from utils.devices import set_seed
from utils.errors import run_script
from utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
SCALE = 100.0  # of the cosines, as the methods have it
PICTURES = 2  # seed of the pictures
PAIRS = 24, 8  # in a batch, of parts and of whole pictures
LEAST = 12  # pixels of a defect that make a picture abnormal

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

    def __init__(self, tokenizer, rng: random.Random):
        self._tokenizer, self._dice = tokenizer, rng
        words = (key.removesuffix("</w>") for key in tokenizer.encoder if key.endswith("</w>"))
        self._words = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)

    def _noun(self, nouns: Sequence[str]) -> str:
        kind = self._dice.random()
        if kind < 0.45:
            noun = self._dice.choice(nouns)
        elif kind < 0.6:
            noun = self._dice.choice(scenes.GENERIC)
        else:
            noun = " ".join(self._dice.choices(self._words, k=self._dice.choice((1, 1, 2))))
        return noun.replace(" ", "_") if self._dice.random() < 0.3 else noun

    def ids(self, nouns: Sequence[Sequence[str]], kinds: Sequence[str]) -> Tensor:
        """Token ids of both states, (2 B, length), the normal ones first."""
        normal, abnormal = [], []
        for names, kind in zip(nouns, kinds, strict=True):
            template, noun = self._dice.choice(TEMPLATES), self._noun(names)
            special = self._dice.random() < 0.25
            normal.append(template.format(self._dice.choice(NORMAL).format(noun)))
            abnormal.append(template.format(self._dice.choice(KINDS[kind] if special else ABNORMAL).format(noun)))
        ids = self._tokenizer(normal + abnormal)
        return ids[:, : int(ids.argmax(-1).max()) + 1]


# --- pictures -------------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    flawless: np.ndarray  # (n, S, S, 3) uint8
    images: np.ndarray  # (n, S, S, 3) uint8, the same with a defect
    masks: np.ndarray  # (n, S, S) bool
    nouns: list[Sequence[str]]
    kinds: list[str]
    scenes: list[str]


def _draw(job: tuple[int, int, int]) -> scenes.Picture:
    size, seed, index = job
    return scenes.picture(size, np.random.default_rng((seed, index)))


def draw(count: int, size: int, seed: int) -> Pictures:
    """Of the first `count` pictures of a seed, drawn on all cores, those with a defect that shows: with puzzles among
    them a network of this size learns more slowly."""
    with multiprocessing.get_context("spawn").Pool(initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        drawn = pool.imap(_draw, ((size, seed, index) for index in range(count)), chunksize=64)
        kept = [one for one in drawn if one.defect and one.scene != "circuit" and scenes.telling(one)]
    flawless, images, masks, nouns, kinds, scenes = zip(*kept, strict=True)
    return Pictures(np.stack(flawless), np.stack(images), np.stack(masks), list(nouns), list(kinds), list(scenes))


class Batch(NamedTuple):
    """B pictures, the flawless ones before the same with their defects."""

    images: Tensor  # (2 B, 3, s, s) in 0..1
    masks: Tensor  # (2 B, s, s) float, 1 = defect
    corners: Tensor  # (2 B, 2) row and column of the part's first patch in the full grid
    nouns: list[Sequence[str]]  # B
    kinds: list[str]  # B


def batches(pictures: Pictures, side: int, patch: int, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless random parts of side x side pixels, some reduced or enlarged, turned, mirrored, in new colours."""
    count, full = len(pictures.images), pictures.images.shape[1]
    while True:
        for rows in rng.permutation(count)[: count // size * size].reshape(-1, size):
            images, masks = zip(*(_part(pictures, row, side, rng) for row in rows), strict=True)
            masks = torch.from_numpy(np.stack(masks)).float()
            images = torch.from_numpy(np.stack(images)).permute(1, 0, 4, 2, 3).float() / 255  # (2, B, 3, s, s)
            corners = torch.from_numpy(rng.integers(0, (full - side) // patch + 1, (size, 2)))
            yield Batch(
                _recoloured(images, rng).flatten(0, 1),
                torch.cat([torch.zeros_like(masks), masks]),
                corners.repeat(2, 1),
                [pictures.nouns[row] for row in rows],
                [pictures.kinds[row] for row in rows],
            )


def _part(pictures: Pictures, row: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same part without and with the defect, (2, s, s, 3), and the mask, (s, s); some of the defect is in sight."""
    both, mask = np.stack([pictures.flawless[row], pictures.images[row]]), pictures.masks[row]
    full = len(mask)
    reach = side
    if side < full and pictures.scenes[row] == "object" and rng.random() < 0.6:  # an object shows as a whole
        reach = int(rng.integers(0.7 * full, full + 1))
    elif rng.random() < 0.4:
        reach = int(rng.integers(int(0.7 * side), min(full, 2 * side) + 1))
    spots = np.argwhere(mask)
    spot = spots[rng.integers(len(spots))]
    low, high = np.clip(spot - reach + 4, 0, full - reach), np.clip(spot - 4, 0, full - reach)
    top, left = rng.integers(np.minimum(low, high), np.maximum(low, high) + 1)
    both, mask = both[:, top : top + reach, left : left + reach], mask[top : top + reach, left : left + reach]
    if reach != side:
        how = cv2.INTER_AREA if reach > side else cv2.INTER_LINEAR
        both = np.stack([cv2.resize(one, (side, side), interpolation=how) for one in both])
        mask = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.4
    turns = int(rng.integers(4))
    if rng.random() < 0.5:
        both, mask = both[:, :, ::-1], mask[:, ::-1]
    return np.rot90(both, turns, (1, 2)), np.rot90(mask, turns)


def strengthened(batch: Batch, rate: float, rng: np.random.Generator) -> Batch:
    """At that rate, defects brought to a mean contrast of 0.15 to 0.5 where theirs is less, or also tinted: a network
    that has seen little does not find faint ones, and learns nothing from them."""
    (flawless, images), masks = batch.images.chunk(2), batch.masks.chunk(2)[1][:, None]
    count = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)).to(images.device)

    chosen = (draw(0, 1) < rate).float()
    inside = masks.sum((1, 2, 3), keepdim=True).clamp_min(1)
    change = (images - flawless) * masks
    contrast = change.abs().amax(1, keepdim=True).sum((2, 3), keepdim=True) / inside
    factor = (draw(0.15, 0.5) / contrast.clamp_min(0.01)).clamp(1, 4)
    shade = (images * masks).mean(1, keepdim=True).sum((2, 3), keepdim=True) / inside
    away = torch.where(shade < 0.5, 1.0, -1.0) * draw(0.1, 0.6) * (draw(0, 1) < 0.4)
    wild = draw(-1, 1, 3)
    colour = torch.where(draw(0, 1) < 0.4, wild / wild.abs().amax(1, keepdim=True), torch.ones_like(wild))
    stronger = flawless + factor * change + away * colour * masks
    images = images + chosen * (torch.where(masks > 0, stronger, images).clamp(0, 1) - images)
    return batch._replace(images=torch.cat([flawless, images]))


def _recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(2, B, 3, s, s): both of a pair alike."""
    count = images.shape[1]

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    images = images[:, :, rng.permutation(3)] if rng.random() < 0.5 else images
    grey = (draw(0, 1) < 0.2).float()
    images = images + grey * (images.mean(2, keepdim=True) - images)
    middle = images[0].mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * draw(0.7, 1.3)) * draw(0.8, 1.2) * draw(0.93, 1.07, 3)
    return images.clamp(1e-4, 1) ** draw(0.8, 1.25)


# --- model ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prepare(backbone: Backbone, images: np.ndarray, rng: np.random.Generator) -> None:
    """A start from which a small transformer learns several times faster than from plain noise.

    The patch embedding whitens patches of the pictures (their main components at equal strength, so that texture is
    seen as well as light; Coates & Ng 2012), a quarter of the width takes sines and cosines of the place (Vaswani 2017,
    in two dimensions), and attention looks at alike tokens and takes their mean off (Trockman & Kolter 2023).
    """
    visual = backbone.clip.visual
    width, _, patch, _ = visual.conv1.weight.shape
    seen = width - width // 4
    some = torch.from_numpy(images[rng.integers(0, len(images), 1500)]).permute(0, 3, 1, 2).float() / 255
    some = (some.to(backbone.mean.device) - backbone.mean) / backbone.std
    patches = nn.functional.unfold(some, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (n, 3 patch**2)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    filters = vectors / (values + 0.01 * values.mean()).sqrt()
    visual.conv1.weight.zero_()
    visual.conv1.weight[:seen] = 0.7 * filters.flip(1).T[:seen].unflatten(1, visual.conv1.weight.shape[1:])
    steps = torch.arange(backbone.grid, dtype=torch.float32, device=visual.conv1.weight.device)
    waves = math.pi / 2 ** torch.linspace(0.5, 5, (width - seen) // 4, device=steps.device)
    angles = [place.flatten()[:, None] * waves for place in torch.meshgrid(steps, steps, indexing="xy")]
    visual.positional_embedding.zero_()
    visual.positional_embedding[1:, seen:] = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    for block in visual.transformer.resblocks:
        attention = block.attn
        size = width // attention.num_heads
        for head in range(attention.num_heads):
            rows = slice(head * size, (head + 1) * size)
            left, right = _factors(0.7, 0.7, width, size)
            attention.in_proj_weight[:width][rows] = left.T
            attention.in_proj_weight[width : 2 * width][rows] = right.T
        left, right = _factors(0.4, -0.4, width, width)
        attention.in_proj_weight[2 * width :], attention.out_proj.weight[:] = right.T, left


def _factors(noise: float, identity: float, width: int, rank: int) -> tuple[Tensor, Tensor]:
    """Two (width, rank) whose product is about noise x a random matrix + identity x the unit matrix."""
    wanted = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    left, values, right = torch.linalg.svd(wanted)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, right.T[:, :rank] * root


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
    rng = 1 - (2 * (found * target).sum(1) + 1) / (found.sum(1) + target.sum(1) + 1)
    return entropy + 0.5 * rng[target.amax(1) > 0].mean() if (target > 0).any() else entropy


def window_loss(
    backbone: Backbone, tokens: Tensor, shares: Tensor, direction: Tensor, side: int, scale: float, rng
) -> Tensor:
    """Windows of side x side patches through the encoder on their own, three per image."""
    grid = int(shares.shape[1] ** 0.5)
    steps = torch.arange(side, device=tokens.device)
    corner = torch.from_numpy(rng.integers(0, grid - side + 1, (2, len(tokens), 3, 1))).to(tokens.device)
    members = ((corner[0] + steps)[..., None] * grid + (corner[1] + steps)[:, :, None]).flatten(2)  # (B, 3, side**2)
    row = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    chosen = tokens[:, 1:][row, members].flatten(0, 1)  # (3 B, side**2, W)
    class_token = tokens[:, :1].expand(-1, 3, -1).reshape(-1, 1, tokens.shape[-1])
    pooled = joint(backbone, blocks(backbone, torch.cat([class_token, chosen], 1))[-1][:, 0])
    logits = scale * (pooled * direction.repeat_interleave(3, 0)).sum(-1)
    return state_loss(logits, shares[row, members].mean(-1).flatten(), 0.08)


def contrastive_loss(pooled: Tensor, texts: Tensor, abnormal: Tensor) -> Tensor:
    """Images against their own captions among those of the batch, and the opposite states as further negatives."""
    row = torch.arange(len(pooled), device=pooled.device)
    own, opposite = texts[row, abnormal.long()], texts[row, 1 - abnormal.long()]
    logits = 30 * pooled @ torch.cat([own, opposite]).T  # (B, 2 B)
    return F.cross_entropy(logits, row) + F.cross_entropy(logits[:, : len(row)].T, row)


def total_loss(
    backbone: Backbone, heads: nn.ModuleList, batch: Batch, ids: Tensor, scale: float, rng
) -> tuple[Tensor, Tensor]:
    """The loss, and the parts that are shown: state, order, patches, middle blocks, windows, captions.

    Pairs teach several times faster than single pictures: what a scene shows besides its defect cancels out.
    """
    tokens = embed_part(backbone, batch)
    layers = blocks(backbone, tokens)
    texts = state_texts(backbone, ids).repeat(2, 1, 1)  # a pair has the captions of one template and noun
    direction = texts[:, 1] - texts[:, 0]  # (2 B, D)
    patch = batch.masks.shape[-1] // int((tokens.shape[1] - 1) ** 0.5)
    shares = F.avg_pool2d(batch.masks[:, None], patch).flatten(1)  # (2 B, n)
    share = batch.masks.mean((1, 2))
    last = joint(backbone, layers[-1])
    logits = scale * torch.einsum("bnd,bd->bn", last, direction)
    state = state_loss(logits[:, 0], share, LEAST / batch.masks[0].numel())
    flawless, defective = logits[:, 0].chunk(2)
    order = F.softplus(flawless - defective).mean()
    patches = map_loss(logits[:, 1:], shares)
    middle = sum(map_loss(head(x[:, 1:])[..., 0], shares) for head, x in zip(heads, layers[:-1], strict=True))
    some = torch.arange(len(tokens), device=tokens.device)[:: 8 + 1]  # odd, so that both halves have their share
    windows = sum(
        window_loss(backbone, tokens[some], shares[some], direction[some], side, scale, rng) for side in (2, 3)
    )
    captions = contrastive_loss(last[:, 0], texts, share > 0)
    parts = torch.stack([state, order, patches, middle, windows, captions])
    return (parts * parts.new_tensor((1.0, 1.0, 1.0, 0.3, 0.2, 0.05))).sum(), parts.detach()


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
