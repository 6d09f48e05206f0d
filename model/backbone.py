"""The frozen CLIP: the only file that imports open_clip or touches its insides.

A `Backbone` turns images into `Tokens` and sentences into embeddings. Layers count from 1: the blocks of a ViT, or the
four stages of a ResNet.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import math
import pickle
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from model import room, torchscript
from model.interface import DualTokens, Tokens

_LOG = logging.getLogger("vand")
_SENTENCES_AT_ONCE = 256


# images (B, 3, S, S), what their features depend on besides, names of the features, what computes them (see
# `Backbone.features`) -> name -> (B, ...)
Cache = Callable[
    [Tensor, Mapping[str, str], Sequence[str], Callable[[Tensor], Mapping[str, Tensor]]], Mapping[str, Tensor]
]


class Backbone(nn.Module):
    """A CLIP of open_clip, frozen and in eval mode, built at the wanted image size.

    Args:
        model: an architecture of open_clip, or one registered by `register_architecture`.
        pretrained: a tag of open_clip ("openai", "laion400m_e31", ...: downloaded and cached by open_clip), or a file
            (.pt, .pth, .bin, .safetensors); None leaves random weights.
        image_size: side S of the square input in pixels; None takes the architecture's own.
        quick_gelu: "auto" takes what the architecture says, as the published programs do; "on" and "off" force it.
        half_weights: round the weights to half precision, as a program does that keeps them so; they are used in
            single precision all the same.

    Raises:
        ValueError: unknown or unsupported architecture, unknown tag, an image size that the patches do not divide or
            that memory cannot hold, weights that do not fit; one line that says what to do.
        OSError: weights that can not be read or downloaded.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        image_size: int | None = None,
        quick_gelu: str = "auto",
        half_weights: bool = False,
    ):
        super().__init__()
        config = architecture(model)
        self.name = model
        self.pretrained = pretrained
        self.quick_gelu = {"on": True, "off": False, "auto": bool(config.get("quick_gelu", False))}[quick_gelu]
        self.image_size = image_size or config["vision_cfg"].get("image_size", 224)
        self.embed_dim: int = config["embed_dim"]
        source = _Weights.find(model, pretrained)
        source.warn_of_activation(self.quick_gelu)
        is_vit = isinstance(config["vision_cfg"].get("layers", 12), int)
        patch = (config["vision_cfg"].get("patch_size") or 16) if is_vit else 32
        _check_image_size(self.image_size, patch, model)
        self._patch = patch
        width = config["vision_cfg"].get("width", 768 if is_vit else 64)
        self._least_bytes = _least_bytes(self.image_size, patch, width if is_vit else 0)
        self.check_room(1, "cpu", f"--image_size {self.image_size}", "take a smaller one")
        # The attention pool of a ResNet is built at its own size and resampled after loading (see _ResNetTaps).
        self.clip = _create(model, config, self.quick_gelu, self.image_size if is_vit else None)
        source.load_into(self.clip, half_weights)
        self.taps = _ViTTaps(self.clip.visual) if is_vit else _ResNetTaps(self.clip.visual, self.image_size)
        self.tokenizer = _tokenizer(model)
        self.register_buffer("mean", torch.tensor(source.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(source.std).view(3, 1, 1), persistent=False)
        self.fingerprint = _fingerprint(self.clip)
        self._compiled = False
        self.cache: Cache | None = None  # asked for the features of images before they are computed
        self.requires_grad_(False).eval()

    def check_room(self, images: int, device: torch.device | str, what: str, advice: str) -> None:
        """Raises ValueError where so many images at a time cannot fit into a device's memory; see `room.check`."""
        room.check(images * self._least_bytes, device, what, advice)

    def token_count(self, layer: int) -> int:
        """Patch tokens of a layer, N."""
        side = self.image_size // self._patch if self.grid else self.image_size // (2 << layer)
        return side**2

    @property
    def depth(self) -> int:
        """Number of layers that can be tapped."""
        return self.taps.depth

    @property
    def grid(self) -> int | None:
        """Patches a side, G, of a ViT; None for a ResNet, whose stages have grids of their own."""
        return self.taps.visual.grid_size[0] if isinstance(self.taps, _ViTTaps) else None

    def width(self, layer: int) -> int:
        """Width W of a layer's tokens."""
        return self.taps.width(layer)

    def quarter_layers(self) -> list[int]:
        """Four evenly spaced layers, the last included: 6 12 18 24 of 24, 3 6 9 12 of 12."""
        return sorted({max(1, round(self.depth * quarter / 4)) for quarter in (1, 2, 3, 4)})

    def check_layers(self, flag: str, layers: Sequence[int]) -> None:
        """Raises ValueError where a layer does not exist or is listed twice."""
        wrong = [layer for layer in layers if not 1 <= layer <= self.depth]
        if wrong:
            raise ValueError(
                f"{flag} {' '.join(map(str, layers))}: layer {wrong[0]} does not exist, {self.name} has layers "
                f"1 to {self.depth}"
            )
        if len(set(layers)) != len(layers) or not layers:
            raise ValueError(f"{flag} {' '.join(map(str, layers))}: list one or more layers, each once")

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen: stays in eval mode whatever the detector around it does."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> float32, scaled to [0, 1], less the weights' own mean, over their std."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: Tensor, layers: Collection[int]) -> Tokens:
        """Tokens of the asked layers. images: (B, 3, S, S) uint8 RGB."""

        def encode(some: Tensor) -> dict[str, Tensor]:
            pooled, patches = self.taps(self.normalize(some), layers)
            return {"pooled": pooled, **_named("patches", patches)}

        found = self.features(images, ["pooled", *(f"patches {layer}" for layer in layers)], encode)
        patches = {layer: found[f"patches {layer}"] for layer in layers}
        return Tokens(found["pooled"], patches, _grids(patches))

    def features(
        self, images: Tensor, names: Sequence[str], encode: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Features of images, each (B, ...), from `cache` where it holds them.

        Args:
            images: (B, 3, S, S) uint8 RGB.
            names: of the features; one name means the same whatever else is asked for.
            encode: computes them: some images (b, 3, S, S) -> name -> (b, ...).
        """
        if self.cache is None:
            return encode(images)
        return self.cache(images, self._identity(images.device), names, encode)

    def _identity(self, device: torch.device) -> dict[str, str]:
        """What the features of an image depend on beside its pixels: equal values, equal features."""
        kind = device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.mean.dtype
        unit = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
        return {
            "weights": self._vision_digest,
            "precision": f"{precision}, {torch.get_float32_matmul_precision()}",
            "device": f"{kind} {unit}",
            "compiled": str(self._compiled),
            "versions": f"torch {torch.__version__}, open_clip {open_clip.__version__}",
        }

    @functools.cached_property
    def _vision_digest(self) -> str:
        """Identity of everything that makes tokens of images: every weight, the architecture, the normalisation."""
        settings = [architecture(self.name)["vision_cfg"], self.quick_gelu, self.image_size]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for key, value in sorted({**self.clip.visual.state_dict(), "mean": self.mean, "std": self.std}.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block, of a ViT: (B, 1 + N, W), class token in front, positions added, before ln_pre.

        images: (B, 3, S, S) uint8 RGB.
        """
        return self.taps.embed(self.normalize(images))

    @torch.no_grad()
    def encode(self, tokens: Tensor, layers: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """All blocks of a ViT, on tokens as `embed` gives them or any choice of them with the class token in front.

        Returns:
            The pooled embedding (B, D), not normalised, and the asked layers' raw output, each (B, 1 + n, W).
        """
        return self.taps.encode(tokens, layers)

    @torch.no_grad()
    def pool(self, tokens: Tensor) -> Tensor:
        """The pooled embedding alone of what `encode` takes, (B, D), not normalised; cheaper where only that counts."""
        return self.taps.pool(tokens)

    def compile_encoder(self) -> None:
        """Compile the image tower with torch.compile, when it first runs: block by block, since alike blocks share what
        was compiled, and the loops around them stay as they are."""
        self.taps.compile_blocks()
        self._compiled = True

    def check_value_path(self, method: str) -> None:
        """Raises ValueError where `dual_path` cannot run: it needs the plain attention blocks of a CLIP ViT."""
        if self.grid is None:
            raise ValueError(f"{method} needs a ViT: {self.name} is a ResNet, which has no attention in its stages")
        visual = self.taps.visual
        plain = all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
        if not plain or visual.attn_pool is not None or visual.final_ln_after_pool:
            raise ValueError(f"{method} needs a ViT of plain blocks with a class token; {self.name} is of another kind")

    @torch.no_grad()
    def dual_path(self, images: Tensor, layers: Collection[int]) -> DualTokens:
        """The ordinary path and the value-to-value path of CLIP-AD in one pass, of a ViT.

        images: (B, 3, S, S) uint8 RGB.
        """

        def encode(some: Tensor) -> dict[str, Tensor]:
            values, patches = self.taps.dual_path(self.embed(some), layers)
            return {**_named("second path", values), **_named("first path", patches)}

        names = [f"{path} {layer}" for path in ("second path", "first path") for layer in layers]
        found = self.features(images, names, encode)
        values, patches = (
            {layer: found[f"{path} {layer}"] for layer in layers} for path in ("second path", "first path")
        )
        return DualTokens(values, patches, _grids(patches))

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings of sentences, (n, D), not normalised."""
        ids = self.tokenizer(list(sentences)).to(self.mean.device)
        return torch.cat([self._encode_ids(part) for part in ids.split(_SENTENCES_AT_ONCE)]).float()

    def _encode_ids(self, ids: Tensor) -> Tensor:
        """open_clip's `encode_text` without the padding: under the causal mask nothing sees what follows the end token,
        so the tokens behind the longest sentence need not be computed."""
        clip = self.clip
        if not self._causal:
            return clip.encode_text(ids)
        end = ids.argmax(-1)  # (n,), the end token has the largest id
        length = int(end.max()) + 1
        x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]  # (n, length, width)
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        return self.project_text(x[torch.arange(len(x), device=x.device), end])

    @property
    def _causal(self) -> bool:
        """Whether the text tower is CLIP's own, which looks back only and pools the end token."""
        clip = self.clip
        return isinstance(clip, open_clip.CLIP) and clip.attn_mask is not None and clip.text_pool_type == "argmax"

    # --- texts with learned tokens ---

    def check_text_tokens(self, method: str) -> None:
        """Raises ValueError where learned tokens cannot be put into the text tower: it must be CLIP's own."""
        if not self._causal or not isinstance(self.tokenizer, open_clip.tokenizer.SimpleTokenizer):
            raise ValueError(f"{method} puts learned tokens into CLIP's own text tower; {self.name} has another one")

    @property
    def text_width(self) -> int:
        return self.clip.ln_final.weight.shape[0]

    @property
    def text_depth(self) -> int:
        return len(self.clip.transformer.resblocks)

    @property
    def context_length(self) -> int:
        """Tokens that the text tower has positions for."""
        return len(self.clip.positional_embedding)

    def embed_text(self, text: str, *, start: bool = False, end: bool = False) -> Tensor:
        """Embeddings of the tokens of a piece of text, (n, text width), without positions.

        Args:
            start, end: with the token that begins, that ends a text.
        """
        tokenizer = self.tokenizer
        ids = [tokenizer.sot_token_id] * start + tokenizer.encode(text) + [tokenizer.eot_token_id] * end
        return self.clip.token_embedding(torch.tensor(ids, dtype=torch.long, device=self.mean.device))

    def text_positions(self, length: int) -> Tensor:
        """Position embeddings of the first tokens, (length, text width)."""
        return self.clip.positional_embedding[:length]

    def run_text(self, tokens: Tensor, before_block: Callable[[int, Tensor], Tensor]) -> Tensor:
        """All blocks of the text tower under its causal mask: (B, n, text width) -> the same. Gradients flow through.

        Args:
            tokens: with positions; n at most the context length.
            before_block: (number of the block from 0, its input) -> what it is to have instead.
        """
        mask = self.clip.attn_mask[: tokens.shape[1], : tokens.shape[1]]
        for index, block in enumerate(self.clip.transformer.resblocks):
            tokens = block(before_block(index, tokens), attn_mask=mask)
        return tokens

    def project_text(self, tokens: Tensor) -> Tensor:
        """What `run_text` made of the end tokens, (B, text width) -> embeddings (B, D), not normalised."""
        tokens = self.clip.ln_final(tokens)
        return tokens if self.clip.text_projection is None else _project(tokens, self.clip.text_projection)


def _named(field: str, of_layers: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {f"{field} {layer}": tokens for layer, tokens in of_layers.items()}


def _grids(patches: Mapping[int, Tensor]) -> dict[int, tuple[int, int]]:
    """Images are square, and so are their grids."""
    return {layer: (math.isqrt(tokens.shape[1]),) * 2 for layer, tokens in patches.items()}


def _project(x: Tensor, projection: nn.Linear | Tensor) -> Tensor:
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


class _ViTTaps(nn.Module):
    """Token streams of a vision transformer."""

    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        self.dual_attention = _dual_attention

    def compile_blocks(self) -> None:
        for block in self.visual.transformer.resblocks:
            block.compile()
            block.mlp.compile()  # which the path of CLIP-AD calls by itself
        self.dual_attention = torch.compile(_dual_attention)

    def width(self, layer: int) -> int:
        return self.visual.transformer.width

    def embed(self, images: Tensor) -> Tensor:
        """Patch convolution, class token in front, position embedding added; before ln_pre. (B, 1 + N, W)"""
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, W)
        return torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)

    def encode(self, tokens: Tensor, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """All blocks. Returns the pooled embedding (B, D), not normalised, and the asked blocks' raw output, each
        (B, 1 + N, W) with the class token at index 0."""
        visual, outputs = self.visual, {}
        x = visual.ln_pre(tokens)
        for layer, block in enumerate(visual.transformer.resblocks, start=1):
            x = block(x)
            if layer in layers:
                outputs[layer] = x
        pooled, _ = visual._pool(x)
        return (pooled if visual.proj is None else pooled @ visual.proj), outputs

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
        x = visual.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))[:, 0]
        return x if visual.proj is None else x @ visual.proj

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
            both = visual.ln_post(both)
            values[layer] = both if visual.proj is None else both @ visual.proj
        return values, {layer: ordinary[layer][:, 1:] for layer in layers}

    def forward(self, images: Tensor, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Pooled embedding (B, D), and patch tokens per layer, (B, N, W)."""
        pooled, outputs = self.encode(self.embed(images), layers)
        return pooled, {layer: x[:, 1:] for layer, x in outputs.items()}


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
        return block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))

    return add(queries, keys), add(values, values)


class _ResNetTaps(nn.Module):
    """Token streams of a ResNet: the outputs of its four stages, each on its own grid."""

    depth = 4

    def __init__(self, visual: ModifiedResNet, image_size: int):
        super().__init__()
        self.visual = visual
        pool = visual.attnpool
        pool.positional_embedding = nn.Parameter(_resample_positions(pool.positional_embedding, image_size // 32))
        visual.image_size = image_size

    def compile_blocks(self) -> None:
        self.stages = torch.compile(self.stages)

    def width(self, layer: int) -> int:
        return self.visual.layer1[-1].conv3.out_channels * 2 ** (layer - 1)

    def forward(self, images: Tensor, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """As `_ViTTaps.forward`."""
        outputs = self.stages(images)
        patches = {
            layer: x.flatten(2).transpose(1, 2)  # (B, N, W)
            for layer, x in enumerate(outputs, start=1)
            if layer in layers
        }
        return self.visual.attnpool(outputs[-1]), patches

    def stages(self, images: Tensor) -> list[Tensor]:
        """The outputs of all stages, each (B, W, G, G)."""
        visual, outputs = self.visual, [self.visual.stem(images)]
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


def _resample_positions(table: Tensor, grid: int) -> Tensor:
    """Position table (1 + g * g, W) -> (1 + grid * grid, W): bicubic, antialias, the first entry kept."""
    first, rest = table.detach()[:1].float(), table.detach()[1:].float()
    side = round(len(rest) ** 0.5)
    if side == grid:
        return table.detach()
    rest = rest.T.reshape(1, -1, side, side)  # (1, W, g, g)
    rest = F.interpolate(rest, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, rest.flatten(2)[0].T])


# --- architectures --------------------------------------------------------------------------------------------------


def register_architecture(config_path: str) -> str:
    """Register an architecture JSON under its stem, which is returned.

    A file that does not exist, but whose stem open_clip ships (`./open_clip/model_configs/ViT-L-14-336.json` in
    published commands), means that architecture.

    Raises:
        ValueError: neither, or no architecture in the file.
    """
    path = Path(config_path)
    if not path.is_file():
        if path.stem in open_clip.list_models():
            return path.stem
        raise ValueError(
            f"--config_path {config_path}: no such file, and open_clip ships no architecture '{path.stem}'"
            f"{_suggest(path.stem)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"--config_path {config_path}: no valid JSON ({error})") from None
    complete = isinstance(config, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    if not complete or path.suffix != ".json":
        raise ValueError(f"--config_path {config_path}: want a .json file with embed_dim, vision_cfg and text_cfg")
    if "trust_remote_code" in json.dumps(config["text_cfg"]):
        raise ValueError(f"--config_path {config_path}: refused, since trust_remote_code would run code from elsewhere")
    open_clip.add_model_config(path)
    return path.stem


def architecture(model: str) -> dict:
    """The architecture's settings. Raises ValueError with the nearest known names where it is unknown."""
    config = open_clip.get_model_config(model.replace("/", "-")) if ":" not in model else None
    if config is None:
        raise ValueError(f"unknown model '{model}'{_suggest(model)}; --config_path FILE.json registers one of your own")
    vision = config["vision_cfg"]
    if not isinstance(vision, dict) or not isinstance(config["text_cfg"], dict):
        raise ValueError(f"model '{model}': vision_cfg and text_cfg must be objects")
    for key, value in (("embed_dim", config["embed_dim"]), ("image_size", vision.get("image_size", 224)),
                       ("patch_size", vision.get("patch_size") or 16), ("width", vision.get("width", 64))):  # fmt: skip
        if type(value) is not int or value < 1:
            raise ValueError(f"model '{model}': {key} must be a positive whole number, not {value!r}")
    if "timm_model_name" in vision:
        raise ValueError(
            f"model '{model}': its image tower comes from timm; only open_clip's own ViTs and ResNets give layers"
        )
    return config


def _suggest(model: str) -> str:
    near = difflib.get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else " (open_clip.list_models() lists the known ones)"


def _check_image_size(size: int, patch: int, model: str) -> None:
    if size < patch or size % patch:
        below = max(size // patch, 1) * patch
        raise ValueError(
            f"--image_size {size}: the patches of {model} are {patch} pixels wide; take {below} or {below + patch}"
        )


def _least_bytes(size: int, patch: int, width: int) -> int:
    """What one image takes at least: its pixels, and in a block of a ViT a token, what the block makes of it, and its
    four times wider hidden layer; all in single precision."""
    return 4 * (3 * size**2 + 6 * width * (size // patch) ** 2)


def _create(model: str, config: dict, quick_gelu: bool, image_size: int | None) -> nn.Module:
    try:
        with silent():
            clip = open_clip.create_model(
                model, load_weights=False, pretrained_text=False, force_image_size=image_size, quick_gelu=quick_gelu
            )
    except Exception as error:  # whatever an architecture's numbers break, the user needs its name
        raise ValueError(f"model '{model}' cannot be built by open_clip: {_first_line(error)}") from None
    if not isinstance(clip.visual, VisionTransformer | ModifiedResNet):
        raise ValueError(f"model '{model}': only open_clip's own ViTs and ResNets give layers")
    return clip


def _tokenizer(model: str):
    try:
        with silent():
            return open_clip.get_tokenizer(model)
    except (ImportError, OSError) as error:
        raise ValueError(f"model '{model}': its tokenizer is not to be had here: {_first_line(error)}") from None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Libraries report through the root logger and warnings; what matters of that we say ourselves, once."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- weights --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """Where weights come from, and what they were trained with."""

    label: str
    path: Path | None
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    quick_gelu: bool | None = None  # what the tag was trained with; None where nobody says

    @classmethod
    def find(cls, model: str, pretrained: str | None) -> "_Weights":
        if pretrained is None:
            return cls("random weights", None)
        if Path(pretrained).is_file():
            return cls(pretrained, Path(pretrained))
        tag = get_pretrained_cfg(model.replace("/", "-"), pretrained)
        if not tag:
            known = ", ".join(list_pretrained_tags_by_model(model)) or "none"
            raise ValueError(
                f"--pretrained {pretrained}: neither a file nor a tag of {model} (its tags: {known}); "
                "pass a tag or a weights file (.pt, .safetensors)"
            )
        label = f"{model} {pretrained}"
        return cls(label, _download(tag, label), tag["mean"], tag["std"], tag.get("quick_gelu", False))

    def warn_of_activation(self, quick_gelu: bool) -> None:
        if self.quick_gelu is not None and self.quick_gelu != quick_gelu:
            names = {True: "QuickGELU", False: "exact GELU"}
            _LOG.warning(
                "%s was trained with %s and runs with %s; --quick_gelu %s changes it",
                self.label, names[self.quick_gelu], names[quick_gelu], "on" if self.quick_gelu else "off",
            )  # fmt: skip

    def load_into(self, clip: nn.Module, half_weights: bool) -> None:
        if self.path is None:
            return
        state = _read_state(self.path)
        if half_weights:  # before the position table is resampled
            state = {key: value.half().float() if value.is_floating_point() else value for key, value in state.items()}
        if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        try:
            for key in ("logit_scale", "logit_bias"):  # a scalar in some files, one element in others
                if key in state and getattr(clip, key, None) is not None:
                    state[key] = state[key].reshape(getattr(clip, key).shape)
            with silent():
                resize_pos_embed(state, clip)
                resize_text_pos_embed(state, clip)
            clip.load_state_dict(state)
        except (AssertionError, AttributeError, RuntimeError) as error:
            detail = str(error).strip().splitlines()
            raise ValueError(
                f"weights {self.label} do not fit the architecture: {' '.join(line.strip() for line in detail[:3])}"
            ) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict in float32: half-precision position tables must be widened before they are resampled.

    No code of the file is run, whatever kind it is: safetensors, a `weights_only` pickle, a TorchScript archive.
    """
    try:
        with silent():
            if path.suffix == ".safetensors":
                state = load_file(path)
            elif torchscript.is_archive(path):
                state = torchscript.read(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"--pretrained {path}: refused, since it is broken or holds objects whose loading would run code"
        ) from None
    except Exception as error:  # the readers raise what they like on a broken file; the user needs its name
        raise ValueError(f"--pretrained {path}: no readable weights file ({_first_line(error)})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"--pretrained {path}: holds no state dict of a CLIP")
    for key in ("input_resolution", "context_length", "vocab_size"):  # numbers that OpenAI's archives carry along
        state.pop(key, None)
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"--pretrained {path}: '{key}' holds NaN or infinity; get the file again")
    return {key.removeprefix("module."): value.float() if value.is_floating_point() else value
            for key, value in state.items()}  # fmt: skip


def _download(tag: dict, label: str) -> Path:
    """open_clip downloads and caches; its hub is tried first, the tag's own address second."""
    tried = []
    for from_hub, address in ((True, tag.get("hf_hub")), (False, tag.get("url"))):
        if address:
            try:
                with silent():
                    return Path(download_pretrained(tag, prefer_hf_hub=from_hub))
            except Exception as error:  # noqa: BLE001 - whatever the network stack raises, the user needs one line
                tried.append(f"{address} ({textwrap.shorten(_first_line(error), 90)})")
    raise OSError(
        f"weights {label} could not be downloaded: get the file elsewhere and pass it by --pretrained FILE; tried "
        + ", then ".join(tried)
    )


def _fingerprint(clip: nn.Module) -> str:
    """Identity of the weights in 16 hex digits: a sample of every tensor but the resampled position tables."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(clip.state_dict().items()):
        if not key.endswith("positional_embedding") or key == "positional_embedding":
            flat = value.detach().float().flatten()
            sample = flat[:: max(1, len(flat) // 256)].contiguous()
            digest.update(f"{key} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
