"""A detector that export.py wrote, run by onnxruntime: an ONNX file and the JSON beside it, which says what it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from inference.calibration import Calibration
from inference.predictor import ImageResult
from utils.packages import require

NAME, CARD = "detector.onnx", "detector.json"
FORMAT = 1  # of the JSON
ID = "vand_kit_id"  # key in the metadata of an ONNX file, and in the JSON that belongs to it


def session(path: Path) -> Any:
    """An onnxruntime.InferenceSession of an ONNX file, on the CPU. Raises ValueError: broken, or no onnxruntime."""
    require("--onnx", ("onnxruntime",), "requirements-export.txt")
    import onnxruntime  # here, since everything else works without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises what it likes on a broken file; the user needs its name
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: onnxruntime cannot use it ({reason})") from None


class OnnxDetector:
    """The detector of one object, on the CPU.

    Args:
        path: the ONNX file; the JSON has its name with the suffix .json.

    Raises:
        ValueError: a file that is missing, broken, or of another export; names it. No onnxruntime.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        beside = self.path.with_suffix(".json")
        for file in (self.path, beside):
            if not file.is_file():
                raise ValueError(f"--onnx {path}: there is no {file}; export.py writes {NAME} and {CARD}")
        identity = self._read(beside)
        self._session = session(self.path)
        if self._session.get_modelmeta().custom_metadata_map.get(ID) != identity:
            raise ValueError(f"--onnx {path}: it and {beside} come from different exports")
        named = {output.name for output in self._session.get_outputs()}
        shapes = [list(given.shape[1:]) for given in self._session.get_inputs()]
        if (
            named != set(self.outputs)
            or not {"map", "score"} <= named
            or shapes != [[3, self.image_size, self.image_size]]
        ):
            raise ValueError(f"--onnx {path}: {beside} names other outputs or another image size than it has")

    def _read(self, path: Path) -> str:
        """Take what the JSON says; returns the identity of the ONNX file that it belongs to."""
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            if card["format"] != FORMAT:
                raise ValueError(f"it has format {card['format']}, and this version reads {FORMAT}")
            self.method, self.class_name = str(card["method"]), str(card["class_name"])
            self.image_size = int(card["image_size"])
            self.outputs = list(card["outputs"])
            self.calibration = None if card["calibration"] is None else Calibration.of(card["calibration"])
            self.made_with = dict(card["made_with"])
            return str(card[ID])
        except (AttributeError, KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no file that export.py wrote ({error})") from None

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(B, 3, S, S) uint8 RGB -> "map" (B, S, S), "score" (B,), and the terms that make the score, each (B,)."""
        return dict(zip(self.outputs, self._session.run(self.outputs, {"images": images}), strict=True))

    def predict(self, images: np.ndarray) -> list[ImageResult]:
        """What images show, as `inference.predictor.Predictor` says it. images: (B, 3, S, S) uint8 RGB."""
        outputs = {key: values.tolist() if key != "map" else values for key, values in self.run(images).items()}
        maps, scores = outputs.pop("map"), outputs.pop("score")
        found = []
        for row, (one, score) in enumerate(zip(maps, scores, strict=True)):
            verdict = {"verdict": self.calibration.verdict(score)} if self.calibration else {}
            found.append(
                ImageResult(one, {"score": score, **verdict, **{key: term[row] for key, term in outputs.items()}})
            )
        return found
