"""Settings: flags, and the published preset of each method for the flags that are not given."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils import validation
from utils.engine import CPU_BATCH
from utils.runtime import LOG, PRECISIONS, default_precision

DATASETS = (
    "mvtec", "visa", "mpdd", "btad", "mtd", "dagm", "ksdd2", "headct", "brainmri", "isic", "clinicdb", "folder",
    "demo_textures", "demo_objects",
)  # fmt: skip

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = next((word for word in message.split() if word.startswith("--") and word not in flags), "")
        near = difflib.get_close_matches(wrong, flags, n=1)
        hint = f"did you mean {near[0]}?" if near and "unrecognized" in message else "--help lists the flags"
        print(f"error: {message}; {hint}", file=sys.stderr)
        sys.exit(2)


def train_parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of train.py. None means: not given, the preset decides."""
    parser = _parser("Fit a method's trainable parts on the test split of a dataset (it has the anomalies).", methods)
    add = parser.add_argument
    add("--train_data_path", help="root of the dataset (default ./data/DATASET)")
    add("--batch_size", type=positive, help="images of a step, in all processes together")
    add("--epoch", type=positive, help="epochs")
    add("--learning_rate", type=rate, help="of Adam")
    add("--aug_rate", type=probability, help="probability of a 2 x 2 mosaic instead of an image")
    add("--augment", action="store_true", default=None, help="turn, jitter and blur images (vcp_clip: default)")
    add("--no_augment", dest="augment", action="store_false", default=None, help="leave images as they are")
    add("--prompt_dropout", type=probability, help="vcp_clip: of the learned tokens (default 0.1)")
    add("--print_freq", type=positive, help="epochs between two lines of the log")
    add("--save_freq", type=positive, help="epochs between two checkpoints; the last epoch is always saved")
    add("--seed", type=natural, help="of start weights, order and mosaics")
    add("--init_checkpoint", help="start from the weights of this checkpoint")
    add("--no_shuffle", action="store_true", default=None, help="samples in the order of meta.json (sdp_plus: default)")
    add("--shuffle", dest="no_shuffle", action="store_false", default=None, help="samples in random order")
    add("--val_dataset", choices=DATASETS, help="score this dataset, zero-shot, each time a checkpoint is saved")
    add("--val_data_path", help="its root (default ./data/VAL_DATASET)")
    add("--val_meta_path", help="its meta.json, where it is not in the root")
    add(
        "--val_metric",
        choices=validation.CHOICES,
        help="what makes a checkpoint the best, kept as best.pth (default ap_px)",
    )
    add("--resume", action="store_true", help="go on with the training that was interrupted in --save_path")
    _add_cache(parser)
    return parser


def test_parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of test.py. None means: not given, the preset decides."""
    parser = _parser("Score the test split of a dataset, zero-shot or with a few normal reference images.", methods)
    add = parser.add_argument
    add("--data_path", help="root of the dataset (default ./data/DATASET)")
    add("--checkpoint_path", help="trained adapters, ours or published")
    add("--mode", choices=("zero_shot", "few_shot"), help="default: few_shot where --k_shot or --references is given")
    add("--k_shot", type=natural, nargs="+", help="numbers of references per class, all scored in one pass")
    add("--seed", type=natural, nargs="+", help="seeds of the references' draw, all scored in one pass")
    _add_test_options(parser)
    _add_cache(parser)
    add("--save_memory", metavar="FILE", help="write the references' tokens of all classes and settings (.safetensors)")
    add("--memory", metavar="FILE", help="use the references of such a file instead of images")
    _add_batch_size(parser)
    add("--references", help="k_shot.json or k_shot.txt that names the references, instead of a draw")
    add("--save_maps", action="store_true", help="write every anomaly map as .npy")
    add("--no_images", action="store_true", help="draw no overlays")
    add("--resume", action="store_true", help="go on with an interrupted run: its finished classes stay")
    return parser


def predict_parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of predict.py. None means: not given, the preset decides."""
    parser = _Parser(description="Find anomalies in one's own images.", allow_abbrev=False)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders with all that is below them")
    add("--onnx", metavar="FILE", help="run what export.py wrote; the flags of the detector are in it")
    add("--save_maps", action="store_true", help="write every anomaly map as .npy")
    add("--no_images", action="store_true", help="draw no overlays")
    _add_cache(parser)
    _add_object(parser)
    _add_common(parser, methods)
    _add_batch_size(parser)
    _add_device(parser)
    return parser


def export_parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of export.py, those of predict.py that make the detector. None means: not given, the preset decides."""
    parser = _Parser(description="Write a detector for one object as an ONNX file.", allow_abbrev=False)
    _add_object(parser)
    _add_common(parser, methods)
    _add_batch_size(parser)
    return parser


def app_parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of app.py. None means: not given, the preset decides."""
    parser = _Parser(description="Find anomalies in a web page.", allow_abbrev=False)
    add = parser.add_argument
    add("--host", help="address to listen on; 0.0.0.0: all (default 127.0.0.1, this machine only)")
    add("--port", type=positive, help="default: the first free one from 7860")
    add("--max_megabytes", type=positive, help="of an uploaded file (default 20)")
    add("--max_pixels", type=positive, help="of an image (default 40000000)")
    add("--max_references", type=positive, help="normal images beside an image (default 8)")
    add("--checkpoint_path", help="trained parts, ours or published")
    _add_fpr(parser)
    _add_test_options(parser)
    _add_detector(parser, methods, "winclip, on the weights that ship unless others are named")
    _add_batch_size(parser)
    _add_device(parser)
    return parser


