"""The command line of the dataset scripts."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from data.bit_depth import BITS
from data.layouts import DatasetFiles, UnknownLayout, folders
from data.meta import PARTS, SPLITS, PixelSettings, Samples, Unlabelled, write
from data.survey import notes
from utils.errors import run_script
from utils.text import escape_controls

_CANDIDATES = 50  # folders below a root that are looked at where it is not the root


def run(
    build: Callable[..., DatasetFiles],
    default_root: str | None,
    argv: list[str] | None = None,
    *,
    can_turn: bool = False,
    own_flags: Mapping[str, str] | None = None,
) -> None:
    """A dataset script: parse the flags, build the samples, write meta.json, print what it holds.

    Ends as `run_script` says: a mistake of the user is one line and exit code 2.

    Args:
        build: root -> what lies there. Raises ValueError or OSError, `UnknownLayout` where there is nothing of it.
        can_turn: offer --exif.
        own_flags: further flags of one word, each with its help; build takes their values, None where one is not given,
            as keyword arguments.
    """
    parser = _parser(build, default_root, can_turn)
    for flag, text in (own_flags or {}).items():
        parser.add_argument(flag, metavar="NAME", help=text)
    args = parser.parse_args(argv)
    build = functools.partial(build, **{flag[2:]: vars(args)[flag[2:]] for flag in own_flags or {}})
    root = Path(args.root)
    target = Path(args.meta_path) if args.meta_path else root / "meta.json"
    settings = PixelSettings(args.bits, can_turn and args.exif)

    def action() -> None:
        found = _built(build, root)
        own = [root / "meta.json", Path(os.path.normpath(target))]
        try:
            write(
                root, found.samples, target, settings, follow_links=args.follow_links,
                unlabelled=found.unlabelled, defects=found.defects,
            )  # fmt: skip
        except OSError as error:
            raise OSError(f"{error}; --meta_path FILE puts it elsewhere, here and for train.py and test.py") from None
        lines = [
            table(found.samples, found.unlabelled),
            *notes(root, found, own, settings, can_turn),
            f"wrote {target}",
        ]
        print("\n".join(lines))

    run_script(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {escape_controls(message)}; --help lists the flags", file=sys.stderr)
        sys.exit(2)


def _parser(build: Callable[[Path], DatasetFiles], default_root: str | None, can_turn: bool) -> argparse.ArgumentParser:
    header = sys.modules[build.__module__].__doc__
    parser = _Parser(description=header, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = f"dataset root (default: {default_root})" if default_root else "dataset root"
    parser.add_argument("--root", default=default_root, required=default_root is None, metavar="DIR", help=help_text)
    parser.add_argument(
        "--meta_path", metavar="FILE", help="write this file instead of DIR/meta.json; train.py and test.py take it too"
    )
    parser.add_argument(
        "--bits", type=_bits, metavar="N", help="bits that images of 16 or 32 really use (12: values up to 4095)"
    )
    parser.add_argument(
        "--follow_links", action="store_true", help="accept links that lead out of DIR, where DIR's owner made them"
    )
    if can_turn:
        parser.add_argument(
            "--exif", action="store_true", help="turn images and masks, each as its own EXIF orientation says"
        )
    return parser


def _bits(text: str) -> int:
    if not text.isdecimal() or int(text) not in BITS:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {BITS[0]} to {BITS[-1]}")
    return int(text)


def _built(build: Callable[[Path], DatasetFiles], root: Path) -> DatasetFiles:
    """What lies under a root; where that is nothing, the error names the folders that would do."""
    try:
        return build(root)
    except UnknownLayout as error:
        if not root.is_dir():
            advice = "unpack the dataset there or give its place with --root"
            raise FileNotFoundError(f"{root}: no such folder; {advice}") from None
        above = [Path(os.path.normpath(root / os.pardir)), Path(os.path.normpath(root / os.pardir / os.pardir))]
        fitting = [path for path in folders(root)[:_CANDIDATES] if _fits(build, path)]
        fitting = fitting or [path for path in above if _fits(build, path, root)][:1]
        hint = f"; --root {' or '.join(map(str, fitting[:3]))} would do" if fitting else ""
        raise ValueError(f"{error}{hint}") from None


def _fits(build: Callable[[Path], DatasetFiles], root: Path, part: Path | None = None) -> bool:
    """Whether a folder has the layout, be it with a fault. part: a folder below it that must hold images of it."""
    try:
        samples = build(root).samples
    except (UnknownLayout, OSError):
        return False
    except ValueError:
        return part is None
    places = (os.path.abspath(root / sample.img_path) for split in SPLITS for sample in samples[split])
    return any(part is None or Path(place).is_relative_to(os.path.abspath(part)) for place in places)


def table(samples: Samples, unlabelled: Unlabelled | None = None) -> str:
    """The numbers of images per class: train, validation where there is one, normal and defect images of test, how many
    have masks, and the parts without labels."""
    names = list(dict.fromkeys(sample.cls_name for part in PARTS for sample in samples.get(part, [])))
    columns = ["train", *["validation"] * bool(samples.get("validation")), "test normal", "test defect", "with masks"]
    head = ("class", *columns, *(unlabelled or {}))
    rows: list[tuple[str, ...]] = [head]
    for label, own in [*((name, {name}) for name in names), ("all", set(names))]:
        counts = _counts(samples, own)
        secret = [sum(one.cls_name in own for one in images) for images in (unlabelled or {}).values()]
        rows.append((escape_controls(label), *(str(counts[key]) for key in columns), *map(str, secret)))
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = (zip(row[1:], widths, strict=True) for row in rows)
    lines = ("".join(cell.rjust(max(13, width + 2)) for cell, width in line) for line in cells)
    return "\n".join(row[0].ljust(first) + line for row, line in zip(rows, lines, strict=True))


def _counts(samples: Samples, names: set[str]) -> dict[str, int]:
    parts = {part: [s for s in samples.get(part, []) if s.cls_name in names] for part in PARTS}
    defects = sum(sample.anomaly for sample in parts["test"])
    return {
        "train": len(parts["train"]),
        "validation": len(parts["validation"]),
        "test normal": len(parts["test"]) - defects,
        "test defect": defects,
        "with masks": sum(bool(sample.mask_path) for part in SPLITS for sample in parts[part]),
    }
