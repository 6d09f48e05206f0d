"""AnomalyDINO (Damm et al.: "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025,
arXiv 2405.14529). No texts, no training.

Few-shot: the distance of each patch to the nearest patch of the references, which may be rotated; the background may be
left out. Batched: the images of a class are compared with each other, and there are no references.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, ShorterEdgeInput
from data.views import ImageViews
from model import anomaly_map, memory_bank
from model.class_rules import PREPROCESSING, ClassRules
from model.foreground import foreground
from model.interface import ImageTower, Memory, Prediction, ScoreRange, SimilarityCache, TokenPasses
from model.layer_features import average, coarsest, compared_layers, join_layers
from model.options import Option, PositionRules, Preset, boolean, check_known, check_read, positive

_LOG = logging.getLogger("vand")
_SIGMA = 4.0  # of the Gaussian filter over the maps, in pixels
_TOP = 0.01  # share of the patches whose mean distance is the score of an image
_MUTUAL = 0.001  # share of the other images' patches that a patch is compared with, where a set scores itself
_METRICS = ("cosine", "l2")
_ANGLES = (0, 45, 90, 135, 180, 225, 270, 315)  # of the views of a reference, in degrees


def _option(name: str, kind: Any, text: str, **others: Any) -> Option:
    return Option(name, kind, text, scripts=("test",), **others)


class PatchTokens(NamedTuple):
    """What AnomalyDINO makes of a batch of images of one shape."""

    patches: Tensor  # (B, N, W), what is compared; not normalised
    last: Tensor | None  # (B, N, w), of the last layer, from which masks are made; None: patches are that
    grid: tuple[int, int]  # (g_h, g_w), with N = g_h * g_w
    map_size: tuple[int, int]  # (H, W)


class AnomalyDino(nn.Module):
    """A detector as `model.interface.Detector` describes it.

    Args:
        backbone: frozen; anything with patch tokens.
        features_list: layers whose tokens are compared. One is compared as it is; several are joined, each of unit
            length at each place, on the coarsest of their grids. Published: the last.
        preprocess: a key of PREPROCESSING.
        masking, rotation: class names, or "all" or "none" alone, instead of what `preprocess` says.
        mask_references: leave out the background of the references too, of classes that are masked.
        metric: "cosine", or "l2", Euclidean.
        neighbors: number of nearest reference patches that the distance of a patch is taken to.

    Raises:
        ValueError: a layer that does not exist, an unknown name, a number out of range, "all" or "none" among class
            names.
    """

    PRESET: ClassVar[Preset] = Preset(
        "vit_small_patch14_dinov2",
        "lvd142m",
        448,
        batch_size=8,
        k_shot=(1,),
        seed=(0,),
        position_rules=PositionRules(plain="offset", registers="size_antialias"),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        _option(
            "features_list",
            int,
            "layers whose tokens are compared, from 1, or from the end with -1 (default: the last; of a CNN the two "
            "before it)",
            nargs="+",
        ),
        _option(
            "preprocess",
            str,
            f"which classes are masked, and whose references rotated: {', '.join(PREPROCESSING)} (default: agnostic)",
            default="agnostic",
        ),
        _option("masking", str, "classes to mask, all or none, instead of what --preprocess says", nargs="+"),
        _option("rotation", str, "classes with rotated references, all or none, likewise", nargs="+"),
        _option("mask_references", boolean, "mask references too, True or False (default)", default=False),
        _option("metric", str, "distance: cosine (default) or l2", default="cosine"),
        _option("neighbors", positive, "nearest reference patches that count (default: 1)", default=1),
    )
    needs_text: ClassVar[bool] = False
    SET_MINIMUM: ClassVar[int] = 2
    SET_PASSES: ClassVar[int] = 1

    def __init__(
        self,
        backbone: ImageTower,
        *,
        features_list: Sequence[int] | None = None,
        preprocess: str = "agnostic",
        masking: Sequence[str] | None = None,
        rotation: Sequence[str] | None = None,
        mask_references: bool = False,
        metric: Literal["cosine", "l2"] = "cosine",
        neighbors: int = 1,
    ):
        super().__init__()
        check_known("--preprocess", [preprocess], PREPROCESSING)
        check_known("--metric", [metric], _METRICS)
        check_read("--neighbors", [neighbors], positive)
        self.rules = ClassRules(preprocess, masking, rotation)
        self._said: set[str] = set()  # what the log has been told once
        self.backbone = backbone
        self.layers = backbone.number_layers("--features_list", features_list or compared_layers(backbone, [-1]))
        self.mask_references, self.metric, self.neighbors = mask_references, metric, neighbors
        self._preprocess, self._masking, self._rotation = preprocess, masking, rotation

    def check_classes(self, names: Sequence[str]) -> None:
        """Log once the classes that --masking and --rotation name and a run, of these names, does not have."""
        self.rules.check_names(names)

    @property
    def input_spec(self) -> InputSpec:
        return ShorterEdgeInput(self.backbone.image_size, self.backbone.patch)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "features_list": self.layers,
            "preprocess": self._preprocess,
            "masking": self._masking and list(self._masking),
            "rotation": self._rotation and list(self._rotation),
            "mask_references": self.mask_references,
            "metric": self.metric,
            "neighbors": self.neighbors,
        }

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor, map_size: tuple[int, int] | None = None) -> PatchTokens:
        tokens = self.backbone(images, self.layers, normed=True, pooled=False)
        map_size = map_size or (images.shape[2], images.shape[3])
        if len(self.layers) == 1:
            (layer,) = self.layers
            return PatchTokens(tokens.patches[layer], None, tokens.grids[layer], map_size)
        grid, top = coarsest(tokens, self.layers), max(self.layers)
        last = average(tokens.patches[top].float(), tokens.grids[top], grid)
        return PatchTokens(join_layers(tokens, self.layers), last, grid, map_size)

    def _foreground(self, tokens: PatchTokens, what: str, rows: list[int] | slice = slice(None)) -> Tensor:
        """(len(rows), N) bool. what: is masked; the log says once where it has no foreground."""
        features = tokens.patches if tokens.last is None else tokens.last
        mask = foreground(features[rows], tokens.grid)
        if not torch.compiler.is_compiling() and what not in self._said and not mask.any(1).all():
            self._said.add(what)
            _LOG.warning(
                "%s has no foreground: all its patches count as background; look at the masks in the overlays, or take "
                "--masking none",
                what,
            )
        return mask

    def _prediction(self, distances: Tensor, tokens: PatchTokens, mask: Tensor | None) -> Prediction:
        """Maps and scores from the distance of each patch, (B, N); 0 where a mask, (B, N) bool, has background."""
        if mask is not None:
            distances = distances.masked_fill(~mask, 0)
        top = max(1, int(_TOP * distances.shape[1]))
        score = distances.topk(top, dim=1).values.mean(1)
        maps = anomaly_map.upsample_smoothly(distances, tokens.grid, tokens.map_size, _SIGMA)
        return Prediction(maps, {"distance": score}, None if mask is None else mask.unflatten(1, tokens.grid))

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """The mean of the largest distances. Needs no limits."""
        return score_components["distance"]

    # --- references -------------------------------------------------------------------------------------------------

    @classmethod
    def draw_references(cls, train: Mapping[str, Sequence[str]], k_shot: int, seed: int) -> dict[str, list[str]]:
        """The published choice: seed s takes the images s k to (s + 1) k of each class, in the order of their names.

        Raises:
            ValueError: a class has none there.
        """
        chosen = {name: list(paths[seed * k_shot : (seed + 1) * k_shot]) for name, paths in train.items()}
        for name, paths in chosen.items():
            if not paths:
                raise ValueError(
                    f"--seed {seed}: class '{name}' has {len(train[name])} normal training images, and the "
                    f"published draw begins at number {seed * k_shot + 1}; take a smaller seed"
                )
        return chosen

    def draw_views(
        self, references: Mapping[str, Sequence[str]], dataset: str, seed: int | None
    ) -> Mapping[str, list[ImageViews]]:
        """Eight rotations of each reference, of the classes that are rotated."""
        turned = tuple((("rotate_reflected", float(angle)),) if angle else () for angle in _ANGLES)
        return {
            name: [(turned if self.rules.rotates(name) else ((),),)] * len(paths) for name, paths in references.items()
        }

    def summarize(self, passes: Sequence[PatchTokens]) -> dict[str, Tensor]:
        """What the bank takes of one reference: its patches, and which of them are foreground."""
        (tokens,) = passes
        found = {"patch": tokens.patches.flatten(0, 1).float()}
        if self.metric == "cosine":
            found["patch"] = F.normalize(found["patch"], dim=-1)
        if self.mask_references and self.rules.masks_any:
            features = tokens.patches if tokens.last is None else tokens.last
            found["foreground"] = foreground(features, tokens.grid).flatten()[:, None].float()
        return found

    def build_memory(self, references: Sequence[Mapping[str, Tensor]]) -> Memory:
        """One bank of all of them."""
        banks = {key: torch.cat([one[key] for one in references]) for key in references[0]}
        if len(banks["patch"]) < self.neighbors:
            raise ValueError(f"--neighbors {self.neighbors}: the references have {len(banks['patch'])} patches in all")
        return Memory(banks)

    @property
    def bank_widths(self) -> dict[str, int]:
        extra = {"foreground": 1} if self.mask_references and self.rules.masks_any else {}
        return {"patch": sum(self.backbone.width(layer) for layer in self.layers), **extra}

    @property
    def bank_rows(self) -> dict[str, int]:
        patches = min(self.backbone.token_count(layer) for layer in self.layers)
        return dict.fromkeys(self.bank_widths, patches)

    def few_shot(
        self,
        zero_shot: Prediction | None,
        tokens: PatchTokens,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        """The distance of each patch to the nearest reference patches; 0 in the background."""
        distances = tokens.patches.new_zeros(tokens.patches.shape[:2], dtype=torch.float32)  # (B, N)
        masked = [name for name in dict.fromkeys(names) if self.rules.masks(name)]
        mask = torch.ones_like(distances, dtype=torch.bool) if masked else None
        for name, rows in memory_bank.rows_by_name(names).items():
            distances[rows] = self._distances(tokens.patches[rows], name, memories[name], found)
            if mask is not None and name in masked:
                known = memory_bank.cached_similarities(found, name, "foreground")
                known = {} if known is None else known
                if "" not in known:  # the settings of a batch share it
                    known[""] = self._foreground(tokens, f"an image of class '{name}'", rows)
                mask[rows] = known[""]
        return self._prediction(distances, tokens, mask)

    def _distances(self, patches: Tensor, name: str, memory: Memory, found: SimilarityCache | None) -> Tensor:
        bank, allowed = memory.banks["patch"], None
        if self.mask_references and self.rules.masks(name):
            allowed = memory.banks["foreground"][:, 0] > 0
            if not torch.compiler.is_compiling() and allowed.sum() < self.neighbors:
                raise ValueError(
                    f"--mask_references True: references of class '{name}' have {int(allowed.sum())} foreground "
                    "patches; take --mask_references False"
                )
        return memory_bank.neighbour_distance(
            patches,
            bank,
            self.metric,
            self.neighbors,
            allowed=allowed,
            images=memory.images,
            found=memory_bank.cached_similarities(found, name, "patch"),
        )

    # --- a set of images that scores itself -------------------------------------------------------------------------

    @torch.no_grad()
    def score_set(self, tokens: TokenPasses, name: str) -> Iterator[Prediction]:
        """The distances of each patch to the nearest thousandth of all other images' patches, without references.
        Holds the patches of all images, once. Several processes share the comparisons.

        Raises:
            ValueError: the other images have too few patches for that.
        """
        device = next(self.parameters()).device
        masked = self.rules.masks(name)
        units, kept = [], []  # per bundle: (B, N, W) unit vectors; the rest of the tokens, and the mask
        for bundle in tokens():
            units.append(F.normalize(bundle.patches.to(device).float(), dim=-1))
            mask = self._foreground(bundle, f"an image of class '{name}'").to(device) if masked else None
            kept.append((bundle._replace(patches=units[-1], last=None), mask))
        total = sum(unit.shape[0] * unit.shape[1] for unit in units)
        turn, found = itertools.count(), []
        for number, (bundle, _) in enumerate(kept):
            distances = bundle.patches.new_zeros(bundle.patches.shape[:2])
            count = int(_MUTUAL * (total - distances.shape[1]))
            if count < 2:
                raise ValueError(
                    f"class '{name}': {len(tokens.paths)} images of {distances.shape[1]} patches; each is compared "
                    f"with the others, which must have {round(2 / _MUTUAL)} patches or more: add images, or take a "
                    "larger --image_size"
                )
            for row, queries in enumerate(bundle.patches):
                if next(turn) % tokens.processes.ranks != tokens.processes.rank:
                    continue
                own = torch.cat([units[number][:row], units[number][row + 1 :]])
                others = [own, *units[:number], *units[number + 1 :]]
                distances[row] = memory_bank.mutual_distance(queries, [one.flatten(0, 1) for one in others], count)
            found.append(distances.cpu())
        each = zip(*tokens.processes.gather(found), strict=True)  # one process has a row, and the others zeros
        for (bundle, mask), parts in zip(kept, each, strict=True):
            yield self._prediction(torch.stack(parts).sum(0).to(device), bundle, mask)
