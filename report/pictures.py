"""The pictures of one test image, drawn from the file of its map.

`draw` takes nothing but plain values and files, so that it can run in a thread or another process.
"""

import io
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.images import load_image, load_mask
from data.meta import PixelSettings, Sample
from report.overlays import draw_panels, overlay, save_picture

THUMBNAIL_SIDE = 176  # the longer side of a thumbnail's panel, in pixels
_GAP = 3  # between the panels of a thumbnail, in pixels


class PictureJob(NamedTuple):
    """What is to be drawn of one image.

    Args:
        map_file: the map, (S, S) as .npy in single or half precision.
        root: the dataset's root.
        sample: the image, its mask and what they show.
        score: of the image.
        ends: of the colour scale, in the map's values.
        overlay: the file to write; None draws none.
        thumbnail: whether the picture for report.html is wanted.
        pixels: how image and mask are read.
    """

    map_file: Path
    root: Path
    sample: Sample
    score: float
    ends: tuple[float, float]
    overlay: Path | None
    thumbnail: bool
    pixels: PixelSettings = PixelSettings()


def draw(job: PictureJob) -> bytes | None:
    """Write the overlay, and return the thumbnail as a WebP file; each where the job wants it. Image and mask are read
    once."""
    low, high = job.ends
    heat = (load_map(job.map_file).astype(np.float32) - low) / (high - low)
    image, mask = load_image(job.root / job.sample.img_path, upright=job.pixels.exif, bits=job.pixels.bits), _mask(job)
    if job.overlay:
        save_picture(job.overlay, overlay(image, heat, mask, _captions(job, mask is not None)))
    return _thumbnail(image, heat, mask) if job.thumbnail else None


def load_map(path: Path) -> NDArray[np.float16]:
    """A map, (S, S), in half precision however it is kept, so that pictures do not depend on that."""
    return np.load(path).astype(np.float16)  # type: ignore[no-any-return]


def shrink_map(one: NDArray[Any]) -> NDArray[Any]:
    """A map, (S, S), no larger than thumbnails need it."""
    if one.shape[0] <= THUMBNAIL_SIDE:
        return one
    return cv2.resize(one, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)


def _mask(job: PictureJob) -> NDArray[np.uint8] | None:
    """The mask of a sample, (H, W), all zero of a normal one; None where it is not known."""
    if not job.sample.anomaly:
        return np.zeros((1, 1), np.uint8)
    path = job.sample.mask_path
    return np.asarray(load_mask(job.root / path, upright=job.pixels.exif)) if path else None


def _captions(job: PictureJob, has_mask: bool) -> tuple[str, str, str]:
    sample = job.sample
    truth = sample.specie_name or ("defect" if sample.anomaly else "good")
    truth += "" if has_mask else " (no mask)"
    return PurePosixPath(sample.img_path).name, f"anomaly map, score {job.score:.3f}", f"ground truth: {truth}"


def _thumbnail(image: Image.Image, heat: NDArray[np.float32], mask: NDArray[np.uint8] | None) -> bytes:
    original, coloured, truth = draw_panels(image, shrink_map(heat), mask, THUMBNAIL_SIDE)
    gap = np.full((original.shape[0], _GAP, 3), 128, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.hstack([original, gap, coloured, gap, truth])).save(file, "WEBP", quality=70, method=4)
    return file.getvalue()
