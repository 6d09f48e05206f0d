"""The frozen CLIP: the only file that imports open_clip or touches its insides.

A `Backbone` turns images into `Tokens` and sentences into embeddings. Layers count from 1: the blocks of a ViT, or the
four stages of a ResNet.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from model.backbones.architectures import architecture, first_line, silent
from model.backbones.taps import ResNetTaps, ViTTaps, project
from model.backbones.weights import Weights, fingerprint
from model.interface import DualTokens, Tokens
from utils import memory_check

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
        source = Weights.find(model, pretrained)
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
        self.taps = ViTTaps(self.clip.visual) if is_vit else ResNetTaps(self.clip.visual, self.image_size)
        self.tokenizer = _tokenizer(model)
        self.register_buffer("mean", torch.tensor(source.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(source.std).view(3, 1, 1), persistent=False)
        self.fingerprint = fingerprint(self.clip)
        self._compiled = False
        self.cache: Cache | None = None  # asked for the features of images before they are computed
        self.requires_grad_(False).eval()

    def check_room(self, images: int, device: torch.device | str, what: str, advice: str) -> None:
        """Raises ValueError where so many images at a time cannot fit into a device's memory."""
        memory_check.check(images * self._least_bytes, device, what, advice)

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
        return self.taps.visual.grid_size[0] if isinstance(self.taps, ViTTaps) else None

    def width(self, layer: int) -> int:
        """Width W of a layer's tokens."""
        return self.taps.width(layer)

    def default_layers(self) -> list[int]:
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
        return tokens if self.clip.text_projection is None else project(tokens, self.clip.text_projection)


def _named(field: str, of_layers: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {f"{field} {layer}": tokens for layer, tokens in of_layers.items()}


def _grids(patches: Mapping[int, Tensor]) -> dict[int, tuple[int, int]]:
    """Images are square, and so are their grids."""
    return {layer: (math.isqrt(tokens.shape[1]),) * 2 for layer, tokens in patches.items()}


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
        raise ValueError(f"model '{model}' cannot be built by open_clip: {first_line(error)}") from None
    if not isinstance(clip.visual, VisionTransformer | ModifiedResNet):
        raise ValueError(f"model '{model}': only open_clip's own ViTs and ResNets give layers")
    return clip


def _tokenizer(model: str):
    try:
        with silent():
            return open_clip.get_tokenizer(model)
    except (ImportError, OSError) as error:
        raise ValueError(f"model '{model}': its tokenizer is not to be had here: {first_line(error)}") from None
