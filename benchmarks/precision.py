"""bf16 against fp32, through test.py: metrics on the sample data with the small model that ships, and time.

APRIL-GAN with adapters that train.py fits here on the other set (few epochs), and AnomalyDINO. Once on the
sample data as it is, where two of a class's 20 images that change places move its image AUROC by 0.0104, and once with
ten times as many test images (on which the adapters are fitted, too), where what bf16 does shows beside chance.
"""

import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from benchmarks.common import SHIPPED, Row, finish, sample_data
from dataset import read
from metrics.image import IMAGE
from metrics.pixel import PIXEL

CLIP = [*SHIPPED, "--num_workers", 1]
SETS = ("demo_textures", "demo_objects")


def measure(quick: bool) -> Iterator[Row]:
    for times in (1,) if quick else (1, 10):
        with sample_data(times) as data, tempfile.TemporaryDirectory() as scratch:
            yield from compared_on(data, Path(scratch), SETS[:1] if quick else SETS, 1 if quick else 5)


def compared_on(data: Path, scratch: Path, sets: Sequence[str], epochs: int) -> Iterator[Row]:
    for test in sets:
        (train,) = set(SETS) - {test}
        trained = scratch / train
        finish(["train.py", *CLIP, "--dataset", train, "--train_data_path", data / train, "--epoch", epochs,
                "--save_freq", epochs, "--save_path", trained])  # fmt: skip
        for method in ("april_gan", "anomaly_dino"):
            flags = [*CLIP, "--method", method, "--dataset", test, "--data_path", data / test, "--no_images"]
            flags += ["--checkpoint_path", trained, "--k_shot", 0] if method == "april_gan" else ["--k_shot"]
            flags += [1, 4, "--seed", 1]
            what = f"{method} on {test}, {len(read(data / test)['test'])} images"
            yield compared(what, flags, scratch / f"{method}-{test}")


def compared(what: str, flags: list, scratch: Path) -> Row:
    """Both precisions, once; the largest difference of a mean over the classes. The 200-step PRO stands by itself: its
    curve ends at the last step below the limit, so it jumps where that becomes another step."""
    seconds, runs = {}, {}
    for precision in ("fp32", "bf16"):
        out = scratch / precision
        seconds[precision], _ = finish(["test.py", *flags, "--precision", precision, "--save_path", out])
        runs[precision] = runs_of(out)
    means = [(one["mean"], other["mean"]) for one, other in zip(*runs.values(), strict=True)]
    kinds = (IMAGE, set(PIXEL) - {"aupro_200", "threshold_px"}, {"aupro_200"})
    return Row(f"{what}: largest difference of a mean image metric, pixel metric, aupro_200",
               ", ".join(f"{largest(means, keys):.4f}" for keys in kinds),
               f"{seconds['bf16'] / seconds['fp32']:.2f} times fp32's time, start-up included",
               "<= 0.005 each")  # fmt: skip


def runs_of(out: Path) -> list[dict]:
    content = json.loads((out / "metrics.json").read_text())
    return content.get("runs", [content])


def largest(pairs: list[tuple[dict, dict]], keys: Collection[str]) -> float:
    return max(abs(one[key] - other[key]) for one, other in pairs for key in keys)
