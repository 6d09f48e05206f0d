"""Broken files of every kind, given to the scripts: each run ends well or with one line, soon, and leaves nothing half.

    python tests/stress/fuzz.py                      # 1,000 files of each kind; about half an hour
    python tests/stress/fuzz.py --count 50 --kind meta image --seed 7

Changes a sound meta.json, image, checkpoint, ... at random, runs the script that reads it, and puts the sound file
back. Prints per kind how many runs ended well and how many were refused; lists each that did neither, with the seed
that makes its file again, and then ends with exit code 1.
"""

import argparse
import contextlib
import copy
import csv
import io
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # as a script, beside the packages of the checkout
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE, Weights, unpack_weights
from data.meta import Sample, write
from utils.errors import run_script

SECONDS = 60  # that a run may take
SIZE = 32  # of the model's input in pixels
ODD = (
    None, True, -1, 0, 1, 2, 1.5, 10**30, 1e308, float("nan"), float("inf"), "", " ", "x", "../x", "/etc/passwd",
    "a\0b", "\ud800", "é" * 300, "nut/0.png", [], {}, [[]], [None], {"": ""}, {"nut": []}, {"img_path": 3},
)  # fmt: skip


class TooLong(BaseException):
    """A run does not end: no handler of the scripts may take it for an error of a file."""


class Bench(NamedTuple):
    """A small dataset, weights and what was made with them, all sound."""

    root: Path
    out: Path
    weights: Weights

    def file(self, kind: str) -> Path:
        return self.root / KINDS[kind].name


class Kind(NamedTuple):
    """A kind of file: its place in the bench, how it is changed, and what reads it."""

    name: str
    change: Callable[[Path, random.Random], None]
    main: Callable[[list[str]], int | None]
    flags: Callable[[Bench], list]
    complete: Callable[[Bench], bool]  # whether the results of a run that ended well are whole


def bench(folder: Path) -> Bench:
    """Make one: 3 normal and 3 anomalous images of one class, 3 normal ones to train, adapters, a memory, ..."""
    made = Bench(folder / "data", folder / "out", unpack_weights("tiny-a", folder))
    samples = {"train": [], "test": []}
    for split in samples:
        for number in range(6 if split == "test" else 3):
            anomaly = int(number > 2)
            name, mask = f"nut/{split}{number}.png", f"nut/{split}{number}_mask.png" if anomaly else ""
            kind = f"hole/00{number - 3}" if anomaly else f"good/00{number}"
            source = REFERENCE / "data/mini_mvtec/brick"
            put(source / f"{split}/{kind}.png", made.root / name)
            if anomaly:
                put(source / f"ground_truth/{kind}_mask.png", made.root / mask)
            samples[split].append(Sample(name, mask, "nut", "hole" if anomaly else "good", anomaly))
    write(made.root, samples)
    train_script.main(words([*base(made), "--train_data_path", made.root, "--epoch", 1, "--save_path", made.root]))
    test_script.main(words([*tested(made), "--k_shot", 2, "--seed", 1, "--save_memory", made.file("memory")]))
    (made.out / "k_shot.json").replace(made.file("k_shot"))
    shutil.rmtree(made.out)
    predict_script.main(words([*predicted(made), "--calibrate", made.root / "nut"]))
    (made.out / "calibration.json").replace(made.file("calibration"))
    made.file("config").write_text(Path(made.weights.config_path).read_text())
    shutil.rmtree(made.out)
    return made


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.resize((48, 40)).save(target)


def words(flags: list) -> list[str]:
    return [str(flag) for flag in flags]


def base(b: Bench) -> list:
    return [*b.weights.flags, "--image_size", SIZE, "--features_list", 2, 4, "--num_workers", 0, "--batch_size", 4]


def tested(b: Bench) -> list:
    return [*base(b), "--data_path", b.root, "--checkpoint_path", b.root / "epoch_1.pth", "--save_path", b.out,
            "--save_maps"]  # fmt: skip


def predicted(b: Bench) -> list:
    return [b.root / "nut", *base(b), "--class_name", "nut", "--checkpoint_path", b.root / "epoch_1.pth", "--save_path",
            b.out]  # fmt: skip


# --- changes --------------------------------------------------------------------------------------------------------


