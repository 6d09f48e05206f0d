"""The settings of a run: one frozen object per script, made once. What is decided later (the number behind
`--batch_size auto`, the layers that a detector chose) is a value of its own, never written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from data.tiles import Tiling
from metrics.thresholds import ThresholdRule
from utils.logs import LOG

Sources = dict[str, str]  # name of a setting -> where its value comes from


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """What makes a detector.

    options: the method's own, by the names of its OPTIONS; None leaves a value to the method.
    """

    method: str
    model: str
    pretrained: str
    config_path: str | None
    image_size: int | None
    quick_gelu: str
    position_rule: str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    prompts: str | None
    options: Mapping[str, Any]
    device: str
    precision: str
    compile: bool

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, as config.json and the log have them; the method's options among them."""
        hidden = {"options", "val_options", "val_prompts", "without_references"}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in hidden}
        return {**own, **self.options}


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A dataset, and where results go."""

    dataset: str
    meta_path: str | None
    classes: Sequence[str] | None
    follow_links: bool
    save_path: str
    num_workers: int
    feature_cache: str | None
    feature_cache_size: float | None  # GB
    resume: bool


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, DetectorSettings):
    """Of train.py.

    val_options, val_prompts: of the detector that scores val_dataset: those of test.py there.
    """

    train_data_path: str
    batch_size: int
    epoch: int
    learning_rate: float
    betas: tuple[float, float]
    aug_rate: float
    mosaic_of: str
    augment: bool
    no_shuffle: bool
    print_freq: int
    save_freq: int
    seed: int
    init_checkpoint: str | None
    val_dataset: str | None
    val_data_path: str | None
    val_meta_path: str | None
    val_metric: str | None
    val_options: Mapping[str, Any]
    val_prompts: str | None


@dataclass(frozen=True, kw_only=True)
class ThresholdSettings:
    """How thresholds come from normal images.

    threshold: the rule; None: conformal for scores and none for pixels; in test.py no thresholds at all.
    fpr, threshold_factor: its numbers, None where it has none.
    """

    threshold: str | None
    fpr: float | None
    threshold_factor: float | None

    @property
    def rule(self) -> ThresholdRule:
        """The same as one value."""
        given = {"kind": self.threshold, "fpr": self.fpr, "factor": self.threshold_factor}
        known: Mapping[str, Any] = {key: value for key, value in given.items() if value is not None}
        return ThresholdRule(**known, pixels=self.threshold is not None)


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """How pictures are cut. tiles: a side, 1 where they are not; tile_overlap: None then."""

    tiles: int
    tile_overlap: float | None

    @property
    def tiling(self) -> Tiling:
        """The same as one value."""
        return Tiling(self.tiles, self.tile_overlap or 0.0)


@dataclass(frozen=True, kw_only=True)
class TestSettings(ThresholdSettings, TileSettings, DataSettings, DetectorSettings):
    """Of test.py. k_shot and seed are None where a file of references says them and no flag chooses among them."""

    __test__ = False  # no class of tests, whatever pytest takes its name for

    data_path: str
    checkpoint_path: str | None
    trained_on: str | None
    mode: str
    k_shot: Sequence[int] | None
    seed: Sequence[int] | None
    batch_size: int | str
    references: str | None
    reference_draw: str
    memory: str | None
    save_memory: str | None
    measures: Sequence[str] | None
    fpr_limits: Sequence[float] | None
    metric_size: str
    unlabelled: bool
    submission: str | None
    save_maps: bool
    no_images: bool


@dataclass(frozen=True, kw_only=True)
class ObjectSettings(ThresholdSettings, TileSettings, DetectorSettings):
    """Of a detector for one object, as export.py makes it.

    bits: that images of 16 bits really use; None: all of them.
    """

    class_name: str
    bits: int | None
    checkpoint_path: str | None
    references: str | None
    calibrate: str | None
    calibration: str | None
    batch_size: int | str
    save_path: str
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class PredictSettings(ObjectSettings):
    """Of predict.py. mode: as of test.py."""

    inputs: Sequence[str]
    mode: str
    save_maps: bool
    no_images: bool
    feature_cache: str | None
    feature_cache_size: float | None  # GB


@dataclass(frozen=True, kw_only=True)
class OnnxSettings:
    """Of predict.py --onnx; the file knows the rest."""

    inputs: Sequence[str]
    onnx: str
    method: str
    class_name: str
    image_size: int
    bits: int | None
    save_path: str
    save_maps: bool
    no_images: bool
    batch_size: int
    num_workers: int

    def as_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class AppSettings(ThresholdSettings, TileSettings, DetectorSettings):
    """Of app.py.

    port: None takes the first free one.
    without_references: of another detector, for images that come without normal ones; None: this one serves them.
    """

    checkpoint_path: str | None
    batch_size: int | str
    host: str
    port: int | None
    max_megabytes: int
    max_pixels: int
    max_references: int
    max_set: int
    max_total_megabytes: int
    allow_host: Sequence[str]
    bits: int | None
    without_references: "AppSettings | None" = None


def log_settings(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """One line per setting: its value and where that comes from.

    values: `as_dict` of the settings, with what was decided since in its place.
    """
    for key, value in sorted(values.items()):
        if value is not None and value != []:
            text = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            LOG.info("%-20s %s (%s)", key, text, sources.get(key, "default"))
