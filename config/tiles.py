"""The flags of tiles, what stands where none is given, and what tiles cannot be combined with."""

import argparse
import contextlib
from typing import Any, Protocol

from config.thresholds import Values
from data.tiles import MOST_OVERLAP, MOST_TILES
from model import capabilities
from model.class_rules import PREPROCESSING

_OVERLAP = 0.25  # so that a defect of a quarter of a tile lies whole in one of them


class ValuesWithSources(Values, Protocol):
    """Settings in the making, and where each comes from, see `config.resolve`."""

    sources: dict[str, str]


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    text = "cut each picture into N x N tiles, each scored as an image of its own (default 1: whole pictures)"
    parser.add_argument("--tiles", type=_side, metavar="N", help=text)
    text = f"what a tile shares with the next one, as a part of its side, up to {MOST_OVERLAP} (default {_OVERLAP})"
    parser.add_argument("--tile_overlap", type=_overlap, metavar="PART", help=text)


def decide_tiles(values: ValuesWithSources, args: argparse.Namespace, mode: str | None) -> None:
    """Fill in what no flag gives; of AnomalyDINO, whose published lists mask backgrounds, that nothing is masked.

    mode: of the run, where that is known.

    Raises:
        ValueError: flags that contradict tiles.
    """
    values.default("tiles", 1)
    flag = f"--tiles {values['tiles']}"
    if values["tiles"] == 1:
        if args.tile_overlap is not None:
            raise ValueError(f"--tile_overlap {args.tile_overlap:g}: requires --tiles of 2 or more")
        return
    values.default("tile_overlap", _OVERLAP)
    can = capabilities(values["method"])
    if mode == "batched" or not (can.zero_shot or can.few_shot):
        raise ValueError(f"{flag}: images that are scored together ({values['method']}) stay whole; drop --tiles")
    options: dict[str, Any] = values["options"]
    if options.get("center_crop"):
        raise ValueError(f"{flag}: --center_crop True would leave the border of every tile unseen; drop one of them")
    if options.get("background") not in (None, "none"):
        raise ValueError(
            f"{flag}: --background {options['background']} looks for an object in the middle of a picture, and a tile "
            "has none; drop one of them"
        )
    published = PREPROCESSING.get(str(options.get("preprocess")))
    if options.get("masking") not in (None, ["none"]):
        _refuse_masks(flag, f"--masking {' '.join(options['masking'])}")
    if options.get("masking") is None and published and published.masked != frozenset():
        if args.preprocess is not None:
            _refuse_masks(flag, f"--preprocess {args.preprocess}")
        options["masking"] = ["none"]
        values.sources["masking"] = "--tiles: a tile has no object in its middle"


def refuse_tiles(args: argparse.Namespace) -> None:
    """Of export.py. Raises ValueError where tiles are asked for."""
    if (args.tiles or 1) > 1:
        raise ValueError(
            f"--tiles {args.tiles}: an exported detector takes whole pictures; drop --tiles, or score with predict.py"
        )


def _side(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_TILES):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to {MOST_TILES}")
    return int(text)


def _overlap(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= MOST_OVERLAP:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: must be a number from 0 to {MOST_OVERLAP}")


def _refuse_masks(flag: str, masks: str) -> None:
    raise ValueError(
        f"{flag}: {masks} looks for an object in the middle of a picture, and a tile has none; give --masking none"
    )
