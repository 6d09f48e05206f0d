"""Token streams of image towers: the patch tokens of chosen layers."""

import math
from collections.abc import Callable, Collection
from typing import cast

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from model.backbones.positions import PositionTable


def project(x: Tensor, projection: nn.Linear | Tensor) -> Tensor:
    """(..., width) -> (..., D)"""
    return F.linear(x, projection.weight, projection.bias) if isinstance(projection, nn.Linear) else x @ projection


class ViTTaps(nn.Module):
    """Token streams of a vision transformer, on images of any shape.

    Args:
        visual: with the position table of its own image size, resampled by size with antialias.
        stored: the table as the weights have it, (1 + M * M, W); None: that of `visual`.
        rule: by which other grids are served, see `positions.resample`.
    """

    first = 0

    def __init__(self, visual: VisionTransformer, stored: Tensor | None = None, rule: str = "size_antialias"):
        super().__init__()
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        self.patch: int = visual.patch_size[0]
        own: Tensor = visual.positional_embedding.detach()
        stored = own if stored is None else stored
        side = math.isqrt(len(stored) - 1)
        self.table = PositionTable(stored, 1, (side, side), rule)
        # What open_clip has resampled at loading is served as it is: exactly the numbers of the published programs.
        self._resampled = rule == "size_antialias" or len(stored) == len(own)
        self.dual_attention = _dual_attention

    def compile_blocks(self) -> None:
        for block in self.visual.transformer.resblocks:
            block.compile()
            block.mlp.compile()  # which the second paths of CLIP-AD and AnomalyCLIP call by themselves
        self.dual_attention = torch.compile(_dual_attention)

    def width(self, layer: int) -> int:
        width: int = self.visual.transformer.width
        return width

    def grid(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch, size[1] // self.patch

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + g_h * g_w, W)"""
        own: Tensor = self.visual.positional_embedding
        return own if self._resampled and grid == tuple(self.visual.grid_size) else self.table.at(grid)

    def embed(self, images: Tensor) -> Tensor:
        """Patch convolution, class token in front, position embedding added; before ln_pre. (B, 1 + N, W)"""
        visual = self.visual
        patches = visual.conv1(images)  # (B, W, g_h, g_w)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, W)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, W)
        positions = self._positions(grid).to(patches.dtype)  # (1 + N, W)
        return torch.cat([class_token, patches], dim=1) + positions

    def encode(self, tokens: Tensor, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """All blocks. Returns the pooled embedding (B, D), not normalised, and the asked blocks' raw output, each
        (B, 1 + N, W) with the class token at index 0; layer 0 is what enters the first block."""
        x, outputs = self._run(tokens, layers, self.depth)
        pooled, _ = self.visual._pool(x)
        return (pooled if self.visual.proj is None else pooled @ self.visual.proj), outputs

    def _run(self, tokens: Tensor, layers: Collection[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Blocks up to the last one; its output, and those of the asked layers."""
        x = self.visual.ln_pre(tokens)
        outputs = {0: x} if 0 in layers else {}
        for layer, block in enumerate(self.visual.transformer.resblocks[:last], start=1):
            x = block(x)
            if layer in layers:
                outputs[layer] = x
        return x, outputs

    def pool(self, tokens: Tensor) -> Tensor:
        """As `encode`, the pooled embedding alone. It looks at the class token only, so the last block, which needs the
        keys and values of all tokens, computes nothing else of the others."""
        visual, (*blocks, last) = self.visual, self.visual.transformer.resblocks
        if visual.pool_type != "tok" or visual.attn_pool is not None or type(last) is not ResidualAttentionBlock:
            return self.encode(tokens, ())[0]
        x = visual.ln_pre(tokens)
        for block in blocks:
            x = block(x)
        everything = last.ln_1(x)
        x = x[:, :1] + last.ls_1(last.attention(everything[:, :1], everything, everything))  # (B, 1, W)
        pooled: Tensor = visual.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))[:, 0]
        return pooled if visual.proj is None else project(pooled, visual.proj)

    def dual_path(self, tokens: Tensor, layers: Collection[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Both paths of CLIP-AD (arXiv 2311.00453), as the published program computes them.

        On the ordinary path, x_i is the output of block i and r_i the residual of its attention; v_i is the residual of
        value-to-value attention on the same input. The second path is the sum of v_i over a segment; segments begin at
        the first block and wherever the depth is cut into whole quarters. The program hands out tensors that later
        blocks still add to, and published adapters were trained on what comes of that, so it is the definition here:

            ordinary path of layer i   x_i + r_(i+1); x_i for the last block
            second path of layer i     the sum over the whole segment that holds block i

        Returns:
            Second path per layer, (B, 1 + N, D), and ordinary path without class token, (B, N, W).
        """
        visual, blocks = self.visual, self.visual.transformer.resblocks
        ordinary, segments, segment_of = {}, [], {}
        x = visual.ln_pre(tokens)
        for index, block in enumerate(blocks):
            residual, value_residual = self.dual_attention(block, block.ln_1(x))
            x = x + residual
            if index in layers:  # they count from 1: this is x_i + r_(i+1) of the layer before this block
                ordinary[index] = x
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            if 4 * index % len(blocks) == 0:
                segments.append(value_residual)
            else:
                segments[-1] = segments[-1] + value_residual
            segment_of[index + 1] = len(segments) - 1
        if len(blocks) in layers:
            ordinary[len(blocks)] = x
        values = {}
        for layer in layers:
            both = torch.cat([ordinary[layer][:, :1], segments[segment_of[layer]][:, 1:]], dim=1)  # (B, 1 + N, W)
            values[layer] = self._embedded(visual.ln_post(both))
        return values, {layer: ordinary[layer][:, 1:] for layer in layers}

    def value_path(self, tokens: Tensor, layers: Collection[int], replaced: int) -> tuple[Tensor, dict[int, Tensor]]:
        """AnomalyCLIP's image tower (arXiv 2310.18961, section 3.4, DPAM), as the published program computes it.

        x_i is the output of block i. The second path leaves it before the first replaced block f and adds up what
        value-to-value attention makes of the ordinary path: y_(f-1) = x_(f-1), y_i = y_(i-1) + v_i, where v_i is the
        residual of block i with the values of ln_1(x_(i-1)) in the place of queries and keys. No MLP, no feedback.

        Args:
            replaced: how many of the last blocks have a second path.

        Returns:
            The class token of the last x, projected without ln_post, (B, D); and per layer the patch tokens of y_i,
            or of x_i before block f, through ln_post and the projection, (B, N, D).
        """
        visual, blocks, features = self.visual, self.visual.transformer.resblocks, {}
        x = y = visual.ln_pre(tokens)
        for layer, block in enumerate(blocks, start=1):
            if layer <= len(blocks) - replaced:
                x = y = block(x)
            else:
                residual, value_residual = self.dual_attention(block, block.ln_1(x))
                x, y = x + residual, y + value_residual
                x = x + block.ls_2(block.mlp(block.ln_2(x)))
            if layer in layers:
                features[layer] = self._embedded(visual.ln_post(y[:, 1:]))
        return self._embedded(x[:, 0]), features

    def _embedded(self, tokens: Tensor) -> Tensor:
        """(..., W) -> (..., D), where there is a projection."""
        return tokens if self.visual.proj is None else project(tokens, self.visual.proj)

    def forward(
        self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `frozen.Taps`; the final norm is ln_post."""
        tokens = self.embed(images)
        if pooled:
            embedding, outputs = self.encode(tokens, layers)
        else:
            embedding = tokens.new_empty(tokens.shape[0], 0)
            outputs = self._run(tokens, layers, max(layers, default=0))[1]
        norm = self.visual.ln_post if normed else nn.Identity()
        return embedding, {layer: norm(x)[:, 1:] for layer, x in outputs.items()}


def _dual_attention(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a block's attention adds to its input, x = ln_1(input) being (B, 1 + N, W): as usual, softmax(q k) v, and
    with the values in the place of queries and keys, softmax(v v) v. One projection serves both."""
    attention = block.attn
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # (B, 1 + N, 3 W)
    queries, keys, values = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
    )  # each (B, heads, 1 + N, W / heads)

    def add(queries: Tensor, keys: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        added: Tensor = block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        return added

    return add(queries, keys), add(values, values)


class ResNetTaps(nn.Module):
    """Token streams of a ResNet: the outputs of its four stages, each on its own grid."""

    first, depth = 1, 4

    def __init__(self, visual: ModifiedResNet, image_size: int):
        super().__init__()
        self.visual = visual
        table: Tensor = visual.attnpool.positional_embedding.detach()
        side = math.isqrt(len(table) - 1)
        self.table = PositionTable(table, 1, (side, side), "size_antialias")
        visual.attnpool.positional_embedding = nn.Parameter(self.table.at((image_size // 32, image_size // 32)))
        visual.image_size = image_size
        self.run_stages: Callable[[Tensor], list[Tensor]] = self.stages

    def compile_blocks(self) -> None:
        self.run_stages = torch.compile(self.stages)

    def width(self, layer: int) -> int:
        channels: int = self.visual.layer1[-1].conv3.out_channels
        return channels << (layer - 1)

    def grid(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        height, width = ((side + 1) // 2 >> layer for side in size)  # the stem's convolution rounds up, pools down
        return height, width

    def forward(
        self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `frozen.Taps`; a ResNet has no final norm."""
        outputs = self.run_stages(images)
        patches = {
            layer: x.flatten(2).transpose(1, 2)  # (B, N, W)
            for layer, x in enumerate(outputs, start=1)
            if layer in layers
        }
        return (self._pool(outputs[-1]) if pooled else images.new_empty(images.shape[0], 0)), patches

    def _pool(self, x: Tensor) -> Tensor:
        """(B, W, g_h, g_w) -> (B, D)"""
        pool, grid = self.visual.attnpool, (x.shape[2], x.shape[3])
        if 1 + grid[0] * grid[1] == len(pool.positional_embedding) and grid[0] == grid[1]:
            pooled: Tensor = pool(x)
            return pooled
        table = self.table.at(grid)
        return cast(Tensor, torch.func.functional_call(pool, {"positional_embedding": table}, (x,)))

    def stages(self, images: Tensor) -> list[Tensor]:
        """The outputs of all stages, each (B, W, g_h, g_w)."""
        visual, outputs = self.visual, [self.visual.stem(images)]
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            outputs.append(stage(outputs[-1]))
        return outputs[1:]
