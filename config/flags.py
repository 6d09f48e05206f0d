"""Command lines: the flags of every script. None means: not given, the method's preset decides.

The methods' own flags come from what they say of themselves (OPTIONS).
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from config.tiles import add_tiles
from metrics.names import MEASURES, VALIDATION_METRICS
from metrics.thresholds import RULES
from model import METHODS
from model.options import POSITION_RULES, Option, natural, positive, probability
from utils.devices import CPU_BATCH, PRECISIONS
from utils.errors import MESSAGE_LIMIT
from utils.text import escape_controls, shorten

DATASETS = (
    "mvtec", "visa", "mvtec2", "mvtec_loco", "real_iad", "mpdd", "btad", "mtd", "dagm", "ksdd2", "headct", "brainmri",
    "isic", "clinicdb", "bmad", "folder", "demo_textures", "demo_objects",
)  # fmt: skip
PUBLISHED_DATASETS = DATASETS[: DATASETS.index("folder")]  # those that others have made


class _Once(argparse.Action):
    """A flag of which a second one would not add to the first, but replace it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"argument {option_string}: given twice; name one folder that holds all of them")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        line = f"error: {escape_controls(message)}; {_hint(message, flags)}"
        print(shorten(line, MESSAGE_LIMIT), file=sys.stderr)
        sys.exit(2)


def _hint(message: str, flags: Sequence[str]) -> str:
    """What to do about unknown flags: those that are meant, where they look alike."""
    words = message.split() if "unrecognized" in message else []
    unknown = [word.partition("=")[0] for word in words if word.startswith("--")]
    near = [match for word in unknown for match in difflib.get_close_matches(word, flags, n=1, cutoff=0.75)]
    return f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "--help lists the flags"


