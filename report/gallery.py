"""Which images to look at, and the few pictures of a class that report.html shows."""

import io
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from report.heatmap import HeatScale, sample_pixels
from report.overlays import draw_panels, mask_of
from utils.files import save_array

_SIDE = 176  # the longer side of a panel, in pixels
_SHOWN = ("img_path", "cls_name", "specie_name", "anomaly")  # what a row says of its image


class SelectedImages(NamedTuple):
    """The images worth looking at, the most telling one first."""

    hits: list[Mapping[str, Any]]  # defects with the highest scores
    missed: list[Mapping[str, Any]]  # defects with the lowest scores
    alarms: list[Mapping[str, Any]]  # normal images with the highest scores


def choose(rows: Iterable[Mapping[str, Any]], hits: int = 6, misses: int = 2, per_class: int = 2) -> SelectedImages:
    """The clearest hits and the worst misses of one setting.

    Args:
        rows: an image each, of predictions.csv or `prediction_rows`: cls_name, anomaly (0 or 1) and score are looked
            at; equal scores keep their order.
        hits: how many hits.
        misses: how many missed defects, and how many false alarms.
        per_class: how many of one class in each list, so that no class takes them all.

    Returns:
        Rows as they came. No image is a hit and missed: of few defects, the upper half can be hits.
    """
    rows = list(rows)
    rising = sorted(rows, key=lambda row: float(row["score"]))
    falling = sorted(rows, key=lambda row: -float(row["score"]))
    defects = [row for row in falling if int(row["anomaly"])]
    clearest = _first(defects, min(hits, (len(defects) + 1) // 2), per_class)
    others = [row for row in rising if int(row["anomaly"]) and not any(row is hit for hit in clearest)]
    normal = [row for row in falling if not int(row["anomaly"])]
    return SelectedImages(clearest, _first(others, misses, per_class), _first(normal, misses, per_class))


def _first(rows: Iterable[Mapping[str, Any]], count: int, per_class: int) -> list[Mapping[str, Any]]:
    taken: list[Mapping[str, Any]] = []
    for row in rows:
        if len(taken) < count and sum(row["cls_name"] == other["cls_name"] for other in taken) < per_class:
            taken.append(row)
    return taken


class Thumbnails:
    """The few pictures of a class that report.html shows, as small WebP files in memory.

    Which images they are is known when the class has all its scores; until then its maps wait on disk, small and in
    half precision.

    Args:
        folder: where the maps wait.
        root: the dataset's root.
        settings: the few-shot settings that get pictures, as indices.
        choose: rows of a class (img_path, cls_name, specie_name, anomaly, score, index) -> lists of some of them.
        load_image, load_mask: path -> PIL image.
        together: a list -> those of all processes, one after the other; each draws the images whose maps it has.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        settings: Collection[int],
        choose,
        load_image,
        load_mask,
        together: Callable[[list], list] = list,
    ):
        self._folder, self._root, self._settings, self._choose = folder, root, settings, choose
        self._load_image, self._load_mask, self._together = load_image, load_mask, together

    def __enter__(self) -> "Thumbnails":
        self._spool = tempfile.TemporaryDirectory(prefix=".thumbnails-", dir=self._folder)
        return self

    def __exit__(self, *_) -> None:
        self._spool.cleanup()

    def keep(self, setting: int, index: int, one: np.ndarray) -> None:
        """Hold a map, (S, S) float32, until its class is complete."""
        if setting in self._settings:
            if one.shape[0] > _SIDE:
                one = cv2.resize(one, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            save_array(self._file(setting, index), one.astype(np.float16))

    def draw(self, setting: int, samples: Mapping[int, Any], scores: Mapping[int, float]) -> Any:
        """What `choose` gives, each row with its "picture" (bytes) beside; None of a setting without pictures."""
        if setting not in self._settings:
            return None
        rows = [
            {**{key: getattr(sample, key) for key in _SHOWN}, "score": scores[index], "index": index}
            for index, sample in samples.items()
        ]
        chosen = self._choose(rows)
        own = [index for index in samples if self._file(setting, index).is_file()]
        scale = HeatScale(len(samples))
        for pixels in self._together(
            [sample_pixels(np.load(self._file(setting, index)), len(samples)) for index in own]
        ):
            scale.add(pixels)
        low, high = scale.ends()
        wanted = {row["index"] for rows in chosen for row in rows}
        drawn = [(index, self._picture(setting, samples[index], index, low, high)) for index in own if index in wanted]
        pictures = dict(self._together(drawn))
        for row in (row for rows in chosen for row in rows):
            row["picture"] = pictures[row["index"]]
        for index in own:
            self._file(setting, index).unlink()
        return chosen

    def _file(self, setting: int, index: int) -> Path:
        return Path(self._spool.name, f"{setting}-{index}.npy")

    def _picture(self, setting: int, sample: Any, index: int, low: float, high: float) -> bytes:
        heat = (np.load(self._file(setting, index)).astype(np.float32) - low) / (high - low)
        image, mask = self._load_image(self._root / sample.img_path), mask_of(self._root, sample, self._load_mask)
        original, coloured, truth = draw_panels(image, heat, mask, _SIDE)
        gap = np.full((original.shape[0], 3, 3), 128, np.uint8)
        file = io.BytesIO()
        row = np.hstack([original, gap, coloured, gap, truth])
        Image.fromarray(row).save(file, "WEBP", quality=70, method=4)
        return file.getvalue()
