"""CLIP-AD (Chen et al.: "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-shot Anomaly Detection", arXiv
2311.00453): SDP, which needs no training, and SDP+, which adds linear adapters.

Beside the ordinary path of the vision transformer runs one of value-to-value attention, whose tokens lie in the joint
embedding without being trained for it. They are compared with one representative vector of the texts of each state.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map
from model.adapters import Adapters, load_part
from model.interface import DualTokens, LabeledBatch, Prediction, ScoreRange
from model.losses import segmentation_losses
from model.options import FEATURES_LIST, MEDICAL_PROMPTS, ByDataset, Option, Preset, Training
from model.text_features import TextFeatures, encode_states
from prompt_ensemble import CLIP_AD, Prompts

if TYPE_CHECKING:
    from model.backbones.clip import Backbone

_LOG = logging.getLogger("vand")
_SCALE = 100.0  # inverse temperature of the image score and of the adapters' maps
_CHECKPOINT_KEY = "linear_layers"
_DBSCAN = ByDataset((0.5, 15), {"visa": (1.5, 25)})
_SIGMA = 8.0
_SIGMA_PLUS = ByDataset(_SIGMA, {"visa": 2.0})
_BACKBONE = ("ViT-B-16-plus-240", "laion400m_e31", 240)
REP_VECS = ("mean", "pca", "kde", "dbscan", "mean_shift")
_REP_VEC = "dbscan"
_TEXT_OPTIONS = (
    FEATURES_LIST,
    Option(
        "rep_vec",
        str,
        f"how the texts of a state become one vector: {', '.join(REP_VECS)} (default: {_REP_VEC})",
        default=_REP_VEC,
    ),
    Option(
        "dbscan",
        float,
        "radius and neighbours of --rep_vec dbscan (default: 1.5 25 on visa, else 0.5 15)",
        default=_DBSCAN,
        nargs=2,
        metavar=("EPS", "MIN"),
    ),
)


class Sdp(nn.Module):
    """A detector as `model.interface.Detector` describes it; zero-shot, nothing to train.

    Args:
        backbone: a frozen ViT CLIP.
        features_list: layers whose second path is compared with the texts; None takes four evenly spaced ones.
        rep_vec: how the embeddings of a state's sentences become one vector, one of REP_VECS, see `representative`.
        dbscan: (eps, min_samples) of rep_vec "dbscan".
        smoothing: sigma of the Gaussian filter over the map, in pixels.
        prompts: states and templates.

    Raises:
        ValueError: a ResNet or another transformer than CLIP's; an unknown rep_vec; parameters out of range.
    """

    PRESET: ClassVar[Preset] = Preset(*_BACKBONE, batch_size=16, prompts=MEDICAL_PROMPTS)
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        *_TEXT_OPTIONS,
        Option("smoothing", float, "sigma of the Gaussian filter over maps, in pixels (default: 8)", default=_SIGMA),
    )
    needs_text: ClassVar[bool] = True

    def __init__(
        self,
        backbone: "Backbone",
        *,
        features_list: Sequence[int] | None = None,
        rep_vec: str = _REP_VEC,
        dbscan: Sequence[float] = _DBSCAN.default,
        smoothing: float = _SIGMA,
        prompts: Prompts = CLIP_AD,
    ):
        super().__init__()
        backbone.check_value_path("sdp")
        features_list = sorted(features_list or backbone.default_layers())
        backbone.check_layers("features_list", features_list)
        if rep_vec not in REP_VECS:
            raise ValueError(f"--rep_vec {rep_vec}: unknown; known: {', '.join(REP_VECS)}")
        eps, min_samples = dbscan
        if not (0 < eps < math.inf and 1 <= min_samples < math.inf and min_samples == int(min_samples)):
            raise ValueError(f"--dbscan {eps:g} {min_samples:g}: must be a radius above 0 and a whole number from 1")
        if not 0 <= smoothing <= backbone.image_size:
            raise ValueError(
                f"--smoothing {smoothing:g}: must be pixels from 0 to the image's side, {backbone.image_size}"
            )
        self.backbone = backbone
        self.features_list = tuple(features_list)
        self.rep_vec, self.dbscan, self.smoothing = rep_vec, (float(eps), int(min_samples)), float(smoothing)
        self.prompts = prompts
        self.texts = TextFeatures(self._encode_name)

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "features_list": list(self.features_list),
            "rep_vec": self.rep_vec,
            "dbscan": list(self.dbscan),
            "smoothing": self.smoothing,
        }

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[str]) -> None:
        self.texts.encode(names)

    def _encode_name(self, name: str) -> Tensor:
        """Per state the representative vector of the unit embeddings of its sentences. (D, 2)"""
        vectors = []
        states = encode_states(self.backbone.text, name, self.prompts)
        for state, texts in zip(("normal", "abnormal"), states, strict=True):
            embeddings = F.normalize(texts, dim=-1).cpu()  # (n, D)
            if not embeddings.isfinite().all():
                raise ValueError(f"the texts of '{name}' give NaN or infinity; are the weights broken?")
            vectors.append(self._representative(embeddings, f"{state} {name}"))
        return torch.stack(vectors, dim=-1).to(self.backbone.mean.device)

    def _representative(self, embeddings: Tensor, what: str) -> Tensor:
        """(n, D) unit vectors -> (D,), a unit vector."""
        vector = representative(embeddings, self.rep_vec, *self.dbscan)
        if vector is None:
            _LOG.warning("%s: %s finds no cluster in its texts; their mean is used", what, self.rep_vec)
        if vector is None or self.rep_vec == "mean":
            return F.normalize(embeddings.mean(0), dim=0)
        vector = vector.half()  # the published program goes on in half precision
        return (vector / vector.norm()).float()

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> DualTokens:
        return self.backbone.dual_path(images, self.features_list)

    def zero_shot(self, tokens: DualTokens, names: Sequence[str]) -> Prediction:
        return self.prediction(tokens, names, self.state_map(tokens, names))

    def state_map(self, tokens: DualTokens, names: Sequence[str]) -> Tensor:
        """Sum over layers of the difference in similarity to the states, not smoothed, (B, S, S)."""
        text = self.texts(names)  # (B, D, 2)
        layers = [self._layer_scores(tokens.values[layer].float(), text) for layer in self.features_list]
        patches = functools.reduce(torch.add, layers)  # (B, N)
        grid = tokens.grids[self.features_list[-1]]
        return anomaly_map.upsample(patches, grid, self.backbone.image_size, align_corners=False)

    def _layer_scores(self, values: Tensor, text: Tensor) -> Tensor:
        """Each state's vector is weighted by how well it fits the class token; a patch's score is the similarity to the
        abnormal one, less the mean over both. values: (B, 1 + N, D); returns (B, N)."""
        features = F.normalize(values, dim=-1)
        fit = (features[:, :1] @ text).softmax(-1)  # (B, 1, 2)
        weighted = text * (fit / fit.mean(-1, keepdim=True))  # (B, D, 2)
        direction = (weighted[..., 1] - weighted[..., 0]) / 2  # (B, D)
        return (features[:, 1:] @ direction[..., None])[..., 0]

    def prediction(self, tokens: DualTokens, names: Sequence[str], scores: Tensor) -> Prediction:
        """The map smoothed, and the components of the image score. scores: (B, S, S)."""
        smooth = anomaly_map.gaussian(scores, self.smoothing)
        class_token = tokens.values[self.features_list[-1]][:, :1].float()  # (B, 1, D)
        text = torch.sigmoid(anomaly_map.state_logit(class_token, self.texts(names), _SCALE))[:, 0]  # (B,)
        return Prediction(smooth, {"text": text, "map_max": smooth.amax((1, 2))})

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """The text term plus the map's maximum, each on the scale of the class."""
        return anomaly_map.rescale(score_components, "text", limits) + anomaly_map.rescale(
            score_components, "map_max", limits
        )


