"""Command line -> settings: what no flag gives comes from the method's published preset; contradictions are refused.

Every function returns the settings and, by name, where each value comes from. It raises ValueError with one line where
flags contradict each other.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from config import embedded
from config.settings import (
    AppSettings,
    ObjectSettings,
    OnnxSettings,
    PredictSettings,
    Sources,
    TestSettings,
    TrainSettings,
)
from config.thresholds import FLAGS, decide_class_thresholds, decide_threshold
from config.tiles import decide_tiles, refuse_tiles
from model import METHODS, capabilities
from model.options import Option, Preset, for_dataset
from utils.devices import CPU_BATCH, default_precision
from utils.launch import worker_count

Settings = TypeVar("Settings")

_COMMON: dict[str, Any] = {
    "method": "april_gan",
    "quick_gelu": "auto",
    "position_rule": "auto",
    "device": "auto",
    "num_workers": "auto",
    "compile": False,
}
_APP = {
    "host": "127.0.0.1", "max_megabytes": 20, "max_pixels": 40_000_000, "max_references": 8, "max_set": 30,
    "max_total_megabytes": 2000, "allow_host": (),
}  # fmt: skip
_CACHE_SIZE = 50.0  # GB
_NO_NAME = "object"  # stands for the class name of a method without texts, where none is given
_OWN_IMAGES = "own images"  # stands for the dataset where there is none
_EXPORTED = {"device": "cpu", "precision": "fp32", "tiles": 1}  # of every exported detector
# Flags of predict.py that --onnx can be combined with; they say nothing of the detector.
_WITH_ONNX = ("inputs", "onnx", "save_path", "save_maps", "no_images", "batch_size", "num_workers")


def resolve_train(args: argparse.Namespace) -> tuple[TrainSettings, Sources]:
    if not capabilities(args.method or _COMMON["method"]).trains:
        raise ValueError(f"--method {args.method} has nothing to train; test.py runs it as it is")
    values = _Values(args, "train", args.dataset)
    preset, training = values.preset, values.preset.training
    for name in ("batch_size", "learning_rate", "betas", "epoch", "aug_rate", "mosaic_of", "augment", "no_shuffle",
                 "print_freq", "save_freq", "seed"):  # fmt: skip
        values.default(name, for_dataset(getattr(training, name), args.dataset), values.preset_label)
    values.default("train_data_path", f"./data/{args.dataset}")
    if args.val_dataset is None:
        for key in ("val_data_path", "val_meta_path", "val_metric"):
            if getattr(args, key) is not None:
                raise ValueError(f"--{key} {getattr(args, key)}: requires --val_dataset")
    else:
        if not capabilities(values["method"]).zero_shot:
            raise ValueError(
                f"--val_dataset {args.val_dataset}: is scored zero-shot, and {values['method']} requires references"
            )
        values.default("val_data_path", f"./data/{args.val_dataset}")
        values.default("val_metric", "ap_px")
    values.default("save_path", f"./exps/{values['method']}/{args.dataset}")
    dataset = args.val_dataset or args.dataset
    values["val_options"] = values.options_of("test", dataset)
    values["val_prompts"] = args.prompts or for_dataset(preset.prompts, dataset)
    return values.settings(TrainSettings)


def resolve_test(args: argparse.Namespace) -> tuple[TestSettings, Sources]:
    file = args.references if args.references is not None else args.memory
    few = args.k_shot is not None or file is not None
    if args.mode in ("zero_shot", "batched") and few:
        raise ValueError(
            f"--mode {args.mode} takes no --k_shot, --references or --memory; drop them or use --mode few_shot"
        )
    if args.references is not None and args.memory is not None:
        raise ValueError("--references and --memory both name the references; give one of them")
    if args.save_memory and not few:
        raise ValueError("--save_memory: zero-shot has no references to save; give --k_shot")
    values = _Values(args, "test", args.dataset)
    preset, method = values.preset, values["method"]
    mode = _mode(method, args.mode, few=few)
    if args.reference_draw == "published" and (mode != "few_shot" or file is not None):
        raise ValueError("--reference_draw published: nothing is drawn here; drop it")
    if args.reference_draw == "published" and not hasattr(METHODS[method], "draw_references"):
        raise ValueError(f"--reference_draw published: the program of {method} has no draw that is known; drop it")
    values.default("reference_draw", "seeded")
    if mode != "few_shot":
        values.decide("k_shot", [0], "without references")
        values.decide("seed", [], "without references")
    elif file is not None:  # it says which settings there are; the flags choose among them
        for key in ("k_shot", "seed"):
            values.decide(key, getattr(args, key), "flag" if getattr(args, key) else file)
    else:
        values.default("k_shot", list(preset.k_shot), values.preset_label)
        values.default("seed", list(preset.seed), values.preset_label)
    if args.mode != mode:
        values.decide("mode", mode, f"zero-shot of {method}" if args.mode else "follows from the other flags")
    if args.checkpoint_path is None and args.trained_on is not None and capabilities(method).trains:
        values.decide("checkpoint_path", f"./exps/{method}/{args.trained_on}", "--trained_on")
    values.default("batch_size", preset.batch_size, values.preset_label)
    values.default("data_path", f"./data/{args.dataset}")
    values.default("save_path", f"./results/{method}/{args.dataset}/{mode}")
    values.default("metric_size", "input")
    decide_class_thresholds(values, args, mode)
    decide_tiles(values, args, mode)
    return values.settings(TestSettings)


def _mode(method: str, asked: str | None, *, few: bool) -> str:
    """What is run: what is asked for, else what follows from other flags and the method. Raises ValueError where the
    method cannot do it."""
    can = capabilities(method)
    mode = asked or ("few_shot" if few else "batched" if can.batched and not can.few_shot else "zero_shot")
    if mode == "few_shot" and not can.few_shot:
        able = ", ".join(name for name in METHODS if capabilities(name).few_shot)
        raise ValueError(f"{method} takes no references; these methods do: {able}")
    if mode == "zero_shot" and not can.zero_shot:
        if asked and can.batched:  # what it can do without references
            return "batched"
        raise ValueError(f"{method} requires references; give --k_shot{', or --mode batched' if can.batched else ''}")
    if mode == "batched" and not can.batched:
        able = ", ".join(name for name in METHODS if capabilities(name).batched)
        raise ValueError(
            f"--mode batched: {method} scores images one by one; these methods score them together: {able}"
        )
    return mode


def resolve_predict(args: argparse.Namespace) -> tuple[PredictSettings, Sources]:
    values = _object_values(args)
    can = capabilities(values["method"])
    if args.mode is None:
        one_by_one = "few_shot" if args.references is not None else "zero_shot"
        mode = one_by_one if can.zero_shot or can.few_shot else "batched"
        values.decide("mode", mode, "follows from the other flags")
    if values["mode"] == "batched":
        _mode(values["method"], "batched", few=False)
        for key in ("references", "calibrate", "calibration", *FLAGS):
            if getattr(args, key) is not None:
                raise ValueError(
                    f"--{key} {getattr(args, key)}: images that are scored together take no normal images and have no "
                    f"threshold; drop --{key}"
                )
    values.default("save_path", f"./results/{values['method']}/predict")
    return values.settings(PredictSettings)


def resolve_export(args: argparse.Namespace) -> tuple[ObjectSettings, Sources]:
    refuse_tiles(args)
    values = _object_values(args)
    can = capabilities(values["method"])
    if not (can.zero_shot or can.few_shot):
        raise ValueError(
            f"--method {values['method']} scores a set of images together; an exported detector takes them one by one"
        )
    for key, value in (("device", "cpu"), ("precision", "fp32"), ("compile", False)):
        values.decide(key, value, "export.py")
    values.default("save_path", f"./exps/{values['method']}/export")
    return values.settings(ObjectSettings)


def resolve_onnx(args: argparse.Namespace, made_with: Mapping[str, Any]) -> tuple[OnnxSettings, Sources]:
    """Settings of predict.py --onnx.

    Args:
        made_with: what the exported detector was made with; method, class_name and image_size are in it.

    Raises:
        ValueError: a flag that contradicts it, or that cannot be compared with it; names both.
    """
    if made_with["method"] not in METHODS:
        raise ValueError(
            f"--onnx {args.onnx}: made by unknown method '{made_with['method']}'; known: {', '.join(METHODS)}"
        )
    compared = ("method", "class_name", "image_size", "bits", "model", "pretrained", "prompts", *option_names())
    fixed = {**{key: made_with[key] for key in compared if key in made_with}, **_EXPORTED}
    if fixed.get("bits") is None:  # its normal images, if there were any, had 8 bits or all 16
        fixed["bits"] = args.bits
    given = {key: value for key, value in vars(args).items() if value is not None and key not in _WITH_ONNX}
    for key, value in given.items():
        text = _words(value)
        if key not in fixed:
            raise ValueError(f"--{key} {text}: {args.onnx} has its own, which export.py fixed; drop --{key}")
        if fixed[key] != value:
            raise ValueError(f"--{key} {text}: {args.onnx} is fixed to {_words(fixed[key])}; drop --{key}")
    values: dict[str, Any] = {key: getattr(args, key) for key in _WITH_ONNX}
    sources = {key: "flag" for key, value in values.items() if value is not None}
    for key in ("method", "class_name", "image_size"):
        values[key], sources[key] = fixed[key], str(args.onnx)
    values["bits"], sources["bits"] = fixed["bits"], "flag" if args.bits is not None else str(args.onnx)
    for key, value, source in (
        ("num_workers", _COMMON["num_workers"], "default"),
        ("batch_size", METHODS[values["method"]].PRESET.batch_size, "preset"),
        ("save_path", f"./results/{values['method']}/predict", "default"),
    ):
        if values[key] is None:
            values[key], sources[key] = value, source
    if values["batch_size"] == "auto":
        values["batch_size"], sources["batch_size"] = CPU_BATCH, "auto"
    if values["num_workers"] == "auto":
        values["num_workers"], sources["num_workers"] = worker_count(), "auto"
    return OnnxSettings(**values), sources


def resolve_app(args: argparse.Namespace) -> tuple[AppSettings, Sources]:
    """Where no flag names a method or a model: the model that ships, with normal images and without."""
    if not embedded.is_asked(args):
        return _app_values(args).settings(AppSettings)
    compared, texts, shipped = embedded.for_page(args)
    alone, _ = _app_values(texts).settings(AppSettings)
    values = _app_values(compared)
    values.sources |= shipped
    settings, sources = values.settings(AppSettings)
    return replace(settings, without_references=alone), sources


def _app_values(args: argparse.Namespace) -> "_Values":
    values = _own_image_values(args)
    for key, value in _APP.items():
        values.default(key, value)
    return values


def _object_values(args: argparse.Namespace) -> "_Values":
    """Of a detector for one object."""
    if args.calibrate is not None and args.calibration is not None:
        raise ValueError("--calibrate and --calibration both fix the scale; give one of them")
    name = (args.class_name or "").strip()
    args, shipped = embedded.for_object(args)
    if not name and METHODS[args.method or _COMMON["method"]].needs_text:
        raise ValueError("--class_name is missing: say what the images show, as in --class_name screw")
    values = _own_image_values(argparse.Namespace(**{**vars(args), "class_name": name or None}))
    values.sources |= shipped
    values.default("class_name", _NO_NAME)
    return values


def _own_image_values(args: argparse.Namespace) -> "_Values":
    """Of one's own images, which belong to no dataset."""
    values = _Values(args, "test", _OWN_IMAGES)
    decide_threshold(values, args)
    decide_tiles(values, args, getattr(args, "mode", None))
    values.default("batch_size", values.preset.batch_size, values.preset_label)
    return values