def change_bytes(path: Path, rng: random.Random) -> None:
    """A few random changes: bits, cuts, copies, and the large numbers that headers do not expect."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, length = rng.randrange(len(content) + 1), rng.choice((1, 4, 50, 2000))
        match rng.randrange(6):
            case 0:
                content[place : place + 1] = rng.randbytes(1)
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = content[place : place + length]
            case 3:
                content[place : place + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\x80\0\0\0"))
            case 4:
                content[place:place] = rng.randbytes(length)
            case 5:
                del content[place:]
    path.write_bytes(content)


def change_image(path: Path, rng: random.Random) -> None:
    """The bytes of the picture in one of several formats, some of which have no checksums."""
    with Image.open(path) as image:
        image.convert("RGB").save(path, rng.choice(("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")))
    change_bytes(path, rng)


def change_json(path: Path, rng: random.Random) -> None:
    """Its bytes, or the values and keys in it."""
    if rng.random() < 0.3:
        return change_bytes(path, rng)
    document = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.choice((1, 1, 3))):
        document = changed(document, rng)
    path.write_text(json.dumps(document), encoding="utf-8")
    return None


def changed(value: Any, rng: random.Random) -> Any:
    """One change somewhere in nested lists and mappings."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(ODD))
    value = copy.copy(value)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    match rng.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[rng.choice(("x", "", "../x", "seed"))] = value.pop(key)
        case 2 if isinstance(value, list):
            value.append(value[key])
        case _:
            value[key] = changed(value[key], rng)
    return value


def change_checkpoint(path: Path, rng: random.Random) -> None:
    """Its bytes, or the tensors and settings in it."""
    if rng.random() < 0.3:
        return change_bytes(path, rng)
    content = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 3))):
        content = changed_tensors(content, rng)
    torch.save(content, path)
    return None


def changed_tensors(value: Any, rng: random.Random) -> Any:
    if isinstance(value, torch.Tensor) and (value.layout != torch.strided or value.is_meta):
        return rng.choice(ODD)
    if isinstance(value, torch.Tensor):
        return rng.choice((
            lambda: value * float("nan"), lambda: value / 0, lambda: value.flatten(), lambda: value[None],
            lambda: value.double(), lambda: value.half(), lambda: value.int(), lambda: value.to(torch.complex64),
            lambda: value.bool(), lambda: value.to_sparse(), lambda: value[:0], lambda: value.expand(3, *value.shape),
            lambda: value * 1e38, lambda: value.to("meta"), lambda: rng.choice(ODD), lambda: -value,
        ))()  # fmt: skip
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                del value[key]
            case 1:
                value[rng.choice(("x", 3, "fc.9.weight", None))] = value.pop(key)
            case _:
                value[key] = changed_tensors(value[key], rng)
        return value
    return changed(value, rng)


def change_memory(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        return change_bytes(path, rng)
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["header"])
    tensors = load_file(path)
    if rng.random() < 0.5:
        header = changed(header, rng)
    else:
        tensors = {key: value for key, value in changed_tensors(tensors, rng).items()
                   if isinstance(value, torch.Tensor) and isinstance(key, str) and value.layout == torch.strided
                   and not value.is_meta}  # fmt: skip
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, {"header": json.dumps(header)})
    return None


# --- what a run must leave ------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_is_complete(b: Bench) -> bool:
    names = ("metrics.json", "metrics.csv", "predictions.csv", "table.md", "report.html", "config.json", "log.txt")
    if not all((b.out / name).is_file() for name in names):
        return False
    scored = rows(b.out / "predictions.csv")
    return len(list((b.out / "maps").rglob("*.npy"))) == len(
        {(row["img_path"], row["k_shot"]) for row in scored}
    ) and all(math.isfinite(float(row["score"])) for row in scored)


def predict_is_complete(b: Bench) -> bool:
    scored = rows(b.out / "scores.csv")
    skipped = rows(b.out / "skipped.csv") if (b.out / "skipped.csv").is_file() else []
    return len(scored) + len(skipped) == len(list((b.root / "nut").iterdir())) == 12 and all(
        math.isfinite(float(row["score"])) for row in scored
    )


def train_is_complete(b: Bench) -> bool:
    content = torch.load(b.root / "epoch_2.pth", weights_only=True)
    return all(value.isfinite().all() for value in content["trainable_linearlayer"].values())


PARTIAL = ("metrics.json", "predictions.csv", "report.html", "scores.csv", "skipped.csv", "table.md", "metrics.csv")


