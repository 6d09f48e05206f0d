"""The frozen image towers of timm: ViTs and CNNs that were trained without texts.

A `TimmBackbone` turns images of any shape that its patches divide into `Tokens`. Layers count from 1: the blocks of a
ViT, or the stages of a CNN; layer 0 is what enters layer 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from model.backbones import timm_models
from model.backbones.frozen import FrozenTower, least_bytes
from model.backbones.timm_taps import PlainTaps, StageTaps, common_grid, is_plain, stage_taps
from model.backbones.timm_weights import TimmWeights
from model.backbones.weights import fingerprint
from model.options import PositionRules, check_no_position_rule


class TimmBackbone(FrozenTower):
    """A model of timm, frozen and in eval mode.

    Args:
        model: a model of timm, NAME or NAME.TAG, or one registered by `timm_models.register`.
        pretrained: a tag of timm (downloaded and cached by timm), or a file (.pt, .pth, .bin, .safetensors) of this
            toolkit, of timm, or of an official program that timm can convert (DINOv2, DINO, ...); None takes the
            model's TAG, or leaves random weights.
        image_size: side S of the square input, or its shorter side, in pixels; None takes the model's own.
        position_rule: one of POSITION_RULES, see `positions.resample`; "auto" takes that of `position_rules`.
        position_rules: of the method.
        mean, std: of the channels R, G, B in [0, 1], by which images are normalised; None takes those that the weights
            were trained with, as `TimmWeights.find` knows them.

    Raises:
        ValueError: unknown model, unknown tag, an image size that memory cannot hold, a position rule without a table
            for it, weights that do not fit; one line that says what to do.
        OSError: weights that can not be read or downloaded.
    """

    has_text = False

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        image_size: int | None = None,
        position_rule: str = "auto",
        position_rules: PositionRules | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        architecture, tag = timm_models.find(model)
        pretrained = pretrained or tag
        source = TimmWeights.find(architecture, pretrained, mean, std)
        source.log()
        draft = timm_models.draft(architecture)
        if not is_plain(draft) or draft.pos_embed is None:
            check_no_position_rule(position_rule, architecture.name)
        own = _own_size(architecture, draft)
        strides = [int(one["reduction"]) for one in draft.feature_info]
        super().__init__(architecture.name, pretrained, image_size or min(own), max(strides), source.normalization)
        self._architecture = architecture
        self._least_bytes = least_bytes(self.image_size, self.patch, int(draft.feature_info[-1]["num_chs"]))
        self.check_room(1, "cpu", f"--image_size {self.image_size}", "take a smaller one")
        timm_model = source.load(architecture)
        self.fingerprint = fingerprint(timm_model)
        rules = position_rules or PositionRules()
        self.position_rule: str | None = None  # where there is a position table
        self.taps: PlainTaps | StageTaps
        if is_plain(timm_model):
            rule = rules.registers if getattr(timm_model, "num_reg_tokens", 0) else rules.plain
            rule = rule if position_rule == "auto" else position_rule
            self.taps = PlainTaps(timm_model, rule)
            self.position_rule = rule if self.taps.table is not None else None
        else:
            self.taps = stage_taps(self.name, timm_model, draft, self.image_size, _own_size(architecture, timm_model))
        self.prefix_tokens = int(getattr(timm_model, "num_prefix_tokens", 0))
        self.embed_dim = self.taps.embed_dim
        self.freeze()

    @property
    def grid(self) -> int | None:
        """Places a side, G, where all layers share one square grid, as those of a ViT do; else None."""
        return common_grid(self.taps, self.image_size)

    def check_saliency(self, flag: str, index: int) -> None:
        """Raises ValueError, beginning with `flag`, where `saliency` of a block, counted from 0, cannot be had."""
        if not isinstance(self.taps, PlainTaps) or not self.taps.has_saliency():
            raise ValueError(f"{flag}: needs a ViT of plain blocks with a class token; {self.name} is of another kind")
        if not 0 <= index < self.depth:
            raise ValueError(f"{flag}: block {index} does not exist, {self.name} has blocks 0 to {self.depth - 1}")

    @torch.no_grad()
    def saliency(self, images: Tensor, index: int) -> Tensor:
        """Attention of block `index`, from 0, from the register tokens (without registers: the class token) to the
        patches; mean over heads and registers. (B, N), sums to less than 1.

        images: (B, 3, H, W) uint8 RGB.
        """
        taps = self.taps
        if not isinstance(taps, PlainTaps):
            raise TypeError(f"{self.name} has no attention")
        tokens = taps.grid(self.depth, (images.shape[2], images.shape[3]))
        name = f"saliency {index}"

        def encode(some: Tensor) -> dict[str, Tensor]:
            return {name: taps.saliency(self.normalize(some), index)}

        return self.features(images, {name: (tokens[0] * tokens[1],)}, encode)[name]

    def _described(self) -> dict[str, Any]:
        return {} if self.position_rule is None else {"position_rule": self.position_rule}

    def _library(self) -> str:
        return f"timm {timm.__version__}"

    def _vision(self) -> tuple[Any, Mapping[str, Tensor]]:
        model: nn.Module = self.taps.model
        fixed = self.taps.fixed if isinstance(self.taps, StageTaps) else None
        settings = [self._architecture.timm_name, dict(self._architecture.kwargs), self.position_rule, fixed]
        return settings, model.state_dict()


def _own_size(architecture: timm_models.TimmArchitecture, model: Any) -> tuple[int, int]:
    """(H, W) of the images that a model is made for, in pixels."""
    said = architecture.kwargs.get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = said or model.pretrained_cfg["input_size"][1:]
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
