"""What passes between a backbone, a method and the engine, and what a detector can do.

Shape legend, used by every comment in model/:
    B images of a batch      S image side in pixels     G x G grid of patches a side (a ResNet has one grid per stage)
    N patch tokens of a layer (G * G, class token dropped)    W width of a layer's tokens    D joint embedding size
    2 states, always in the order (normal, abnormal)          M tokens in a memory bank
Layers count from 1, as in the papers.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from data.input_spec import InputSpec
from data.views import ImageViews
from model.options import Option, Preset
from utils.distributed import Processes


class Normalization(NamedTuple):
    """Mean and standard deviation of the channels R, G, B in [0, 1], by which images are normalised."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# What OpenAI's CLIP was trained with, and most others.
OPENAI_NORMALIZATION = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Tokens(NamedTuple):
    """What the backbone makes of a batch of images; knows nothing of classes or references."""

    pooled: Tensor  # (B, D), not normalised: CLIP's embedding, or a ViT's class token after the final norm
    patches: dict[int, Tensor]  # layer -> (B, N, W), block output without class and register tokens
    grids: dict[int, tuple[int, int]]  # layer -> (g_h, g_w)


class DualTokens(NamedTuple):
    """What the backbone makes of a batch of images for CLIP-AD, whose attention has a second path."""

    values: dict[int, Tensor]  # layer -> (B, 1 + N, D), projected, not normalised; index 0: the ordinary class token
    patches: dict[int, Tensor]  # layer -> (B, N, W), of the ordinary path
    grids: dict[int, tuple[int, int]]  # layer -> (G, G)


class Memory(NamedTuple):
    """The reference images of one class: a value, so that it can be kept, saved and reused."""

    banks: dict[str, Tensor]  # what the method compares ("6": a layer) -> (M, W)
    images: tuple[
        str, ...
    ] = ()  # what each bank is made of, in equal parts, where that is known; see `SimilarityCache`

    def cpu(self) -> "Memory":
        """The same in main memory."""
        return self._replace(banks={key: bank.cpu() for key, bank in self.banks.items()})


# What one batch has been compared with: (class name, key of the bank) -> reference image -> (B * N,), the similarity of
# each patch to its nearest one in that image. Few-shot settings that share reference images share the comparison.
SimilarityCache = dict[tuple[str, str], dict[str, Tensor]]


ScoreRange = Mapping[str, tuple[float, float]]  # term of the image score -> (low, high) of normal images, low < high


class Prediction(NamedTuple):
    """Anomaly maps and the parts from which image scores are made."""

    maps: Tensor  # (B, H, W) float32, larger is more anomalous; S x S, or as large as the pictures
    score_components: dict[str, Tensor]  # name -> (B,)
    foreground: Tensor | None = None  # (B, G, G) bool, the patches that show the object, of a method that masks others


class LabeledBatch(NamedTuple):
    """What a training step learns from."""

    images: Tensor  # (B, 3, S, S) uint8 RGB
    masks: Tensor  # (B, S, S) uint8, 1 = defect
    labels: Tensor  # (B,) int64, 1 = anomalous
    names: Sequence[str]  # the B class names


# Computes features of images: some images (b, 3, S, S) -> name of the feature -> (b, ...).
Encoder = Callable[[Tensor], Mapping[str, Tensor]]


class Cache(Protocol):
    """Keeps features of images."""

    def __call__(
        self, images: Tensor, identity: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], encode: Encoder
    ) -> Mapping[str, Tensor]:
        """name -> (B, ...).

        Args:
            images: (B, 3, S, S).
            identity: what the features depend on besides, see `ImageTower.identity`.
            shapes: name of each feature -> its shape of one image.
            encode: computes them.
        """

    def log(self) -> None:
        """Say in the log how many images it had."""


