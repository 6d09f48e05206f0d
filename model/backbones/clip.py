"""The frozen CLIP of open_clip: an image tower, and a text tower beside it.

A `Backbone` turns images into `Tokens`; its `text` turns sentences into embeddings. Layers count from 1: the blocks of
a ViT, or the stages of a CNN.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from model.backbones import timm_towers
from model.backbones.architectures import architecture, create
from model.backbones.frozen import FrozenTower, least_bytes, named
from model.backbones.positions import PositionTable
from model.backbones.taps import ResNetTaps, ViTTaps
from model.backbones.text_tower import TextTower
from model.backbones.timm_taps import PlainTaps, StageTaps, common_grid
from model.backbones.weights import Weights, fingerprint
from model.interface import DualTokens, Tokens
from model.options import PositionRules, check_no_position_rule


class Backbone(FrozenTower):
    """A CLIP of open_clip, frozen and in eval mode, built at the wanted image size.

    Args:
        model: an architecture of open_clip, or one registered by `register_architecture`.
        pretrained: a tag of open_clip ("openai", "laion400m_e31", ...: downloaded and cached by open_clip), or a file
            (.pt, .pth, .bin, .safetensors); None leaves random weights.
        image_size: side S of the square input in pixels; None takes the architecture's own.
        quick_gelu: "auto" takes what the architecture says, as the published programs do; "on" and "off" force it.
        half_weights: round the weights to half precision, as a program does that keeps them so; they are used in
            single precision all the same.
        position_rule: one of POSITION_RULES, by which a ViT's position table is brought to the grid of the images, see
            `positions.resample`; "auto" takes that of `position_rules`.
        position_rules: of the method.
        mean, std: of the channels R, G, B in [0, 1], by which images are normalised; None takes those that the weights
            were trained with, as `Weights.find` knows them.

    Raises:
        ValueError: unknown or unsupported architecture, unknown tag, an image size that memory cannot hold, a
            position rule for a ResNet, weights that do not fit; one line that says what to do.
        OSError: weights that can not be read or downloaded.
    """

    has_text = True

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        image_size: int | None = None,
        quick_gelu: str = "auto",
        half_weights: bool = False,
        position_rule: str = "auto",
        position_rules: PositionRules | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        config = architecture(model)
        vision = config["vision_cfg"]
        timm_name: str | None = vision.get("timm_model_name")
        is_vit = timm_name is None and isinstance(vision.get("layers", 12), int)
        patch, width = timm_towers.patch_and_width(timm_name) if timm_name else (32, 0)
        if is_vit:
            patch, width = vision.get("patch_size") or 16, vision.get("width", 768)
        gelu = {"on": True, "off": False, "auto": bool(config.get("quick_gelu", False))}[quick_gelu]
        source = Weights.find(model, pretrained, mean, std)
        source.log(model, gelu, asked=quick_gelu != "auto")
        super().__init__(model, pretrained, image_size or vision.get("image_size", 224), patch, source.normalization)
        self.quick_gelu = gelu
        self.embed_dim = config["embed_dim"]
        self.position_rule = (position_rules or PositionRules()).clip if position_rule == "auto" else position_rule
        self._least_bytes = least_bytes(self.image_size, patch, width)
        self.check_room(1, "cpu", f"--image_size {self.image_size}", "take a smaller one")
        # Other towers are built at their own size and resampled where they are used (see ResNetTaps, PlainTaps).
        self.clip, draft = create(model, self.quick_gelu, self.image_size if is_vit else None)
        stored = source.load_into(self.clip, half_weights)
        visual = self.clip.visual
        self.taps: ViTTaps | ResNetTaps | PlainTaps | StageTaps
        if is_vit:
            self.taps = ViTTaps(visual, stored, self.position_rule)
        elif timm_name is None:
            self.taps = ResNetTaps(visual, self.image_size)
        else:
            self.taps = timm_towers.taps(model, timm_name, visual, draft.visual, self.image_size, self.position_rule)
        if self._table is None:
            check_no_position_rule(position_rule, model)
        self.prefix_tokens = 1 if is_vit else int(getattr(getattr(visual, "trunk", None), "num_prefix_tokens", 0))
        self.text = TextTower(self.clip, model)
        self.fingerprint = fingerprint(self.clip)
        self.freeze()

    @property
    def grid(self) -> int | None:
        """Patches a side, G, of a ViT; None for a CNN, whose stages have grids of their own."""
        if isinstance(self.taps, PlainTaps | StageTaps):
            return common_grid(self.taps, self.image_size)
        return self.image_size // self.patch if isinstance(self.taps, ViTTaps) else None

    @property
    def _table(self) -> PositionTable | None:
        """Of a ViT."""
        return self.taps.table if isinstance(self.taps, ViTTaps | PlainTaps) else None

    def default_layers(self) -> list[int]:
        """Four evenly spaced layers, the last included; of the stages of a model of timm the last two, since earlier
        ones tell texture from texture, and adapters on them learn that."""
        if isinstance(self.taps, StageTaps) and self.grid is None:
            return [self.depth - 1, self.depth]
        return super().default_layers()

    def check_blocks(self, method: str) -> None:
        """Raises ValueError where `embed`, `encode` and `pool` cannot run: they need a ViT of open_clip's own."""
        if not isinstance(self.taps, ViTTaps):
            what = "a ResNet" if isinstance(self.taps, ResNetTaps) else "a CLIP whose image tower is timm's"
            raise ValueError(f"{method} needs a ViT of open_clip's own, as ViT-L-14-336 is; {self.name} is {what}")

    @property
    def _vit(self) -> ViTTaps:
        if not isinstance(self.taps, ViTTaps):
            raise TypeError(f"{self.name} has no blocks of open_clip")
        return self.taps

    def check_saliency(self, flag: str, index: int) -> None:
        """Raises ValueError: the attention of a CLIP is not given out."""
        raise ValueError(f"{flag}: needs a ViT of timm, such as one of DINOv2; {self.name} is a CLIP of open_clip")

    def saliency(self, images: Tensor, index: int) -> Tensor:
        """Not available, see `check_saliency`."""
        raise TypeError(f"{self.name} gives no attention")

    def _described(self) -> dict[str, Any]:
        rule = {} if self._table is None else {"position_rule": self.position_rule}
        return {"quick_gelu": self.quick_gelu, **rule}

    def _library(self) -> str:
        return f"open_clip {open_clip.__version__}"

    def _positions(self, size: tuple[int, int]) -> dict[str, str]:
        # Square images by the usual rule have the table that `_vision` has.
        square = size == (self.image_size, self.image_size) and self.position_rule == PositionRules().clip
        if square or self._table is None:
            return {}
        return {"positions": f"{self.position_rule} {self._table.digest}"}

    def _vision(self) -> tuple[Any, Mapping[str, Tensor]]:
        usual = self.position_rule == PositionRules().clip  # not named, so that older caches stay of use
        rule = [] if usual else [self.position_rule]
        settings = [architecture(self.name)["vision_cfg"], self.quick_gelu, self.image_size, *rule]
        return settings, self.clip.visual.state_dict()

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

    def check_value_path(self, method: str) -> None:
        """Raises ValueError where `dual_path` cannot run: it needs the plain attention blocks of a CLIP ViT."""
        self.check_blocks(method)
        visual = self._vit.visual
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
            return {**named("second path", values), **named("first path", patches)}

        grids = {layer: self.grid_of(layer, (images.shape[2], images.shape[3])) for layer in layers}
        counts = {layer: height * width for layer, (height, width) in grids.items()}
        shapes = {f"second path {layer}": (1 + counts[layer], self.embed_dim) for layer in layers}
        shapes |= {f"first path {layer}": (counts[layer], self.width(layer)) for layer in layers}
        found = self.features(images, shapes, encode)
        values, patches = (
            {layer: found[f"{path} {layer}"] for layer in layers} for path in ("second path", "first path")
        )
        return DualTokens(values, patches, grids)

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
            return {f"{path} class token": pooled, **named(path, patches)}

        grids = {layer: self.grid_of(layer, (images.shape[2], images.shape[3])) for layer in layers}
        shapes = {f"{path} {layer}": (height * width, self.embed_dim) for layer, (height, width) in grids.items()}
        found = self.features(images, {f"{path} class token": (self.embed_dim,), **shapes}, encode)
        patches = {layer: found[f"{path} {layer}"] for layer in layers}
        return Tokens(found[f"{path} class token"], patches, grids)