class _Values:
    """Settings in the making: the flags, filled up.

    Args:
        args: of the command line; None means: not given.
        script: "train" or "test", see `Option.scripts`.
        dataset: that the presets are for.
    """

    def __init__(self, args: argparse.Namespace, script: str, dataset: str):
        self._args, self._values = args, dict(vars(args))
        self.sources = {key: "flag" for key, value in vars(args).items() if value is not None and value is not False}
        for key, value in _COMMON.items():
            self.default(key, value)
        if self["num_workers"] == "auto":
            self.decide("num_workers", worker_count(), "auto")
        self.preset_label = f"{self['method']} preset"
        if args.config_path is not None:
            self.default("model", Path(args.config_path).stem, "--config_path")
        name, dot, tag = (self["model"] or "").partition(".")
        if dot and args.config_path is None and args.pretrained is None:  # as timm writes names and tags together
            self.decide("model", name, "flag")
            self.decide("pretrained", tag, "--model")
        self.default("precision", *default_precision(self["device"]))
        # The published size and weights belong to the published architecture; another has its own.
        if self["model"] in (None, self.preset.model):
            for key in ("model", "pretrained", "image_size"):
                self.default(key, getattr(self.preset, key), self.preset_label)
        if self["pretrained"] is None:
            raise ValueError(
                f"--model {self['model']} requires --pretrained: a tag (of open_clip or timm) or a weights file"
            )
        self.default("prompts", for_dataset(self.preset.prompts, dataset), self.preset_label)
        self._cache_size()
        if self._values.get("batch_size") == "auto":
            self.sources["batch_size"] = "auto"  # a number as soon as the detector is there
        self["options"] = self.options_of(script, dataset)
        for name, value in self["options"].items():
            if value is not None and name not in self.sources:
                self.sources[name] = self.preset_label

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    @property
    def preset(self) -> Preset:
        preset: Preset = METHODS[self["method"]].PRESET
        return preset

    def default(self, key: str, value: Any, source: str = "default") -> None:
        """Take a value where there is none."""
        if self._values.get(key) is None:
            self.decide(key, value, source)

    def decide(self, key: str, value: Any, source: str) -> None:
        """Take a value whatever there is."""
        self._values[key] = value
        if value is not None or key in self.sources:
            self.sources[key] = source

    def options_of(self, script: str, dataset: str) -> dict[str, Any]:
        """The method's options on a dataset. Given ones that the method lacks stay in, since building refuses them."""
        given = {name: value for name in option_names() if (value := getattr(self._args, name, None)) is not None}
        own: Sequence[Option] = METHODS[self["method"]].OPTIONS
        defaults = {
            one.name: for_dataset(one.default if script == "train" else one.test_default or one.default, dataset)
            for one in own
            if script in one.scripts
        }
        return defaults | given

    def settings(self, kind: type[Settings]) -> tuple[Settings, Sources]:
        """The finished object; flags that it has no field for are the method's options, which it holds together."""
        names = kind.__dataclass_fields__  # type: ignore[attr-defined]
        return kind(**{key: self._values[key] for key in names if key in self._values}), self.sources

    def _cache_size(self) -> None:
        if self._values.get("feature_cache") is not None:
            self.default("feature_cache_size", _CACHE_SIZE)
        elif self._values.get("feature_cache_size") is not None:
            raise ValueError(f"--feature_cache_size {self['feature_cache_size']:g}: requires --feature_cache")


def option_names() -> list[str]:
    """The options of all methods, each name once."""
    return list(dict.fromkeys(option.name for method in METHODS.values() for option in method.OPTIONS))


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