def train_parser() -> argparse.ArgumentParser:
    """Flags of train.py. None means: not given, the preset decides."""
    parser = _parser("Fit a method's trainable parts on the test split of a dataset (it has the anomalies).")
    add = parser.add_argument
    add("--train_data_path", help="root of the dataset (default ./data/DATASET)")
    add("--batch_size", type=positive, help="images of a step, in all processes together")
    add("--epoch", type=positive, help="epochs")
    add("--learning_rate", type=rate, help="of Adam")
    add("--aug_rate", type=probability, help="probability of a 2 x 2 mosaic instead of an image")
    add("--augment", action="store_true", default=None, help="turn, jitter and blur images (vcp_clip: default)")
    add("--no_augment", dest="augment", action="store_false", default=None, help="leave images as they are")
    _add_options(parser, "train")
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
        choices=VALIDATION_METRICS,
        help="what makes a checkpoint the best, kept as best.pth (default ap_px)",
    )
    add("--resume", action="store_true", help="go on with the training that was interrupted in --save_path")
    _add_cache(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Flags of test.py. None means: not given, the preset decides."""
    parser = _parser("Score the test split of a dataset, zero-shot or with a few normal reference images.")
    add = parser.add_argument
    add("--data_path", help="root of the dataset (default ./data/DATASET)")
    add("--checkpoint_path", help="trained adapters: a file, or a folder of train.py, whose latest epoch is taken")
    add("--trained_on", metavar="DATASET", help="take ./exps/METHOD/DATASET as checkpoint, if the method is trained")
    add(
        "--mode",
        choices=("zero_shot", "few_shot", "batched"),
        help="batched: the unlabelled images of a class are scored together (default: few_shot where --k_shot or "
        "--references is given, else what the method can do)",
    )
    add("--k_shot", type=natural, nargs="+", help="numbers of references per class, all scored in one pass")
    add("--seed", type=natural, nargs="+", help="seeds of the references' draw, all scored in one pass")
    _add_options(parser, "test")
    _add_cache(parser)
    add("--save_memory", metavar="FILE", help="write the references' tokens of all classes and settings (.safetensors)")
    add("--memory", metavar="FILE", help="use the references of such a file instead of images")
    _add_batch_size(parser)
    add("--references", help="k_shot.json or k_shot.txt that names the references, instead of a draw")
    add("--reference_draw", choices=("seeded", "published"), help="published: as the method's own program draws them")
    _add_measures(parser)
    add_tiles(parser)
    _add_threshold(parser, "none, and no verdicts")
    text = "also score the parts of the dataset that have no labels (MVTec AD 2): unlabelled.csv"
    add("--unlabelled", action="store_true", help=text)
    text = "write what the server of MVTec AD 2 takes, and DIR.tar.gz; with --threshold, one --k_shot and one --seed"
    add("--submission", metavar="DIR", help=text)
    add("--save_maps", action="store_true", help="write every anomaly map as .npy")
    add("--no_images", action="store_true", help="draw no overlays")
    add("--resume", action="store_true", help="go on with an interrupted run: its finished classes stay")
    return parser


def reproduce_parser() -> argparse.ArgumentParser:
    """Flags of reproduce.py; what it does not know it passes on to train.py and test.py."""
    text = "Test every method on every dataset that is there, and compare the results with the published figures."
    parser = _Parser(description=text, allow_abbrev=False)
    add = parser.add_argument
    add("--data_path", default="./data", help="folder that holds the datasets, each under its name (default ./data)")
    add("--save_path", default="./results/reproduce", help="folder of all runs; beside it the table and the page")
    add("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help=f"default: all of {', '.join(METHODS)}")
    text = f"default: {', '.join(PUBLISHED_DATASETS)}"
    add("--datasets", nargs="+", choices=DATASETS, metavar="DATASET", help=text)
    add("--k_shot", type=positive, nargs="+", default=[1, 2, 4], help="numbers of references (default 1 2 4)")
    add("--seed", type=natural, nargs="+", help="of the references' draw (default: the published ones of each method)")
    add("--published", metavar="FILE", help="figures to compare with (default report/published.json)")
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Flags of predict.py. None means: not given, the preset decides."""
    parser = _Parser(description="Find anomalies in one's own images.", allow_abbrev=False)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders with all that is below them")
    add("--onnx", metavar="PATH", help="run what export.py wrote, a file or its folder; the detector's flags are in it")
    add(
        "--mode",
        choices=("batched",),
        help="score all images together, without labels or references (musc: default); scores.csv and report.html are "
        "sorted, the odd ones first",
    )
    add("--save_maps", action="store_true", help="write every anomaly map as .npy")
    add("--no_images", action="store_true", help="draw no overlays")
    _add_cache(parser)
    _add_object(parser)
    _add_common(parser)
    _add_batch_size(parser)
    _add_device(parser)
    return parser


def export_parser() -> argparse.ArgumentParser:
    """Flags of export.py, those of predict.py that make the detector. None means: not given, the preset decides."""
    parser = _Parser(description="Write a detector for one object as an ONNX file.", allow_abbrev=False)
    _add_object(parser)
    _add_common(parser)
    _add_batch_size(parser)
    return parser


def app_parser() -> argparse.ArgumentParser:
    """Flags of app.py. None means: not given, the preset decides."""
    parser = _Parser(description="Find anomalies in a web page.", allow_abbrev=False)
    add = parser.add_argument
    add("--host", help="address to listen on; 0.0.0.0: all (default 127.0.0.1, this machine only)")
    add("--port", type=positive, help="default: the first free one from 7860")
    add("--max_megabytes", type=positive, help="of an uploaded file (default 20)")
    add("--max_pixels", type=positive, help="of an image (default 40000000)")
    add("--max_references", type=positive, help="normal images beside an image (default 8)")
    add("--max_set", type=positive, help="images that are scored together, with musc (default 30)")
    add("--max_total_megabytes", type=positive, help="of all uploads together, which are kept an hour (default 2000)")
    add("--allow_host", nargs="+", metavar="NAME", help="host names of the page beside localhost, addresses and --host")
    add("--checkpoint_path", help="trained parts, ours or published")
    _add_bits(parser)
    add_tiles(parser)
    _add_threshold(parser)
    _add_options(parser, "test")
    _add_detector(parser, "anomaly_dino with normal images, april_gan without, on the model that ships")
    _add_batch_size(parser)
    _add_device(parser)
    return parser


def _parser(description: str) -> argparse.ArgumentParser:
    parser = _Parser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="mvtec", help="its name (default mvtec)")
    add("--meta_path", help="the dataset's meta.json, where it is not in the root")
    add("--follow_links", action="store_true", help="accept links out of the root that the owner of the dataset made")
    add("--class", dest="classes", nargs="+", metavar="NAME", help="only these classes")
    _add_common(parser)
    _add_device(parser)
    return parser


