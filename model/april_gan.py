"""APRIL-GAN (Chen, Han, Zhang: "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR
2023 VAND Workshop Challenge Tracks 1&2", arXiv 2305.17382).

Linear adapters map the patch tokens of several layers into the joint embedding, where they are compared with the
texts of two states; few-shot adds the distance of the raw tokens to a memory bank of normal images.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map, memory_bank
from model.adapters import Adapters, load_part
from model.interface import LabeledBatch, Memory, Prediction, ScoreRange, SimilarityCache, Tokens
from model.losses import segmentation_losses
from model.options import FEATURES_LIST, MEDICAL_PROMPTS, ByDataset, Option, Preset, Training
from model.text_features import TextFeatures, encode_states
from model.tokens import join_tokens
from prompt_ensemble import APRIL_GAN, Prompts

if TYPE_CHECKING:
    from model.backbones.clip import Backbone

_SCALE = 100.0  # inverse temperature of every softmax over states
_CHECKPOINT_KEY = "trainable_linearlayer"


class AprilGan(nn.Module):
    """A detector as `model.interface.Detector` describes it.

    Args:
        backbone: a frozen CLIP.
        features_list: layers whose adapted tokens are compared with the texts; None takes four evenly spaced ones.
        few_shot_features: layers whose raw tokens are compared with the references; None takes `features_list`.
        prompts: states and templates.
    """

    PRESET: ClassVar[Preset] = Preset(
        "ViT-L-14-336",
        "openai",
        518,
        batch_size=8,
        k_shot=(4,),
        seed=(42,),
        prompts=MEDICAL_PROMPTS,
        training=Training(
            batch_size=8,
            learning_rate=1e-3,
            betas=(0.5, 0.999),
            epoch=ByDataset(15, {"mvtec": 3}),
            aug_rate=ByDataset(0.0, {"mvtec": 0.2}),
            seed=111,
        ),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        FEATURES_LIST,
        Option(
            "few_shot_features",
            int,
            "layers whose tokens are compared with the references (default: features_list)",
            nargs="+",
            scripts=("test",),
        ),
    )
    needs_text: ClassVar[bool] = True
    LOSSES: ClassVar[tuple[str, ...]] = ("focal", "dice")

    def __init__(
        self,
        backbone: "Backbone",
        *,
        features_list: Sequence[int] | None = None,
        few_shot_features: Sequence[int] | None = None,
        prompts: Prompts = APRIL_GAN,
    ):
        super().__init__()
        # In block order, as the published program pairs adapters with layers, however they are listed.
        features_list = sorted(features_list or backbone.default_layers())
        few_shot_features = sorted(few_shot_features or features_list)
        backbone.check_layers("features_list", features_list)
        backbone.check_layers("few_shot_features", few_shot_features)
        self.backbone = backbone
        self.features_list = tuple(features_list)
        self.few_shot_features = tuple(few_shot_features)
        self.prompts = prompts
        self.adapters = Adapters([backbone.width(layer) for layer in features_list], backbone.embed_dim)
        self.texts = TextFeatures(self._encode_name)

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, list[int]]:
        return {"features_list": list(self.features_list), "few_shot_features": list(self.few_shot_features)}

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[str]) -> None:
        self.texts.encode(names)

    def _encode_name(self, name: str) -> Tensor:
        """Per state: mean of the unit embeddings of all its sentences, unit length again. Returns (D, 2)."""
        states = encode_states(self.backbone.text, name, self.prompts)  # each (n, D)
        means = [F.normalize(state, dim=-1).mean(0) for state in states]
        return F.normalize(torch.stack(means, dim=-1), dim=0)

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        return self.backbone(images, {*self.features_list, *self.few_shot_features})

    def forward(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        tokens = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # only the backbone gains by lower precision
            return [anomaly_map.state_probabilities(logit) for logit in self._pixel_logits(tokens, self.texts(names))]

    def zero_shot(self, tokens: Tokens, names: Sequence[str]) -> Prediction:
        text = self.texts(names)
        probabilities = [torch.sigmoid(logit) for logit in self._pixel_logits(tokens, text)]
        image_logit = anomaly_map.state_logit(tokens.pooled.float().unsqueeze(1), text, _SCALE)[:, 0]  # (B,)
        return Prediction(torch.stack(probabilities).sum(0), {"text": torch.sigmoid(image_logit)})

    def _pixel_logits(self, tokens: Tokens, text: Tensor) -> list[Tensor]:
        patches = {layer: tokens.patches[layer] for layer in self.features_list}
        return self.adapters.pixel_logits(patches, tokens.grids, text, _SCALE, self.backbone.image_size)

    # --- references -------------------------------------------------------------------------------------------------

    def build_memory(self, references: Sequence[Tokens]) -> Memory:
        tokens = join_tokens(references)
        return Memory({str(layer): memory_bank.build_bank(tokens.patches[layer]) for layer in self.few_shot_features})

    @property
    def bank_widths(self) -> dict[str, int]:
        return {str(layer): self.backbone.width(layer) for layer in self.few_shot_features}

    @property
    def bank_rows(self) -> dict[str, int]:
        return {str(layer): self.backbone.token_count(layer) for layer in self.few_shot_features}

    def few_shot(
        self,
        zero_shot: Prediction,
        tokens: Tokens,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        fused = zero_shot.maps.clone()
        for name, rows in memory_bank.rows_by_name(names).items():
            distances = {}  # layer -> (len(rows), N)
            for layer in self.few_shot_features:
                references, seen = (
                    memories[name].banks[str(layer)],
                    memory_bank.cached_similarities(found, name, str(layer)),
                )
                patches = tokens.patches[layer][rows]
                distances[layer] = memory_bank.nearest_distance(patches, references, memories[name].images, seen)
            fused[rows] += self._distance_map(distances, tokens.grids)
        return Prediction(fused, {**zero_shot.score_components, "map_max": fused.amax((1, 2))})

    def _distance_map(self, distances: Mapping[int, Tensor], grids: Mapping[int, tuple[int, int]]) -> Tensor:
        """Sum over layers of the upsampled distances, (B, S, S). Interpolation is linear: layers that share a grid, as
        all of a ViT do, are added before it."""
        sums: dict[tuple[int, int], Tensor] = {}
        for layer, distance in distances.items():
            grid = grids[layer]
            sums[grid] = sums[grid] + distance if grid in sums else distance
        upsampled = [
            anomaly_map.upsample(one, grid, self.backbone.image_size, align_corners=True) for grid, one in sums.items()
        ]
        return torch.stack(upsampled).sum(0)

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """Zero-shot: the text term. Few-shot: its mean with the map's maximum, on the scale of the class."""
        if "map_max" not in score_components:
            return score_components["text"]
        return 0.5 * (score_components["text"] + anomaly_map.rescale(score_components, "map_max", limits))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        return segmentation_losses(self(batch.images, batch.names), batch.masks)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        return [{"params": list(self.adapters.parameters()), "lr": learning_rate}]

    def trainable_state(self) -> dict:
        return {_CHECKPOINT_KEY: self.adapters.state_dict()}

    def load_trainable_state(self, state: Mapping) -> None:
        load_part(self.adapters, state, _CHECKPOINT_KEY, "april_gan")
