"""A detector that export.py wrote, run by onnxruntime: detector.onnx, and detector.json beside it, which describes it.

Such files are passed on, so nothing in them is taken on trust: sizes, checksums, and what a first image gives are
checked before anything is scored.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.input_spec import FixedShapeInput, from_description
from inference.calibration import Calibration
from inference.predictor import ImageResult
from utils.errors import first_line
from utils.files import check_regular, read_json, sha256
from utils.logs import LOG
from utils.memory_check import check, free_bytes
from utils.packages import require

try:
    import resource
except ImportError:  # Windows, where memory is not limited
    resource = None  # type: ignore[assignment]

ONNX_NAME, JSON_NAME = "detector.onnx", "detector.json"
DATA_NAME = f"{ONNX_NAME}.data"  # weights above protobuf's limit
FORMAT = 1  # of the JSON
_LONGEST = 1 << 16  # side of an input or a map, in pixels
ID = "vand_kit_id"  # key in the metadata of an ONNX file, and in the JSON that belongs to it
CHECKSUMS = "sha256"  # key in the JSON: file name -> SHA-256
# The most memory that onnxruntime may take for a file of so many bytes: to load it, and for one image besides.
_LOADING, _RUNNING = (4, 2e9), (4, 8e9)  # (times the file's size, plus bytes)


class OnnxDetector:
    """The detector of one object, on the CPU.

    Args:
        path: the ONNX file, or a folder with detector.onnx in it; the JSON has the same name with the suffix .json.

    Raises:
        ValueError: a file that is missing, damaged, of another export, or no export at all; names it. No onnxruntime.
    """

    def __init__(self, path: str | Path):
        self.path = find_onnx(path)
        card_path = self.path.with_suffix(".json")
        for file in (self.path, card_path):
            if not file.exists():
                raise ValueError(f"--onnx {path}: there is no {file}; export.py writes {ONNX_NAME} and {JSON_NAME}")
            check_regular(file)
        data = self.path.parent / DATA_NAME
        self._size = self.path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        identity, checksums = self._read_card(card_path)
        check(self._size, "cpu", f"--onnx {self.path}", "export a smaller model")
        self._check_checksums(checksums, card_path)
        with _memory_limit(self.path, _LOADING[0] * self._size + _LOADING[1]):
            self._session = open_session(self.path)
        if self._session.get_modelmeta().custom_metadata_map.get(ID) != identity:
            raise ValueError(f"--onnx {path}: it and {card_path} come from different exports")
        self._check_interface(card_path)

    def _read_card(self, path: Path) -> tuple[str, dict[str, str]]:
        """Take what the JSON says. Returns the identity of the ONNX file that it belongs to, and the checksums (none in
        exports of earlier versions)."""
        try:
            card = read_json(path)
            if card["format"] != FORMAT:
                raise ValueError(f"it has format {card['format']}, and this version reads {FORMAT}")
            self.method, self.class_name = str(card["method"]), str(card["class_name"])
            self.image_size = int(card["image_size"])
            self._read_shapes(card)
            self.outputs = [str(name) for name in card["outputs"]]
            stored = card["calibration"]
            self.calibration = None if stored is None else Calibration.from_dict(stored)
            self.made_with: dict[str, Any] = dict(card["made_with"])
            checksums = {str(name): str(value) for name, value in card.get(CHECKSUMS, {}).items()}
            if not checksums.keys() <= {ONNX_NAME, DATA_NAME}:
                raise ValueError(f"{CHECKSUMS} names other files than {ONNX_NAME} and {DATA_NAME}")
            if checksums and ONNX_NAME not in checksums:
                raise ValueError(f"{CHECKSUMS} lacks {ONNX_NAME}")
            return str(card[ID]), checksums
        except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not written by export.py ({error})") from None

    def _read_shapes(self, card: dict[str, Any]) -> None:
        """Shapes of inputs and maps; exports of earlier versions, which do not say, are square."""
        square = [self.image_size, self.image_size]
        self.shape, self.map_size = (_sides(card.get(key, square)) for key in ("input_shape", "map_size"))
        spec = from_description(card.get("input_spec", {"kind": "square", "side": self.image_size}))
        self.input_spec = FixedShapeInput(spec, self.shape, self.map_size) if spec.keeps_shape else spec

    def _check_checksums(self, checksums: dict[str, str], card_path: Path) -> None:
        if not checksums:
            LOG.warning(
                "--onnx %s: %s holds no SHA-256, as exports of earlier versions; damage would not be noticed",
                self.path, card_path.name,
            )  # fmt: skip
        for name, expected in checksums.items():
            file = self.path if name == ONNX_NAME else self.path.parent / name
            if not file.exists():
                raise ValueError(f"--onnx {self.path}: there is no {file}, which belongs to it; copy it there")
            if sha256(file).hex() != expected:
                raise ValueError(
                    f"{file}: damaged or of another export (its SHA-256 is not the one in {card_path}); copy it again"
                )

    def _check_interface(self, card_path: Path) -> None:
        """Inputs and outputs must be those that the JSON names, and a first image must give them."""
        named = {output.name for output in self._session.get_outputs()}
        inputs = [(one.name, one.type, list(one.shape[1:])) for one in self._session.get_inputs()]
        if (
            named != set(self.outputs)
            or not {"map", "score"} <= named
            or self.input_spec.side != self.image_size
            or inputs != [("images", "tensor(uint8)", [3, *self.shape])]
        ):
            raise ValueError(
                f"--onnx {self.path}: {card_path} names other outputs or another image size than the file has"
            )
        with _memory_limit(self.path, _RUNNING[0] * self._size + _RUNNING[1]):
            self._run(np.zeros((1, 3, *self.shape), np.uint8))

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(B, 3, h, w) uint8 RGB -> "map" (B, H, W), "score" (B,), and the terms that make the score, each (B,).

        Raises:
            ValueError: onnxruntime fails, or an output has another type or shape; names the file.
        """
        with _memory_limit(self.path, math.inf, "; lower --batch_size"):
            return self._run(images)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self.outputs, {"images": images})
        except Exception as error:  # onnxruntime raises what it likes on an odd graph; the user needs the file's name
            raise _unusable(self.path, error) from None
        count = len(images)
        for name, value in zip(self.outputs, values, strict=True):
            wanted = (count, *self.map_size) if name == "map" else (count,)
            if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != wanted:
                is_array = isinstance(value, np.ndarray)
                found = f"{value.shape} {value.dtype}" if is_array else f"a {type(value).__name__}"
                raise ValueError(f"{self.path}: its output {name} is {found}; must be {wanted} float32")
        return dict(zip(self.outputs, values, strict=True))

    def predict(self, images: np.ndarray) -> list[ImageResult]:
        """The results that `inference.predictor.Predictor` gives. images: (B, 3, h, w) uint8 RGB."""
        outputs = self.run(images)
        maps, scores = outputs.pop("map"), outputs.pop("score").tolist()
        components = {name: values.tolist() for name, values in outputs.items()}
        return [
            ImageResult(
                maps[row],
                score,
                self.calibration.verdict(score) if self.calibration else None,
                {name: values[row] for name, values in components.items()},
            )
            for row, score in enumerate(scores)
        ]