def _parser(description: str, methods: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="mvtec", help="its name (default mvtec)")
    add("--meta_path", help="the dataset's meta.json, where it is not in the root")
    add("--class", dest="classes", nargs="+", metavar="NAME", help="only these classes")
    _add_common(parser, methods)
    _add_device(parser)
    return parser


def _add_object(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--class_name", help="what the images show, as it stands in the texts: screw, leather, ...")
    add("--checkpoint_path", help="trained parts, ours or published")
    add("--references", metavar="PATH", help="normal images of the object: a folder, or a file of --save_memory")
    add("--calibrate", metavar="FOLDER", help="normal images that fix scale and threshold (default: the references)")
    add("--calibration", metavar="FILE", help="use the calibration.json of an earlier run")
    _add_fpr(parser)
    _add_test_options(parser)


def _add_test_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--few_shot_features", type=int, nargs="+", help="layers compared with the references (default features_list)")
    add("--scales", type=positive, nargs="+", help="winclip: sides of the windows in patches (default 2 3)")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--feature_cache", metavar="DIR", help="keep what the backbone makes of images, and find it there again")
    add("--feature_cache_size", type=rate, metavar="GB", help="bound of that folder (default 50); the oldest go")


def _add_fpr(parser: argparse.ArgumentParser) -> None:
    text = "wanted share of normal images above the threshold (default 0.05)"
    parser.add_argument("--fpr", type=probability, help=text)


def _add_common(parser: argparse.ArgumentParser, methods: Sequence[str]) -> None:
    _add_detector(parser, methods, "april_gan")
    parser.add_argument("--save_path", help="folder of the results")
    parser.add_argument("--num_workers", type=natural, help="processes that read images")


def _add_detector(parser: argparse.ArgumentParser, methods: Sequence[str], default: str) -> None:
    add = parser.add_argument
    add("--method", choices=methods, help=f"default {default}")
    add("--model", help="architecture of open_clip, or of --config_path")
    add("--pretrained", help="tag of open_clip (openai, laion400m_e31, ...) or file (.pt, .safetensors)")
    add("--config_path", help="architecture JSON that open_clip does not ship")
    add("--quick_gelu", choices=("auto", "on", "off"), help="activation; auto: what the architecture says")
    add("--image_size", type=positive, help="side of the square input in pixels")
    add("--features_list", type=int, nargs="+", help="layers compared with the texts, from 1")
    add("--prompts", metavar="FILE", help="JSON of states and templates, or the name of prompts that ship")
    add("--rep_vec", help="sdp, sdp_plus: how texts become one vector: mean, pca, kde, dbscan, mean_shift")
    add("--dbscan", type=float, nargs=2, metavar=("EPS", "MIN"), help="sdp, sdp_plus: radius and neighbours of DBSCAN")
    add("--smoothing", type=float, help="sdp, sdp_plus: sigma of the Gaussian filter over maps, in pixels")
    add("--prompt_len", type=positive, help="vcp_clip: tokens that stand for the image (default 2)")
    add("--deep_prompt_len", type=positive, help="vcp_clip: learned tokens after the start token (default 1)")
    add("--total_d_layer_len", type=natural, help="vcp_clip: later text blocks with tokens of their own: all, or 0")
    add("--use_global", type=boolean, help="vcp_clip: make tokens from the image, True (default) or False")


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    text = f"images at a time, in each process; auto: what fits on the GPU, {CPU_BATCH} on the CPU"
    parser.add_argument("--batch_size", type=batch_size, metavar="N", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--precision", choices=PRECISIONS, help="of the backbone (default: bf16 on GPUs that have it, else fp32)")
    add("--compile", action="store_true", default=None, help="compile the image encoder (torch.compile)")


# Types of flags: argparse names them in its messages.


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: want 1 or more")
    return int(text)


def natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text}: want 0 or more")
    return int(text)


def batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: want True or False")
    return text.lower() == "true"


def rate(text: str) -> float:
    if not 0 < float(text) <= 1e6:
        raise argparse.ArgumentTypeError(f"{text}: want a number above 0, at most 1e6")
    return float(text)


def probability(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: want a probability from 0 to 1")
    return float(text)


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


def detector_settings(settings: argparse.Namespace) -> dict[str, Any]:
    """The settings that `model.build` takes beside the method."""
    keys = ("model", "pretrained", "config_path", "image_size", "quick_gelu")
    return {key: getattr(settings, key, None) for key in (*keys, *_OPTIONS)}


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
