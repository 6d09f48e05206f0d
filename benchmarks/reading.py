"""Reading: photographs of 1500 x 1000 pixels to 518 x 518 with Pillow's exact bicubic filter, masks and their regions.

Processor time of one process, and the rate of the workers that --num_workers auto starts. Best turns.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from benchmarks.common import Row, photographs, sample_data
from dataset import AnomalyDataset
from engine.batches import batches
from utils.launch import worker_count

SIDE = 518


def measure(quick: bool) -> Iterator[Row]:
    count, turns = (10, 1) if quick else (64, 3)
    with sample_data() as data, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = photographs(data / "demo_textures", root, count)
        for sample in samples:
            Image.open(root / sample.img_path).save((root / sample.img_path).with_suffix(".png"), compress_level=1)
        as_png = [sample._replace(img_path=sample.img_path.replace(".jpg", ".png")) for sample in samples]
        for kind, some in (("JPEG", samples), ("PNG", as_png)):
            dataset = AnomalyDataset(root, some, SIDE)
            best = min(processor_seconds(dataset) for _ in range(turns))
            yield Row(f"{kind} of 1500 x 1000 to {SIDE}", f"{len(some) / best:.1f} images a second and worker")
            workers = worker_count()
            seconds = []
            for _ in range(turns):
                start = time.perf_counter()
                for _batch in batches(dataset, 8, workers, Accelerator(cpu=True)):
                    pass
                seconds.append(time.perf_counter() - start)
            yield Row(f"the same, {workers} workers", f"{len(some) / min(seconds):.1f} images a second, start included")


def processor_seconds(dataset: AnomalyDataset) -> float:
    start = time.process_time()
    for index in range(len(dataset)):
        dataset[index]
    return time.process_time() - start
