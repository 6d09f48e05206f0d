"""Settings: the published preset of each method for the flags that are not given."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.devices import CPU_BATCH, default_precision
from utils.logs import LOG

# Medical datasets have words of their own, which ship with prompt_ensemble.py.
_WORDS = {"headct": "headct", "brainmri": "brainmri", "isic": "isic", "clinicdb": "clinicdb", "": None}
# Options of the methods, by the names that their constructors give them.
_OPTIONS = (
    "features_list", "few_shot_features", "scales", "rep_vec", "dbscan", "smoothing", "prompt_len", "deep_prompt_len",
    "total_d_layer_len", "use_global", "prompt_dropout",
)  # fmt: skip
_DBSCAN = {"visa": [1.5, 25], "": [0.5, 15]}  # eps, min_samples
_SMOOTHING = {"visa": 2.0, "": 8.0}  # of SDP+
# The published settings of each method; a dict holds one value per dataset, "" for all others.
# features_list is not here: four evenly spaced layers are the published ones at every published depth.
_PRESETS = {
    "april_gan": {
        "backbone": {"model": "ViT-L-14-336", "pretrained": "openai", "image_size": 518},
        "train": {
            "batch_size": 8,
            "learning_rate": 1e-3,
            "betas": (0.5, 0.999),
            "epoch": {"mvtec": 3, "": 15},
            "aug_rate": {"mvtec": 0.2, "": 0.0},
            "print_freq": 1,
            "save_freq": 1,
            "seed": 111,
            "mosaic_of": "all",
            "augment": False,
            "no_shuffle": False,
            "prompts": _WORDS,
        },
        "test": {"batch_size": 8, "k_shot": [4], "seed": [42], "prompts": _WORDS},
    },
    "winclip": {
        "backbone": {"model": "ViT-B-16-plus-240", "pretrained": "laion400m_e31", "image_size": 240},
        "test": {"batch_size": 8, "k_shot": [4], "seed": [42], "scales": [2, 3], "prompts": _WORDS},
    },
    "sdp": {
        "backbone": {"model": "ViT-B-16-plus-240", "pretrained": "laion400m_e31", "image_size": 240},
        "test": {"batch_size": 16, "dbscan": _DBSCAN, "prompts": _WORDS},
    },
    "sdp_plus": {
        "backbone": {"model": "ViT-B-16-plus-240", "pretrained": "laion400m_e31", "image_size": 240},
        "train": {
            "batch_size": 8,
            "learning_rate": 1e-4,
            "betas": (0.9, 0.999),
            "epoch": 5,
            "aug_rate": 0.0,
            "print_freq": 1,
            "save_freq": 1,
            "seed": 42,
            "mosaic_of": "all",
            "augment": False,
            "no_shuffle": True,
            "dbscan": _DBSCAN,
            "prompts": _WORDS,
        },
        "test": {"batch_size": 16, "dbscan": _DBSCAN, "smoothing": _SMOOTHING, "prompts": _WORDS},
    },
    "vcp_clip": {
        "backbone": {"model": "ViT-L-14-336", "pretrained": "openai", "image_size": 518},
        "train": {
            "batch_size": 32,
            "learning_rate": {"mvtec": 2e-5, "": 4e-5},
            "betas": (0.5, 0.999),
            "epoch": 10,
            "aug_rate": {"mvtec": 0.2, "": 0.0},
            "mosaic_of": "anomalies",
            "augment": True,
            "print_freq": 1,
            "save_freq": 1,
            "seed": 333,
            "no_shuffle": False,
        },
        "test": {"batch_size": 8},
    },
}
# Flags of predict.py that say nothing of the detector.
_WITH_ONNX = ("inputs", "onnx", "save_path", "save_maps", "no_images", "batch_size", "num_workers")
_COMMON = {"method": "april_gan", "quick_gelu": "auto", "device": "auto", "num_workers": 2, "compile": False}
_APP = {"host": "127.0.0.1", "max_megabytes": 20, "max_pixels": 40_000_000, "max_references": 8}
QUICKSTART = Path(__file__).parent.parent / "exps/quickstart/quickstart-clip.safetensors"


def resolve_train(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """Fill in what was not given. Returns the settings and, per setting, where its value comes from."""
    settings, sources = _fill(args, "train")
    _default(settings, sources, "train_data_path", f"./data/{settings.dataset}")
    if settings.val_dataset is None:
        for key in ("val_data_path", "val_meta_path", "val_metric"):
            if getattr(settings, key) is not None:
                raise ValueError(f"--{key} {getattr(settings, key)}: says nothing without --val_dataset; name it")
    else:
        _default(settings, sources, "val_data_path", f"./data/{settings.val_dataset}")
        _default(settings, sources, "val_metric", "ap_px")
    _default(settings, sources, "save_path", f"./exps/{settings.method}/{settings.dataset}")
    return settings, sources


def resolve_test(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `resolve_train`; besides, zero-shot and few-shot flags must not contradict each other (ValueError)."""
    file = args.references if args.references is not None else args.memory
    few = args.k_shot is not None or file is not None
    if args.mode == "zero_shot" and few:
        raise ValueError(
            "--mode zero_shot takes no --k_shot, --references or --memory; drop them or use --mode few_shot"
        )
    if args.references is not None and args.memory is not None:
        raise ValueError("--references and --memory both say what the references are; give one of them")
    mode = args.mode or ("few_shot" if few else "zero_shot")
    settings, sources = _fill(args, "test")
    if file is not None:  # it says which settings there are; the flags choose among them
        settings.k_shot, settings.seed = args.k_shot, args.seed
        sources |= {key: "flag" if getattr(args, key) else file for key in ("k_shot", "seed")}
    if settings.save_memory and not few:
        raise ValueError("--save_memory: zero-shot has no references to save; give --k_shot")
    if mode == "zero_shot":
        settings.k_shot, settings.seed = [0], []
        sources |= dict.fromkeys(("k_shot", "seed"), "zero-shot has none")
    settings.mode = mode
    if args.mode is None:
        sources["mode"] = "follows from the other flags"
    _default(settings, sources, "data_path", f"./data/{settings.dataset}")
    _default(settings, sources, "save_path", f"./results/{settings.method}/{settings.dataset}/{mode}")
    return settings, sources


