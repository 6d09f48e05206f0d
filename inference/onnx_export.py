"""A detector for one object as a function of images alone, its graph as an ONNX file, and the JSON beside it."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.input_spec import describe
from engine.evaluation import fuse
from inference.calibration import Calibration
from inference.onnx_detector import (
    CHECKSUMS,
    DATA_NAME,
    FORMAT,
    ID,
    JSON_NAME,
    ONNX_NAME,
    open_session,
)
from model.backbones.architectures import silent
from model.interface import Memory, ScoreRange, ScoringDetector
from utils.errors import first_line
from utils.files import sha256, write_json
from utils.logs import LOG
from utils.provenance import provenance

# Every onnxruntime since 1.14 reads it, whatever the installed exporter would write by itself.
_OPSET = 18
_TOLERANCE = 1e-3  # of maps, scores and their terms: absolute, and of the largest value where that is above 1
_CHECKED = (1, 3)  # batch sizes of the check; two images are traced
_PREPROCESSING = (
    "turn upright as the EXIF orientation says, convert to 8-bit RGB, resize as input_spec says, bicubic and bilinear "
    "as Pillow (rows first, then columns), torchvision as torch's interpolate on uint8 (bicubic, antialias); square: "
    "stretch to side x side, with center_crop to int(side / 0.875) of which the middle is taken; shorter edge: to "
    "side, bicubic, the other one rounded down, then cut on the right and below to multiples; which gives input_shape, "
    "(height, width); leave as uint8 from 0 to 255, channels first: scale, mean and standard deviation are in the graph"
)
_MEANING = {"map": "(batch, *map_size) float32, larger is more anomalous", "score": "(batch,) float32, of the image"}


class FixedClassDetector(nn.Module):
    """A detector with the class name, the references and the scale of the scores baked in.

    Args:
        detector: on the CPU; the texts of the name need not be encoded yet.
        name: of the class.
        memory: of its references; None for zero-shot.
        limits: of the terms of the image score, see `anomaly_map.rescale`; None leaves them as they are.
        example: a picture of the object, for a detector whose inputs keep the shape of their pictures: the graph takes
            pictures of this shape, and its maps have this size.

    Raises:
        ValueError: such a detector, and no example.
    """

    def __init__(
        self,
        detector: ScoringDetector,
        name: str,
        memory: Memory | None = None,
        limits: ScoreRange | None = None,
        example: Image.Image | None = None,
    ):
        super().__init__()
        self.detector, self.name, self.memory, self.limits = detector, name, memory, limits
        spec = detector.input_spec
        self.input_shape = self.map_size = (spec.side, spec.side)
        self.image = torch.zeros(3, spec.side, spec.side, dtype=torch.uint8)  # to be traced
        if spec.keeps_shape:
            if example is None:
                raise ValueError(
                    "export.py: an exported detector takes images of one shape, which a normal image has to show: give "
                    "a folder of them to --references or --calibrate"
                )
            self.image = spec.image(example)
            height, width = self.image.shape[1:]
            self.input_shape, self.map_size = (height, width), spec.map_size(example.size)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, h, w) uint8 RGB -> "map" (B, H, W), "score" (B,), and the terms that make the score, each (B,)."""
        keeps_shape = self.detector.input_spec.keeps_shape
        beside = (self.map_size,) if keeps_shape else ()
        tokens = self.detector.encode(images, *beside)
        prediction = fuse(self.detector, tokens, [self.name], self.memory)
        limits = self.limits or dict.fromkeys(prediction.score_components, (0.0, 1.0))
        scores = self.detector.image_scores(prediction.score_components, limits)
        return {"map": prediction.maps, "score": scores.clone(), **prediction.score_components}