def _add_object(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--class_name", help="what the images show, as it stands in the texts: screw, leather, ...")
    add("--checkpoint_path", help="trained parts, ours or published")
    text = "normal images of the object: a folder, or a file of --save_memory"
    add("--references", metavar="PATH", action=_Once, help=text)
    text = "normal images that fix scale and threshold (default: the references)"
    add("--calibrate", metavar="FOLDER", action=_Once, help=text)
    add("--calibration", metavar="FILE", help="use the calibration.json of an earlier run")
    _add_bits(parser)
    add_tiles(parser)
    _add_threshold(parser)
    _add_options(parser, "test")


def _add_measures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--measures", nargs="+", choices=MEASURES, metavar="NAME", help=f"further columns, of {', '.join(MEASURES)}")
    text = "false positive rates up to which AU-PRO and AU-sPRO go; aupro is always that of 0.3 (AU-sPRO: default 0.05)"
    add("--fpr_limits", type=fpr_limit, nargs="+", metavar="RATE", help=text)
    text = "pixels are measured at the size of the maps, or at each image's own (default input)"
    add("--metric_size", choices=("input", "image"), help=text)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--feature_cache", metavar="DIR", help="keep what the backbone makes of images, and find it there again")
    add("--feature_cache_size", type=rate, metavar="GB", help="bound of that folder (default 50); the oldest go")


def _add_bits(parser: argparse.ArgumentParser) -> None:
    text = "that images of 16 bits really use: 10, 12 or 14 of many cameras (default 16)"
    parser.add_argument("--bits", type=bits, metavar="N", help=text)


def _add_threshold(parser: argparse.ArgumentParser, default: str = "conformal, of scores alone") -> None:
    add = parser.add_argument
    text = (
        "rule of the thresholds of scores and of pixels, from normal images: conformal keeps the rate of --fpr, "
        "mean_std is mean + 3 standard deviations, quantile is that of 1 - fpr times --threshold_factor"
    )
    add("--threshold", choices=RULES, help=f"{text} (default: {default})")
    add("--fpr", type=probability, help="wanted share of normal images above the threshold (default 0.05)")
    add("--threshold_factor", type=rate, metavar="F", help="of --threshold quantile (default 1)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_detector(parser, "april_gan")
    parser.add_argument("--save_path", help="folder of the results")
    text = "processes that read images; auto (default): one per processor core, at most 8; 0: read in the run itself"
    parser.add_argument("--num_workers", type=workers, metavar="N", help=text)


def _add_detector(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    add("--method", choices=list(METHODS), help=f"default {default}")
    add("--model", help="architecture of open_clip or timm (NAME or NAME.TAG), or of --config_path")
    add("--pretrained", help="tag of open_clip or timm (openai, lvd142m, ...) or file (.pt, .safetensors)")
    add("--config_path", help="architecture JSON that neither open_clip nor timm ships")
    add("--quick_gelu", choices=("auto", "on", "off"), help="activation of a CLIP; auto: what the architecture says")
    add(
        "--position_rule",
        choices=("auto", *POSITION_RULES),
        help="how a ViT's position table is brought to the images' grid; auto: as the method's published program does",
    )
    channels, known = ("R", "G", "B"), "default: what the weights were trained with, where that is known"
    add("--mean", type=float, nargs=3, metavar=channels, help=f"by which images are normalised, in [0, 1] ({known})")
    add("--std", type=float, nargs=3, metavar=channels, help="the same of the standard deviation; belongs to --mean")
    add("--image_size", type=positive, help="side of the square input in pixels")
    add("--prompts", metavar="FILE", help="JSON of states and templates, or the name of prompts that ship")


def _add_options(parser: argparse.ArgumentParser, script: str) -> None:
    """The flags of all methods; help texts begin with the methods that have them, unless all do."""
    owners: dict[str, dict[str, Option]] = {}  # flag -> method -> its option
    for method, cls in METHODS.items():
        for option in cls.OPTIONS:
            if script in option.scripts:
                owners.setdefault(option.name, {})[method] = option
    for name, options in owners.items():
        option = next(iter(options.values()))
        texts: dict[str, list[str]] = {}  # help text -> methods
        for method, one in options.items():
            texts.setdefault(one.help, []).append(method)
        aliases = dict.fromkeys(alias for one in options.values() for alias in one.aliases)
        parser.add_argument(
            f"--{name}",
            *(f"--{alias}" for alias in aliases),
            dest=name,
            type=option.type,
            nargs=option.nargs,
            metavar=option.metavar,
            help="; ".join(f"{', '.join(methods)}: {text}" for text, methods in texts.items()),
        )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    text = f"images at a time, in each process; auto: what fits on the GPU, {CPU_BATCH} on the CPU"
    parser.add_argument("--batch_size", type=batch_size, metavar="N", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--precision", choices=PRECISIONS, help="of the backbone (default: bf16 on GPUs that have it, else fp32)")
    add("--compile", action="store_true", default=None, help="compile the image encoder (torch.compile)")


def batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def workers(text: str) -> int | str:
    return text if text == "auto" else natural(text)


def bits(text: str) -> int:
    if not 8 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text}: must be from 8 to 16")
    return int(text)


def fpr_limit(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a rate above 0, at most 1")
    return float(text)


def rate(text: str) -> float:
    if not 0 < float(text) <= 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0, at most 1e6")
    return float(text)
