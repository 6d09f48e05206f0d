"""VCP-CLIP (Qu et al.: "VCP-CLIP: A visual context prompting model for zero-shot anomaly segmentation", ECCV 2024,
arXiv 2407.12276).

The place of the class name in the prompts is taken by tokens made from the image (Pre-VCP), and the text features are
updated by what they find in the patches (Post-VCP). Each image has texts of its own, so the class name is not needed.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map
from model.adapters import Adapters, load_exactly, load_part
from model.interface import LabeledBatch, Prediction, ScoreRange, Tokens
from model.losses import segmentation_losses
from model.options import FEATURES_LIST, ByDataset, Option, Preset, Training, boolean, natural, positive, probability
from prompt_ensemble import VCP_CLIP, Prompts, sentences

if TYPE_CHECKING:
    from model.backbones.clip import Backbone

_PROMPT_LEN, _DEEP_LEN, _DROPOUT = 2, 1, 0.1
_TRAINED = functools.partial(Option, trained=True)
_POST_WEIGHT = 0.8  # of the Post-VCP map in the fusion; the rest is the raw map's
_SIGMA = 8.0  # of the Gaussian filter, in pixels
_TOP = 2000  # pixels that make the image score
_HEADS = 8  # of Post-VCP's attention
_TEMPERATURE_RATE = 0.01  # learning rate of both temperatures
_LOG_SCALE = math.log(1 / 0.07)  # their start value
_PARTS = ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")  # published keys of adapters, Pre-VCP, Post-VCP


class VcpClip(nn.Module):
    """A detector as `model.interface.Detector` describes it; zero-shot.

    Args:
        backbone: a frozen CLIP whose text tower is as wide as the joint embedding.
        features_list: layers whose patch tokens are compared with the texts; None takes four evenly spaced ones.
        prompt_len: tokens r that stand for the image in the place of the class name.
        deep_prompt_len: learned tokens n after the start token.
        total_d_layer_len: later blocks of the text tower that get learned tokens of their own: all of them (None, or
            their number); 0 leaves learned tokens out altogether, at the input too, as the published program does.
        use_global: make the image's tokens from its embedding; else they are the same for all images.
        prompt_dropout: probability of dropping an element of a learned token in training.
        prompts: one sentence per state.

    Raises:
        ValueError: another text tower, widths that do not fit, numbers out of range; one line.
    """

    PRESET: ClassVar[Preset] = Preset(
        "ViT-L-14-336",
        "openai",
        518,
        batch_size=8,
        half_weights=True,
        extra_metrics=("iou_px", "threshold_px"),
        training=Training(
            batch_size=32,
            learning_rate=ByDataset(4e-5, {"mvtec": 2e-5}),
            betas=(0.5, 0.999),
            epoch=10,
            aug_rate=ByDataset(0.0, {"mvtec": 0.2}),
            mosaic_of="anomalies",
            augment=True,
            seed=333,
        ),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        FEATURES_LIST,
        _TRAINED("prompt_len", positive, "tokens that stand for the image (default: 2)", default=_PROMPT_LEN),
        _TRAINED("deep_prompt_len", positive, "learned tokens after the start token (default: 1)", default=_DEEP_LEN),
        _TRAINED("total_d_layer_len", natural, "later text blocks with tokens of their own: all (default), or 0"),
        _TRAINED("use_global", boolean, "make tokens from the image, True (default) or False", default=True),
        Option(
            "prompt_dropout",
            probability,
            "of the learned tokens in training (default: 0.1)",
            default=_DROPOUT,
            scripts=("train",),
        ),
    )
    needs_text: ClassVar[bool] = True
    LOSSES: ClassVar[tuple[str, ...]] = ("focal", "dice")

    def __init__(
        self,
        backbone: "Backbone",
        *,
        features_list: Sequence[int] | None = None,
        prompt_len: int = _PROMPT_LEN,
        deep_prompt_len: int = _DEEP_LEN,
        total_d_layer_len: int | None = None,
        use_global: bool = True,
        prompt_dropout: float = _DROPOUT,
        prompts: Prompts = VCP_CLIP,
    ):
        super().__init__()
        backbone.text.check_learned_tokens("vcp_clip")
        features_list = sorted(features_list or backbone.default_layers())
        backbone.check_layers("features_list", features_list)
        widths = [backbone.width(layer) for layer in features_list]
        _check_widths(backbone, widths)
        later = backbone.text.depth - 1
        if total_d_layer_len not in (None, 0, later):
            raise ValueError(
                f"--total_d_layer_len {total_d_layer_len}: must be {later}, all later blocks of the text tower of "
                f"{backbone.name}, or 0"
            )
        self.backbone = backbone
        self.features_list = tuple(features_list)
        self.use_global = bool(use_global)
        self.pre_vcp = PreVcp(backbone.embed_dim, prompt_len)
        self.pre_vcp.prompt_linear1.requires_grad_(self.use_global)
        deep = later if total_d_layer_len is None else total_d_layer_len
        self.text_prompts = TextPrompts(backbone.text.width, deep_prompt_len, deep, prompt_dropout)
        self.adapters = Adapters(widths, backbone.embed_dim)
        self.post_vcp = PostVcp(backbone.embed_dim, widths[0])
        self.sentences = _pieces(backbone, prompts, prompt_len + deep_prompt_len)

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "features_list": list(self.features_list),
            "prompt_len": self.pre_vcp.prompt_query.shape[1],
            "deep_prompt_len": self.text_prompts.prompt_embeddings.shape[1],
            "total_d_layer_len": self.text_prompts.later_blocks,
            "use_global": self.use_global,
            "prompt_dropout": self.text_prompts.dropout.p,
            "sentences": [f"{before}{{}}{after}" for before, after in self.sentences],
        }

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[str]) -> None:
        """The texts do not depend on names."""

    def text_features(self, pooled: Tensor) -> Tensor:
        """The texts of each image, (B, D, 2), unit length. pooled: (B, D), not normalised.

        All images and states go through the text tower together, and only as far as the longest sentence reaches: under
        its causal mask nothing sees what follows the end token.
        """
        context = self.pre_vcp(pooled.float(), self.use_global)  # (B, r, D)
        texts = [self._with_context(before, context, after) for before, after in self.sentences]  # each (B, n, D)
        ends = [text.shape[1] - 1 for text in texts]
        longest = max(ends) + 1
        tokens = torch.cat([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])  # (2 B, longest, D)
        tokens = self.text_prompts.insert(tokens)
        tokens = self.backbone.text.run(tokens, self.text_prompts.exchange)
        tokens = self.text_prompts.remove(tokens).unflatten(0, (2, -1))  # (2, B, longest, D)
        end_tokens = torch.stack([state[:, end] for state, end in zip(tokens, ends, strict=True)], dim=1)  # (B, 2, D)
        return F.normalize(self.backbone.text.project(end_tokens), dim=-1).transpose(1, 2)

    def _with_context(self, before: str, context: Tensor, after: str) -> Tensor:
        """Token embeddings of start, `before`, the image's tokens, `after`, end, with positions. (B, n, D)"""
        count = context.shape[0]
        head = self.backbone.text.embed(before, start=True).expand(count, -1, -1)
        tail = self.backbone.text.embed(after, end=True).expand(count, -1, -1)
        text = torch.cat([head, context, tail], dim=1)
        return text + self.backbone.text.positions(text.shape[1])

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        return self.backbone(images, self.features_list)

    def forward(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        tokens = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # only the backbone gains by lower precision
            raw, post = self._pixel_logits(tokens)
            return [anomaly_map.state_probabilities(logit) for logit in (*raw, *post)]

    def zero_shot(self, tokens: Tokens, names: Sequence[str]) -> Prediction:
        """The published program rescales the maps of a class to [0, 1] at the end; these stay on their own scale."""
        raw, post = (torch.sigmoid(torch.stack(logits)).mean(0) for logits in self._pixel_logits(tokens))  # (B, S, S)
        fused = anomaly_map.gaussian((1 - _POST_WEIGHT) * raw + _POST_WEIGHT * post, _SIGMA)
        tops = {"raw_top": _top_mean(raw), "post_top": _top_mean(post)}
        return Prediction(fused, {**tops, "top": tops["raw_top"] + tops["post_top"]})

    def _pixel_logits(self, tokens: Tokens) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer, the logit of "abnormal" at each pixel, (B, S, S): raw, and after Post-VCP."""
        size = self.backbone.image_size
        text = self.text_features(tokens.pooled)  # (B, D, 2)
        raw = self.adapters.pixel_logits(tokens.patches, tokens.grids, text, self.pre_vcp.prompt_temp.exp(), size)
        scale, post = self.post_vcp.prompt_temp_l1.exp(), []
        for layer in self.features_list:
            patches = F.normalize(tokens.patches[layer].float(), dim=-1)  # (B, N, W)
            logit = anomaly_map.state_logit(patches, self.post_vcp(text, patches), scale)
            post.append(anomaly_map.upsample(logit, tokens.grids[layer], size, align_corners=True))
        return raw, post

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """The sum of both maps' largest pixels, on the scale of the class."""
        return anomaly_map.rescale(score_components, "top", limits)

    # --- training ---------------------------------------------------------------------------------------------------

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        return segmentation_losses(self(batch.images, batch.names), batch.masks)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        temperatures = [self.pre_vcp.prompt_temp, self.post_vcp.prompt_temp_l1]
        others = [p for p in self.parameters() if p.requires_grad and not any(p is t for t in temperatures)]
        return [{"params": others, "lr": learning_rate}, {"params": temperatures, "lr": _TEMPERATURE_RATE}]

    def trainable_state(self) -> dict[str, Any]:
        parts = zip(_PARTS, (self.adapters, self.pre_vcp, self.post_vcp), strict=True)
        return {**{key: part.state_dict() for key, part in parts}, **self.text_prompts.state_dict()}

    def load_trainable_state(self, state: Mapping[str, Any]) -> None:
        for key, part in zip(_PARTS, (self.adapters, self.pre_vcp, self.post_vcp), strict=True):
            load_part(part, state, key, "vcp_clip")
        load_exactly(self.text_prompts, {key: value for key, value in state.items() if key not in _PARTS})


class PreVcp(nn.Module):
    """The image's tokens in the prompts (section 3.2 of the paper): a convolution along its embedding, plus a query."""

    def __init__(self, width: int, prompt_len: int):
        super().__init__()
        if prompt_len < 1:
            raise ValueError(f"--prompt_len {prompt_len}: must be 1 or more")
        self.prompt_query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, prompt_len, width)))
        self.prompt_temp = nn.Parameter(torch.tensor(_LOG_SCALE))  # of the raw maps
        self.prompt_linear1 = nn.ModuleDict({"fc": nn.Conv1d(1, prompt_len, kernel_size=3, padding=1)})

    def forward(self, pooled: Tensor, use_global: bool) -> Tensor:
        """(B, D) -> (B, prompt_len, D)"""
        query = self.prompt_query.expand(pooled.shape[0], -1, -1)
        return query + self.prompt_linear1["fc"](pooled[:, None]) if use_global else query


