"""SubspaceAD ("SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling", CVPR 2026, arXiv
2602.23013).

PCA of the patch tokens of normal images, seen at many angles; a patch is as anomalous as its token is far from the
subspace that holds nearly all their variance. No texts, nothing to train. A whole test set can take the place of the
references ("batched"): most of its patches are normal.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, Resizer, SquareInput
from data.views import PLAIN, ImageViews, View
from model import anomaly_map, subspace
from model import background as masks
from model.image_scores import IMAGE_SCORES
from model.interface import ImageTower, Memory, Prediction, ScoreRange, SimilarityCache, TokenPasses
from model.layer_features import aggregate, layer_groups
from model.memory_bank import rows_by_name
from model.options import Option, PositionRules, Preset, boolean, check_known, natural, positive, probability
from model.subspace import Subspace, TokenStatistics

_AGGREGATIONS = ("mean", "concat", "group")
_BACKGROUNDS = ("none", "dino_saliency", "pca_normality")
_THRESHOLDS = ("percentile", "otsu")
_RESIZERS: Mapping[str, Resizer] = {"torchvision": "torchvision", "pil": "bicubic"}  # published names
# Blocks of a model -> its published layers; other models take the part of their depth that the largest one takes.
_LAYERS = {12: (-4, -5), 24: (-7, -8, -9, -10, -11), 40: (-12, -13, -14, -15, -16, -17, -18)}
_DEPTHS = (23 / 40, 29 / 40)
_PLAIN_OPTIONS = (
    "aggregation", "grouped_layers", "augmentations", "explained_variance", "components", "image_score", "center_crop",
    "background", "background_threshold", "background_percentile", "saliency_layer", "resizer",
)  # fmt: skip
_AUGMENTATIONS, _KINDS = 30, ("rotate",)
_VARIANCE = 0.99
_SCORE = "mtop1p"
_SHARE, _BLOCK = 0.15, 6  # of the mask by saliency
_ANGLES = (0.0, 345.0)  # degrees
_UPRIGHT = {("mvtec", "transistor")}  # (dataset, class) whose references are not augmented: turned ones are its defects
_SIGMA = 4.0  # of the filter over maps, which is cut off after one pixel, as published


class SubspaceTokens(NamedTuple):
    """What the backbone makes of a batch of images."""

    features: Tensor  # (B, N, W) float32, layers aggregated
    foreground: Tensor  # (B, N) bool, by saliency; all of it with other masks
    grid: tuple[int, int]


class SubspaceAd(nn.Module):
    """A detector as `model.interface.Detector` describes it; few-shot and batched, nothing to train.

    Args:
        backbone: any frozen image tower.
        features_list: layers from 1, or from the end (-1: the last); 0 is what enters the first block; None takes the
            published ones, or those at the same depth.
        aggregation: "mean" or "concat" of the layers; "group": means of the groups of `grouped_layers`, concatenated.
        grouped_layers: as published, "-1,-2:-3,-4".
        augmentations: further views of each reference; augmentation_kinds: what each consists of, in order.
        explained_variance, components: see `subspace.fit`.
        image_score: a key of IMAGE_SCORES.
        center_crop: see `SquareInput`.
        background: mask by the attention of a block ("dino_saliency"), or as AnomalyDINO's, of test images alone
            ("pca_normality").
        background_threshold: of saliency, "percentile" or "otsu"; background_percentile: share that is background.
        saliency_layer: block whose attention is the saliency, from 0 as published.
        resizer: "torchvision" or "pil".

    Raises:
        ValueError: layers that do not exist or fit together, unknown names, numbers out of range, a backbone without
            attention to patches where saliency is asked for.
    """

    # Smaller models, for machines without a large GPU, are in docs/methods.md.
    PRESET: ClassVar[Preset] = Preset(
        "vit_giant_patch14_reg4_dinov2",
        "lvd142m",
        672,
        batch_size=8,
        k_shot=(1,),
        seed=(42,),
        position_rules=PositionRules(plain="size", registers="size_antialias"),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "features_list",
            int,
            "layers that are aggregated, counted from 1, or from the end (-1: the last); 0: what enters block 1 "
            "(default: the published ones, or those at the same depth)",
            nargs="+",
        ),
        Option("aggregation", str, f"of layers: {', '.join(_AGGREGATIONS)} (default: mean)", default=_AGGREGATIONS[0]),
        Option(
            "grouped_layers",
            str,
            'layers of --aggregation group, in the place of features_list: --grouped_layers="-1,-2:-3,-4"',
            metavar="GROUPS",
        ),
        Option("augmentations", natural, "further views of each reference (default: 30)", default=_AUGMENTATIONS),
        Option(
            "augmentation_kinds",
            str,
            "what a view consists of, in order: rotate, hflip, vflip (default: rotate)",
            default=list(_KINDS),
            nargs="+",
        ),
        Option(
            "explained_variance",
            probability,
            "share of the references' variance that the subspace holds (default: 0.99)",
            default=_VARIANCE,
        ),
        Option("components", positive, "directions of the subspace, in the place of explained_variance"),
        Option(
            "image_score",
            str,
            "of the map: mtop1p (mean of the highest 1 %%), max, mean, p99, mtop5 (default: mtop1p)",
            default=_SCORE,
        ),
        Option("center_crop", boolean, "stretch to image_size / 0.875, cut out the middle: True, False", default=False),
        Option("background", str, f"mask: {', '.join(_BACKGROUNDS)} (default: none)", default=_BACKGROUNDS[0]),
        Option(
            "background_threshold",
            str,
            "of dino_saliency: percentile, otsu (default: percentile)",
            default=_THRESHOLDS[0],
        ),
        Option("background_percentile", probability, "share that is background (default: 0.15)", default=_SHARE),
        Option("saliency_layer", natural, "block of dino_saliency, counted from 0 (default: 6)", default=_BLOCK),
        Option("resizer", str, "of images: torchvision, pil (default: torchvision)", default="torchvision"),
    )
    needs_text: ClassVar[bool] = False
    SET_MINIMUM: ClassVar[int] = 1
    SET_PASSES: ClassVar[int] = 2

    def __init__(
        self,
        backbone: ImageTower,
        *,
        features_list: Sequence[int] | None = None,
        aggregation: str = _AGGREGATIONS[0],
        grouped_layers: str | None = None,
        augmentations: int = _AUGMENTATIONS,
        augmentation_kinds: Sequence[str] = _KINDS,
        explained_variance: float = _VARIANCE,
        components: int | None = None,
        image_score: str = _SCORE,
        center_crop: bool = False,
        background: str = _BACKGROUNDS[0],
        background_threshold: str = _THRESHOLDS[0],
        background_percentile: float = _SHARE,
        saliency_layer: int = _BLOCK,
        resizer: str = "torchvision",
    ):
        super().__init__()
        backbone.check_square()
        check_known("--aggregation", [aggregation], _AGGREGATIONS)
        check_known("--augmentation_kinds", augmentation_kinds, _DRAWS)
        check_known("--image_score", [image_score], IMAGE_SCORES)
        check_known("--background", [background], _BACKGROUNDS)
        check_known("--background_threshold", [background_threshold], _THRESHOLDS)
        check_known("--resizer", [resizer], _RESIZERS)
        self.groups = layer_groups(
            backbone, aggregation, features_list, grouped_layers, default=_published_layers(backbone)
        )
        self.width = sum(backbone.width(group[0]) for group in self.groups)
        if components is not None and components > self.width:
            raise ValueError(f"--components {components}: the features have {self.width} dimensions; take fewer")
        if background == "dino_saliency":
            backbone.check_saliency(f"--saliency_layer {saliency_layer}", saliency_layer)
        self.backbone = backbone
        self.aggregation, self.grouped_layers = aggregation, grouped_layers
        self.augmentations, self.augmentation_kinds = augmentations, tuple(augmentation_kinds)
        self.explained_variance, self.components = explained_variance, components
        self.image_score, self.center_crop, self.resizer = image_score, bool(center_crop), resizer
        self.background, self.background_threshold = background, background_threshold
        self.background_percentile, self.saliency_layer = background_percentile, saliency_layer

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size, _RESIZERS[self.resizer], self.center_crop)

    @property
    def options(self) -> dict[str, Any]:
        layers = [layer for group in self.groups for layer in group]
        return {
            "features_list": None if self.aggregation == "group" else layers,
            "augmentation_kinds": list(self.augmentation_kinds),
            **{key: getattr(self, key) for key in _PLAIN_OPTIONS},
        }

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> SubspaceTokens:
        tokens = self.backbone(images, {layer for group in self.groups for layer in group}, pooled=False)
        features, grid = aggregate(tokens, self.groups)  # (B, N, W)
        return SubspaceTokens(features, self._salient(images, features), grid)

    def _salient(self, images: Tensor, features: Tensor) -> Tensor:
        """Foreground by the attention of a block, (B, N) bool; everything with other masks."""
        if self.background != "dino_saliency":
            return features.new_ones(features.shape[:2], dtype=torch.bool)
        saliency = self.backbone.saliency(images, self.saliency_layer).float()  # (B, N)
        if self.background_threshold == "otsu":
            return masks.above_otsu(saliency)
        return masks.above_quantile(saliency, self.background_percentile)

    # --- references -------------------------------------------------------------------------------------------------

    @classmethod
    def draw_references(cls, train: Mapping[str, Sequence[str]], k_shot: int, seed: int) -> dict[str, list[str]]:
        """The published draw: one stream of random numbers shuffles class after class, so that it depends on which
        classes come before. Of a class with fewer images all are taken, and nothing is drawn.

        train: class, in the order of the run -> its normal training images, sorted.
        """
        stream, drawn = random.Random(seed), {}
        for name, paths in train.items():
            order = list(paths)
            if k_shot <= len(order):
                stream.shuffle(order)
            drawn[name] = order[:k_shot]
        return drawn

    def draw_views(
        self, references: Mapping[str, Sequence[str]], dataset: str, seed: int | None
    ) -> dict[str, list[ImageViews]]:
        """As published: for the mean each reference and its augmentations, for the covariance the reference and others,
        from one stream of random numbers, class after class, pass after pass.

        seed: None takes that of the preset.
        """
        stream = torch.Generator().manual_seed(self.PRESET.seed[0] if seed is None else seed)
        views: dict[str, list[ImageViews]] = {}
        for name, paths in references.items():
            if not self.augmentations or (dataset, name) in _UPRIGHT:
                views[name] = [PLAIN] * len(paths)
                continue
            passes = [[self._draw_image(stream) for _ in paths] for _ in range(2)]
            views[name] = list(zip(*passes, strict=True))
        return views

    def _draw_image(self, stream: torch.Generator) -> tuple[View, ...]:
        """The picture itself, and its augmentations."""
        drawn = [
            tuple(step for kind in self.augmentation_kinds for step in _DRAWS[kind](kind, stream))
            for _ in range(self.augmentations)
        ]
        return ((), *drawn)

    @torch.no_grad()
    def summarize(self, passes: Sequence[SubspaceTokens]) -> TokenStatistics:
        return subspace.collect([(tokens.features, tokens.foreground) for tokens in passes])

    @torch.no_grad()
    def build_memory(self, references: Sequence[TokenStatistics]) -> Memory:
        fitted = subspace.fit(subspace.merge(references), self.explained_variance, self.components)
        return Memory(fitted._asdict())

    @property
    def bank_widths(self) -> dict[str, int]:
        return dict.fromkeys(Subspace._fields, self.width)

    @property
    def bank_rows(self) -> dict[str, int]:
        """While they are put together, an image has W x W sums in double precision."""
        return {"mean": 1, "components": 2 * self.width}

    # --- scores -----------------------------------------------------------------------------------------------------

    def few_shot(
        self,
        zero_shot: Prediction | None,
        tokens: SubspaceTokens,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        distances = tokens.features.new_empty(tokens.features.shape[:2])  # (B, N)
        for name, rows in rows_by_name(names).items():
            distances[rows] = subspace.residual(tokens.features[rows], Subspace(**memories[name].banks))
        return self._predict(distances, tokens)

    def score_set(self, tokens: TokenPasses, name: str) -> Iterator[Prediction]:
        """The subspace of all images of the set; they are not augmented, as published."""
        statistics = subspace.merge(self.summarize([bundle]) for bundle in tokens())
        fitted = subspace.fit(statistics, self.explained_variance, self.components)
        for bundle in tokens():
            yield self._predict(subspace.residual(bundle.features, fitted), bundle)

    def _predict(self, distances: Tensor, tokens: SubspaceTokens) -> Prediction:
        """From distances of patches to the subspace, (B, N)."""
        foreground = None
        if self.background != "none":
            normality = self.background == "pca_normality"
            foreground = masks.above_normality(tokens.features, tokens.grid) if normality else tokens.foreground
            distances = torch.where(foreground, distances, 0.0)
            foreground = foreground.unflatten(1, tokens.grid)  # (B, G, G)
        maps = anomaly_map.upsample(distances, tokens.grid, self.backbone.image_size, align_corners=False)
        maps = smooth(maps)  # (B, S, S)
        return Prediction(maps, {self._term: IMAGE_SCORES[self.image_score](maps)}, foreground)

    @property
    def _term(self) -> str:
        return f"map_{self.image_score}"

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """As published, the number itself, whose unit is the features' square; with limits, on their scale."""
        if limits is None:
            return score_components[self._term]
        return anomaly_map.rescale(score_components, self._term, limits)