def export(
    one: FixedClassDetector,
    save_path: Path,
    calibration: Calibration | None,
    description: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write detector.onnx and detector.json, checked against PyTorch before they get their names.

    Args:
        calibration: on which the limits of `one` are; kept for the verdicts.
        description: what identifies detector and object.
        settings: by name, to be kept in the JSON.

    Raises:
        ValueError: the detector cannot be exported, or the file gives other numbers than PyTorch; nothing is written.
    """
    with _replace_together(save_path) as folder:
        identity = uuid.uuid4().hex
        LOG.info("writing %s", save_path / ONNX_NAME)
        outputs = save_onnx(one, folder / ONNX_NAME, {ID: identity})
        card = {
            "format": FORMAT,
            ID: identity,
            CHECKSUMS: {file.name: sha256(file).hex() for file in sorted(folder.iterdir())},
            "method": description["method"],
            "class_name": one.name,
            "image_size": description["image_size"],
            "input_spec": describe(one.detector.input_spec),
            "input_shape": list(one.input_shape),
            "map_size": list(one.map_size),
            "preprocessing": _PREPROCESSING,
            "input": {"images": "(batch, 3, *input_shape) uint8 RGB, batch of any size"},
            "outputs": {name: _MEANING.get(name, "(batch,) float32, a term of the score") for name in outputs},
            "calibration": calibration and calibration.as_dict(),
            "difference": compare(one, open_session(folder / ONNX_NAME)),
            "made_with": dict(description),
            "settings": dict(settings),
            "versions": provenance(),
        }
        write_json(folder / JSON_NAME, card)
    size = sum(file.stat().st_size for file in save_path.glob(f"{ONNX_NAME}*")) / 1e6
    LOG.info("%s: %.1f MB, checked with onnxruntime; %s describes it", save_path / ONNX_NAME, size, JSON_NAME)


def save_onnx(one: FixedClassDetector, path: Path, metadata: Mapping[str, str]) -> list[str]:
    """Write the graph: input "images" (B, 3, h, w) uint8, B of any size; outputs as `FixedClassDetector` names them.

    Weights above protobuf's limit go to `path`.data beside it.

    Args:
        metadata: kept in the file.

    Returns:
        The names of the outputs, in order.

    Raises:
        ValueError: something in the detector cannot be exported.
    """
    images = torch.stack([one.image] * 2)
    outputs = list(one(images))  # what is computed once and kept must not be computed for the first time in a trace
    try:
        with silent():
            graph = torch.export.export(one, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
            program: Any = torch.onnx.export(
                graph, input_names=["images"], output_names=outputs, opset_version=_OPSET, dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter raises what it likes; the user needs to know what could not be exported
        name = one.detector.backbone.name
        raise ValueError(f"{name} cannot be exported with this PyTorch: {first_line(error)}") from error
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    return outputs


def compare(one: FixedClassDetector, session: Any) -> dict[str, float]:
    """Largest absolute difference between onnxruntime and PyTorch per output, over all pixels and images of two batches
    of other sizes than was traced. session: see `open_session`.

    Raises:
        ValueError: one is above the tolerance, or no number.
    """
    largest: dict[str, float] = {}
    rng = np.random.default_rng(0)
    for count in _CHECKED:
        images = _probe_images(rng, count, one.input_shape)
        with silent():  # what a method says of its images is not meant for these
            expected = one(torch.from_numpy(images))
        for name, values in zip(expected, session.run(list(expected), {"images": images}), strict=True):
            wanted = expected[name].numpy()
            difference, allowed = (
                float(np.abs(values - wanted).max()),
                _TOLERANCE * max(1.0, float(np.abs(wanted).max())),
            )
            if not difference <= allowed:
                raise ValueError(
                    f"nothing is written: in a batch of {count} the exported {name} differs from PyTorch's by "
                    f"{difference:.2g}, and {allowed:g} is allowed"
                )
            largest[name] = max(largest.get(name, 0.0), difference)
    LOG.info("differs from PyTorch by at most %s", ", ".join(f"{value:.2g} ({key})" for key, value in largest.items()))
    return largest


def _probe_images(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """Images to compare on, blocks of random colour from single pixels upwards, (count, 3, *shape) uint8."""
    images = []
    height, width = shape
    for number in range(count):
        block = 4**number
        colours = rng.integers(0, 256, (3, -(-height // block), -(-width // block)), dtype=np.uint8)
        images.append(colours.repeat(block, 1).repeat(block, 2)[:, :height, :width])
    return np.stack(images)


@contextlib.contextmanager
def _replace_together(save_path: Path) -> Iterator[Path]:
    """A folder whose files go to `save_path` when the block ends well, the JSON last: without it, nothing runs them."""
    folder = save_path / ".export"
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir()
    try:
        yield folder
        for name in (JSON_NAME, DATA_NAME):
            (save_path / name).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == JSON_NAME):
            os.replace(file, save_path / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
