"""AnomalyCLIP (Zhou et al.: "AnomalyCLIP: Object-agnostic prompt learning for zero-shot anomaly detection", ICLR 2024,
arXiv 2310.18961).

Two prompts are learned, one for normal and one for abnormal objects of any kind; more learned tokens go into the later
blocks of the text tower. Patches come from a second path of the image tower, of value-to-value attention. The class
name is not used.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map, state_dicts
from model.adapters import load_part
from model.interface import LabeledBatch, Prediction, ScoreRange, Tokens
from model.losses import dice, segmentation_losses
from model.options import Option, PositionRules, Preset, Training, natural, positive
from model.text_interface import PromptableTextTower
from prompt_ensemble import ANOMALY_CLIP, Prompts, sentences

if TYPE_CHECKING:
    from model.backbones.clip import Backbone

_N_CTX, _T_N_CTX, _DEPTH = 12, 4, 9
_DPAM_SHARE = 19 / 24  # of the blocks that have a second path
_SIGMA = 4.0
_SCALE = 1 / 0.07  # inverse temperature of maps, image score and losses
_LOCAL_WEIGHT = 4.0  # lambda of the losses of the maps
_STD = 0.02  # of the learned tokens' start values
_PROJECTED = 896  # width of the projections that published checkpoints have and nothing uses
_CHECKPOINT_KEY = "prompt_learner"
_STATES = ("pos", "neg")  # normal, abnormal, in published keys
_MOST_DEPTH = 100  # more than any text tower has blocks
_HALF_ROUNDING = 2e-3  # relative, of a token embedding in a checkpoint that was stored in half precision

_TRAINED = functools.partial(Option, trained=True)


class AnomalyClip(nn.Module):
    """A detector as `model.interface.Detector` describes it; zero-shot.

    Args:
        backbone: a frozen ViT CLIP with CLIP's own text tower.
        features_list: layers whose patches are compared with the texts; None takes the last one.
        feature_map_layer: the first number says how many of these layers, in the order of the blocks, count in the
            losses alone and not in the map; numbers after it change nothing, as in the published program.
        dpam_blocks: how many of the last blocks have the second path; None takes the published share, 19 of 24.
        n_ctx: learned tokens in a prompt.
        t_n_ctx: learned tokens that replace the first ones of the prompt before a later block of the text tower.
        depth: text blocks with learned tokens, the first one among them: depth - 1 sets of t_n_ctx. Sets beyond the
            last block are not used.
        smoothing: sigma of the Gaussian filter over the map, in pixels.
        prompts: what follows the learned tokens of each state; the class name in it is always "object".

    Raises:
        ValueError: another text tower or image tower than CLIP's own; numbers out of range; one line.
    """

    PRESET: ClassVar[Preset] = Preset(
        "ViT-L-14-336-quickgelu",
        "openai",
        518,
        batch_size=8,
        position_rules=PositionRules(clip="bilinear"),
        training=Training(batch_size=8, learning_rate=1e-3, betas=(0.5, 0.999), epoch=15, seed=111),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("features_list", int, "layers to compare with the texts, from 1 (default: the last)", nargs="+"),
        Option(
            "feature_map_layer",
            natural,
            "how many of the layers, from the first on, are left out of maps (default: 0)",
            default=(0,),
            nargs="+",
        ),
        _TRAINED("dpam_blocks", positive, "last image blocks with a second path (default: 19 of 24)"),
        _TRAINED("n_ctx", positive, f"learned tokens of a prompt (default: the checkpoint's, else {_N_CTX})"),
        _TRAINED(
            "t_n_ctx", positive, f"learned tokens before later text blocks (default: the checkpoint's, else {_T_N_CTX})"
        ),
        _TRAINED("depth", positive, f"text blocks with learned tokens (default: the checkpoint's, else {_DEPTH})"),
        Option(
            "smoothing",
            float,
            "sigma of the Gaussian filter over maps, in pixels (default: 4)",
            default=_SIGMA,
            aliases=("sigma",),
        ),
    )
    needs_text: ClassVar[bool] = True
    LOSSES: ClassVar[tuple[str, ...]] = ("focal", "dice", "dice_normal", "image")

    def __init__(
        self,
        backbone: "Backbone",
        *,
        features_list: Sequence[int] | None = None,
        feature_map_layer: Sequence[int] = (0,),
        dpam_blocks: int | None = None,
        n_ctx: int = _N_CTX,
        t_n_ctx: int = _T_N_CTX,
        depth: int = _DEPTH,
        smoothing: float = _SIGMA,
        prompts: Prompts = ANOMALY_CLIP,
    ):
        super().__init__()
        backbone.check_value_path("anomaly_clip")
        backbone.text.check_learned_tokens("anomaly_clip")
        features_list = sorted(features_list or [backbone.depth])
        backbone.check_layers("--features_list", features_list)
        if not 0 <= feature_map_layer[0] < len(features_list):
            raise ValueError(
                f"--feature_map_layer {' '.join(map(str, feature_map_layer))}: leaves no layer of --features_list "
                f"{' '.join(map(str, features_list))} for the map; the first number must be below {len(features_list)}"
            )
        if dpam_blocks is None:
            dpam_blocks = max(1, round(_DPAM_SHARE * backbone.depth))
        if not 1 <= dpam_blocks <= backbone.depth:
            raise ValueError(
                f"--dpam_blocks {dpam_blocks}: must be from 1 to {backbone.depth}, the blocks of {backbone.name}"
            )
        if not 0 <= smoothing <= backbone.image_size:
            raise ValueError(
                f"--smoothing {smoothing:g}: must be pixels from 0 to the image's side, {backbone.image_size}"
            )
        self.backbone = backbone
        self.features_list, self.feature_map_layer = tuple(features_list), tuple(feature_map_layer)
        self.dpam_blocks, self.smoothing = dpam_blocks, float(smoothing)
        self.sentences = _sentences(prompts)
        self.prompts = TextPrompts(backbone.text, self.sentences, n_ctx, t_n_ctx, depth)
        self._text: Tensor | None = None  # of the learned tokens as they are, in eval mode

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "features_list": list(self.features_list),
            "feature_map_layer": list(self.feature_map_layer),
            "dpam_blocks": self.dpam_blocks,
            "n_ctx": self.prompts.n_ctx,
            "t_n_ctx": self.prompts.t_n_ctx,
            "depth": self.prompts.depth,
            "smoothing": self.smoothing,
            "sentences": list(self.sentences),
        }

    def train(self, mode: bool = True) -> "AnomalyClip":
        self._text = None  # training changes the tokens
        return super().train(mode)

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[str]) -> None:
        """The texts do not depend on names."""

    def text_features(self) -> Tensor:
        """The texts of both states, which all images share, (1, D, 2), unit length.

        The text tower runs as far as the longer sentence reaches: under its causal mask nothing sees what follows.
        """
        tower = self.backbone.text
        tokens = self.prompts()  # (2, n, width)
        tokens = tower.run(tokens + tower.positions(tokens.shape[1]), self.prompts.exchange)
        ends = torch.stack([state[end] for state, end in zip(tokens, self.prompts.ends, strict=True)])  # (2, width)
        return F.normalize(tower.project(ends), dim=-1).T[None]

    def _known_text(self) -> Tensor:
        """As `text_features`, without gradients, computed once where nothing is trained."""
        if self._text is not None and self._text.device == self.prompts.ctx_pos.device:
            return self._text
        with torch.no_grad():
            text = self.text_features()
        if not self.training:
            self._text = text
        return text

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        return self.backbone.value_path(images, self.features_list, self.dpam_blocks)

    def zero_shot(self, tokens: Tokens, names: Sequence[str]) -> Prediction:
        text = self._known_text()
        layers = self.features_list[self.feature_map_layer[0] :]
        # A ViT's layers share a grid, and interpolation is linear: the sum goes before it.
        patches = torch.stack([self._patch_probabilities(tokens, layer, text)[:, 1] for layer in layers]).sum(0)
        maps = anomaly_map.upsample(patches, tokens.grids[layers[0]], self.backbone.image_size, align_corners=False)
        image_logit = anomaly_map.state_logit(tokens.pooled.float().unsqueeze(1), text, _SCALE)[:, 0]  # (B,)
        return Prediction(anomaly_map.gaussian(maps, self.smoothing), {"text": torch.sigmoid(image_logit)})

    def _patch_probabilities(self, tokens: Tokens, layer: int, text: Tensor) -> Tensor:
        """Probabilities of (normal, abnormal) of a layer's patches, (B, 2, N)."""
        return anomaly_map.state_probabilities(anomaly_map.state_logit(tokens.patches[layer].float(), text, _SCALE))

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """The probability of "abnormal" by the image's embedding alone."""
        return score_components["text"]

    # --- training ---------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Per layer each pixel's probabilities of (normal, abnormal), (B, 2, S, S); the image's logits, (B, 2)."""
        tokens = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # only the backbone gains by lower precision
            text, size = self.text_features(), self.backbone.image_size
            maps = []
            for layer in self.features_list:
                patches = self._patch_probabilities(tokens, layer, text).flatten(0, 1)  # (2 B, N)
                pixels = anomaly_map.upsample(patches, tokens.grids[layer], size, align_corners=False)
                maps.append(pixels.unflatten(0, (-1, 2)))
            return maps, _SCALE * (F.normalize(tokens.pooled.float(), dim=-1) @ text[0])

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """Section 3.3 of the paper: of each layer's map focal loss and a dice loss of each state, and cross-entropy of
        the image."""
        maps, image_logits = self(batch.images)
        with torch.autocast(batch.masks.device.type, enabled=False):
            normal = torch.stack([dice(one[:, 0], 1 - batch.masks) for one in maps]).sum()
            local = {**segmentation_losses(maps, batch.masks), "dice_normal": normal}
            weighted = {name: _LOCAL_WEIGHT * value for name, value in local.items()}
            return {**weighted, "image": F.cross_entropy(image_logits, batch.labels)}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": [one for one in self.prompts.parameters() if one.requires_grad], "lr": learning_rate}]

    def trainable_state(self) -> dict[str, Any]:
        return {_CHECKPOINT_KEY: self.prompts.state_dict()}

    def load_trainable_state(self, state: Mapping[str, Any]) -> None:
        self._text = None
        self.prompts.check_tokens(_learner_of(state), self.backbone.name)
        load_part(self.prompts, state, _CHECKPOINT_KEY, "anomaly_clip")

    @staticmethod
    def options_of(state: Mapping[str, Any]) -> dict[str, int]:
        """What the shapes of a checkpoint say of the options."""
        learner = _learner_of(state)
        context = learner.get("ctx_pos")
        if not isinstance(context, Tensor) or context.ndim != 4:
            return {}  # loading it says what is wrong
        sets = [value for key, value in learner.items() if str(key).startswith("compound_prompts_text.")]
        found = {"n_ctx": context.shape[2], "depth": 1 + len(sets)}
        if sets and isinstance(sets[0], Tensor) and sets[0].ndim == 2:
            found["t_n_ctx"] = sets[0].shape[0]
        return found


