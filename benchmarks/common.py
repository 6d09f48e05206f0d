"""What the parts share: the rows of the table, the machine, the images, and the clocked scoring pass."""

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from config import embedded
from data.meta import PixelSettings
from data.references import FewShotSetting
from dataset import AnomalyDataset, Sample, read
from engine.batches import batches
from engine.build import Built
from engine.class_scores import ClassScores
from engine.encoding import Timer
from engine.evaluation import score
from engine.references import References
from engine.resume import FinishedClasses
from engine.test_run import ScoredData, TestFolder, score_classes
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from report.map_files import MapFiles
from report.write import write_results
from utils.devices import make_accelerator
from utils.launch import worker_count
from utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of a unit of ru_maxrss
PHOTOGRAPH = (1500, 1000)  # pixels, width and height
_PHOTOGRAPHS = 100  # that differ; a multiple of the test images of a class of the sample data
SHIPPED = ["--config_path", embedded.ARCHITECTURE, "--pretrained", embedded.WEIGHTS]
SMALL_VIT = ROOT / "benchmarks/small_vit.json"


def clip(quick: bool) -> Backbone:
    """ViT-B-16 at 240 pixels with random weights; --quick: a small one."""
    torch.manual_seed(0)
    return Backbone(register_architecture(str(SMALL_VIT))) if quick else Backbone("ViT-B-16", image_size=240)


class Row(NamedTuple):
    """A line of the table; `wanted` is what must hold, where something must."""

    what: str
    median: str
    ratio: str = ""
    wanted: str = ""


def machine() -> str:
    """Processor, cores, GPU and the versions that matter, in one line."""
    versions = provenance()
    kept = ("python", "torch", "numpy", "scikit-learn", "open_clip_torch", "accelerate")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    return f"{_processor()}, {os.cpu_count()} cores, {threads} threads, {gpu}; " + ", ".join(
        f"{key} {versions[key]}" for key in kept
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def sample_data(times: int = 1) -> Iterator[Path]:
    """The sample data in a temporary folder: demo_textures and demo_objects.

    times: demo.py's --times.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "data/demo.py", "--root", folder, "--times", str(times)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def one_class(root: Path, count: int) -> tuple[list[Sample], list[Sample]]:
    """(test images of one class, `count` of them, with repeats; all training images). root: of demo_textures."""
    meta = read(root)
    own = [sample for sample in meta["test"] if sample.cls_name == "brick"]
    return (own * (count // len(own) + 1))[:count], meta["train"]


def photographs(root: Path, folder: Path, count: int, classes: int = 1) -> list[Sample]:
    """`count` test images as photographs, JPEG of 1500 x 1000 pixels, each a file of its own, and their masks.

    root: of demo_textures; folder: where they go; classes: of one dataset, as good as equal. 100 differ; the others are
    copies of these.
    """
    samples: list[Sample] = []
    own = one_class(root, count)[0]
    for number, one in enumerate(own):
        name = "brick" if classes == 1 else f"brick_{number * classes // count:02d}"
        path, mask = f"{name}/{number:04d}.jpg", f"{name}/{number:04d}_mask.png" if one.mask_path else ""
        (folder / name).mkdir(exist_ok=True)
        if number < _PHOTOGRAPHS:
            image = Image.open(root / one.img_path).convert("RGB").resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
            noise = np.random.default_rng(number).normal(0, 4, (PHOTOGRAPH[1], PHOTOGRAPH[0], 3))
            grainy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(grainy).save(folder / path, quality=92)
            if mask:
                Image.open(root / one.mask_path).resize(PHOTOGRAPH, Image.Resampling.NEAREST).save(folder / mask)
        else:
            like = samples[number % _PHOTOGRAPHS]
            shutil.copyfile(folder / like.img_path, folder / path)
            if mask:
                shutil.copyfile(folder / like.mask_path, folder / mask)
        samples.append(one._replace(img_path=path, mask_path=mask, cls_name=name))
    return samples


def in_turns(sides: Mapping[str, Callable[[], Any]], turns: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run all sides in turn. Returns the seconds of each, and what each returned last."""
    seconds, results = {name: [] for name in sides}, {}
    for _ in range(turns):
        for name, side in sides.items():
            start = time.perf_counter()
            results[name] = side()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over the turns of one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Timed:
    """A function that adds up the time spent in it, on the device too."""

    def __init__(self, function: Callable):
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        synchronize()
        start = time.perf_counter()
        result = self.function(*args)
        synchronize()
        self.seconds += time.perf_counter() - start
        return result


class Pass(NamedTuple):
    """A scoring pass: seconds from the first batch to the metrics, those of them in `encode`, and the metrics."""

    seconds: float
    encoding: float
    rows: list[ClassScores]

    @property
    def outside(self) -> float:
        return 1 - self.encoding / self.seconds


def scoring_pass(
    detector: Any,
    root: Path,
    samples: Sequence[Sample],
    shots: Sequence[FewShotSetting],
    batch: int,
    precision: str = "fp32",
) -> Pass:
    """The pass of test.py, without overlays; references are encoded in it, as there."""
    accelerator = make_accelerator("auto", precision)
    detector.to(accelerator.device).eval()

    timer = Timer()
    references = References(detector, shots, accelerator, root=root, batch_size=batch, num_workers=2, timer=timer)
    detector.encode_names(sorted({sample.cls_name for sample in samples}))
    loader = batches(AnomalyDataset(root, samples, detector.input_spec), batch, 2, accelerator)
    rows = list(score(detector, loader, samples, shots, references, accelerator, timer=timer))
    return Pass(*timer.seconds(), rows)


class Run(NamedTuple):
    """A run of test.py without its start (imports, weights, texts): seconds, those in the backbone, the results."""

    seconds: float
    encoding: float
    rows: list[ClassScores]


def whole_run(
    detector: Any,
    root: Path,
    samples: Sequence[Sample],
    shots: Sequence[FewShotSetting],
    batch: int,
    *,
    pictures: bool = True,
    precision: str = "fp32",
    references: Path | None = None,
) -> Run:
    """Reading, references, scoring, metrics, overlays and report, with the flags' defaults. References are read below
    `references`, where they are not below root."""
    accelerator = make_accelerator("auto", precision)
    detector.to(accelerator.device).eval()
    names = sorted({sample.cls_name for sample in samples})
    detector.encode_names(names)
    data = ScoredData({"train": [], "test": list(samples)}, list(samples), names, PixelSettings(), {})
    with tempfile.TemporaryDirectory() as folder:
        save_path, timer, start = Path(folder), Timer(), time.perf_counter()
        files = MapFiles(save_path, root, samples, shots, overlays=pictures)
        source = References(
            detector,
            shots,
            accelerator,
            root=references or root,
            batch_size=batch,
            num_workers=worker_count(),
            timer=timer,
        )
        kept = TestFolder(save_path, FinishedClasses(save_path, "", names), {}, samples, len(shots), False, None)
        rows = score_classes(
            Built(detector, {}, batch, None), data, str(root), shots, source, accelerator, files, kept, {},
            batched=False, num_workers=worker_count(), timer=timer,
        )  # fmt: skip
        write_results(save_path, rows, shots, samples, files.galleries, {})
        return Run(time.perf_counter() - start, timer.seconds()[1], rows)


def finish(command: Sequence[Any], **environment: str) -> tuple[float, str]:
    """Run one of our commands. Returns its seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return time.perf_counter() - start, done.stdout
