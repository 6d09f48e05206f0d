"""What is known of the images that are scored, at the size at which maps are measured: read when it is needed, image by
image, since at their own size those of a class may not fit into the memory."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.box import Box
from data.defect_kinds import DefectKind
from data.input_spec import InputSpec
from data.meta import PixelSettings, Sample
from data.regions import read_mask, read_regions
from metrics.measures import Thresholds
from metrics.names import KINDS, Measures
from metrics.pixel import label_regions
from metrics.spro import SaturatedRegion

_KEPT = 16  # images, where several settings ask for each of a batch

Size = tuple[int, int]  # (H, W)


class GroundTruth:
    """Masks and regions of a dataset.

    Args:
        root: of the dataset; samples: what is scored; pixels: how its files are read.
        spec: of the detector.
        own_size: measure at the size of each picture, or of the part of it that the map shows; else at that of the map.
        settings: how many ask for each image.
        defects: class -> its kinds of defects, see `data.meta.read_defects`, where the dataset knows them.
    """

    def __init__(
        self,
        root: str | Path,
        samples: Sequence[Sample],
        pixels: PixelSettings,
        spec: InputSpec,
        *,
        own_size: bool,
        settings: int = 1,
        defects: Mapping[str, Mapping[int, DefectKind]] | None = None,
    ):
        self._root, self.samples, self._pixels, self._spec = Path(root), samples, pixels, spec
        self.own_size = own_size and not spec.keeps_shape
        self._defects = defects or {}
        kept = functools.lru_cache(1 if settings == 1 else _KEPT)
        self.regions, self.areas = kept(self._regions), kept(self._areas)

    def size(self, picture: Size) -> Size:
        """(H, W) of the part of a picture that a map shows, in the picture's pixels."""
        left, top, right, bottom = _pixels(self._spec.shown, picture)
        return bottom - top, right - left

    def _regions(self, index: int, picture: Size) -> Tensor:
        """(H, W) as `label_regions` gives them, of the part of a picture that a map shows; picture: its size."""
        sample = self.samples[index]
        if not (sample.anomaly and sample.mask_path):
            return torch.zeros(1, 1, dtype=torch.uint8).expand(self.size(picture))
        mask = read_mask(self._root / sample.mask_path, upright=self._pixels.exif)
        return torch.from_numpy(label_regions(np.asarray(mask.crop(_pixels(self._spec.shown, picture)))))

    def _areas(self, index: int, picture: Size) -> list[SaturatedRegion]:
        """The regions of an image at the size of the map that is measured, but for those that are lost there. A
        saturation shrinks with its region."""
        sample, found = self.samples[index], []
        kinds, upright = self._defects.get(sample.cls_name), self._pixels.exif
        for mask, saturation in read_regions(self._root, sample, kinds, upright=upright):
            picture_mask = Image.fromarray(mask.astype(np.uint8) * 255)
            if self.own_size:
                shown = torch.from_numpy(np.asarray(picture_mask.crop(_pixels(self._spec.shown, picture))) != 0)
            else:
                shown = self._spec.mask(picture_mask) != 0
            if shown.any():
                found.append(SaturatedRegion(shown, saturation * int(shown.sum()) / int(mask.sum())))
        return found


def no_thresholds(setting: int, name: str) -> Thresholds:
    """Of a run that nobody gives any."""
    return Thresholds()


class Measuring(NamedTuple):
    """What a scoring pass measures beside the usual metrics, and against what.

    measures: which.
    truth: of the images.
    thresholds: (few-shot setting, class) -> what was fixed for it without its test images; asked for from the first of
        them on. `measures.given` says that there are some.
    """

    measures: Measures
    truth: GroundTruth
    thresholds: Callable[[int, str], Thresholds] = no_thresholds


def asked_measures(
    chosen: Sequence[str] | None, fpr_limits: Sequence[float] | None, samples: Sequence[Sample], *, given: bool = False
) -> Measures:
    """The measures that flags ask for, each once. Anomalies are counted apart by kind where all are of KINDS.

    given: whether thresholds are fixed without the test images.
    """
    species = {sample.specie_name for sample in samples if sample.anomaly}
    by_kind = bool(species) and species <= set(KINDS.values())
    return Measures(tuple(dict.fromkeys(chosen or ())), tuple(dict.fromkeys(fpr_limits or ())), by_kind, given)


def resized(one: Tensor, size: Size) -> Tensor:
    """A map, (h, w), at another size, bilinear (corners are not aligned): (H, W) float32."""
    if one.shape == size:
        return one.float()
    return F.interpolate(one[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]


def _pixels(box: Box, picture: Size) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a picture of (H, W)."""
    height, width = picture
    left, top, right, bottom = box
    return round(left * width), round(top * height), round(right * width), round(bottom * height)
