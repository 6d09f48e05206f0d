"""Measure what the quickstart's model finds in photographs that it was not trained on.

    python -m tools.quickstart_clip.evaluate [--weights DIR ...] [--demo_root data/demo] [--mtd_root data/mtd]

For each folder that tools.quickstart_clip.train wrote: without references, by its own adapters; APRIL-GAN trained on
one set of the sample data and tested on the other, without references and with 4 (seeds 1, 2 and 3). Once, since the
part of the network that it compares is the same in all of them: AnomalyDINO's memory bank with 1 and 4 references. All
metrics, as test.py computes them, mean over classes and seeds; of several folders their means, too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report.tables import TABLE as METRICS
from utils.errors import run_script

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
SETS = ("demo_textures", "demo_objects")
_SEEDS = ("1", "2", "3")
Row = tuple[str, dict[str, float]]  # what was measured, and its metrics as fractions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=[str(ARCHITECTURE.parent)], metavar="DIR")
    parser.add_argument("--demo_root", default=str(ROOT / "data/demo"), metavar="DIR")
    parser.add_argument("--mtd_root", metavar="DIR", help="left out where not given")
    parser.add_argument("--classes", action="store_true", help="every class, not the means alone")
    args = parser.parse_args(argv)
    data = {name: Path(args.demo_root, name) for name in SETS}
    if args.mtd_root:
        data["mtd"] = Path(args.mtd_root)
    print(f"| {'':60} | " + " | ".join(METRICS) + " |", flush=True)
    measured: list[list[Row]] = []
    for folder in args.weights:
        measured.append([])
        for title, row in rows_of(Path(folder), data, args.classes):
            measured[-1].append((title, row))
            show(f"{folder}: {title}", row)
    for same in zip(*measured, strict=True) if len(measured) > 1 else ():
        means = {key: sum(row[key] for _, row in same) / len(same) for key in METRICS}
        show(f"mean: {same[0][0]}", means)
    for title, row in bank_rows(Path(args.weights[0]), data, args.classes):
        show(title, row)


def show(title: str, row: dict[str, float]) -> None:
    print(f"| {title:60} | " + " | ".join(f"{100 * row[key]:.1f}" for key in METRICS) + " |", flush=True)


def rows_of(weights: Path, data: dict[str, Path], classes: bool) -> Iterator[Row]:
    """What depends on the trained part of the weights."""
    adapters = ["--checkpoint_path", str(weights / "april_gan.pth")]
    for name, root in data.items():
        yield from tested(weights, name, root, [*adapters, "--mode", "zero_shot"], "own adapters", classes)
    with tempfile.TemporaryDirectory() as folder:
        for trained_on, tested_on in (SETS, SETS[::-1]):
            trained = f"{folder}/{trained_on}"
            run("train.py", [*model(weights), "--dataset", trained_on, "--train_data_path", str(data[trained_on]),
                             "--save_path", trained])  # fmt: skip
            flags = ["--checkpoint_path", trained, "--k_shot", "0", "4", "--seed", *_SEEDS]
            yield from tested(weights, tested_on, data[tested_on], flags, f"trained on {trained_on}", classes)


def bank_rows(weights: Path, data: dict[str, Path], classes: bool) -> Iterator[Row]:
    for name, root in data.items():
        flags = ["--method", "anomaly_dino", "--k_shot", "1", "4", "--seed", *_SEEDS]
        yield from tested(weights, name, root, flags, "bank", classes)


def tested(weights: Path, name: str, root: Path, flags: Sequence[str], how: str, classes: bool) -> Iterator[Row]:
    """A row per number of references: means over classes and seeds, or those of each class too."""
    with tempfile.TemporaryDirectory() as folder:
        run("test.py", [*model(weights), "--dataset", name, "--data_path", str(root), "--save_path", folder,
                        "--no_images", *flags])  # fmt: skip
        content = json.loads(Path(folder, "metrics.json").read_text())
    runs: list[dict[str, Any]] = content.get("runs") or [content]  # of one setting, the file is the run
    for shots in dict.fromkeys(one["settings"]["k_shot"] for one in runs):
        same = [one for one in runs if one["settings"]["k_shot"] == shots]
        title = f"{name}, {how}, {f'{shots}-shot' if shots else 'zero-shot'}"
        for label in same[0]["classes"] if classes else ():
            yield f"{title}, {label}", mean([one["classes"][label] for one in same])
        yield title, mean([one["mean"] for one in same])


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in METRICS}


def model(weights: Path) -> list[str]:
    return ["--config_path", str(ARCHITECTURE), "--pretrained", str(weights / "quickstart-clip.safetensors")]


def run(script: str, flags: Sequence[str]) -> None:
    """Raises RuntimeError where the script fails; with its last lines."""
    done = subprocess.run([sys.executable, ROOT / script, *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")


if __name__ == "__main__":
    run_script(main)
