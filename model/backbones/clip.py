"""The frozen CLIP of open_clip: an image tower, and a text tower beside it.

A `Backbone` turns images into `Tokens`; its `text` turns sentences into embeddings. Layers count from 1: the blocks of
a ViT, or the four stages of a ResNet.
"""

import functools
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from model.backbones.architectures import architecture, create
from model.backbones.taps import ResNetTaps, ViTTaps
from model.backbones.text_tower import TextTower
from model.backbones.weights import Weights, fingerprint
from model.interface import Cache, DualTokens, Encoder, Tokens
from utils import memory_check


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
        mean, std: of the channels R, G, B in [0, 1], by which images are normalised; None takes those that the weights
            were trained with, as `Weights.find` knows them.

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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        config = architecture(model)
        vision = config["vision_cfg"]
        self.name = model
        self.pretrained = pretrained
        self.quick_gelu = {"on": True, "off": False, "auto": bool(config.get("quick_gelu", False))}[quick_gelu]
        self.image_size: int = image_size or vision.get("image_size", 224)
        self.embed_dim: int = config["embed_dim"]
        source = Weights.find(model, pretrained, mean, std)
        source.log(model, self.quick_gelu, asked=quick_gelu != "auto")
        is_vit = isinstance(vision.get("layers", 12), int)
        self._patch: int = (vision.get("patch_size") or 16) if is_vit else 32
        _check_image_size(self.image_size, self._patch, model)
        width = vision.get("width", 768) if is_vit else 0
        self._least_bytes = _least_bytes(self.image_size, self._patch, width)
        self.check_room(1, "cpu", f"--image_size {self.image_size}", "take a smaller one")
        # The attention pool of a ResNet is built at its own size and resampled after loading (see ResNetTaps).
        self.clip: open_clip.CLIP | open_clip.CustomTextCLIP = create(
            model, self.quick_gelu, self.image_size if is_vit else None
        )
        source.load_into(self.clip, half_weights)
        visual = self.clip.visual
        self.taps: ViTTaps | ResNetTaps = ViTTaps(visual) if is_vit else ResNetTaps(visual, self.image_size)
        self.text = TextTower(self.clip, model)
        self.normalization = source.normalization
        self.mean: Tensor  # (3, 1, 1), of the weights, in [0, 1]
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(source.normalization.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(source.normalization.std).view(3, 1, 1), persistent=False)
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
        if not isinstance(self.taps, ViTTaps):
            return None
        side: int = self.taps.visual.grid_size[0]
        return side

    @property
    def _vit(self) -> ViTTaps:
        if not isinstance(self.taps, ViTTaps):
            raise TypeError(f"{self.name} is a ResNet: it has no blocks and no class token")
        return self.taps

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

        shapes = {f"patches {layer}": (self.token_count(layer), self.width(layer)) for layer in layers}
        found = self.features(images, {"pooled": (self.embed_dim,), **shapes}, encode)
        patches = {layer: found[f"patches {layer}"] for layer in layers}
        return Tokens(found["pooled"], patches, _grids(patches))

    def features(self, images: Tensor, shapes: Mapping[str, tuple[int, ...]], encode: Encoder) -> Mapping[str, Tensor]:
        """Features of images, each (B, ...), from `cache` where it holds them.

        Args:
            images: (B, 3, S, S) uint8 RGB.
            shapes: name of each feature -> its shape of one image; one name means the same whatever else is asked for.
            encode: computes them: some images (b, 3, S, S) -> name -> (b, ...).
        """
        if self.cache is None:
            return encode(images)
        return self.cache(images, self.identity(images.device), shapes, encode)

    def description(self) -> dict[str, Any]:
        """What checkpoints, memories and results record of the backbone, as plain values."""
        return {
            "model": self.name,
            "pretrained": self.pretrained,
            "weights": self.fingerprint,
            "quick_gelu": self.quick_gelu,
            "normalization": [*self.normalization.mean, *self.normalization.std],
            "image_size": self.image_size,
        }

    def identity(self, device: torch.device) -> dict[str, str]:
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
        return self._vit.embed(self.normalize(images))

    @torch.no_grad()
    def encode(self, tokens: Tensor, layers: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """All blocks of a ViT, on tokens as `embed` gives them or any choice of them with the class token in front.

        Returns:
            The pooled embedding (B, D), not normalised, and the asked layers' raw output, each (B, 1 + n, W).
        """
        return self._vit.encode(tokens, layers)

    @torch.no_grad()
    def pool(self, tokens: Tensor) -> Tensor:
        """The pooled embedding alone of what `encode` takes, (B, D), not normalised; cheaper where only that counts."""
        return self._vit.pool(tokens)

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
            values, patches = self._vit.dual_path(self.embed(some), layers)
            return {**_named("second path", values), **_named("first path", patches)}

        shapes = {f"second path {layer}": (1 + self.token_count(layer), self.embed_dim) for layer in layers}
        shapes |= {f"first path {layer}": (self.token_count(layer), self.width(layer)) for layer in layers}
        found = self.features(images, shapes, encode)
        values, patches = (
            {layer: found[f"{path} {layer}"] for layer in layers} for path in ("second path", "first path")
        )
        return DualTokens(values, patches, _grids(patches))

    @torch.no_grad()
    def value_path(self, images: Tensor, layers: Collection[int], replaced: int) -> Tokens:
        """The image tower of AnomalyCLIP, of a ViT whose last `replaced` blocks have a second path.

        images: (B, 3, S, S) uint8 RGB.

        Returns:
            Tokens in the joint embedding, not normalised: pooled (B, D), without ln_post; patches per layer (B, N, D).
        """

        path = f"value path of {replaced} blocks,"

        def encode(some: Tensor) -> dict[str, Tensor]:
            pooled, patches = self._vit.value_path(self.embed(some), layers, replaced)
            return {f"{path} class token": pooled, **_named(path, patches)}

        shapes = {f"{path} {layer}": (self.token_count(layer), self.embed_dim) for layer in layers}
        found = self.features(images, {f"{path} class token": (self.embed_dim,), **shapes}, encode)
        patches = {layer: found[f"{path} {layer}"] for layer in layers}
        return Tokens(found[f"{path} class token"], patches, _grids(patches))


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