class ImageTower(Protocol):
    """A frozen image encoder, an nn.Module in eval mode: what a method may ask of any backbone, with texts or without.

    A method that needs more (`dual_path` or `embed` of a CLIP ViT) takes the class of model/backbones/ that has it and
    checks once, in its constructor, with one clear line.
    """

    name: str  # of the architecture, as --model names it
    image_size: int  # side S of the square input, or its shorter side, in pixels
    patch: int  # pixels of a patch a side; of a CNN: the stride of its last stage
    embed_dim: int  # D, width of the pooled embedding
    prefix_tokens: int  # class and register tokens, which `Tokens.patches` leaves out
    has_text: bool  # whether it has a text tower beside it
    fingerprint: str  # identity of the weights; the same at every image size
    cache: Cache | None  # asked for the features of images before they are computed

    @property
    def depth(self) -> int:
        """Number of layers that can be tapped."""

    @property
    def grid(self) -> int | None:
        """Patches a side, G, where all layers share one grid (a ViT); None where layers have grids of their own."""

    def width(self, layer: int) -> int:
        """Width W of a layer's tokens."""

    def token_count(self, layer: int) -> int:
        """Patch tokens of a layer, N, of a square image."""

    def grid_of(self, layer: int, size: tuple[int, int]) -> tuple[int, int]:
        """Grid (g_h, g_w) of a layer for images of (H, W) pixels."""

    def default_layers(self) -> list[int]:
        """Layers for a method that names none: four evenly spaced ones, the last included, or the last two stages."""

    def check_layers(self, flag: str, layers: Sequence[int]) -> None:
        """Raises ValueError where a layer does not exist or is listed twice."""

    def number_layers(self, flag: str, layers: Sequence[int]) -> list[int]:
        """The layers with their own numbers: -1 is the last one, and 0 what enters layer 1. Raises ValueError as
        `check_layers`."""

    def check_square(self, size: int | None = None) -> None:
        """Raises ValueError where patches do not divide the side of a square image: `size`, or `image_size`."""

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32 as the weights expect it."""

    def __call__(self, images: Tensor, layers: Collection[int], *, normed: bool = False, pooled: bool = True) -> Tokens:
        """Tokens of the asked layers; 0 is what enters layer 1.

        Args:
            images: (B, 3, H, W) uint8 RGB; the patches divide H and W.
            normed: put every layer's patch tokens through the model's final norm, if it has one.
            pooled: False: leave out the pooled embedding, which is (B, 0) then, and the layers above the asked ones.
        """

    def check_saliency(self, flag: str, index: int) -> None:
        """Raises ValueError, beginning with `flag`, where `saliency` of a block, counted from 0, cannot be had."""

    def saliency(self, images: Tensor, index: int) -> Tensor:
        """Attention of block `index`, from 0, from the register tokens (without registers: the class token) to the
        patches; mean over heads and registers. (B, N); of ViTs of timm, see `check_saliency`."""

    def features(self, images: Tensor, shapes: Mapping[str, tuple[int, ...]], encode: Encoder) -> Mapping[str, Tensor]:
        """Features of a method's own making, each (B, ...), from `cache` where it holds them.

        shapes: name of each feature -> its shape of one image; one name means the same whatever else is asked for.
        """

    def identity(self, device: torch.device) -> dict[str, str]:
        """What the features of an image depend on beside its pixels: equal values, equal features."""

    def description(self) -> dict[str, Any]:
        """What checkpoints, memories and results record of the backbone, as plain values: model, pretrained, weights,
        image_size, and what else a run must share with them."""

    def check_room(self, images: int, device: torch.device | str, what: str, advice: str) -> None:
        """Raises ValueError where so many images at a time cannot fit into a device's memory."""

    def compile_encoder(self) -> None:
        """Compile the encoder with torch.compile, when it first runs."""


class Detector(Protocol):
    """An nn.Module that maps images to anomaly maps. Each method of the papers is one such class.

    All methods have what stands here. What else a method can do it says by defining it, and what it cannot do it does
    not define: `TextDetector`, `ZeroShotDetector`, `FewShotDetector` and `TrainableDetector` list what belongs
    together. It has a zero-shot or a few-shot part, or both.
    """

    PRESET: ClassVar[Preset]
    OPTIONS: ClassVar[tuple[Option, ...]]
    needs_text: ClassVar[bool]  # whether it compares images with texts: has `encode_names`, its backbone a text tower

    @property
    def backbone(self) -> ImageTower:
        """The frozen image tower that it stands on."""

    @property
    def input_spec(self) -> InputSpec:
        """How pictures become the images that `encode` takes."""

    @property
    def options(self) -> dict[str, Any]:
        """The values of OPTIONS in use, as plain values."""

    def to(self, device: torch.device) -> Self:
        """As of every nn.Module."""

    def eval(self) -> Self:
        """As of every nn.Module."""

    def train(self, mode: bool = True) -> Self:
        """As of every nn.Module."""

    def encode(self, images: Tensor) -> Any:
        """The expensive part, which knows no classes and no references: Tokens, or a NamedTuple of the method's own.

        images: (B, 3, S, S) uint8 RGB. Where `input_spec.keeps_shape`: (B, 3, h, w), and the (H, W) of the wanted maps
        comes as a second argument, `map_size`.
        """

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """Scores of a class, (n,), from the components of its images, each (n,); limits: see `anomaly_map.rescale`."""