class TextPrompts(nn.Module):
    """The learned tokens of both prompts and of the later text blocks, under their published keys.

    Args:
        tower: the text tower that they are for.
        texts: of each state, what follows the learned tokens.
        n_ctx, t_n_ctx, depth: see `AnomalyClip`.
    """

    def __init__(self, tower: PromptableTextTower, texts: Sequence[str], n_ctx: int, t_n_ctx: int, depth: int):
        super().__init__()
        _check_lengths(tower, texts, n_ctx, t_n_ctx, depth)
        self.n_ctx, self.t_n_ctx, self.depth = n_ctx, t_n_ctx, depth
        self.ends: list[int] = []  # place of the end token, of each state
        for state, text in zip(_STATES, texts, strict=True):
            ids, embeddings = tower.tokens("X " * n_ctx + text)  # (n,), (n, width); each X is a token
            context = nn.init.normal_(torch.empty(1, 1, n_ctx, tower.width), std=_STD)
            self.register_parameter(f"ctx_{state}", nn.Parameter(context))
            self.register_buffer(f"token_prefix_{state}", embeddings[None, None, :1].clone())
            self.register_buffer(f"token_suffix_{state}", embeddings[None, None, 1 + n_ctx :].clone())
            self.register_buffer(f"tokenized_prompts_{state}", ids[None, None].int())
            self.ends.append(int(ids.argmax()))  # the end token has the largest number
        sets = [nn.init.normal_(torch.empty(t_n_ctx, tower.width), std=_STD) for _ in range(depth - 1)]
        used = [number < tower.depth - 1 for number in range(depth - 1)]
        self.compound_prompts_text = nn.ParameterList(map(nn.Parameter, sets))
        for one, is_used in zip(self.compound_prompts_text, used, strict=True):
            one.requires_grad_(is_used)
        # Published checkpoints have them, nothing uses them.
        projections = [nn.Linear(tower.width, _PROJECTED) for _ in sets]
        self.compound_prompt_projections = nn.ModuleList(projections).requires_grad_(False)

    def forward(self) -> Tensor:
        """Both prompts as the first text block takes them, without positions, (2, n, width)."""
        length = max(*self.ends, self.t_n_ctx) + 1
        parts = [[getattr(self, f"{part}_{state}") for part in ("token_prefix", "ctx", "token_suffix")]
                 for state in _STATES]  # fmt: skip
        return torch.cat([torch.cat(one, dim=2)[0, :, :length] for one in parts])

    def exchange(self, block: int, tokens: Tensor) -> Tensor:
        """Before a later block, put its own learned tokens behind the start token.

        They are rounded to half precision, and so are their gradients, per prompt, as in the published program.
        """
        if not 1 <= block < self.depth:
            return tokens
        own = self.compound_prompts_text[block - 1].expand(len(tokens), -1, -1).half().float()
        return torch.cat([tokens[:, :1], own, tokens[:, 1 + self.t_n_ctx :]], dim=1)

    def check_tokens(self, state: Mapping[str, Any], model: str) -> None:
        """Raises ValueError where a checkpoint holds other words, or token embeddings of another backbone."""
        state_dicts.check_tensors(state)
        words_first = sorted(self.named_buffers(), key=lambda one: one[1].is_floating_point())
        for key, own in words_first:
            other = state.get(key)
            if not isinstance(other, Tensor) or other.shape != own.shape:
                continue  # loading it says so
            if not own.is_floating_point():
                if not torch.equal(other.cpu(), own.cpu()):
                    raise ValueError(f"'{key}' in it are the tokens of other words; were --prompts others?")
            elif not torch.allclose(other.to(own), own, rtol=_HALF_ROUNDING, atol=1e-6):
                raise ValueError(
                    f"'{key}' in it is not the token embedding of {model} as it is here: it was trained with another "
                    "backbone; name that by --model and --pretrained"
                )


