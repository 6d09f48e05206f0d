"""The command line of the dataset scripts."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data.meta import SPLITS, Samples, write


def run(build: Callable[[Path], Samples], default_root: str | None, argv: list[str] | None = None) -> int:
    """A dataset script: parse --root, build the samples, write meta.json, print their table; returns the exit code."""
    header = sys.modules[build.__module__].__doc__
    parser = argparse.ArgumentParser(description=header, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = f"dataset root (default: {default_root})" if default_root else "dataset root"
    parser.add_argument("--root", default=default_root, required=default_root is None, metavar="DIR", help=help_text)
    root = Path(parser.parse_args(argv).root)
    return guard(lambda: finish(root, build(root)))


def finish(root: Path, samples: Samples) -> None:
    """Write meta.json and print the table of what it holds."""
    target = write(root, samples)
    print(f"{table(samples)}\nwrote {target}")


def guard(action: Callable[[], None]) -> int:
    """Run a script's action; an error of the data becomes one line on stderr and exit code 2."""
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def table(samples: Samples) -> str:
    """The numbers of images per class: train, normal and defect images of test, and how many have masks."""
    names = list(dict.fromkeys(sample.cls_name for split in SPLITS for sample in samples[split]))
    rows = [("class", "train", "test normal", "test defect", "with masks")]
    rows += [(name, *_counts(samples, {name})) for name in names] + [("all", *_counts(samples, set(names)))]
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(13) for cell in row[1:]) for row in rows)


def _counts(samples: Samples, names: set[str]) -> tuple[str, ...]:
    train, test = ([sample for sample in samples[split] if sample.cls_name in names] for split in SPLITS)
    defects = sum(sample.anomaly for sample in test)
    masks = sum(bool(sample.mask_path) for sample in train + test)
    return tuple(map(str, (len(train), len(test) - defects, defects, masks)))