def leftovers(b: Bench) -> list[str]:
    """What a run that was refused should not have left."""
    partial = [name for name in PARTIAL if (b.out / name).exists()]
    hidden = [str(path) for folder in (b.out, b.root) if folder.exists() for path in folder.rglob(".*")]
    return partial + hidden + [path.name for path in b.root.glob("epoch_2.pth")]


KINDS = {
    "meta": Kind("meta.json", change_json, test_script.main, lambda b: [*tested(b), "--k_shot", 1], test_is_complete),
    "image": Kind("nut/test3.png", change_image, test_script.main, tested, test_is_complete),
    "own image": Kind("nut/test1.png", change_image, predict_script.main, predicted, predict_is_complete),
    "mask": Kind("nut/test4_mask.png", change_image, test_script.main, tested, test_is_complete),
    "checkpoint": Kind("epoch_1.pth", change_checkpoint, test_script.main, tested, test_is_complete),
    "resumed checkpoint": Kind(
        "epoch_1.pth", change_checkpoint, train_script.main,
        lambda b: [*base(b), "--train_data_path", b.root, "--epoch", 2, "--save_path", b.root, "--resume"],
        train_is_complete,
    ),
    "losses": Kind(
        "losses.csv", change_bytes, train_script.main,
        lambda b: [*base(b), "--train_data_path", b.root, "--epoch", 2, "--save_path", b.root, "--resume"],
        train_is_complete,
    ),
    "memory": Kind(
        "memory.safetensors", change_memory, test_script.main,
        lambda b: [*tested(b), "--memory", b.file("memory")], test_is_complete,
    ),
    "k_shot": Kind(
        "k_shot.json", change_json, test_script.main,
        lambda b: [*tested(b), "--references", b.file("k_shot")], test_is_complete,
    ),
    "calibration": Kind(
        "calibration.json", change_json, predict_script.main,
        lambda b: [*predicted(b), "--calibration", b.file("calibration")], predict_is_complete,
    ),
    "config": Kind(
        "tiny-a.json", change_json, test_script.main,
        lambda b: [*tested(b), "--config_path", b.file("config")], test_is_complete,
    ),
}  # fmt: skip


# --- runs -----------------------------------------------------------------------------------------------------------


def run(kind: Kind, b: Bench) -> str:
    """ "well", "refused", or what is wrong with how the script ended."""

    def too_long(*_: Any) -> None:
        raise TooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            run_script(lambda: kind.main(words(kind.flags(b))))
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a traceback is what is looked for
        return "traceback: " + traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    lines = said.getvalue().strip().splitlines()
    if code == 2:
        if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 2000:
            return f"no single line: {said.getvalue()[:2000]}"
        left = leftovers(b)
        return f"left {left} after {lines[0]}" if left else "refused"
    if code not in (0, 3):
        return f"exit code {code}: {said.getvalue()[:2000]}"
    return "well" if kind.complete(b) else "results are not whole"


def attempt(name: str, seed: int | None, b: Bench) -> str:
    """Change one file of a kind (without a seed: leave it), run what reads it, put it back; returns what `run` says."""
    kind, path = KINDS[name], b.file(name)
    sound = path.read_bytes()
    try:
        if seed is not None:
            kind.change(path, random.Random(f"{name}/{seed}"))
        return run(kind, b)
    finally:
        path.write_bytes(sound)
        for other in b.root.glob("epoch_2.pth"):
            other.unlink()
        for result in PARTIAL:
            (b.out / result).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="files of each kind")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            b = bench(Path(folder))
        for name in args.kind:
            ends, slowest, start = Counter(), 0.0, time.perf_counter()
            if (end := attempt(name, None, b)) != "well":
                raise SystemExit(f"{name}: the sound file does not end well: {end}")
            for seed in range(args.seed, args.seed + args.count):
                began = time.perf_counter()
                end = attempt(name, seed, b)
                slowest = max(slowest, time.perf_counter() - began)
                ends[end if end in ("well", "refused") else "wrong"] += 1
                if end not in ("well", "refused"):
                    print(f"{name} {seed}: {end}", flush=True)
            took = time.perf_counter() - start
            counts = f"{ends['well']:5d} well {ends['refused']:5d} refused {ends['wrong']:3d} wrong"
            print(f"{name:20s} {counts}; slowest {slowest:.1f} s, all {took:.0f} s", flush=True)
            failed += ends["wrong"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