def _sides(value: Any) -> tuple[int, int]:
    """(height, width). Raises ValueError for anything else, and for what no picture has."""
    height, width = map(int, value)
    if not (0 < height <= _LONGEST and 0 < width <= _LONGEST):
        raise ValueError(f"input_shape and map_size are from 1 to {_LONGEST}")
    return height, width


def find_onnx(path: str | Path) -> Path:
    """The ONNX file that --onnx names: a file, or the detector.onnx of a folder. Raises ValueError: a folder without
    one; says which file would do."""
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / ONNX_NAME).is_file():
        return path / ONNX_NAME
    others = sorted(path.glob("*.onnx"))
    advice = f"name the file itself, as in --onnx {others[0]}" if others else f"export.py writes {ONNX_NAME}"
    raise ValueError(f"--onnx {path}: there is no {ONNX_NAME} in this folder; {advice}")


def open_session(path: Path) -> Any:
    """An onnxruntime.InferenceSession of an ONNX file, on the CPU. Raises ValueError: damaged, or no onnxruntime."""
    require("--onnx", ("onnxruntime",), "requirements-export.txt")
    import onnxruntime  # here, since everything else works without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises what it likes on a broken file; the user needs its name
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> Exception:
    """The error for the user; a MemoryError where memory ran out, which `_memory_limit` explains."""
    if any(sign in str(error) for sign in ("allocate memory", "bad_alloc", "bad allocation")):
        return MemoryError()
    return ValueError(f"{path}: onnxruntime cannot use it ({first_line(error)})")


@contextlib.contextmanager
def _memory_limit(path: Path, most: float, advice: str = "") -> Iterator[None]:
    """Within it the process gets no more than `most` bytes besides what it has, or what is free, where that is less: a
    file of a few hundred bytes can ask for any amount. Nothing is limited where the system has no such limit.

    Raises:
        ValueError: more was needed; names the file.
    """
    most = min(free_bytes("cpu"), most)
    before = _limit_address_space(most)
    try:
        yield
    except MemoryError:
        raise ValueError(
            f"{path}: needs more than {most / 1e9:.1f} GB of memory, which is more than is free, or more than a "
            f"detector of its size can need{advice}"
        ) from None
    finally:
        if before:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_address_space(most: float) -> tuple[int, int] | None:
    """Returns the limits before; None where nothing is limited."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):  # no /proc, as on macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted = int(pages * os.sysconf("SC_PAGE_SIZE") + most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if soft < 0 else min(soft, wanted), hard))
        return soft, hard
    return None
