"""What passes between a backbone, a method and the engine, and what a detector can do.

Shape legend, used by every comment in model/:
    B images of a batch      S image side in pixels     G x G grid of patches a side (a ResNet has one grid per stage)
    N patch tokens of a layer (G * G, class token dropped)    W width of a layer's tokens    D joint embedding size
    2 states, always in the order (normal, abnormal)          M tokens in a memory bank
Layers count from 1, as in the papers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Tokens(NamedTuple):
    """What the backbone makes of a batch of images; knows nothing of classes or references."""

    pooled: Tensor  # (B, D), not normalised
    patches: dict[int, Tensor]  # layer -> (B, N, W), raw block output without class token
    grids: dict[int, tuple[int, int]]  # layer -> (G, G)


class DualTokens(NamedTuple):
    """What the backbone makes of a batch of images for CLIP-AD, whose attention has a second path."""

    values: dict[int, Tensor]  # layer -> (B, 1 + N, D), projected, not normalised; index 0: the ordinary class token
    patches: dict[int, Tensor]  # layer -> (B, N, W), of the ordinary path
    grids: dict[int, tuple[int, int]]  # layer -> (G, G)


class Memory(NamedTuple):
    """The reference images of one class: a value, so that it can be kept, saved and reused."""

    banks: dict[str, Tensor]  # what the method compares ("6": a layer) -> (M, W), unit length
    images: tuple[
        str, ...
    ] = ()  # what each bank is made of, in equal parts, where somebody says so; see `SimilarityCache`

    def cpu(self) -> "Memory":
        """The same in main memory."""
        return self._replace(banks={key: bank.cpu() for key, bank in self.banks.items()})


# What one batch has been compared with: (class name, key of the bank) -> reference image -> (B * N,), the similarity of
# each patch to its nearest one in that image. Few-shot settings that share reference images share the comparison.
SimilarityCache = dict[tuple[str, str], dict[str, Tensor]]


ScoreRange = Mapping[str, tuple[float, float]]  # term of the image score -> (low, high) of normal images, low < high


class Prediction(NamedTuple):
    """Anomaly maps and the parts from which image scores are made."""

    maps: Tensor  # (B, S, S) float32, larger is more anomalous
    score_components: dict[str, Tensor]  # name -> (B,)


class Detector(Protocol):
    """An nn.Module that maps images to anomaly maps. Each method of the papers is one such class."""

    OPTIONS: tuple[str, ...]  # keywords of the constructor that `model.build` may pass
    TRAINABLE: bool  # whether there is anything to train; the last four below are for trainable methods
    FEW_SHOT: bool  # whether it can use references; the four on memories below are for methods that can

    HALF_WEIGHTS: bool  # whether the published program rounds the backbone's weights to half precision
    EXTRA_METRICS: tuple[str, ...]  # metrics that the table shows beside the usual ones

    @property
    def options(self) -> dict[str, Any]:
        """The values of OPTIONS in use."""

    def encode_names(self, names: Sequence[str]) -> None:
        """Encode the texts of class names once; asking again for a known name costs nothing."""

    def encode(self, images: Tensor) -> Any:
        """The expensive part: Tokens, or a NamedTuple of the method's own. images: (B, 3, S, S) uint8 RGB."""

    def build_memory(self, tokens: Any) -> Memory:
        """The memory of one class from the tokens of its reference images."""

    def zero_shot(self, tokens: Any, names: Sequence[str]) -> Prediction:
        """Maps and score components without references; names: the B class names."""

    @property
    def bank_widths(self) -> dict[str, int]:
        """What `build_memory` gives: key of each bank -> width of its vectors."""

    @property
    def bank_rows(self) -> dict[str, int]:
        """Key of each bank -> how many of its vectors come from one reference image."""

    def few_shot(
        self,
        zero_shot: Prediction,
        tokens: Any,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        """The zero-shot prediction with one setting's references added.

        memories: class name -> Memory. found: shared by the settings of a batch, which read and fill it.
        """

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """Scores of a class, (n,), from the components of its images, each (n,); limits: see `anomaly_map.rescale`."""

    def forward(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Trainable methods: per map (B, 2, S, S) state probabilities, to which the engine applies the losses."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What there is to train, as torch's optimisers take it, each group with its learning rate."""

    def trainable_state(self) -> dict[str, Any]:
        """The trained parts under the published checkpoint keys."""

    def load_trainable_state(self, state: Mapping[str, Any]) -> None:
        """Take what `trainable_state` gave. Raises ValueError on missing keys or other shapes, naming both."""
