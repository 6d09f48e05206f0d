"""The small model that ships, and what it does with one's own images where no flag names a method or a model.

Compared with normal images, its features serve AnomalyDINO's memory bank; without any, its texts and adapters serve
APRIL-GAN, which needs to know what the images show; many images whose kind is not said compare each other (MuSc).
"""

import argparse
from pathlib import Path

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


def for_object(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, str]]:
    """As `filled`, of predict.py and export.py; unchanged where something else is asked for."""
    if not is_asked(args):
        return args, {}
    if args.references is not None:
        return filled(args, BANK)
    sets = "mode" in vars(args)  # of predict.py
    together = sets and (args.mode == "batched" or (args.mode is None and args.class_name is None))
    return filled(args, SET if together else TEXTS)