class TextPrompts(nn.Module):
    """Learned tokens after the start token: one set at the input, and one of its own for each later block.

    Without later blocks (0) nothing is learned here; the tensors are there for the sake of the checkpoint's keys.
    """

    def __init__(self, width: int, count: int, later_blocks: int, dropout: float):
        super().__init__()
        if count < 1:
            raise ValueError(f"--deep_prompt_len {count}: must be 1 or more")
        self.later_blocks = later_blocks
        self.prompt_embeddings = nn.Parameter(torch.empty(1, count, width).uniform_(-1, 1))
        if later_blocks:
            self.deep_prompt_embeddings = nn.Parameter(torch.empty(later_blocks, count, width).uniform_(-1, 1))
        self.prompt_proj = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.prompt_proj.weight, mode="fan_out")
        self.prompt_norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        # Published checkpoints have it, nothing uses it.
        self.register_buffer("prompt_text_projection", torch.randn(width, width) * width**-0.5)
        self.requires_grad_(later_blocks > 0)

    def insert(self, tokens: Tensor) -> Tensor:
        """(B, n, W) -> (B, n + count, W), the learned tokens after the first."""
        if not self.later_blocks:
            return tokens
        return torch.cat([tokens[:, :1], self._learned(self.prompt_embeddings[0], tokens), tokens[:, 1:]], dim=1)

    def exchange(self, block: int, tokens: Tensor) -> Tensor:
        """Before a later block, put its own learned tokens into the place of the others."""
        if not 1 <= block <= self.later_blocks:
            return tokens
        own = self._learned(self.deep_prompt_embeddings[block - 1], tokens)
        return torch.cat([tokens[:, :1], own, tokens[:, 1 + own.shape[1] :]], dim=1)

    def remove(self, tokens: Tensor) -> Tensor:
        """The tokens without the learned ones, normalised. (B, n + count, W) -> (B, n, W)"""
        if not self.later_blocks:
            return tokens
        count = self.prompt_embeddings.shape[1]
        return self.prompt_norm(torch.cat([tokens[:, :1], tokens[:, 1 + count :]], dim=1))

    def _learned(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """(count, W) -> (B, count, W); each text has a dropout of its own."""
        return self.dropout(self.prompt_proj(embeddings).expand(tokens.shape[0], -1, -1))


class PostVcp(nn.Module):
    """Cross-attention of texts to patches, without scaling of the logits (section 3.3 of the paper)."""

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.prompt_temp_l1 = nn.Parameter(torch.tensor(_LOG_SCALE))  # of the maps
        self.q_proj_pre = nn.Conv1d(embed_dim, width, kernel_size=1)
        self.k_proj_pre_1 = nn.Conv1d(width, width, kernel_size=1)
        self.v_proj_pre_1 = nn.Conv1d(width, width, kernel_size=1)
        self.proj_post_t = nn.Conv1d(width, width, kernel_size=1)

    def forward(self, text: Tensor, patches: Tensor) -> Tensor:
        """Texts of each image in the space of its patches, unit length: (B, D, 2), (B, N, W) -> (B, W, 2)."""
        patches = patches.transpose(1, 2)  # (B, W, N)
        query, key, value = (
            tokens.unflatten(1, (_HEADS, -1)).transpose(2, 3)  # (B, heads, tokens, W / heads)
            for tokens in (self.q_proj_pre(text), self.k_proj_pre_1(patches), self.v_proj_pre_1(patches))
        )
        found = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (B, heads, 2, W / heads)
        found = self.proj_post_t(found.transpose(2, 3).flatten(1, 2))  # (B, W, 2)
        return F.normalize(found, dim=1)


def _check_widths(backbone: "Backbone", widths: Sequence[int]) -> None:
    if backbone.text.width != backbone.embed_dim:
        raise ValueError(
            f"vcp_clip cannot use {backbone.name}: its text tower is {backbone.text.width} wide, its joint embedding "
            f"{backbone.embed_dim}, and image embeddings take the place of word embeddings"
        )
    if len(set(widths)) > 1 or widths[0] % _HEADS:
        raise ValueError(
            f"vcp_clip cannot use {backbone.name}: its layers are {', '.join(map(str, widths))} wide, and one "
            f"attention of {_HEADS} heads serves them all"
        )


def _pieces(backbone: "Backbone", prompts: Prompts, learned: int) -> list[tuple[str, str]]:
    """Per state, the text before and after the place of the image's tokens. learned: tokens that come in."""
    states = sentences("{}", prompts)
    if any(len(texts) != 1 for texts in states):
        raise ValueError(
            f"vcp_clip takes one sentence per state, and the prompts make {len(states[0])} and {len(states[1])}; "
            "give one phrase per state and one template"
        )
    pieces = [(before, after) for texts in states for before, _, after in [texts[0].partition("{}")]]
    for before, after in pieces:
        length = len(backbone.text.embed(before, start=True)) + len(backbone.text.embed(after, end=True)) + learned
        if length > backbone.text.context_length:
            raise ValueError(
                f"the prompt '{before}{{}}{after}' makes {length} tokens with the learned ones, and the text tower "
                f"takes {backbone.text.context_length}; shorten it, --prompt_len or --deep_prompt_len"
            )
    return pieces


def _top_mean(values: Tensor) -> Tensor:
    """Mean of the largest pixels of each map, (B, S, S) -> (B,)."""
    flat = values.flatten(1)
    return flat.topk(min(_TOP, flat.shape[1]), dim=1).values.mean(1)
