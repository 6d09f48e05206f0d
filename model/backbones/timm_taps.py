"""Token streams of timm's image towers: ViTs block by block, anything else by the feature maps that timm gives out."""

import textwrap
from collections.abc import Callable, Collection
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from model.backbones.architectures import silent
from model.backbones.positions import PositionTable
from utils.errors import first_line


def is_plain(model: nn.Module) -> bool:
    """Whether `PlainTaps` knows how a model's tokens are made: a ViT, with a position table or with RoPE, whose
    embedding and blocks are not changed by a class of its own."""
    for known in (VisionTransformer, Eva):
        if isinstance(model, known):
            same = all(
                getattr(type(model), name) is getattr(known, name) for name in ("_pos_embed", "forward_intermediates")
            )
            return same and bool(getattr(model, "dynamic_img_size", False))
    return False


class PlainTaps(nn.Module):
    """Token streams of a ViT of timm on images of any shape that the patches divide.

    Args:
        model: a `VisionTransformer` or `Eva`, see `is_plain`, at the size of its stored position table.
        rule: of the position table, see `positions.resample`; nothing depends on it where there is none.
        joint: what leads from the model's own head into the embedding of a CLIP; None: there is none.
    """

    first = 0
    model: Any  # of timm, whose attributes are checked by `is_plain`

    def __init__(self, model: Any, rule: str, joint: nn.Module | None = None):
        super().__init__()
        self.model, self.joint = model, joint
        self.depth = len(model.blocks)
        self.patch = int(model.feature_info[-1]["reduction"])
        self.norm: nn.Module = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
        self.table: PositionTable | None = None
        if model.pos_embed is not None:
            prefix = 0 if model.no_embed_class else model.num_prefix_tokens
            height, width = model.patch_embed.grid_size
            self.table = PositionTable(model.pos_embed[0], prefix, (height, width), rule)

    @property
    def embed_dim(self) -> int:
        """Width of the tokens."""
        width: int = self.model.embed_dim
        return width

    def compile_blocks(self) -> None:
        for block in self.model.blocks:
            block.compile()

    def width(self, layer: int) -> int:
        return self.embed_dim

    def grid(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch, size[1] // self.patch

    def embed(self, images: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Tokens that enter block 1, (B, prefix + N, W), class token, registers, patches row by row; and what each
        block is called with beside its tokens (RoPE)."""
        model = self.model
        patches = model.patch_embed(images)  # (B, g_h, g_w, W)
        grid = (patches.shape[1], patches.shape[2])
        x = patches.flatten(1, 2)  # (B, N, W)
        table = None if self.table is None else self.table.at(grid).to(x.dtype)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        if table is not None and model.no_embed_class:
            x = x + table
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if table is not None and not model.no_embed_class:
            x = x + table
        return model.norm_pre(x), self._ropes(grid)

    def _ropes(self, grid: tuple[int, int]) -> list[dict[str, Tensor]]:
        rope = getattr(self.model, "rope", None)
        if rope is None:
            return [{}] * self.depth
        found = rope.get_embed(shape=grid)
        mixed = getattr(self.model, "rope_mixed", False)
        return [{"rope": found[index] if mixed else found} for index in range(self.depth)]

    def forward(
        self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `Taps`. Pooled is the embedding of a CLIP; else the class token after the final norm; without one, what
        the model's own head takes."""
        x, beside = self.embed(images)
        outputs = {0: x} if 0 in layers else {}
        last = self.depth if pooled else max(layers, default=0)
        for layer, block in enumerate(self.model.blocks[:last], start=1):
            x = block(x, **beside[layer - 1])
            if layer in layers:
                outputs[layer] = x
        prefix: int = self.model.num_prefix_tokens
        patches = {layer: self.norm(tokens) if normed else tokens for layer, tokens in outputs.items()}
        patches = {layer: tokens[:, prefix:] for layer, tokens in patches.items()}
        return (self._pool(x) if pooled else x.new_empty(x.shape[0], 0)), patches

    def _pool(self, x: Tensor) -> Tensor:
        if self.joint is not None:
            embedding: Tensor = self.joint(self.model.forward_head(self.model.norm(x)))
            return embedding
        if self.model.cls_token is not None:
            return self.norm(x)[:, 0]
        found: Tensor = self.model.forward_head(self.model.norm(x), pre_logits=True)
        return found

    def has_saliency(self) -> bool:
        """Whether `saliency` knows the attention of the blocks."""
        return self.model.num_prefix_tokens > 0 and all(
            type(block) is Block and type(block.attn) is Attention for block in self.model.blocks
        )

    def saliency(self, images: Tensor, index: int) -> Tensor:
        """Attention probabilities of block `index`, from 0: from the register tokens, without registers from the class
        token, to the patches; mean over heads and registers. (B, N)"""
        x, _ = self.embed(images)
        for before in self.model.blocks[:index]:
            x = before(x)
        block = self.model.blocks[index]
        attention = block.attn
        projected = attention.qkv(block.norm1(x))  # (B, prefix + N, 3 W)
        queries, keys, _ = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )  # each (B, heads, prefix + N, W / heads)
        prefix, registers = self.model.num_prefix_tokens, self.model.num_reg_tokens
        rows = slice(prefix - registers, prefix) if registers else slice(0, 1)
        queries, keys = attention.q_norm(queries)[:, :, rows].float(), attention.k_norm(keys).float()
        with torch.autocast(images.device.type, enabled=False):  # logits in half precision would shift the mask
            logits = (queries * attention.scale) @ keys.transpose(-2, -1)  # (B, heads, rows, prefix + N)
        return logits.softmax(-1)[..., prefix:].mean((1, 2))


class StageTaps(nn.Module):
    """Token streams of any other model of timm: the feature maps that it gives out, each on its own grid.

    Layers are numbered so that layer 1 is the first one whose stride is 4 or more: the stages of a CNN are 1 to 4, and
    0 is its stem, which enters stage 1.

    Args:
        model: any model of timm.
        draft: the same on the meta device, which says the shapes.
        fixed: (H, W) of the only images that it takes; None: any.
        joint: as of `PlainTaps`.
    """

    model: Any

    def __init__(self, model: Any, draft: Any, fixed: tuple[int, int] | None, joint: nn.Module | None = None):
        super().__init__()
        # The layout that convolutions are fastest in: 0.7 times the time on a CPU, for an EfficientNet.
        self.model, self.joint = model.to(memory_format=torch.channels_last), joint
        self._draft = (draft,)  # hidden from nn.Module: it must neither move nor be saved
        self.fixed = fixed
        strides = [int(one["reduction"]) for one in model.feature_info]
        self._skipped = sum(stride < 4 for stride in strides)
        self.first = 0 if self._skipped else 1
        self.depth = len(strides) - self._skipped
        self.patch = max(strides)
        self._shapes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        norm = getattr(model, "norm", None)
        norm = getattr(model, "fc_norm", None) if isinstance(norm, nn.Identity) else norm
        self._norm = norm if isinstance(norm, nn.LayerNorm) else None
        self.run: Callable[[Tensor, list[int], bool], tuple[Tensor | None, list[Tensor]]] = self._run

    @property
    def embed_dim(self) -> int:
        """Width of the pooled embedding."""
        return self.width(self.depth)

    def compile_blocks(self) -> None:
        self.run = torch.compile(self._run)

    def _run(self, images: Tensor, indices: list[int], whole: bool) -> tuple[Tensor | None, list[Tensor]]:
        return _maps(self.model, images.contiguous(memory_format=torch.channels_last), indices, whole)

    def shape(self, layer: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """(W, g_h, g_w) of a layer for images of (H, W) pixels. Raises ValueError where it does not take these."""
        if self.fixed not in (None, size):
            raise ValueError(
                f"images of {size[1]} x {size[0]} pixels: this model takes {self.fixed[1]} x {self.fixed[0]} only; "
                "choose another --model"
            )
        if size not in self._shapes:
            every = list(range(self._skipped + self.depth))
            try:
                _, maps = _maps(self._draft[0], torch.empty(1, 3, *size, device="meta"), every)
            except Exception as error:  # whatever stops a model, the user needs to know which images do
                reason = textwrap.shorten(first_line(error), 100) or type(error).__name__
                raise ValueError(
                    f"images of {size[1]} x {size[0]} pixels: timm gives no feature maps of this model ({reason}); "
                    "choose another --model or --image_size"
                ) from None
            self._shapes[size] = [(one.shape[1], one.shape[2], one.shape[3]) for one in maps]
        return self._shapes[size][self._index(layer)]

    def _index(self, layer: int) -> int:
        return layer - 1 + self._skipped

    def width(self, layer: int) -> int:
        channels: int = self.model.feature_info[self._index(layer)]["num_chs"]
        return channels

    def grid(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        _, height, width = self.shape(layer, size)
        return height, width

    def forward(
        self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `Taps`. Pooled is the embedding of a CLIP, else the mean of the last layer's map; only layers of its width
        go through the final norm."""
        asked = sorted({*layers, self.depth} if pooled else set(layers))
        top, found = self.run(images, [self._index(layer) for layer in asked], pooled and self.joint is not None)
        maps = dict(zip(asked, found, strict=True))
        patches = {layer: maps[layer].flatten(2).transpose(1, 2) for layer in layers}  # (B, N, W)
        if normed and self._norm is not None:
            shape = self._norm.normalized_shape
            patches = {layer: self._norm(x) if x.shape[2:] == shape else x for layer, x in patches.items()}
        if not pooled:
            return images.new_empty(images.shape[0], 0), patches
        if self.joint is None:
            return maps[self.depth].mean((2, 3)), patches
        return self.joint(self.model.forward_head(top)), patches


def common_grid(taps: PlainTaps | StageTaps, side: int) -> int | None:
    """Places a side, G, where all layers share one square grid on square images, as those of a ViT do; else None.

    side: of the images, in pixels.
    """
    grids = {taps.grid(layer, (side, side)) for layer in range(taps.first, taps.depth + 1)}
    ((height, width), *others) = grids
    return None if others or height != width else height


def stage_taps(
    name: str, model: Any, draft: Any, image_size: int, own: tuple[int, int], joint: nn.Module | None = None
) -> StageTaps:
    """Taps of what is no plain ViT; where a model takes images of one size, it is brought to that of the images.

    Args:
        name: for messages.
        image_size: side S of the square input, or its shorter side, in pixels.
        own: (H, W) of the images that the model is made for.
        draft, joint: see `StageTaps`.

    Raises:
        ValueError: the model cannot take such images.
    """
    fixed = None
    if model.pretrained_cfg.get("fixed_input_size") and not getattr(model, "dynamic_img_size", False):
        fixed = (image_size, image_size)
        for one in (model, draft) if fixed != own else ():
            if not hasattr(one, "set_input_size"):
                sides = " x ".join(map(str, own[::-1]))
                raise ValueError(f"--image_size {image_size}: {name} takes images of {sides} pixels alone")
            with silent():
                one.set_input_size(img_size=fixed)
    taps = StageTaps(model, draft, fixed, joint)
    taps.grid(taps.depth, (image_size, image_size))  # refuses what the model cannot take
    return taps


def _maps(model: Any, images: Tensor, indices: list[int], whole: bool = False) -> tuple[Tensor | None, list[Tensor]]:
    """What the model's head takes, if the whole is wanted, and feature maps (B, W, g_h, g_w) of timm's indices, in
    order."""
    kwargs = {"indices": indices, "output_fmt": "NCHW"}
    if whole:
        top, maps = model.forward_intermediates(images, stop_early=False, intermediates_only=False, **kwargs)
        return top, maps
    return None, model.forward_intermediates(images, stop_early=True, intermediates_only=True, **kwargs)