class TextDetector(Detector, Protocol):
    """A method with `needs_text`."""

    def encode_names(self, names: Sequence[str]) -> None:
        """Encode the texts of class names once; asking again for a known name costs nothing."""


class ZeroShotDetector(Detector, Protocol):
    """A method that needs no references."""

    def zero_shot(self, tokens: Any, names: Sequence[str]) -> Prediction:
        """Maps and score components without references; names: the B class names."""


class FewShotDetector(Detector, Protocol):
    """A method that compares images with normal reference images."""

    def build_memory(self, references: Sequence[Any]) -> Memory:
        """The memory of one class from its reference images.

        references: the tokens of each image, a bundle of one; of a `ViewingDetector` what `summarize` gave.
        """

    @property
    def bank_widths(self) -> dict[str, int]:
        """What `build_memory` gives: key of each bank -> width of its vectors."""

    @property
    def bank_rows(self) -> dict[str, int]:
        """Key of each bank -> how many of its vectors come from one reference image."""

    def few_shot(
        self,
        zero_shot: Prediction | None,
        tokens: Any,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        """The prediction with one setting's references.

        Args:
            zero_shot: what `zero_shot` made of the same images; None of a method without it.
            memories: class name -> Memory.
            found: shared by the settings of a batch, which read and fill it.
        """


class ViewingDetector(FewShotDetector, Protocol):
    """A few-shot method that sees its references in several views, or more than once."""

    def draw_views(
        self, references: Mapping[str, Sequence[str]], dataset: str, seed: int | None
    ) -> Mapping[str, Sequence[ImageViews]]:
        """Class -> the views of each of its references. Classes come in the order of the run."""

    def summarize(self, passes: Sequence[Any]) -> Any:
        """What `build_memory` takes of one reference image.

        passes: for each time that it is looked at, the tokens of its views as one bundle.
        """


class TokenPasses(Protocol):
    """The images of a class, to be gone through more than once."""

    paths: Sequence[str]  # of the images, in the order of the dataset; images of several shapes may pass in another one
    processes: Processes  # which may share the work; each goes through all images, and gives all predictions

    def __call__(self) -> Iterator[Any]:
        """A pass: the tokens of all images, bundle by bundle; always the same ones in the same order."""


class BatchedDetector(Detector, Protocol):
    """A method that scores unlabelled images of a class together."""

    SET_MINIMUM: ClassVar[int]  # images that it takes
    SET_PASSES: ClassVar[int]  # how often it goes through them; of once, tokens are not kept

    def score_set(self, tokens: TokenPasses, name: str) -> Iterator[Prediction]:
        """A prediction for each bundle of a pass. name: of the class. Raises ValueError on a set that is too small."""


class ScoringDetector(ZeroShotDetector, FewShotDetector, BatchedDetector, TextDetector, Protocol):
    """What the engine scores images with: it asks whether a part is there before it calls what a method may lack."""

    def check_classes(self, names: Sequence[str]) -> None:
        """Log once what the options name and a run, of these classes, does not have."""


class TrainableDetector(ScoringDetector, Protocol):
    """A method with parts to train. Where options show in the shapes of its checkpoints, it may have a static
    `options_of(state)`: what `load_trainable_state` takes -> the values of these options, by name. It is then built
    with them where no flag says otherwise.
    """

    LOSSES: ClassVar[tuple[str, ...]]  # names of the parts of `loss`, in the order of losses.csv

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """The parts of the loss by name, each a scalar; their sum is minimised, and each is logged."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What there is to train, as torch's optimisers take it, each group with its learning rate."""

    def trainable_state(self) -> dict[str, Any]:
        """The trained parts under the published checkpoint keys."""

    def load_trainable_state(self, state: Mapping[str, Any]) -> None:
        """Take what `trainable_state` gave. Raises ValueError on missing keys or other shapes, naming both."""
