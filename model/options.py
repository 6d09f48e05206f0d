"""What a method says of itself as data: its own settings and its published ones. Needs no PyTorch."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ByDataset(Generic[T]):
    """A published setting that differs between datasets.

    default: of all datasets that are not named in `others`.
    """

    default: T
    others: Mapping[str, T]

    def of(self, dataset: str) -> T:
        return self.others.get(dataset, self.default)


def for_dataset(value: T | ByDataset[T], dataset: str) -> T:
    """A setting that may differ between datasets, for one of them."""
    return value.of(dataset) if isinstance(value, ByDataset) else value


@dataclass(frozen=True)
class Option:
    """One setting of a method: a keyword of its constructor, and the flag, log line, checkpoint entry and ONNX metadata
    of that name.

    type: reads one word of the command line; raises ValueError or argparse.ArgumentTypeError.
    help: a line for --help.
    default: what the constructor takes where nothing is given; None: the constructor says what follows from the
        backbone.
    test_default: of scripts that score images, where it is another one.
    nargs, metavar: as argparse takes them.
    trained: what a method is trained with must be what it scores with; checkpoints are checked for it.
    scripts: "train" and "test" (which stands for all scripts that score images) have the flag.
    aliases: further names of the flag, such as the published program's.
    """

    name: str
    type: Callable[[str], Any]
    help: str
    default: Any = None
    test_default: Any = None
    nargs: int | Literal["+"] | None = None
    metavar: str | tuple[str, ...] | None = None
    trained: bool = False
    scripts: tuple[str, ...] = ("train", "test")
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """Published settings of a method's training.

    learning_rate, betas: of Adam.
    epoch: how many.
    aug_rate: probability of a 2 x 2 mosaic instead of an image; mosaic_of: see `dataset.AnomalyDataset`.
    augment: turn, jitter and blur images.
    no_shuffle: samples in the order of meta.json.
    """

    batch_size: int
    learning_rate: float | ByDataset[float]
    betas: tuple[float, float]
    epoch: int | ByDataset[int]
    seed: int
    aug_rate: float | ByDataset[float] = 0.0
    mosaic_of: Literal["all", "anomalies"] = "all"
    augment: bool = False
    no_shuffle: bool = False
    print_freq: int = 1
    save_freq: int = 1


# How a ViT's position table is brought to another grid, see model/backbones/positions.py.
POSITION_RULES = ("offset", "size", "size_antialias", "bilinear")


def check_no_position_rule(rule: str, model: str) -> None:
    """Raises ValueError where --position_rule is given for a model that it means nothing for."""
    if rule != "auto":
        raise ValueError(
            f"--position_rule {rule}: {model} has no position table that it could bring to another grid; drop it"
        )


@dataclass(frozen=True)
class PositionRules:
    """The position rule that `--position_rule auto` means for a method.

    clip: of open_clip's ViTs.
    plain, registers: of ViTs of timm without, with register tokens.
    """

    clip: str = "size_antialias"
    plain: str = "size_antialias"
    registers: str = "size_antialias"


@dataclass(frozen=True)
class Preset:
    """The published settings of a method.

    model, pretrained, image_size: of the backbone, for every dataset.
    batch_size: of a test.
    k_shot, seed: of the few-shot setting that a test takes where none is named; empty for zero-shot methods.
    training: None where there is nothing to train.
    prompts: name or file of other words than the method's own; None takes these.
    half_weights: whether the published program rounds the backbone's weights to half precision.
    extra_metrics: what the method's table shows beside the usual metrics.
    position_rules: how position tables are brought to the grid of the images, where no flag says it.
    """

    model: str
    pretrained: str
    image_size: int
    batch_size: int
    k_shot: tuple[int, ...] = ()
    seed: tuple[int, ...] = ()
    training: Training | None = None
    prompts: str | None | ByDataset[str | None] = None
    half_weights: bool = False
    extra_metrics: tuple[str, ...] = ()
    position_rules: PositionRules = PositionRules()


# Medical datasets have words of their own, which ship with prompt_ensemble.py.
MEDICAL_PROMPTS: ByDataset[str | None] = ByDataset(
    None, {name: name for name in ("headct", "brainmri", "isic", "clinicdb")}
)


# Types of options and flags. argparse names them in its messages.


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return int(text)


def natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return int(text)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: must be True or False")
    return text.lower() == "true"


def probability(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a probability from 0 to 1")
    return float(text)


def check_known(flag: str, values: Sequence[str], known: Collection[str]) -> None:
    """Raises ValueError for a value that is not one of those known."""
    for value in values:
        if value not in known:
            raise ValueError(f"{flag} {value}: unknown; known: {', '.join(known)}")


def check_read(flag: str, values: Sequence[object], read: Callable[[str], object]) -> None:
    """Raises ValueError for no value at all, and for one that the type of a flag would not read from its text."""
    if not values:
        raise ValueError(f"{flag}: give one or more values")
    for value in values:
        try:
            read(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{flag} {error}") from None
        except ValueError:
            raise ValueError(f"{flag} {value}: is no number that it takes") from None


FEATURES_LIST = Option(
    "features_list",
    int,
    "layers whose tokens are compared with the texts, counted from 1 (default: four evenly spaced ones)",
    nargs="+",
    trained=True,
)
