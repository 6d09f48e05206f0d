"""Pictures and files of anomaly maps; an overlay is original | anomaly map | ground truth."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from utils.runtime import replacing, save_array

_SIDE = 384  # the longer side of a panel, in pixels
_STRIP = 22  # the caption's height, in pixels
_SAMPLED = 4096  # pixels of a map that are kept for the ends of the colour scale
_FIRST = 64  # images whose maps give these ends, where there are no normal ones
_GREEN = (60, 220, 60)
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(256, 1), cv2.COLORMAP_TURBO)[
    :, 0, ::-1
]  # (256, 3) RGB


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
    picture = fitted(image, side)
    blended, truth = tinted(picture, heat), picture.copy()
    if mask is not None:
        shape = cv2.resize((mask > 0).astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for panel in (blended, truth):
            cv2.drawContours(panel, contours, -1, _GREEN, 1, cv2.LINE_AA)
    return picture, blended, truth


def fitted(image: Image.Image, side: int) -> np.ndarray:
    """A picture whose longer side has the given number of pixels, (H, W, 3) uint8 RGB."""
    size = tuple(max(16, round(length * side / max(image.size))) for length in image.size)  # (width, height)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def tinted(picture: np.ndarray, heat: np.ndarray, opacity: float = 0.75, threshold: float = 0.0) -> np.ndarray:
    """The colours of a map laid over a picture, the stronger the higher: what is normal stays visible.

    Args:
        picture: (H, W, 3) uint8 RGB.
        heat: (S, S) in [0, 1], the colour scale's ends; values beyond them are cut off.
        opacity: 0 shows the picture alone, 1 the colour alone where the map is highest.
        threshold: what lies below is left as it is, and what lies above gets an outline; 0 colours everything.

    Returns:
        (H, W, 3) uint8 RGB
    """
    heat = np.clip(cv2.resize(heat.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR), 0, 1)
    colours = _COLOURS[(heat * 255).astype(np.uint8)]  # (H, W, 3)
    above = heat >= threshold
    strength = (opacity * (0.2 + 0.8 * np.sqrt(heat)) * above)[..., None]  # (H, W, 1)
    blended = ((1 - strength) * picture + strength * colours).astype(np.uint8)
    if threshold > 0 and opacity > 0:
        contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for colour, width in (((20, 20, 20), 3), ((255, 255, 255), 1)):  # seen on any ground
            cv2.drawContours(blended, contours, -1, colour, width, cv2.LINE_AA)
    return blended


def gradient(stops: int = 17) -> str:
    """The colour scale, from low to high, as CSS."""
    chosen = _COLOURS[np.linspace(0, 255, stops).astype(int)].tolist()
    return f"linear-gradient(to right, {', '.join('rgb({}, {}, {})'.format(*one) for one in chosen)})"


def _captioned(panel: np.ndarray, text: str) -> np.ndarray:
    framed = cv2.copyMakeBorder(panel, _STRIP, 0, 1, 1, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    fitting = text.encode("ascii", "replace").decode()[: framed.shape[1] // 8]
    return cv2.putText(framed, fitting, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)


def panels(picture: Image.Image) -> list[Image.Image]:
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
        thumbnails = self._together([sampled(np.load(self._file(setting, index)), len(samples)) for index in own])
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
        with replacing(folder / PurePosixPath(sample.img_path).with_suffix(".png")) as path:
            Image.fromarray(picture).save(path)


def mask_of(root: Path, sample: Any, load_mask: Any) -> np.ndarray | None:
    """The mask of a sample, (H, W), all zero of a normal one; None where it is not known."""
    if not sample.anomaly:
        return np.zeros((1, 1), np.uint8)
    return np.asarray(load_mask(root / sample.mask_path)) if sample.mask_path else None


def sampled(one: np.ndarray, images: int = 1) -> np.ndarray:
    """Some pixels of a map, evenly spread, (n,) float32, n at most 4096; of these, the same again.

    images: how many give such pixels; of more than 64 each gives less, so that together they stay as few.
    """
    step = math.ceil(math.sqrt(one.size / _SAMPLED * max(1, images / _FIRST)))
    step = min(step, len(one))
    some = one[step // 2 :: step, step // 2 :: step] if one.ndim == 2 else one
    return some.ravel().astype(np.float32)


def on_scale(one: np.ndarray, low: float, high: float) -> np.ndarray:
    """A map, (S, S), on a colour scale: 0 at `low`, 1 at `high`. One that reaches above it has an upper end of its own,
    and one that lies above it altogether a lower end, too, so that no defect drowns in a single colour."""
    least, most = np.quantile(sampled(one), (0.01, 0.999))
    bottom = least if least > high else low
    return (one - bottom) / max(most - bottom, high - low)


class HeatScale:
    """The ends of the colour scale: the median and the 99.9th percentile of the pixels of some maps."""

    def __init__(self, images: int):
        self._left, self._parts = images, []

    @property
    def full(self) -> bool:
        """Whether as many maps have come as were wanted."""
        return self._left <= 0

    def add(self, one: np.ndarray) -> None:
        """one: (S, S), or what `sampled` keeps of it."""
        self._parts.append(sampled(one))
        self._left -= 1

    def ends(self, stretch: float = 1.0) -> tuple[float, float]:
        """(low, high); stretch: how many times as far above the median the upper end lies, for normal images."""
        low, high = np.quantile(np.concatenate(self._parts), (0.5, 0.999))
        return float(low), float(low + max(stretch * (high - low), 1e-6))


class StreamedOverlays:
    """Original and anomaly map of images without ground truth, drawn as they come, in bounded memory.

    Args:
        folder: where <name>.png goes.
        load: path -> PIL image.
        ends: of the colour scale; None takes those of the first images that `learn` is shown, until when maps wait.
    """

    def __init__(self, folder: Path, load: Any, ends: tuple[float, float] | None):
        self._folder, self._load, self._ends = folder, load, ends
        self._scale, self._waiting = HeatScale(_FIRST), []

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
        """The next maps, or what `sampled` keeps of them, in the order of images; several processes show each other
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
            with replacing(self._folder / PurePosixPath(name).with_suffix(".png")) as temporary:
                Image.fromarray(picture).save(temporary)
        self._waiting.clear()


