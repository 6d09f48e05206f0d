"""Pictures of anomaly maps; an overlay is original | anomaly map | ground truth."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from report.heatmap import SCALE_IMAGES, HeatScale, blend_heatmap, on_scale, resize_longest_side, sample_pixels
from utils.files import atomic_write, save_array

_SIDE = 384  # the longer side of a panel, in pixels
_STRIP = 22  # the caption's height, in pixels
_GREEN = (60, 220, 60)


def overlay(image: Image.Image, heat: np.ndarray, mask: np.ndarray | None, captions: Sequence[str]) -> np.ndarray:
    """Three panels side by side, at the image's own aspect ratio: original, anomaly map, ground truth.

    Args:
        image: the original, any size.
        heat: (S, S) in [0, 1], the colour scale's ends.
        mask: (S, S), non-zero = defect; None where it is not known.
        captions: one per panel; two leave the ground truth out.

    Returns:
        (H, W, 3) uint8 RGB
    """
    panels = draw_panels(image, heat, mask, _SIDE)[: len(captions)]
    return np.hstack([_captioned(panel, text) for panel, text in zip(panels, captions, strict=True)])


def draw_panels(
    image: Image.Image, heat: np.ndarray, mask: np.ndarray | None, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original, anomaly map, ground truth, each (H, W, 3) uint8 RGB, the longer side as given; else as `overlay`."""
    picture = resize_longest_side(image, side)
    blended, truth = blend_heatmap(picture, heat), picture.copy()
    if mask is not None:
        shape = cv2.resize((mask > 0).astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for panel in (blended, truth):
            cv2.drawContours(panel, contours, -1, _GREEN, 1, cv2.LINE_AA)
    return picture, blended, truth


def _captioned(panel: np.ndarray, text: str) -> np.ndarray:
    framed = cv2.copyMakeBorder(panel, _STRIP, 0, 1, 1, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    fitting = text.encode("ascii", "replace").decode()[: framed.shape[1] // 8]
    return cv2.putText(framed, fitting, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)


def split_panels(picture: Image.Image) -> list[Image.Image]:
    """The original, the anomaly map and the ground truth out of an overlay, without captions."""
    width = picture.width // 3
    return [picture.crop((left + 1, _STRIP, left + width - 1, picture.height)) for left in (0, width, 2 * width)]


class Overlays:
    """Draws the overlays of a class when its last map has come, since one colour scale serves the whole class.

    Until then its maps wait on disk, in half precision.

    Args:
        folder: where <img_path>.png goes.
        root: the dataset's root.
        load_image, load_mask: path -> PIL image, mask path -> PIL mask.
        together: a list -> those of all processes, one after the other; each draws the images whose maps it has.
    """

    def __init__(self, folder: Path, root: Path, load_image, load_mask, together: Callable[[list], list] = list):
        self._folder, self._root, self._load_image, self._load_mask = folder, root, load_image, load_mask
        self._together = together

    def __enter__(self) -> "Overlays":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._spool = tempfile.TemporaryDirectory(prefix=".maps-", dir=self._folder)
        return self

    def __exit__(self, *_) -> None:
        self._spool.cleanup()

    def keep(self, setting: int, index: int, one: np.ndarray) -> None:
        """Hold a map, (S, S) float32, until its class is drawn."""
        save_array(self._file(setting, index), one.astype(np.float16))

    def draw(self, setting: int, folder: str, samples: Mapping[int, object], scores: Mapping[int, float]) -> None:
        """Draw all images of a class under one setting into a subfolder ("" for none).

        The colour scale runs from the class's median to its 99.9th percentile, so that the same colour means the same
        value on all its pictures.
        """
        own = [index for index in samples if self._file(setting, index).is_file()]
        thumbnails = self._together([sample_pixels(np.load(self._file(setting, index)), len(samples)) for index in own])
        low, high = np.quantile(np.concatenate(thumbnails), (0.5, 0.999))

        def one(index: int) -> None:
            heat = np.load(self._file(setting, index)).astype(np.float32)
            heat = (heat - low) / max(high - low, 1e-6)
            self._draw_one(self._folder / folder, samples[index], heat, scores[index])
            self._file(setting, index).unlink()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, own))

    def _file(self, setting: int, index: int) -> Path:
        return Path(self._spool.name, f"{setting}-{index}.npy")

    def _draw_one(self, folder: Path, sample, heat: np.ndarray, score: float) -> None:
        image = self._load_image(self._root / sample.img_path)
        mask = mask_of(self._root, sample, self._load_mask)
        truth = sample.specie_name or ("defect" if sample.anomaly else "good")
        truth += " (no mask)" if mask is None else ""
        captions = (PurePosixPath(sample.img_path).name, f"anomaly map, score {score:.3f}", f"ground truth: {truth}")
        picture = overlay(image, heat, mask, captions)
        with atomic_write(folder / PurePosixPath(sample.img_path).with_suffix(".png")) as path:
            Image.fromarray(picture).save(path)


def mask_of(root: Path, sample: Any, load_mask: Any) -> np.ndarray | None:
    """The mask of a sample, (H, W), all zero of a normal one; None where it is not known."""
    if not sample.anomaly:
        return np.zeros((1, 1), np.uint8)
    return np.asarray(load_mask(root / sample.mask_path)) if sample.mask_path else None


class StreamedOverlays:
    """Original and anomaly map of images without ground truth, drawn as they come, in bounded memory.

    Args:
        folder: where <name>.png goes.
        load: path -> PIL image.
        ends: of the colour scale; None takes those of the first images that `learn` is shown, until when maps wait.
    """

    def __init__(self, folder: Path, load: Any, ends: tuple[float, float] | None):
        self._folder, self._load, self._ends = folder, load, ends
        self._scale, self._waiting = HeatScale(SCALE_IMAGES), []

    def __enter__(self) -> "StreamedOverlays":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._waiting:
            self._draw_waiting()

    @property
    def learning(self) -> bool:
        """Whether the ends are still to be found."""
        return self._ends is None and not self._scale.full

    def learn(self, maps: Iterable[np.ndarray]) -> None:
        """The next maps, or what `sample_pixels` keeps of them, in the order of images. Several processes exchange
        theirs, so that one scale serves all pictures."""
        for one in maps:
            if self.learning:
                self._scale.add(one)

    def keep(self, path: Path, name: str, one: np.ndarray, caption: str) -> None:
        """Take one map, (S, S) float32, of the image at `path`, to be drawn under `name`."""
        self._waiting.append((path, name, one, caption))
        if not self.learning:
            self._draw_waiting()

    def _draw_waiting(self) -> None:
        low, high = self._ends = self._ends or self._scale.ends()
        for path, name, one, caption in self._waiting:
            picture = overlay(self._load(path), on_scale(one, low, high), None, (PurePosixPath(name).name, caption))
            with atomic_write(self._folder / PurePosixPath(name).with_suffix(".png")) as temporary:
                Image.fromarray(picture).save(temporary)
        self._waiting.clear()
