"""The pictures of one image, drawn from its map.

`draw` and `draw_unlabelled` take nothing but plain values and files, so that another process can run them; PyTorch is
not imported, so that it begins soon.
"""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.box import WHOLE, Box
from data.images import load_image
from data.meta import PixelSettings, Sample, shown_kind
from data.regions import read_mask
from report.heatmap import crop, on_scale, panel_size, resize_longest_side
from report.overlays import PANEL_SIDE, draw_panels, overlay, save_picture, scale_mask
from utils.files import NotWrittenError, load_array, save_array

MIN_PICTURES = 48  # of a run that are worth the start of processes that draw, a few tenths of a second of a core each
THUMBNAIL_SIDE = 176  # the longer side of a thumbnail's panel, in pixels
_DECODED_SIDE = PANEL_SIDE * 15 // 16  # a sixteenth is not seen, and JPEGs of 1500 pixels are decoded at a quarter
_GAP = 3  # between the panels of a thumbnail, in pixels


class Drawn(NamedTuple):
    """One map of an image, and what is to be drawn of it.

    Args:
        map_file: the map, (H, W) as .npy.
        score: of the image.
        ends: of the colour scale, in the map's values.
        overlay: the file to write; None draws none.
        thumbnail: whether the picture for report.html is wanted.
        discard: whether the map's file is removed when all is drawn.
        foreground: the patches that are not masked, (G, G); None where none are.
    """

    map_file: Path
    score: float
    ends: tuple[float, float]
    overlay: Path | None
    thumbnail: bool
    discard: bool = False
    foreground: NDArray[np.bool_] | None = None


class Previews(NamedTuple):
    """Keeps what pictures show of an image and its mask when these are read, so that nobody reads them again to draw.

    folder: where; shown: the part of the picture that the maps show.
    """

    folder: Path
    shown: Box

    def __call__(self, index: int, picture: Image.Image, mask: Image.Image | None) -> None:
        """mask: as `read_mask` gives it, where there is one. Raises OSError."""
        small: NDArray[Any] = _shrink(picture, self.shown)
        if mask is not None:
            small = cv2.merge([small, _shrink_mask(mask, self.shown)])
        try:
            save_array(self.file(index), small)
        except NotWrittenError as error:  # only the text of it travels from a reader
            raise OSError(str(error)) from None

    def file(self, index: int) -> Path:
        """(H, W, 3) uint8 RGB, or (H, W, 4) with the mask."""
        return self.folder / f"preview-{index}.npy"


class PictureJob(NamedTuple):
    """What is to be drawn of one image.

    Args:
        root: the dataset's root.
        sample: the image, its mask and what they show.
        maps: its maps, one under each few-shot setting.
        pixels: how image and mask are read.
        shown: the part of the picture that the maps show.
        preview: the file of `Previews`; None reads image and mask.
    """

    root: Path
    sample: Sample
    maps: Sequence[Drawn]
    pixels: PixelSettings = PixelSettings()
    shown: Box = WHOLE
    preview: Path | None = None


def get_ready() -> None:
    """The first job of a process that draws: with it, all that is needed has been imported."""


def draw(job: PictureJob) -> list[bytes | None]:
    """Write the overlays, and return the thumbnails as WebP files; each where the job wants it."""
    if job.preview is None:
        image, mask = _load(job.root / job.sample.img_path, job.pixels, job.shown), _read_mask(job)
    else:
        kept = load_array(job.preview)
        has_mask = kept.shape[2] > 3
        image = Image.fromarray(cv2.cvtColor(kept, cv2.COLOR_RGBA2RGB) if has_mask else kept)
        mask = kept[..., 3] if has_mask else None
    if not job.sample.anomaly:
        mask = np.zeros((1, 1), np.uint8)
    return [_draw_map(one, image, mask, job.sample) for one in job.maps]


def _draw_map(one: Drawn, image: Image.Image, mask: NDArray[np.uint8] | None, sample: Sample) -> bytes | None:
    low, high = one.ends
    small: NDArray[np.float32] = shrink_map(load_array(one.map_file), PANEL_SIDE)
    heat = (small - np.float32(low)) / np.float32(high - low)
    if one.overlay:
        captions = _captions(sample, one.score, mask is not None)
        save_picture(one.overlay, overlay(image, heat, mask, captions, one.foreground))
    thumbnail = _thumbnail(image, heat, mask) if one.thumbnail else None
    if one.discard:
        one.map_file.unlink()
    return thumbnail


def draw_unlabelled(
    path: Path,
    one: NDArray[np.float32],
    ends: tuple[float, float],
    caption: str,
    file: Path,
    pixels: PixelSettings,
    shown: Box = WHOLE,
    foreground: NDArray[np.bool_] | None = None,
) -> None:
    """Write the overlay of an image without ground truth.

    Args:
        path: the image; pixels: how it is read.
        one: its map, (H, W).
        ends: of the colour scale, in the map's values.
        caption: of the map.
        file: to write.
        shown: the part of the picture that the map shows.
        foreground: see `Drawn`.
    """
    picture = overlay(_load(path, pixels, shown), on_scale(one, *ends), None, (path.name, caption), foreground)
    save_picture(file, picture)


def _load(path: Path, pixels: PixelSettings, shown: Box) -> Image.Image:
    """A picture as large as a panel, whatever it is drawn for."""
    image = load_image(path, upright=pixels.exif, bits=pixels.bits, shown=_DECODED_SIDE)
    return Image.fromarray(_shrink(image, shown))


def _shrink(image: Image.Image, shown: Box) -> NDArray[np.uint8]:
    """What is shown of a picture, as large as a panel, (H, W, 3) uint8 RGB."""
    return resize_longest_side(crop(image, shown), PANEL_SIDE)


def _shrink_mask(mask: Image.Image, shown: Box) -> NDArray[np.uint8]:
    """The mask of what is shown, as large as a panel, see `scale_mask`."""
    mask = crop(mask, shown)
    return scale_mask(np.asarray(mask), panel_size(mask.size, PANEL_SIDE))


def shrink_map(one: NDArray[Any], side: int) -> NDArray[Any]:
    """A map, (H, W), no larger than a panel of this side needs it."""
    scale = side / max(one.shape)
    if scale >= 1:
        return one
    height, width = (max(1, round(scale * length)) for length in one.shape)
    return cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA)


def _read_mask(job: PictureJob) -> NDArray[np.uint8] | None:
    """The mask of a defective image, (H, W); None where it is not known."""
    path = job.sample.mask_path
    if not (job.sample.anomaly and path):
        return None
    return _shrink_mask(read_mask(job.root / path, upright=job.pixels.exif), job.shown)


def _captions(sample: Sample, score: float, has_mask: bool) -> tuple[str, str, str]:
    truth = shown_kind(sample.specie_name, sample.anomaly)
    truth += "" if has_mask else " (no mask)"
    return PurePosixPath(sample.img_path).name, f"anomaly map, score {score:.3f}", f"ground truth: {truth}"


def _thumbnail(image: Image.Image, heat: NDArray[np.float32], mask: NDArray[np.uint8] | None) -> bytes:
    original, coloured, truth = draw_panels(image, shrink_map(heat, THUMBNAIL_SIDE), mask, THUMBNAIL_SIDE)
    gap = np.full((original.shape[0], _GAP, 3), 128, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.hstack([original, gap, coloured, gap, truth])).save(file, "WEBP", quality=70, method=2)
    return file.getvalue()