def resolve_predict(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `resolve_train`; besides, what fixes the scale must not be said twice (ValueError)."""
    settings, sources = _fill_object(args)
    _default(settings, sources, "save_path", f"./results/{settings.method}/predict")
    return settings, sources


def resolve_export(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `resolve_predict`."""
    settings, sources = _fill_object(args)
    settings.device, settings.precision, settings.compile = "cpu", "fp32", False
    sources |= dict.fromkeys(("device", "precision", "compile"), "export.py")
    _default(settings, sources, "save_path", f"./exps/{settings.method}/export")
    return settings, sources


def resolve_onnx(args: argparse.Namespace, said: Mapping[str, Any]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Settings of predict.py --onnx, as `resolve_train`.

    Args:
        said: what the exported detector was made with; method, class_name and image_size are there.

    Raises:
        ValueError: a flag that contradicts it, or that cannot be compared with it; names both.
    """
    if said["method"] not in _PRESETS:
        raise ValueError(f"--onnx {args.onnx}: made by unknown method '{said['method']}'; known: {', '.join(_PRESETS)}")
    flags = ("method", "class_name", "image_size", "model", "pretrained", "prompts", *_OPTIONS)
    said = {**{key: said[key] for key in flags if key in said}, "device": "cpu", "precision": "fp32"}
    given = {key: value for key, value in vars(args).items() if value is not None and key not in _WITH_ONNX}
    for key, value in given.items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        if key not in said:
            raise ValueError(f"--{key} {shown}: {args.onnx} has its own, which export.py fixed; drop --{key}")
        if said[key] != value:
            fixed = " ".join(map(str, said[key])) if isinstance(said[key], list) else said[key]
            raise ValueError(f"--{key} {shown}: {args.onnx} is fixed to {fixed}; drop --{key}")
    settings = argparse.Namespace(**{key: getattr(args, key) for key in _WITH_ONNX})
    sources = {key: "flag" for key, value in vars(settings).items() if value is not None}
    for key in ("method", "class_name", "image_size"):
        _default(settings, sources, key, said[key], str(args.onnx))
    _default(settings, sources, "num_workers", _COMMON["num_workers"])
    _default(settings, sources, "batch_size", _PRESETS[settings.method]["test"]["batch_size"], "preset")
    if settings.batch_size == "auto":
        settings.batch_size, sources["batch_size"] = CPU_BATCH, "auto"
    _default(settings, sources, "save_path", f"./results/{settings.method}/predict")
    return settings, sources


def _fill_object(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """Settings of a detector for one object."""
    if args.calibrate is not None and args.calibration is not None:
        raise ValueError("--calibrate and --calibration both fix the scale; give one of them")
    if args.calibration is not None and args.fpr is not None:
        raise ValueError(f"--fpr {args.fpr:g}: the threshold of --calibration {args.calibration} has its own; drop one")
    if not (args.class_name or "").strip():
        raise ValueError("--class_name is missing: say what the images show, as in --class_name screw")
    return _fill_own(argparse.Namespace(**{**vars(args), "class_name": args.class_name.strip()}))


def resolve_app(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `resolve_train`; where no flag names a method or a model: WinCLIP on the weights that ship, if any."""
    shipped = {}
    if not any((args.method, args.model, args.config_path, args.pretrained)) and QUICKSTART.is_file():
        shipped = {"config_path": str(QUICKSTART.with_suffix(".json")), "pretrained": str(QUICKSTART)}
    settings, sources = _fill_own(argparse.Namespace(**{**vars(args), **shipped, "method": args.method or "winclip"}))
    vars(settings).pop("num_workers")
    sources |= dict.fromkeys(shipped, "default")
    for key, value in _APP.items():
        _default(settings, sources, key, value)
    if args.method is None:
        sources["method"] = "default"
    return settings, sources


def _calibrated(args: argparse.Namespace) -> bool:
    return getattr(args, "calibration", None) is not None


def _fill_own(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """Settings for one's own images, of which nothing is drawn."""
    settings, sources = _fill(argparse.Namespace(**{**vars(args), "dataset": "own images"}), "test")
    sources.pop("dataset")
    for key in ("k_shot", "seed"):
        vars(settings).pop(key, None)
    _default(settings, sources, "fpr", 0.05, "default; --calibration has its own" if _calibrated(args) else "default")
    if not 0 < settings.fpr < 1:
        raise ValueError(f"--fpr {settings.fpr:g}: want a rate between 0 and 1")
    return settings, sources


def _fill(args: argparse.Namespace, script: str) -> tuple[argparse.Namespace, dict[str, str]]:
    settings = argparse.Namespace(**vars(args))
    sources = {key: "flag" for key, value in vars(args).items() if value is not None and value is not False}
    for key, value in _COMMON.items():
        _default(settings, sources, key, value)
    preset = _PRESETS[settings.method]
    if script not in preset:
        raise ValueError(f"--method {settings.method} has nothing to train; test.py runs it as it is")
    published = preset["backbone"]
    if settings.config_path is not None:
        _default(settings, sources, "model", Path(settings.config_path).stem, "--config_path")
    _default(settings, sources, "precision", *default_precision(settings.device))
    # The published size and weights belong to the published architecture; another has its own.
    same = settings.model in (None, published["model"])
    for key, value in {**(published if same else {}), **preset[script]}.items():
        _default(settings, sources, key, _for_dataset(value, settings.dataset), f"{settings.method} preset")
    if getattr(settings, "feature_cache", None) is not None:
        _default(settings, sources, "feature_cache_size", 50.0)
    elif getattr(settings, "feature_cache_size", None) is not None:
        size = settings.feature_cache_size
        raise ValueError(f"--feature_cache_size {size:g}: says nothing without --feature_cache; name a folder")
    if settings.batch_size == "auto":
        sources["batch_size"] = "auto"  # a number as soon as the detector is there
    if settings.pretrained is None:
        raise ValueError(f"--model {settings.model} needs --pretrained: a tag of open_clip or a weights file")
    return settings, sources


def _default(settings: argparse.Namespace, sources: dict, key: str, value: Any, source: str = "default") -> None:
    if getattr(settings, key, None) is None:
        setattr(settings, key, value)
        sources[key] = source


def _for_dataset(value: Any, dataset: str) -> Any:
    return value.get(dataset, value[""]) if isinstance(value, dict) else value


def validation_options(settings: argparse.Namespace, sources: dict[str, str]) -> dict[str, Any]:
    """Options and prompts of the detector that scores --val_dataset while train.py runs: those of test.py there."""
    preset = _PRESETS[settings.method]["test"]
    return {
        key: _for_dataset(preset[key], settings.val_dataset)
        if key in preset and sources.get(key) != "flag"
        else getattr(settings, key, None)
        for key in (*_OPTIONS, "prompts")
    }


def log_settings(settings: argparse.Namespace, sources: dict[str, str]) -> None:
    """One line per setting: its value and where that comes from."""
    for key, value in sorted(vars(settings).items()):
        if value is not None:
            shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            LOG.info("%-20s %s (%s)", key, shown, sources.get(key, "default"))