class SdpPlus(nn.Module):
    """SDP+: adapters on the ordinary path, whose maps are added to SDP's before the filter.

    The arguments are those of `Sdp`.
    """

    PRESET: ClassVar[Preset] = Preset(
        *_BACKBONE,
        batch_size=16,
        prompts=MEDICAL_PROMPTS,
        training=Training(batch_size=8, learning_rate=1e-4, betas=(0.9, 0.999), epoch=5, seed=42, no_shuffle=True),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        *_TEXT_OPTIONS,
        Option(
            "smoothing",
            float,
            "sigma of the Gaussian filter over maps, in pixels (default: 2 on visa, else 8)",
            default=_SIGMA,
            test_default=_SIGMA_PLUS,
        ),
    )
    needs_text: ClassVar[bool] = True
    LOSSES: ClassVar[tuple[str, ...]] = ("focal", "dice")

    def __init__(
        self,
        backbone: "Backbone",
        *,
        features_list: Sequence[int] | None = None,
        rep_vec: str = _REP_VEC,
        dbscan: Sequence[float] = _DBSCAN.default,
        smoothing: float = _SIGMA,
        prompts: Prompts = CLIP_AD,
    ):
        super().__init__()
        self.sdp = Sdp(
            backbone, features_list=features_list, rep_vec=rep_vec, dbscan=dbscan, smoothing=smoothing, prompts=prompts
        )
        self.adapters = Adapters([backbone.width(layer) for layer in self.sdp.features_list], backbone.embed_dim)

    @property
    def backbone(self) -> "Backbone":
        return self.sdp.backbone

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, Any]:
        return self.sdp.options

    def encode_names(self, names: Sequence[str]) -> None:
        self.sdp.encode_names(names)

    def encode(self, images: Tensor) -> DualTokens:
        return self.sdp.encode(images)

    def zero_shot(self, tokens: DualTokens, names: Sequence[str]) -> Prediction:
        adapted = torch.stack([torch.sigmoid(logit) for logit in self._pixel_logits(tokens, names)]).sum(0)
        return self.sdp.prediction(tokens, names, self.sdp.state_map(tokens, names) + adapted)

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """As SDP."""
        return self.sdp.image_scores(score_components, limits)

    def forward(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        tokens = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # only the backbone gains by lower precision
            return [anomaly_map.state_probabilities(logit) for logit in self._pixel_logits(tokens, names)]

    def _pixel_logits(self, tokens: DualTokens, names: Sequence[str]) -> list[Tensor]:
        return self.adapters.pixel_logits(
            tokens.patches, tokens.grids, self.sdp.texts(names), _SCALE, self.backbone.image_size
        )

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        return segmentation_losses(self(batch.images, batch.names), batch.masks)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        return [{"params": list(self.adapters.parameters()), "lr": learning_rate}]

    def trainable_state(self) -> dict:
        return {_CHECKPOINT_KEY: self.adapters.state_dict()}

    def load_trainable_state(self, state: Mapping) -> None:
        load_part(self.adapters, state, _CHECKPOINT_KEY, "sdp_plus")


def representative(embeddings: Tensor, rep_vec: str, eps: float, min_samples: int) -> Tensor | None:
    """One vector for the sentences of a state, (D,), of any length; None where no cluster forms.

    Args:
        embeddings: (n, D) float32, unit length.
        rep_vec: "mean"; "pca", the first principal component with the sentences as variables, on the side of the mean;
            "kde", the mean weighted by the density of the embeddings; "dbscan" and "mean_shift", the mean of the
            largest cluster.
        eps, min_samples: of DBSCAN.
    """
    # Here, since scikit-learn takes seconds to import, and --help needs this file's options.
    from sklearn.cluster import DBSCAN, MeanShift
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KernelDensity

    points = embeddings.numpy()
    match rep_vec:
        case "mean":
            return embeddings.mean(0)
        case "pca":
            vector = torch.from_numpy(PCA(1).fit_transform(points.T)[:, 0])
            return vector if vector @ embeddings.mean(0) >= 0 else -vector
        case "kde":
            density = torch.from_numpy(KernelDensity(bandwidth=0.3).fit(points).score_samples(points)).exp()
            return (density / density.sum()).float() @ embeddings
        case "dbscan":
            return _mean_of_largest(embeddings, DBSCAN(eps=eps, min_samples=min_samples).fit(points).labels_)
        case "mean_shift":
            return _mean_of_largest(embeddings, MeanShift(bandwidth=2).fit(points).labels_)
    raise ValueError(f"--rep_vec {rep_vec}: unknown; known: {', '.join(REP_VECS)}")


def _mean_of_largest(embeddings: Tensor, labels: Any) -> Tensor | None:
    """labels: the cluster of each embedding, -1 for none."""
    labels = torch.from_numpy(labels)
    clusters, sizes = labels[labels >= 0].unique(return_counts=True)
    return embeddings[labels == clusters[sizes.argmax()]].mean(0) if len(clusters) else None
