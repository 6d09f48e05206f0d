"""A detector for one object as a function of images alone, and its graph as an ONNX file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.backbone import silent
from model.interface import Detector, Limits, Memory

# Every onnxruntime since 1.14 reads it, whatever the installed exporter would write by itself.
_OPSET = 18


class OneObject(nn.Module):
    """A detector with the class name, the references and the scale of the scores baked in.

    Args:
        detector: on the CPU; the texts of the name need not be encoded yet.
        name: of the class.
        memory: of its references; None for zero-shot.
        limits: of the terms of the image score, see `maps.rescale`; None leaves them as they are.
    """

    def __init__(self, detector: Detector, name: str, memory: Memory | None = None, limits: Limits | None = None):
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
        limits = self.limits or dict.fromkeys(prediction.terms, (0.0, 1.0))
        scores = self.detector.image_scores(prediction.terms, limits)
        return {"map": prediction.maps, "score": scores.clone(), **prediction.terms}


def save_onnx(one: OneObject, path: Path, metadata: Mapping[str, str]) -> list[str]:
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
