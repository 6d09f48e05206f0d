"""What all backbones share: frozen weights, layers and their numbers, images to tokens by way of the feature cache."""

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.interface import Cache, Encoder, Normalization, Tokens
from utils import memory_check


class Taps(Protocol):
    """Token streams of an image tower, an nn.Module."""

    depth: int  # of the last layer
    first: int  # number of the first layer: 0 where what enters layer 1 can be had, else 1

    def __call__(
        self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Pooled embedding (B, D) or (B, 0), see `FrozenTower.forward`, and patch tokens per layer, (B, N, W)."""

    def width(self, layer: int) -> int:
        """Width W of a layer's tokens."""

    def grid(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        """(g_h, g_w) of a layer for images of (H, W) pixels."""

    def compile_blocks(self) -> None:
        """Compile with torch.compile, when they first run."""


class FrozenTower(nn.Module):
    """A frozen image tower in eval mode; see `interface.ImageTower`.

    Args:
        model, pretrained: as they were asked for.
        image_size: side S of a square image, or the shorter side, in pixels.
        patch: pixels of a patch a side (a CNN: the stride of its last stage).
        normalization: of the weights.
    """

    has_text: bool
    taps: Taps
    embed_dim: int
    prefix_tokens: int
    fingerprint: str

    def __init__(self, model: str, pretrained: str | None, image_size: int, patch: int, normalization: Normalization):
        super().__init__()
        self.name, self.pretrained, self.image_size, self.patch = model, pretrained, image_size, patch
        if image_size < patch:
            raise ValueError(f"--image_size {image_size}: a patch of {model} is {patch} pixels wide; take a larger one")
        self.normalization = normalization
        self.mean: Tensor  # (3, 1, 1), of the weights, in [0, 1]
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(normalization.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalization.std).view(3, 1, 1), persistent=False)
        self._compiled = False
        self._least_bytes = 0
        self.cache: Cache | None = None  # asked for the features of images before they are computed

    def freeze(self) -> None:
        """To be called when the tower is built."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenTower":
        """Frozen: stays in eval mode whatever the detector around it does."""
        return super().train(False)

    # --- layers -----------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of layers that can be tapped."""
        return self.taps.depth

    def width(self, layer: int) -> int:
        """Width W of a layer's tokens."""
        return self.taps.width(layer)

    def grid_of(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        """Grid (g_h, g_w) of a layer for images of (H, W) pixels."""
        return self.taps.grid(layer, size)

    def token_count(self, layer: int) -> int:
        """Patch tokens of a layer, N, of a square image."""
        height, width = self.grid_of(layer, (self.image_size, self.image_size))
        return height * width

    def default_layers(self) -> list[int]:
        """Four evenly spaced layers, the last included: 6 12 18 24 of 24, 3 6 9 12 of 12."""
        return sorted({max(1, round(self.depth * quarter / 4)) for quarter in (1, 2, 3, 4)})

    def check_layers(self, flag: str, layers: Sequence[int]) -> None:
        """Raises ValueError where a layer does not exist or is listed twice."""
        self._check_layers(flag, layers, layers, 1)

    def number_layers(self, flag: str, layers: Sequence[int]) -> list[int]:
        """The layers with their own numbers: -1 is the last one, and 0 what enters layer 1.

        Raises ValueError where a layer does not exist or is listed twice.
        """
        numbers = [layer if layer >= 0 else self.depth + 1 + layer for layer in layers]
        self._check_layers(flag, layers, numbers, self.taps.first)
        return numbers

    def _check_layers(self, flag: str, asked: Sequence[int], numbers: Sequence[int], first: int) -> None:
        words = f"{flag} {' '.join(map(str, asked))}"
        for layer, number in zip(asked, numbers, strict=True):
            if not first <= number <= self.depth:
                raise ValueError(
                    f"{words}: layer {layer} does not exist, {self.name} has layers {first} to {self.depth}"
                )
        if len(set(numbers)) != len(numbers) or not numbers:
            raise ValueError(f"{words}: list one or more layers, each once")

    def check_square(self, size: int | None = None) -> None:
        """Raises ValueError where patches do not divide the side of a square image.

        size: that --image_size asks for; None: the backbone's own.
        """
        size = size or self.image_size
        if size % self.patch:
            below = max(size // self.patch, 1) * self.patch
            raise ValueError(
                f"--image_size {size}: the patches of {self.name} are {self.patch} pixels wide; take {below} or "
                f"{below + self.patch}"
            )

    # --- images -> tokens -------------------------------------------------------------------------------------------

    def check_room(self, images: int, device: torch.device | str, what: str, advice: str) -> None:
        """Raises ValueError where so many images at a time cannot fit into a device's memory."""
        memory_check.check(images * self._least_bytes, device, what, advice)

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32, scaled to [0, 1], less the weights' own mean, over their std."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True) -> Tokens:
        """Tokens of the asked layers.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            layers: from 1; 0: what enters layer 1.
            normed: put every layer's patch tokens through the model's final norm, if it has one.
            pooled: False: leave out the pooled embedding, which is (B, 0) then, and the layers above the asked ones.
        """

        def encode(some: Tensor) -> dict[str, Tensor]:
            embedding, patches = self.taps(self.normalize(some), layers, normed=normed, pooled=pooled)
            return {**({"pooled": embedding} if pooled else {}), **named(field, patches)}

        field = "normed patches" if normed else "patches"
        size = (images.shape[2], images.shape[3])
        grids = {layer: self.grid_of(layer, size) for layer in layers}
        shapes: dict[str, tuple[int, ...]] = {"pooled": (self.embed_dim,)} if pooled else {}
        shapes |= {f"{field} {layer}": (h * w, self.width(layer)) for layer, (h, w) in grids.items()}
        found = self.features(images, shapes, encode)
        patches = {layer: found[f"{field} {layer}"] for layer in layers}
        embedding = found["pooled"] if pooled else images.new_empty((images.shape[0], 0), dtype=self.mean.dtype)
        return Tokens(embedding, patches, grids)

    def features(self, images: Tensor, shapes: Mapping[str, tuple[int, ...]], encode: Encoder) -> Mapping[str, Tensor]:
        """Features of images, each (B, ...), from `cache` where it holds them.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            shapes: name of each feature -> its shape of one image; one name means the same whatever else is asked for.
            encode: computes them: some images (b, 3, H, W) -> name -> (b, ...).
        """
        if self.cache is None or not shapes:
            return encode(images)
        identity = {**self.identity(images.device), **self._positions((images.shape[2], images.shape[3]))}
        return self.cache(images, identity, shapes, encode)

    def compile_encoder(self) -> None:
        """Compile the image tower with torch.compile, when it first runs: block by block, since alike blocks share what
        was compiled, and the loops around them stay as they are."""
        self.taps.compile_blocks()
        self._compiled = True

    # --- identity ---------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """What checkpoints, memories and results record of the backbone, as plain values."""
        return {
            "model": self.name,
            "pretrained": self.pretrained,
            "weights": self.fingerprint,
            **self._described(),
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
            "versions": f"torch {torch.__version__}, {self._library()}",
        }

    @functools.cached_property
    def _vision_digest(self) -> str:
        """Identity of everything that makes tokens of images: every weight, the architecture, the normalisation."""
        settings, state = self._vision()
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for key, value in sorted({**state, "mean": self.mean, "std": self.std}.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            raw: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(raw)
        return digest.hexdigest()

    def _positions(self, size: tuple[int, int]) -> dict[str, str]:
        """What the features of images of (H, W) pixels depend on that `_vision` does not have."""
        return {}

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """What `description` has of this kind of backbone alone."""

    @abstractmethod
    def _library(self) -> str:
        """Name and version of the library."""

    @abstractmethod
    def _vision(self) -> tuple[Any, Mapping[str, Tensor]]:
        """Architecture as plain values, and weights, of what makes tokens of images."""


def named(field: str, of_layers: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Features by name from those of layers."""
    return {f"{field} {layer}": tokens for layer, tokens in of_layers.items()}


def least_bytes(size: int, patch: int, width: int) -> int:
    """What one image takes at least: its pixels, and in a block of a ViT a token, what the block makes of it, and its
    four times wider hidden layer; all in single precision."""
    return 4 * (3 * size**2 + 6 * width * (size // patch) ** 2)
