"""A detector for one object as a function of images alone, and its graph as an ONNX file."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference.onnx_detector import CARD, NAME
from model.backbones.architectures import silent
from model.interface import Detector, Memory, ScoreRange
from utils.logs import LOG

# Every onnxruntime since 1.14 reads it, whatever the installed exporter would write by itself.
_OPSET = 18
_TOLERANCE = 1e-3  # of maps, scores and their terms, absolute
_CHECKED = (1, 3)  # batch sizes of the check; two images are traced
PREPROCESSING = (
    "turn upright as the EXIF orientation says, convert to 8-bit RGB, stretch to image_size x image_size (bicubic, as "
    "Pillow), leave as uint8 from 0 to 255, channels first: scale, mean and standard deviation are in the graph"
)
MEANING = {"map": "(batch, S, S) float32, larger is more anomalous", "score": "(batch,) float32, of the image"}


class FixedClassDetector(nn.Module):
    """A detector with the class name, the references and the scale of the scores baked in.

    Args:
        detector: on the CPU; the texts of the name need not be encoded yet.
        name: of the class.
        memory: of its references; None for zero-shot.
        limits: of the terms of the image score, see `anomaly_map.rescale`; None leaves them as they are.
    """

    def __init__(self, detector: Detector, name: str, memory: Memory | None = None, limits: ScoreRange | None = None):
        super().__init__()
        self.detector, self.name, self.memory, self.limits = detector, name, memory, limits
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) uint8 RGB -> "map" (B, S, S), "score" (B,), and the terms that make the score, each (B,)."""
        tokens, names = self.detector.encode(images), [self.name]
        prediction = self.detector.zero_shot(tokens, names)
        if self.memory is not None:
            prediction = self.detector.few_shot(prediction, tokens, names, {self.name: self.memory})
        limits = self.limits or dict.fromkeys(prediction.score_components, (0.0, 1.0))
        scores = self.detector.image_scores(prediction.score_components, limits)
        return {"map": prediction.maps, "score": scores.clone(), **prediction.score_components}


def save_onnx(one: FixedClassDetector, path: Path, metadata: Mapping[str, str]) -> list[str]:
    """Write the graph: input "images" (B, 3, S, S) uint8, B of any size; outputs as `OneObject.forward` names them.

    Weights above protobuf's limit go to `path`.data beside it.

    Args:
        metadata: kept in the file.

    Returns:
        The names of the outputs, in order.

    Raises:
        ValueError: something in the detector cannot be exported.
    """
    size = one.detector.backbone.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    outputs = list(one(images))  # what is computed once and kept must not be computed for the first time in a trace
    try:
        with silent():
            graph = torch.export.export(one, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
            program = torch.onnx.export(
                graph, input_names=["images"], output_names=outputs, opset_version=_OPSET, dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter raises what it likes; the user needs to know what could not be exported
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{one.detector.backbone.name} cannot be exported with this PyTorch: {reason}") from error
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    return outputs


def check(one: FixedClassDetector, exported: Any) -> dict[str, float]:
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
