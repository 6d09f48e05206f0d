"""Samples -> tensors: the datasets and samplers that a DataLoader sees.

The format (meta.json) is read in data/meta.py, pixels in data/images.py.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.augment import augment
from data.exact_resize import resize_picture
from data.images import check_size, load_image, orientation
from data.input_spec import InputSpec, SquareInput
from data.meta import Sample, read
from data.regions import read_mask
from data.views import View, apply_view

__all__ = ["AnomalyDataset", "EpochSampler", "OnRead", "ReferenceViews", "Sample", "UnlabeledImages", "read", "select"]

OnRead = Callable[[int, Image.Image, Image.Image | None], None]


def select(samples: Sequence[Sample], classes: Sequence[str] | None) -> list[Sample]:
    """The samples of the given classes (None: of all). Raises ValueError on a class that has none."""
    known = list(dict.fromkeys(sample.cls_name for sample in samples))
    for name in classes or ():
        if name not in known:
            raise ValueError(f"unknown class '{name}'; the dataset has {', '.join(known)}")
    return [sample for sample in samples if not classes or sample.cls_name in classes]


class AnomalyDataset(Dataset[dict[str, Any]]):
    """Images and masks as a detector takes them.

    An item is a dict: image (3, h, w) uint8 RGB, or picture, see `raw`; mask (H, W) uint8, 1 = defect; label, 1 =
    anomalous, which a mask may hide that is empty at this size; map_size, (H, W) of the mask and of the wanted map;
    picture_size, (H, W) of the picture before it became an input; cls_name; index into the samples.
    An anomalous sample without a mask gets an all-zero one: ask `Sample.mask_path` before it is used.

    Args:
        root: the folder that the samples' paths are relative to.
        samples: what to read, in this order.
        input_spec: of the detector; a number S stands for `SquareInput(S)`.
        mosaic_rate: probability of replacing a sample by a 2 x 2 mosaic of images of its class.
        mosaic_of: "all" draws a kind of defect uniformly (normal is one), then an image of it; "anomalies" draws
            anomalous images uniformly.
        augmented: turn, jitter, blur, see `augment`.
        seed: of mosaics and augmentation; what is drawn depends on (seed, epoch, index) alone.
        bits: those that images of 16 bits really use, see `load_image`.
        upright: turn image and mask, each as its own EXIF orientation says; otherwise both stay as they are stored.
        raw: leave resizing to who takes the items, where that gives the same: they have a picture, (H, W, C) uint8 of
            `SquareInput.raw`, instead of an image then.
        on_read: called with the index, the picture and its mask (see `read_mask`; None where there is none) of a sample
            that has been read, in the process that reads.

    Attributes:
        later: the specification that makes inputs of raw pictures; None where there are none.
    """

    def __init__(
        self,
        root: str | Path,
        samples: Sequence[Sample],
        input_spec: InputSpec | int,
        *,
        mosaic_rate: float = 0.0,
        mosaic_of: str = "all",
        augmented: bool = False,
        seed: int = 0,
        bits: int | None = None,
        upright: bool = False,
        raw: bool = False,
        on_read: OnRead | None = None,
    ):
        self.root, self.samples, self.input_spec = Path(root), list(samples), _spec(input_spec)
        self.later = self.input_spec if raw and isinstance(self.input_spec, SquareInput) else None
        self.mosaic_rate, self.seed, self.epoch = mosaic_rate, seed, 0
        self._tiles = _mosaic_tiles(self.samples, mosaic_of) if mosaic_rate > 0 else {}
        self.augmented, self.bits, self.upright, self._on_read = augmented, bits, upright, on_read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        try:
            rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
            pixels, mask, label, picture_size = self._tensors(index, rng)
        except MemoryError:
            raise ValueError(f"{self.root / sample.img_path}: too large for the memory, make it smaller") from None
        map_size = (mask.shape[0], mask.shape[1])
        own = {"cls_name": sample.cls_name, "index": index, "picture_size": picture_size}
        return {**pixels, "mask": mask, "label": label, "map_size": map_size, **own}

    def _tensors(self, index: int, rng: random.Random) -> tuple[dict[str, Tensor], Tensor, int, tuple[int, int]]:
        sample = self.samples[index]
        if rng.random() < self.mosaic_rate and self._tiles[sample.cls_name]:
            image, mask, label = self._mosaic(sample.cls_name, rng)
        else:
            (image, mask), label = self._read(sample), sample.anomaly
            if self._on_read:
                self._on_read(index, image, mask if sample.anomaly and sample.mask_path else None)
        if self.augmented:
            image, mask = augment(image, mask, rng)
        return self._pixels(sample, image), self.input_spec.mask(mask), label, (image.height, image.width)

    def _pixels(self, sample: Sample, picture: Image.Image) -> dict[str, Tensor]:
        raw = self.later.raw(picture) if self.later else None
        if raw is not None:
            return {"picture": raw}
        return {"image": _input(self.input_spec, picture, self.root / sample.img_path)}

    def _read(self, sample: Sample) -> tuple[Image.Image, Image.Image]:
        """The image, and its mask as 0/255 of the same size."""
        image = load_image(self.root / sample.img_path, upright=self.upright, bits=self.bits, side=self.input_spec.side)
        if not (sample.anomaly and sample.mask_path):
            return image, Image.new("L", image.size)
        mask = read_mask(self.root / sample.mask_path, upright=self.upright)
        if mask.size != image.size:
            raise ValueError(
                f"mask {self.root / sample.mask_path} is {_size(mask)} pixels but its image {sample.img_path} is "
                f"{_size(image)}; they must agree{self._advice(sample, image, mask)}"
            )
        return image, mask

    def _advice(self, sample: Sample, image: Image.Image, mask: Image.Image) -> str:
        """What to do where the sizes of image and mask differ by an EXIF orientation alone; "" otherwise."""
        turned = [orientation(self.root / path) > 4 for path in (sample.img_path, sample.mask_path)]
        if mask.size != image.size[::-1] or turned[0] == turned[1]:
            return ""
        name = sample.img_path if turned[0] else sample.mask_path
        if self.upright:
            return f" (the EXIF orientation turns {name} alone; write meta.json again without --exif)"
        return f" ({name} has an EXIF orientation; `data/folder.py --exif` turns images and masks as theirs say)"

    def _mosaic(self, cls_name: str, rng: random.Random) -> tuple[Image.Image, Image.Image, int]:
        """2 x 2 images of a class, stitched: a kind of defect uniformly, then an image of it uniformly. Anomalous where
        one of them is."""
        kinds = self._tiles[cls_name]
        drawn = [rng.choice(kinds[rng.choice(sorted(kinds))]) for _ in range(4)]
        tiles = [self._read(sample) for sample in drawn]
        width, height = tiles[0][0].size
        try:
            for tile, _ in tiles:
                check_size(*tile.size, width)
        except Image.DecompressionBombError as error:
            raise ValueError(f"mosaic of class '{cls_name}': images too different in size ({error})") from None
        image, mask = Image.new("RGB", (2 * width, 2 * height)), Image.new("L", (2 * width, 2 * height))
        for place, (tile, tile_mask) in enumerate(tiles):
            corner = (place % 2 * width, place // 2 * height)
            image.paste(resize_picture(tile, width, height, "bicubic"), corner)
            mask.paste(tile_mask.resize((width, height), Image.Resampling.NEAREST), corner)
        return image, mask, max(sample.anomaly for sample in drawn)


def _mosaic_tiles(samples: Sequence[Sample], mosaic_of: str) -> dict[str, dict[tuple[int, str], list[Sample]]]:
    """Class -> kind -> samples; anomalies as one kind, where mosaics are made of them alone."""
    groups: dict[str, dict[tuple[int, str], list[Sample]]] = {sample.cls_name: {} for sample in samples}
    for sample in samples:
        kind = (sample.anomaly, sample.specie_name if mosaic_of == "all" else "")
        if mosaic_of == "all" or sample.anomaly:
            groups[sample.cls_name].setdefault(kind, []).append(sample)
    return groups


class EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone, so that a resumed training sees what it would have seen."""

    def __init__(self, length: int, seed: int, *, shuffle: bool = True):
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        order = list(range(self.length))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return iter(order)


