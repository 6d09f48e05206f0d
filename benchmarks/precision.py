"""bf16 against fp32, through test.py: metrics on the sample data with the small CLIP that ships, and time.

APRIL-GAN with adapters that train.py fits here on the other set (few epochs), WinCLIP and SDP as they are.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import QUICKSTART, Row, finish, sample_data

CLIP = ["--config_path", f"{QUICKSTART}.json", "--pretrained", f"{QUICKSTART}.safetensors", "--num_workers", 1]
SETS = ("demo_textures", "demo_objects")


def measure(quick: bool) -> Iterator[Row]:
    sets, epochs = (SETS[:1], 1) if quick else (SETS, 5)
    with sample_data() as data, tempfile.TemporaryDirectory() as scratch:
        for test in sets:
            (train,) = set(SETS) - {test}
            trained = Path(scratch, train)
            finish(["train.py", *CLIP, "--dataset", train, "--train_data_path", data / train, "--epoch", epochs,
                    "--save_freq", epochs, "--save_path", trained])  # fmt: skip
            for method in ("april_gan", "winclip", "sdp"):
                flags = [*CLIP, "--method", method, "--dataset", test, "--data_path", data / test, "--no_images"]
                flags += ["--checkpoint_path", trained] if method == "april_gan" else []
                flags += ["--k_shot", 0, 1, 4, "--seed", 1] if method != "sdp" else []
                yield compared(f"{method} on {test}", flags, Path(scratch, f"{method}-{test}"))


def compared(what: str, flags: list, scratch: Path) -> Row:
    """Both precisions; the largest difference of a mean over the classes, and of a metric of one class."""
    seconds, runs = {}, {}
    for precision in ("fp32", "bf16"):
        out = scratch / precision
        seconds[precision], _ = finish(["test.py", *flags, "--precision", precision, "--save_path", out])
        runs[precision] = runs_of(out)
    means = largest([(a["mean"], b["mean"]) for a, b in zip(*runs.values(), strict=True)])
    pairs = [(run["classes"], other["classes"]) for run, other in zip(*runs.values(), strict=True)]
    classes = largest([(one[name], other[name]) for one, other in pairs for name in one])
    ratio = f"{seconds['bf16'] / seconds['fp32']:.2f} times fp32's time, start-up included"
    return Row(f"{what}: largest difference of a mean metric (of one class: {classes:.4f})", f"{means:.4f}", ratio,
               "<= 0.005")  # fmt: skip


def runs_of(out: Path) -> list[dict]:
    content = json.loads((out / "metrics.json").read_text())
    return content.get("runs", [content])


def largest(pairs: list[tuple[dict, dict]]) -> float:
    """Of the metrics that both have; thresholds are no metrics."""
    return max(
        abs(one[key] - other[key])
        for one, other in pairs
        for key in one
        if not key.startswith("threshold") and one[key] is not None and other[key] is not None
    )