def smooth(maps: Tensor) -> Tensor:
    """The filter over maps, (B, S, S), whose Gaussian is cut off after one pixel; borders are reflected, the pixels at
    the edge not repeated."""
    side = math.exp(-0.5 / _SIGMA**2)
    outer, inner = side / (1 + 2 * side), 1 / (1 + 2 * side)
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    rows = outer * (padded[:, :-2] + padded[:, 2:]) + inner * padded[:, 1:-1]
    return outer * (rows[..., :-2] + rows[..., 2:]) + inner * rows[..., 1:-1]


def _rotation(kind: str, stream: torch.Generator) -> View:
    return ((kind, torch.empty(1).uniform_(*_ANGLES, generator=stream).item()),)


def _coin(kind: str, stream: torch.Generator) -> View:
    return ((kind, 1.0),) if torch.rand(1, generator=stream).item() < 0.5 else ()


# Operation of data/views.py -> draws its steps: (its name, random numbers) -> none or one.
_DRAWS: Mapping[str, Callable[[str, torch.Generator], View]] = {"rotate": _rotation, "hflip": _coin, "vflip": _coin}


def _published_layers(backbone: ImageTower) -> Sequence[int]:
    if backbone.grid is None:  # stages of a CNN: the last one is coarse
        return [max(1, backbone.depth - 1)]
    first, last = (round(part * backbone.depth) for part in _DEPTHS)
    return _LAYERS.get(backbone.depth, range(first, last + 1))
