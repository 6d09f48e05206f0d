"""Masks of one file or of several: their union, and the regions of an anomalous image.

`mask_path` of a sample is an image, or a folder with an image for each region, which may overlap.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from data.defect_kinds import DefectKind
from data.image_files import formats, image_files
from data.images import load_mask
from data.meta import Sample


class Region(NamedTuple):
    """A region of an anomalous image, at the image's own size."""

    mask: NDArray[np.bool_]  # (H, W)
    saturation: float  # pixels of it that have to be found for all of it to count, above 0, at most its area


def mask_files(path: Path) -> list[Path]:
    """The files of a mask: the path itself, or the images in it where it is a folder, sorted by name."""
    return image_files(path, recursive=False)[0] if path.is_dir() else [path]


def read_mask(path: Path, *, upright: bool = False) -> Image.Image:
    """The mask of an image as 0/255 grey, of a folder the union of its masks; see `load_mask`.

    Raises:
        ValueError: as `load_mask`; a folder without masks, or with masks of several sizes; names it.
    """
    return functools.reduce(ImageChops.lighter, _masks(path, upright).values())


def read_regions(
    root: Path, sample: Sample, kinds: Mapping[int, DefectKind] | None = None, *, upright: bool = False
) -> list[Region]:
    """The regions of a sample, for the saturated per-region overlap (sPRO) and for PRO; [] of a normal one and of one
    without a mask.

    Of a folder, each file is one region, connected or not; files that are all black are none. Of a single file, each
    8-connected component is one. A region's saturation area is what its kind says, without kinds its whole area.

    Args:
        root: of the dataset.
        kinds: pixel value -> kind of defect of the sample's class, see `data.meta.read_defects`; each file of a folder
            then holds one of these values beside black.
        upright: see `load_mask`.

    Raises:
        ValueError: as `read_mask`; a file that holds no known value, or several; names it.
    """
    if not (sample.anomaly and sample.mask_path):
        return []
    path = root / sample.mask_path
    masks = {file: np.asarray(mask) > 0 for file, mask in _masks(path, upright).items()}
    if not path.is_dir():
        count, labels = cv2.connectedComponents(masks[path].astype(np.uint8), connectivity=8)
        found = [labels == label for label in range(1, count)]
        return [Region(mask, float(mask.sum())) for mask in found]
    regions = []
    for file, mask in masks.items():
        area = int(mask.sum())
        if kinds:
            regions.append(Region(mask, _kind_of(file, kinds).saturation(area)))
        elif area:
            regions.append(Region(mask, float(area)))
    return regions


def _masks(path: Path, upright: bool) -> dict[Path, Image.Image]:
    """The masks of a path, all of one size."""
    masks = {file: load_mask(file, upright=upright) for file in mask_files(path)}
    if not masks:
        raise ValueError(f"{path}: a folder of masks without an image in it; put the masks there or remove it")
    first = next(iter(masks))
    for file, mask in masks.items():
        if mask.size != masks[first].size:
            sizes = [f"{one.width} x {one.height}" for one in (mask, masks[first])]
            raise ValueError(f"{file} is {sizes[0]} pixels but {first.name} beside it {sizes[1]}; they must agree")
    return masks


def _kind_of(file: Path, kinds: Mapping[int, DefectKind]) -> DefectKind:
    """The kind of defect that the pixels of a readable mask name."""
    with Image.open(file, formats=formats()) as image:
        pixels = np.asarray(image)
    values = np.unique(pixels[pixels > 0]) if pixels.ndim == 2 and pixels.dtype != bool else None
    if values is None or len(values) != 1:
        found = (
            "colours"
            if values is None
            else "no pixel but black"
            if not len(values)
            else f"values {values.tolist()[:5]}"
        )
        raise ValueError(f"{file}: holds {found}; expected grey, 0 and the one pixel_value of its kind of defect")
    value = int(values[0])
    if value not in kinds:
        known = ", ".join(map(str, sorted(kinds)[:5])) + (", ..." if len(kinds) > 5 else "")
        raise ValueError(f"{file}: pixel value {value} is no kind of defect of this class; known are {known}")
    return kinds[value]
