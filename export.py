"""Write a detector for one object as an ONNX file, which runs without PyTorch.

    python export.py --class_name screw --method winclip --references photos_of_good_screws/ --save_path exps/screw
    python predict.py photos/ --onnx exps/screw/detector.onnx --save_path out

Writes detector.onnx (images of any number, (B, 3, S, S) uint8 RGB, to maps and scores; weights above 1.5 GB stand in
detector.onnx.data), detector.json (what it is, how to bring images to that form, scale and threshold) and log.txt into
--save_path. The class name, the references and, with normal images (as predict.py takes them), the scale of the scores
are fixed in it. The file is run and compared with PyTorch before it gets its name. On the CPU, in single precision;
where --calibrate takes long on that, calibrate with predict.py on a GPU and give its file to --calibration.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import METHODS
from model.one_object import OneObject, save_onnx
from predict import prepare, the_detector
from utils import runtime
from utils.config import export_parser, log_settings, resolve_export
from utils.exported import CARD, FORMAT, ID, NAME, session
from utils.inspection import Inspector
from utils.packages import require
from utils.runtime import LOG

_TOLERANCE = 1e-3  # of maps, scores and their terms, absolute
_CHECKED = (1, 3)  # batch sizes of the check; two images are traced

_PREPROCESSING = (
    "turn upright as the EXIF orientation says, convert to 8-bit RGB, stretch to image_size x image_size (bicubic, as "
    "Pillow), leave as uint8 from 0 to 255, channels first: scale, mean and standard deviation are in the graph"
)
_MEANING = {"map": "(batch, S, S) float32, larger is more anomalous", "score": "(batch,) float32, of the image"}


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_export(export_parser(list(METHODS)).parse_args(argv))
    require("export.py", ("onnx", "onnxruntime", "onnxscript"), "requirements-export.txt")
    save_path = runtime.result_folder(settings.save_path)
    accelerator = runtime.accelerator(settings.device, settings.precision)
    detector, description, stored, normal, known = the_detector(settings, accelerator)

    save_path.mkdir(parents=True, exist_ok=True)
    runtime.log_to(save_path)
    log_settings(settings, sources)
    inspector = Inspector(detector, accelerator, settings.fpr, description)
    bank, calibration = prepare(settings, inspector, stored, normal)
    calibration = known or calibration
    one = OneObject(detector, settings.class_name, bank, calibration and calibration.limits)
    with replacing_all(save_path) as folder:
        identity = uuid.uuid4().hex
        LOG.info("writing %s", save_path / NAME)
        outputs = save_onnx(one, folder / NAME, {ID: identity})
        card = {
            "format": FORMAT,
            ID: identity,
            "method": settings.method,
            "class_name": settings.class_name,
            "image_size": description["image_size"],
            "preprocessing": _PREPROCESSING,
            "input": {"images": "(batch, 3, S, S) uint8 RGB, batch of any size"},
            "outputs": {name: _MEANING.get(name, "(batch,) float32, a term of the score") for name in outputs},
            "calibration": calibration and asdict(calibration),
            "difference": check(one, session(folder / NAME)),
            "made_with": description,
            "settings": vars(settings),
            "versions": runtime.provenance(),
        }
        runtime.write_json(folder / CARD, card)
    size = sum(file.stat().st_size for file in save_path.glob(f"{NAME}*")) / 1e6
    LOG.info("%s: %.1f MB, checked with onnxruntime; %s says what it is", save_path / NAME, size, CARD)


def check(one: OneObject, exported: Any) -> dict[str, float]:
    """Largest absolute difference between onnxruntime and PyTorch per output, over all pixels and images of two batches
    of other sizes than was traced.

    Raises:
        ValueError: one is above the tolerance, or no number.
    """
    generator, largest = np.random.default_rng(0), {}
    for count in _CHECKED:
        images = probes(generator, count, one.detector.backbone.image_size)
        expected = one(torch.from_numpy(images))
        for name, values in zip(expected, exported.run(list(expected), {"images": images}), strict=True):
            difference = float(np.abs(values - expected[name].numpy()).max())
            if not difference <= _TOLERANCE:
                raise ValueError(
                    f"nothing is written: in a batch of {count} the exported {name} differs from PyTorch's by "
                    f"{difference:.2g}, and {_TOLERANCE:g} is allowed"
                )
            largest[name] = max(largest.get(name, 0.0), difference)
    LOG.info("differs from PyTorch by at most %s", ", ".join(f"{value:.2g} ({key})" for key, value in largest.items()))
    return largest


def probes(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Images to compare on, blocks of random colour from single pixels upwards, (count, 3, size, size) uint8."""
    images = []
    for number in range(count):
        block = 4**number
        colours = generator.integers(0, 256, (3, -(-size // block), -(-size // block)), dtype=np.uint8)
        images.append(colours.repeat(block, 1).repeat(block, 2)[:, :size, :size])
    return np.stack(images)


@contextlib.contextmanager
def replacing_all(save_path: Path) -> Iterator[Path]:
    """A folder whose files go to `save_path` when the block ends well, the JSON last: without it, nothing runs them."""
    folder = save_path / ".export"
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir()
    try:
        yield folder
        for name in (CARD, f"{NAME}.data"):
            (save_path / name).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == CARD):
            os.replace(file, save_path / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    runtime.run(main)