def _learner_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors of a checkpoint's prompts; empty where it has none."""
    parts = state_dicts.strip_prefixes(state_dicts.unwrap(state, {_CHECKPOINT_KEY}), {_CHECKPOINT_KEY})
    learner = parts.get(_CHECKPOINT_KEY)
    return state_dicts.strip_prefixes(learner, {"ctx_pos"}) if isinstance(learner, Mapping) else {}


def _sentences(prompts: Prompts) -> list[str]:
    """What follows the learned tokens of each state."""
    states = sentences("object", prompts)
    if any(len(texts) != 1 for texts in states):
        raise ValueError(
            f"anomaly_clip takes one sentence per state, and the prompts make {len(states[0])} and {len(states[1])}; "
            "give one phrase per state and one template"
        )
    return [text for (text,) in states]


def _check_lengths(tower: PromptableTextTower, texts: Sequence[str], n_ctx: int, t_n_ctx: int, depth: int) -> None:
    most = tower.context_length - 1  # tokens after the start token
    for flag, value, limit in (("n_ctx", n_ctx, most), ("t_n_ctx", t_n_ctx, most), ("depth", depth, _MOST_DEPTH)):
        if not 1 <= value <= limit:
            raise ValueError(f"--{flag} {value}: must be from 1 to {limit}")
    if any(tower.cut(["X " * n_ctx + text for text in texts])):
        raise ValueError(
            f"--n_ctx {n_ctx}: with '{max(texts, key=len)}' behind it, the prompt is longer than the "
            f"{tower.context_length} tokens that the text tower reads; take fewer"
        )
