"""The few pictures of a class that report.html shows: original | anomaly map | ground truth."""

import io
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from utils.runtime import save_array
from utils.visualize import HeatScale, draw_panels, mask_of, sampled

_SIDE = 176  # the longer side of a panel, in pixels
_SHOWN = ("img_path", "cls_name", "specie_name", "anomaly")  # what a row says of its image


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
        for pixels in self._together([sampled(np.load(self._file(setting, index)), len(samples)) for index in own]):
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