def save_map(folder: Path, name: str, one: np.ndarray) -> None:
    """Write a map, (S, S), as float32 under the image's name with the suffix .npy."""
    with replacing(folder / PurePosixPath(name).with_suffix(".npy")) as path:
        save_array(path, one.astype(np.float32))


def check_names(paths: Sequence[str]) -> None:
    """Maps and overlays are named after the images without their suffix: two images of one name would collide.

    Raises:
        ValueError: names both images.
    """
    owners: dict[PurePosixPath, str] = {}
    for path in paths:
        owner = owners.setdefault(PurePosixPath(path).with_suffix(""), path)
        if owner != path:
            raise ValueError(
                f"{owner} and {path} differ in the suffix alone, and their maps would overwrite each other; rename "
                "one, or use --no_images without --save_maps"
            )


class MapFiles(contextlib.ExitStack):
    """Where the maps of a scoring pass go: overlays, .npy files, thumbnails, any or none of them.

    Args:
        samples: the samples that the maps' indices count.
        subfolders: one per few-shot setting; "" for none.
        maps: folder of the .npy files.
        overlays: what draws the pictures.
        thumbnails: `thumbnails.Thumbnails`; what it draws is collected in `galleries`, by (setting, class).
    """

    def __init__(
        self,
        samples: Sequence[Any],
        subfolders: Sequence[str],
        maps: Path | None,
        overlays: Overlays | None,
        thumbnails: Any = None,
    ):
        super().__init__()
        self.galleries: dict[tuple[int, str], Any] = {}
        self._thumbnails = thumbnails and self.enter_context(thumbnails)
        self._samples, self._subfolders, self._maps = samples, subfolders, maps
        self._overlays = overlays and self.enter_context(overlays)

    def keep(self, setting: int, index: int, one: np.ndarray) -> None:
        """Take one map, (S, S) float32."""
        if self._overlays:
            self._overlays.keep(setting, index, one)
        if self._thumbnails:
            self._thumbnails.keep(setting, index, one)
        if self._maps:
            save_map(self._maps / self._subfolders[setting], self._samples[index].img_path, one)

    def gallery(self, name: str) -> dict[int, Any]:
        """What the thumbnails of a class are, by setting."""
        return {setting: chosen for (setting, owner), chosen in self.galleries.items() if owner == name}

    def finish(self, result: Any) -> None:
        """Draw a class whose maps have all come; result: `engine.ClassScores`."""
        scores = dict(zip(result.indices, result.scores, strict=True))
        samples = {index: self._samples[index] for index in result.indices}
        gallery = self._thumbnails and self._thumbnails.draw(result.setting, samples, scores)
        if gallery:
            self.galleries[result.setting, result.name] = gallery
        if self._overlays:
            self._overlays.draw(result.setting, self._subfolders[result.setting], samples, scores)
