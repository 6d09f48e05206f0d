"""What the training of the quickstart's CLIP minimises, on the features of its frozen part."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters import Adapters
from model.backbones.clip import Backbone

SCALE = 100.0  # of the cosines, as the methods have it
_LEAST = 4e-4  # share of a picture that a defect takes which counts
# state, order, dense embedding, adapters of the two layers, captions
WEIGHTS = (1.0, 1.0, 0.7, 1.0, 0.7, 0.05)
PARTS = ("state", "order", "dense", "stride 16", "stride 32", "captions")


class Batch(NamedTuple):
    """B pairs, the flawless pictures before the same with their defects."""

    features: Tensor  # (2 B, 112, g, g), of stride 16
    masks: Tensor  # (2 B, m, m), share of each place that is defect
    ids: Tensor  # (2 B, length), captions of the normal state before those of the abnormal one


class Embedded(NamedTuple):
    """What the trained part makes of features, in the joint embedding, of unit length."""

    pooled: Tensor  # (n, D)
    maps: list[Tensor]  # of the last layer through the image's own projection, and of each adapter: (n, N, D)


def late_parts(backbone: Backbone) -> list[torch.nn.Module]:
    """The modules of the trunk that follow stride 16."""
    trunk = backbone.clip.visual.trunk
    return [*trunk.blocks[5:], trunk.conv_head, trunk.bn2]


def embed(backbone: Backbone, adapters: Adapters, features: Tensor) -> Embedded:
    """features: (n, 112, g, g), of stride 16."""
    visual = backbone.clip.visual
    *blocks, conv, norm = late_parts(backbone)
    last = features.contiguous(memory_format=torch.channels_last)
    for block in blocks:
        last = block(last)  # (n, 320, g / 2, g / 2)
    top = norm(conv(last))  # (n, 1280, g / 2, g / 2)
    pooled = visual.head(visual.trunk.forward_head(top))
    adapted = adapters([x.flatten(2).mT for x in (features, last)])
    return Embedded(
        F.normalize(pooled, dim=-1), [F.normalize(x, dim=-1) for x in (visual.head(top.flatten(2).mT), *adapted)]
    )


def total_loss(backbone: Backbone, adapters: Adapters, batch: Batch, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; its parts, as PARTS has them; and the logit of "abnormal" of each picture, (2 B,).

    Pairs teach several times faster than single pictures: what a scene shows besides its defect cancels out.
    """
    found = embed(backbone, adapters, batch.features)
    texts = state_texts(backbone, batch.ids).repeat(2, 1, 1)  # a pair has the captions of one template and noun
    direction = texts[:, 1] - texts[:, 0]  # (2 B, D)
    share = batch.masks.mean((1, 2))
    logits = scale * (found.pooled * direction).sum(-1)
    flawless, defective = logits.chunk(2)
    parts = [state_loss(logits, share), F.softplus(flawless - defective).mean()]
    for tokens in found.maps:
        grid = int(tokens.shape[1] ** 0.5)
        shares = F.adaptive_avg_pool2d(batch.masks[:, None], grid).flatten(1)
        parts.append(map_loss(scale * torch.einsum("bnd,bd->bn", tokens, direction), shares))
    parts.append(contrastive_loss(found.pooled, texts, share > 0))
    stacked = torch.stack(parts)
    return (stacked * stacked.new_tensor(WEIGHTS)).sum(), stacked.detach(), logits.detach()


def state_texts(backbone: Backbone, ids: Tensor) -> Tensor:
    """(2 B, length) -> (B, 2, D), unit length."""
    normal, abnormal = F.normalize(backbone.text.encode_ids(ids).float(), dim=-1).chunk(2)
    return torch.stack([normal, abnormal], 1)


def state_loss(logits: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of "abnormal" where a defect is large enough to see; a smaller one does not count."""
    target, counts = (share >= _LEAST).float(), ((share == 0) | (share >= _LEAST)).float()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * counts).sum() / counts.sum().clamp_min(1)


def map_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy + dice per place, (B, n); a fifth of a place makes it a defect."""
    target = (shares / 0.2).clamp_max(1)
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    found = torch.sigmoid(logits)
    dice = 1 - (2 * (found * target).sum(1) + 1) / (found.sum(1) + target.sum(1) + 1)
    return entropy + 0.5 * dice[target.amax(1) > 0].mean() if (target > 0).any() else entropy


def contrastive_loss(pooled: Tensor, texts: Tensor, abnormal: Tensor) -> Tensor:
    """Images against their own captions among those of the batch, and the opposite states as further negatives."""
    row = torch.arange(len(pooled), device=pooled.device)
    own, opposite = texts[row, abnormal.long()], texts[row, 1 - abnormal.long()]
    logits = 30 * pooled @ torch.cat([own, opposite]).T  # (B, 2 B)
    return F.cross_entropy(logits, row) + F.cross_entropy(logits[:, : len(row)].T, row)


def shown(parts: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(PARTS, parts, strict=True))