class UnlabeledImages(Dataset[dict[str, Any]]):
    """Images without labels. An item is a dict: image (3, h, w) uint8 RGB; map_size, (H, W) of the wanted map;
    index; error, "" or why the file could not be read (then the image is black).

    Args:
        paths: the files.
        input_spec: of the detector; a number S stands for `SquareInput(S)`.
        bits: those that images of 16 bits really use, see `load_image`.
        upright: turn pictures as their EXIF orientation says.
    """

    def __init__(
        self, paths: Sequence[Path], input_spec: InputSpec | int, *, bits: int | None = None, upright: bool = True
    ):
        self.paths, self.input_spec, self.bits, self.upright = paths, _spec(input_spec), bits, upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, spec, error = self.paths[index], self.input_spec, ""
        try:
            picture = load_image(path, upright=self.upright, bits=self.bits, side=spec.side)
            image, size = _input(spec, picture, path), picture.size
        except ValueError as reason:
            image, size, error = spec.blank(), (spec.side, spec.side), str(reason)
        except MemoryError:
            image, size = spec.blank(), (spec.side, spec.side)
            error = f"{path}: image too large, make it smaller (there is not enough memory for it)"
        return {"image": image, "map_size": spec.map_size(size), "index": index, "error": error}


class ReferenceViews(Dataset[dict[str, Any]]):
    """Normal images in the views in which a method sees them; those of one image follow each other. An item is a dict:
    image (3, h, w) uint8 RGB; map_size, (H, W) of a map of it; index.

    Args:
        views: (file, its view) each.
        input_spec: of the detector.
        bits: those that images of 16 bits really use, see `load_image`.
        upright: turn pictures as their EXIF orientation says, before anything else.
    """

    def __init__(
        self,
        views: Sequence[tuple[Path, View]],
        input_spec: InputSpec,
        *,
        bits: int | None = None,
        upright: bool = False,
    ):
        self.views, self.input_spec, self.bits, self.upright = views, input_spec, bits, upright
        self._last: tuple[Path, Image.Image] | None = None  # the next view is mostly one of the same picture

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, view = self.views[index]
        try:
            if self._last is None or self._last[0] != path:
                self._last = path, load_image(path, upright=self.upright, bits=self.bits, side=self.input_spec.side)
            with _naming(path):
                picture = apply_view(self._last[1], view)
            image = _input(self.input_spec, picture, path)
        except MemoryError:
            raise ValueError(f"{path}: too large for the memory, make it smaller") from None
        return {"image": image, "map_size": self.input_spec.map_size(picture.size), "index": index}


def _spec(given: InputSpec | int) -> InputSpec:
    return SquareInput(given) if isinstance(given, int) else given


def _input(spec: InputSpec, picture: Image.Image, path: Path) -> Tensor:
    with _naming(path):
        return spec.image(picture)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What cannot be done with a picture is told with its file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
