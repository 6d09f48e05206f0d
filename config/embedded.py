"""The small model that ships, and what it does with one's own images where no flag names a method or a model.

Compared with normal images, its features serve AnomalyDINO's memory bank; without any, its texts and adapters serve
APRIL-GAN, which needs to know what the images show; many images whose kind is not said compare each other (MuSc).
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from config.thresholds import FLAGS
from model import METHODS

_FOLDER = Path(__file__).parent.parent / "exps/quickstart"
ARCHITECTURE = _FOLDER / "quickstart-clip.json"
WEIGHTS = _FOLDER / "quickstart-clip.safetensors"
ADAPTERS = _FOLDER / "april_gan.pth"

BANK, TEXTS, SET = "anomaly_dino", "april_gan", "musc"


def is_asked(args: argparse.Namespace) -> bool:
    """Whether no flag names a method, a model or weights, and the files are there."""
    named = (args.method, args.model, args.config_path, args.pretrained, args.checkpoint_path)
    return not any(named) and WEIGHTS.is_file()


def filled(args: argparse.Namespace, method: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """The flags of `is_asked`, with a method on the embedded model; and where each of these settings comes from."""
    chosen = {"method": method, "config_path": str(ARCHITECTURE), "pretrained": str(WEIGHTS)}
    if method == TEXTS:
        chosen["checkpoint_path"] = str(ADAPTERS)
    if method == BANK and args.preprocess is None:
        chosen["preprocess"] = "agnostic_no_mask"  # an object fills its picture here, and no list knows it
    return argparse.Namespace(**{**vars(args), **chosen}), dict.fromkeys(chosen, "the model that ships")


def for_page(args: argparse.Namespace) -> tuple[argparse.Namespace, argparse.Namespace, dict[str, str]]:
    """As `filled`, of app.py: with normal images, without, and the sources of the first. An option goes to the method
    that has it, and layers to the bank, since adapters belong to theirs."""
    bank, texts = ({option.name for option in METHODS[method].OPTIONS} for method in (BANK, TEXTS))
    compared, shipped = filled(_without(args, {*(texts - bank), "prompts"}), BANK)
    alone, _ = filled(_without(args, {*(bank - texts), "features_list"}), TEXTS)
    return compared, alone, shipped


def _without(args: argparse.Namespace, flags: Iterable[str]) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), **dict.fromkeys(flags)})


def for_object(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `filled`, of predict.py and export.py; unchanged where something else is asked for."""
    if not is_asked(args):
        return args, {}
    if args.references is not None:
        return filled(args, BANK)
    sets = "mode" in vars(args)  # of predict.py
    # Images that are scored together have no scale and no threshold: who asks for one means images one by one.
    scaled = any(getattr(args, key) is not None for key in ("calibrate", "calibration", *FLAGS))
    alone = args.class_name is not None or scaled
    together = sets and (args.mode == "batched" or (args.mode is None and not alone))
    return filled(args, SET if together else TEXTS)
