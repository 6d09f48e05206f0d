"""test.py as a whole, from 40 to 4000 images, and on two processes: time per further image, and peak memory.

A folder of copies of the sample data's textures, APRIL-GAN on the small model that ships, no overlays. Every run is a
process of its own, with one thread; its peak is that of the main process, and that of its largest worker.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.common import PEAK_UNIT, ROOT, SHIPPED, Row, finish, sample_data
from config import embedded

_SIDE = 128
PEAK = """
import resource, sys
import test
test.main(sys.argv[1:])
print("peak", *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def measure(quick: bool) -> Iterator[Row]:
    counts, turns = ((20, 40, 80), 1) if quick else ((40, 400, 4000), 3)
    with sample_data() as data, tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        roots = {count: copies(data / "demo_textures", Path(scratch, str(count)), count) for count in counts}
        flags = {count: [*flags_of(root), "--save_path", root / "out"] for count, root in roots.items()}
        seconds, peaks = {count: [] for count in counts}, {count: [] for count in counts}
        for _ in range(turns):
            for count in counts:
                taken, printed = finish(["-c", PEAK, *flags[count]], OMP_NUM_THREADS="1")
                seconds[count].append(taken)
                peaks[count].append([int(word) * PEAK_UNIT for word in printed.split("peak")[-1].split()])
        few, some, many = counts
        first, second = (
            statistics.median((b - a) / (more - less) for a, b in zip(seconds[less], seconds[more], strict=True))
            for less, more in ((few, some), (some, many))
        )
        yield Row(
            f"from {few} to {some} images, the model that ships, at {_SIDE}", f"{1000 * first:.1f} ms per further image"
        )
        ratio = f"{second / first:.2f} times that"
        yield Row(f"from {some} to {many} images", f"{1000 * second:.1f} ms per further image", ratio)
        for place, who in enumerate(("main process", "largest worker")):
            middle = {count: statistics.median(peak[place] for peak in peaks[count]) for count in counts}
            shown = " / ".join(f"{middle[count] / 2**20:.0f}" for count in counts)
            ratio = f"{middle[many] / middle[some]:.3f} from {some} to {many}"
            yield Row(f"peak of the {who}, {few} / {some} / {many} images", f"{shown} MiB", ratio, "0.95 to 1.05")
        yield from processes(flags[some if quick else many], flags[few], turns)


def processes(large: list, small: list, turns: int) -> Iterator[Row]:
    """Start-up left out: the difference between a large and a small run."""
    alone = ["test.py"]
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "test.py"]
    taken = {
        name: statistics.median(
            finish([*command, *large, "--device", "cpu"], OMP_NUM_THREADS="1")[0]
            - finish([*command, *small, "--device", "cpu"], OMP_NUM_THREADS="1")[0]
            for _ in range(turns)
        )
        for name, command in (("one", alone), ("two", both))
    }
    yield Row(f"one process of one thread, {os.cpu_count()} cores, start-up left out", f"{taken['one']:.1f} s")
    yield Row("two processes of one thread each (torchrun)", f"{taken['two']:.1f} s",
              f"{taken['one'] / taken['two']:.2f} times as fast")  # fmt: skip


def flags_of(root: Path) -> list:
    return [*SHIPPED, "--image_size", _SIDE, "--dataset", "folder", "--data_path", root, "--checkpoint_path",
            embedded.ADAPTERS, "--mode", "zero_shot", "--batch_size", 8, "--num_workers", 1, "--no_images"]  # fmt: skip


def copies(textures: Path, root: Path, count: int) -> Path:
    """A dataset of `count` test images in four classes, hard links to the sample data's, masks too."""
    classes = sorted(path.name for path in textures.iterdir() if (path / "test").is_dir())[:4]
    for name in classes:
        images = sorted((textures / name / "test").glob("*/*.png"))
        for number in range(count // len(classes)):
            # Normal and defective images in turn, so that each count has both.
            source = images[number * 7 % len(images)]
            place = root / name / "test" / source.parent.name / f"{number:05d}.png"
            mask = textures / name / "ground_truth" / source.parent.name / source.name
            link(source, place)
            if source.parent.name != "good":
                link(mask if mask.is_file() else mask.with_stem(f"{mask.stem}_mask"),
                     root / name / "ground_truth" / source.parent.name / place.name)  # fmt: skip
    finish([ROOT / "data/folder.py", "--root", root])
    return root


def link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # another file system
        shutil.copy(source, place)
