"""MuSc (Li, Huang, Xue, Zhou: "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring
of the Unlabeled Images", ICLR 2024, arXiv 2401.16753). No texts, no references, no training.

The unlabelled images of a class score each other: a patch is normal if most other images have one like it. The score of
an image is then smoothed over the images that look like it.
"""

import argparse
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map
from model.interface import ImageTower, Prediction, ScoreRange, TokenPasses, Tokens
from model.layer_features import average, coarsest, compared_layers
from model.mutual_scoring import mutual_scores
from model.options import ByDataset, Option, PositionRules, Preset, check_read, positive
from utils import memory_check
from utils.logs import LOG
from utils.progress import Progress

_NEIGHBORHOODS = (1, 3, 5)
_LOWEST = 0.3
_RESCORING = ByDataset((1, 2, 3), {"visa": (1, 8, 9)})
_SHUFFLE_SEED = 42  # of the published division


def odd(text: str) -> int:
    if int(text) < 1 or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be odd, 1 or more")
    return int(text)


def share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0, at most 1")
    return float(text)


class MuSc(nn.Module):
    """A detector as `model.interface.BatchedDetector` describes it.

    Args:
        backbone: a frozen ViT, with texts or without.
        features_list: layers whose patches are compared; None takes four evenly spaced ones.
        neighborhoods: sides, in patches, of the squares over which patches are averaged.
        lowest: of a patch's distances to the other images, the share that counts, from the smallest on.
        rescoring: numbers of neighbours over which image scores are averaged, the image itself included.
        divide_num: parts into which a class is divided; images are compared within a part.

    Raises:
        ValueError: a backbone without one grid of patches, a layer that does not exist, a number out of range.
    """

    PRESET: ClassVar[Preset] = Preset(
        "ViT-L-14-336",
        "openai",
        518,
        batch_size=4,
        position_rules=PositionRules(clip="size", plain="offset", registers="size_antialias"),
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "features_list",
            int,
            "layers whose patches are compared, counted from 1, -1 the last (default: four evenly spaced ones; of a "
            "CNN the two stages before the last)",
            nargs="+",
            scripts=("test",),
        ),
        Option(
            "neighborhoods",
            odd,
            "sides of the squares of patches that are averaged, odd (default: 1 3 5)",
            default=_NEIGHBORHOODS,
            nargs="+",
            scripts=("test",),
        ),
        Option(
            "lowest",
            share,
            "share of a patch's distances to other images that counts, the smallest ones (default: 0.3)",
            default=_LOWEST,
            scripts=("test",),
        ),
        Option(
            "rescoring",
            positive,
            "numbers of neighbours over which image scores are averaged (default: 1 8 9 on visa, 1 2 3 elsewhere)",
            default=_RESCORING,
            nargs="+",
            scripts=("test",),
        ),
        Option(
            "divide_num",
            positive,
            "divide a class into so many parts, evenly over its folders, and compare images within a part (default: 1)",
            default=1,
            scripts=("test",),
        ),
    )
    needs_text: ClassVar[bool] = False
    SET_MINIMUM: ClassVar[int] = 5  # with fewer, 0.3 of the distances to the others are none
    SET_PASSES: ClassVar[int] = 2  # one for each layer where not all fit into memory

    def __init__(
        self,
        backbone: ImageTower,
        *,
        features_list: Sequence[int] | None = None,
        neighborhoods: Sequence[int] = _NEIGHBORHOODS,
        lowest: float = _LOWEST,
        rescoring: Sequence[int] = _RESCORING.default,
        divide_num: int = 1,
    ):
        super().__init__()
        check_read("--neighborhoods", neighborhoods, odd)
        check_read("--lowest", [lowest], share)
        check_read("--rescoring", rescoring, positive)
        check_read("--divide_num", [divide_num], positive)
        self.backbone = backbone
        self.features_list = tuple(
            backbone.number_layers(
                "--features_list", features_list or compared_layers(backbone, backbone.default_layers())
            )
        )
        self.neighborhoods = tuple(neighborhoods)
        self.lowest, self.rescoring, self.divide_num = lowest, tuple(rescoring), divide_num
        self._place: Tensor  # where to compute
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def input_spec(self) -> InputSpec:
        """Stretched, as the program does it: bicubic for CLIP, bilinear for the DINO family."""
        return SquareInput(self.backbone.image_size, "bicubic" if self.backbone.has_text else "bilinear")

    @property
    def options(self) -> dict[str, list[int] | float | int]:
        return {
            "features_list": list(self.features_list),
            "neighborhoods": list(self.neighborhoods),
            "lowest": self.lowest,
            "rescoring": list(self.rescoring),
            "divide_num": self.divide_num,
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Patches: raw outputs of CLIP's blocks; of other ViTs, with the model's final norm. The class token comes
        after the last norm; CLIP's is projected, and of unit length. Stages of a CNN are averaged on the coarsest of
        their grids."""
        tokens = self.backbone(images, self.features_list, normed=not self.backbone.has_text)
        grid = coarsest(tokens, self.features_list)
        patches = {layer: average(one, tokens.grids[layer], grid) for layer, one in tokens.patches.items()}
        tokens = tokens._replace(patches=patches, grids=dict.fromkeys(patches, grid))
        return tokens._replace(pooled=F.normalize(tokens.pooled, dim=-1)) if self.backbone.has_text else tokens

    # --- a set of images --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_set(self, tokens: TokenPasses, name: str) -> Iterator[Prediction]:
        """Maps and scores of all images of a class, bundle by bundle.

        Goes through the images once per layer, and holds the tokens of one layer beside what it yields.

        Args:
            tokens: of the images.
            name: of the class, for messages.

        Raises:
            ValueError: too few images, or folders that do not serve to divide them; says what is needed.
        """
        parts = self._divide(tokens.paths, name)
        sizes, pooled, grid, scores = self._score_patches(tokens, parts)
        each = scores.float().split(sizes)  # per bundle (B, N)
        side = self.backbone.image_size

        def maps(values: Tensor) -> Tensor:
            """(B, N) -> (B, S, S)"""
            return anomaly_map.upsample(values.to(self._place.device), grid, side, align_corners=True)

        largest = torch.cat([maps(values).amax((1, 2)).cpu() for values in each])  # (n,)
        rescored = rescore(largest, pooled, self.rescoring)
        for values, maximum, score in zip(each, largest.split(sizes), rescored.split(sizes), strict=True):
            yield Prediction(maps(values), {"map_max": maximum, "rescored": score})

    def _score_patches(
        self, tokens: TokenPasses, parts: Sequence[Sequence[int]]
    ) -> tuple[list[int], Tensor, tuple[int, int], Tensor]:
        """Images of each bundle, class tokens (n, D), the grid, and the scores of all patches, (n, N) in double: means
        over layers and neighbourhoods (LNAMD and MSM)."""
        turns, processes = len(self.features_list), tokens.processes
        pairs = turns * sum(len(part) * (len(part) - 1) // 2 for part in parts) // processes.ranks
        total = torch.zeros(())
        with Progress(pairs, "compare", "pair", shown=not processes.rank, leave=False) as progress:
            for layer in self.features_list:
                sizes, pooled, images = list[int](), list[Tensor](), list[Tensor]()
                for bundle in tokens():
                    if not images:
                        self._check_room(bundle.patches[layer], parts)
                    sizes.append(len(bundle.pooled))
                    pooled.append(bundle.pooled.float().cpu())
                    images += list(bundle.patches[layer])  # views: nothing is copied
                    grid = bundle.grids[layer]
                scores = torch.empty(len(images), len(images[0]), dtype=torch.float64)
                for part in parts:
                    found = mutual_scores(
                        [images[index] for index in part], grid, self.neighborhoods, self._count(len(part)),
                        self._place.device, progress.update, processes,
                    )  # fmt: skip
                    scores[part] = found.cpu().double().mean(0)
                total = total + scores / turns
        return sizes, torch.cat(pooled), grid, total

    def _check_room(self, tokens: Tensor, parts: Sequence[Sequence[int]]) -> None:
        """Raises ValueError where the tokens of a layer, or the distances that are kept, cannot fit into memory.

        tokens: (B, N, W), the first ones.
        """
        advice, count = "give fewer images, or lower --image_size", sum(map(len, parts))
        need = count * tokens[0].numel() * tokens.element_size()
        if tokens.device.type != "cpu":  # where they may be in a file
            memory_check.check(need, tokens.device, f"the patches of {count} images", advice)
        largest = max(map(len, parts))
        need = 4 * len(self.neighborhoods) * largest * tokens.shape[1] * self._count(largest)
        memory_check.check(need, self._place.device, f"the distances between {largest} images", advice)

    def _count(self, images: int) -> int:
        """How many of the distances of a patch to the other images count."""
        return int(self.lowest * (images - 1))

    def _divide(self, paths: Sequence[str], name: str) -> list[list[int]]:
        """The parts of a class, each a list of indices."""
        if max(self.rescoring) > len(paths):
            raise ValueError(
                f"--rescoring {' '.join(map(str, self.rescoring))}: '{name}' has {len(paths)} images; take numbers of "
                "neighbours up to that"
            )
        parts = [list(range(len(paths)))]
        if self.divide_num > 1:
            folders = {PurePath(path).parent.name for path in paths}
            if len(folders) == 1:
                raise ValueError(
                    f"--divide_num {self.divide_num}: deals the images of each folder to the parts, and all of "
                    f"'{name}' lie in one folder; drop it"
                )
            LOG.info(
                "--divide_num %d: the images of '%s' are divided by the names of their folders (%s); where these are "
                "kinds of defect, that uses labels",
                self.divide_num, name, ", ".join(sorted(folders)),
            )  # fmt: skip
            parts = divide(paths, self.divide_num)
        least = min(map(len, parts))
        if self._count(least) < 1:
            needed = math.ceil(1 / self.lowest) + 1
            what = f"a part of --divide_num {self.divide_num} has" if self.divide_num > 1 else "it has"
            raise ValueError(f"'{name}': musc compares {needed} or more images with each other, and {what} {least}")
        return parts

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """The rescored maxima of the maps: `score_set` has made them. They belong to the set as a whole."""
        return score_components["rescored"]


def rescore(scores: Tensor, class_tokens: Tensor, neighbors: Sequence[int]) -> Tensor:
    """Image scores averaged over the images that look alike (RsCIN), (n,).

    Args:
        scores: (n,), largest values of the maps.
        class_tokens: (n, D); their products weigh the neighbours.
        neighbors: numbers of neighbours, the image itself included; the result is the mean over them.
    """
    scores = anomaly_map.minmax_over_class(scores)
    weights = class_tokens @ class_tokens.T  # (n, n)
    found = []
    for count in neighbors:
        kept, nearest = weights.topk(count, dim=1)  # (n, count)
        found.append((kept * scores[nearest]).sum(1) / kept.sum(1))
    return torch.stack(found).mean(0)


def divide(paths: Sequence[str], parts: int) -> list[list[int]]:
    """The published division of a class: indices of the images of each part.

    Images are grouped by the names of their folders, in the order in which these appear; each group is shuffled, and
    dealt to the parts in turn.
    """
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(PurePath(path).parent.name, []).append(index)
    draw = random.Random(_SHUFFLE_SEED)
    for group in groups.values():
        draw.shuffle(group)
    return [[index for group in groups.values() for index in group[part::parts]] for part in range(parts)]
