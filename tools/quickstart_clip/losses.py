"""What the training of the quickstart's CLIP starts from and minimises."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.clip import Backbone
from tools.quickstart_clip.pictures import LEAST, Batch

SCALE = 100.0  # of the cosines, as the methods have it


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
        texts = backbone.text.encode_ids(ids)
    normal, abnormal = F.normalize(texts.float(), dim=-1).chunk(2)
    return torch.stack([normal, abnormal], 1)


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
