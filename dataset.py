"""meta.json -> samples -> tensors; the seeded draw of reference images; mosaics and augmentation.

The format itself (read, check, write) lives in data/meta.py.
"""

import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)

from data.meta import Sample, read

__all__ = ["AnomalyDataset", "EpochSampler", "Sample", "Shots", "draw_shots", "load_image", "load_mask", "load_shots",
           "read", "select"]  # fmt: skip


def select(samples: Sequence[Sample], classes: Sequence[str] | None) -> list[Sample]:
    """The samples of the given classes (None: of all). Raises ValueError on a class that has none."""
    known = list(dict.fromkeys(sample.cls_name for sample in samples))
    for name in classes or ():
        if name not in known:
            raise ValueError(f"unknown class '{name}'; the dataset has {', '.join(known)}")
    return [sample for sample in samples if not classes or sample.cls_name in classes]


class AnomalyDataset(Dataset):
    """Images and masks at one size.

    An item is a dict: image (3, S, S) uint8 RGB; mask (S, S) uint8, 1 = defect; cls_name; index into the samples.
    An anomalous sample without a mask gets an all-zero one: ask `Sample.mask_path` before it is used.

    Args:
        root: the folder that the samples' paths are relative to.
        samples: what to read, in this order.
        image_size: side S in pixels.
        mosaic_rate: probability of replacing a sample by a 2 x 2 mosaic of images of its class.
        mosaic_of: "all" draws a kind of defect uniformly (normal is one), then an image of it; "anomalies" draws
            anomalous images uniformly.
        augmented: turn, jitter, blur, see `augment`.
        seed: of mosaics and augmentation; what is drawn depends on (seed, epoch, index) alone.
    """

    def __init__(
        self,
        root: str | Path,
        samples: Sequence[Sample],
        image_size: int,
        *,
        mosaic_rate: float = 0.0,
        mosaic_of: str = "all",
        augmented: bool = False,
        seed: int = 0,
    ):
        self.root, self.samples, self.image_size = Path(root), list(samples), image_size
        self.mosaic_rate, self.seed, self.epoch = mosaic_rate, seed, 0
        self._tiles = _mosaic_tiles(self.samples, mosaic_of) if mosaic_rate > 0 else {}
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        dice = random.Random(f"{self.seed}/{self.epoch}/{index}")
        if dice.random() < self.mosaic_rate and self._tiles[sample.cls_name]:
            image, mask = self._mosaic(sample.cls_name, dice)
        else:
            image, mask = self._read(sample)
        if self.augmented:
            image, mask = augment(image, mask, dice)
        return {
            "image": _image_tensor(image, self.image_size),
            "mask": _mask_tensor(mask, self.image_size),
            "cls_name": sample.cls_name,
            "index": index,
        }

    def _read(self, sample: Sample) -> tuple[Image.Image, Image.Image]:
        """The image, and its mask as 0/255 of the same size."""
        image = load_image(self.root / sample.img_path)
        if not (sample.anomaly and sample.mask_path):
            return image, Image.new("L", image.size)
        mask = load_mask(self.root / sample.mask_path)
        if mask.size != image.size:
            raise ValueError(
                f"mask {self.root / sample.mask_path} is {_size(mask)} pixels but its image {sample.img_path} is "
                f"{_size(image)}; they must agree"
            )
        return image, mask

    def _mosaic(self, cls_name: str, dice: random.Random) -> tuple[Image.Image, Image.Image]:
        """2 x 2 images of a class, stitched: a kind of defect uniformly, then an image of it uniformly."""
        kinds = self._tiles[cls_name]
        tiles = [self._read(dice.choice(kinds[dice.choice(sorted(kinds))])) for _ in range(4)]
        width, height = tiles[0][0].size
        image, mask = Image.new("RGB", (2 * width, 2 * height)), Image.new("L", (2 * width, 2 * height))
        for place, (tile, tile_mask) in enumerate(tiles):
            corner = (place % 2 * width, place // 2 * height)
            image.paste(tile.resize((width, height), Image.Resampling.BICUBIC), corner)
            mask.paste(tile_mask.resize((width, height), Image.Resampling.NEAREST), corner)
        return image, mask


def _mosaic_tiles(samples: Sequence[Sample], mosaic_of: str) -> dict[str, dict[tuple[int, str], list[Sample]]]:
    """Class -> kind -> samples; anomalies as one kind, where mosaics are made of them alone."""
    groups: dict[str, dict[tuple[int, str], list[Sample]]] = {sample.cls_name: {} for sample in samples}
    for sample in samples:
        kind = (sample.anomaly, sample.specie_name if mosaic_of == "all" else "")
        if mosaic_of == "all" or sample.anomaly:
            groups[sample.cls_name].setdefault(kind, []).append(sample)
    return groups


def augment(image: Image.Image, mask: Image.Image, dice: random.Random) -> tuple[Image.Image, Image.Image]:
    """VCP-CLIP's training augmentation (arXiv 2407.12276; its program has it from albumentations, whose ranges these
    are), each part with probability 1/2: a turn by up to 30 degrees, quarter turns, brightness and contrast, noise, and
    one of two blurs or colour jitter.

    The mask turns with the image; what a turn brings in from outside is the reflected picture. Draws from `dice` alone.
    """
    pixels, marks = np.asarray(image.convert("RGB")), np.asarray(mask)  # (H, W, 3), (H, W)
    if dice.random() < 0.5:
        height, width = marks.shape
        turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), dice.uniform(-30, 30), 1)
        pixels, marks = (
            cv2.warpAffine(one, turn, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)
            for one, how in ((pixels, cv2.INTER_LINEAR), (marks, cv2.INTER_NEAREST))
        )
    if dice.random() < 0.5:
        quarters = dice.randrange(4)
        pixels, marks = np.rot90(pixels, quarters), np.rot90(marks, quarters)
    if dice.random() < 0.5:
        pixels = _clipped(pixels * dice.uniform(0.8, 1.2) + 255 * dice.uniform(-0.2, 0.2))
    if dice.random() < 0.5:
        noise = np.random.default_rng(dice.getrandbits(63)).normal(size=pixels.shape)
        pixels = _clipped(pixels + dice.uniform(10, 50) ** 0.5 * noise)
    if dice.random() < 0.5:
        pixels = dice.choice((_blur, _gaussian_blur, _jitter))(np.ascontiguousarray(pixels), dice)
    return Image.fromarray(np.ascontiguousarray(pixels)), Image.fromarray(np.ascontiguousarray(marks))


def _blur(pixels: np.ndarray, dice: random.Random) -> np.ndarray:
    return cv2.blur(pixels, (3, 3))


def _gaussian_blur(pixels: np.ndarray, dice: random.Random) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (dice.choice((3, 5, 7)),) * 2, 0)


def _jitter(pixels: np.ndarray, dice: random.Random) -> np.ndarray:
    image = Image.fromarray(pixels)
    for change in (adjust_brightness, adjust_contrast, adjust_saturation):
        image = change(image, dice.uniform(0.8, 1.2))
    return np.asarray(adjust_hue(image, dice.uniform(-0.2, 0.2)))


def _clipped(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).round().astype(np.uint8)


class EpochSampler(Sampler):
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


class OwnImages(Dataset):
    """Images without labels, upright. An item is a dict: image (3, S, S) uint8 RGB; index; error, "" or why the file
    could not be read (then the image is black).

    Args:
        paths: the files.
        image_size: side S in pixels.
    """

    def __init__(self, paths: Sequence[Path], image_size: int):
        self.paths, self.image_size = paths, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        try:
            image, error = load_image(self.paths[index], upright=True), ""
        except ValueError as reason:
            image, error = Image.new("RGB", (self.image_size, self.image_size)), str(reason)
        return {"image": _image_tensor(image, self.image_size), "index": index, "error": error}


def find_images(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """All images of files and folders, these with all that is below them: (file, its name), sorted within a folder. A
    file that is named is taken whatever its suffix; in folders, Pillow's suffixes count.

    A name is the path relative to what was given; where two files would have the same, the folder's name stands before
    all of them.

    Raises:
        ValueError: something that does not exist, no image at all, or two files of one name even so; names it.
    """
    kinds = formats()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    found: dict[Path, Path] = {}  # file -> the folder that its name is relative to
    for root in map(Path, inputs):
        if root.is_file():
            found.setdefault(root, root.parent)
        elif root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            for path in files:
                found.setdefault(path, root)
        else:
            raise ValueError(f"{root}: no such file or folder")
    if not found:
        raise ValueError(f"{' '.join(inputs)}: no images there (.png, .jpg, .tif and whatever else Pillow reads)")
    for prefix in (False, True):
        names = {path: path.relative_to(root.parent if prefix else root).as_posix() for path, root in found.items()}
        owners = {name: path for path, name in names.items()}
        if len(owners) == len(names):
            return list(names.items())
    first = next(path for path, name in names.items() if owners[name] != path)
    raise ValueError(f"{first} and {owners[names[first]]} would both be called {names[first]}; score them one by one")


# --- pictures -------------------------------------------------------------------------------------------------------

# Formats that Pillow hands to other programs (EPS to Ghostscript, which runs what is in it) or to nobody; IPTC opens
# what it holds as any format.
_FOREIGN = {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
# Formats whose further frames are pictures of their own; those of an MPO or PSD are variants and layers of the first.
_SERIES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "FLI", "DCX"}
_SUBFILE_TYPE = 254  # a TIFF tag; bit 0: a reduced copy, bit 2: a transparency mask


def formats() -> list[str]:
    """The formats that are read, all by Pillow's own decoders."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _FOREIGN]


def load_image(path: Path, *, upright: bool = False) -> Image.Image:
    """A picture as 8-bit grey or RGB; palette, alpha, CMYK and 16 bit are brought to that.

    Args:
        upright: turn it as its EXIF orientation says: right for one's own photographs, wrong for datasets, whose masks
            follow the stored pixels.

    Raises:
        ValueError: missing, truncated, too large, several pictures in one file or otherwise unreadable; names the file.
    """
    image = _open(path)
    if upright:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # nobody knows which way is up where part of the block is lost
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # a broken EXIF block raises what it likes
            raise ValueError(f"{path}: unreadable EXIF data ({type(error).__name__}: {error})") from None
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bit, which some files are opened as 32
        return Image.fromarray(_eight_bit(image, path))
    if image.mode == "F":
        raise ValueError(f"{path}: floating-point pixels have no known range; save it as 8 or 16 bit")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def load_mask(path: Path) -> Image.Image:
    """A mask as 0/255 grey: any colour but black is defect (VisA's hold 1..k; alpha is ignored).

    Raises:
        ValueError: as `load_image`; colours in which black is not exact.
    """
    image = _open(path)
    if image.mode == "LAB":
        raise ValueError(f"{path}: a mask in LAB colours has no exact black; save it as grey")
    if image.mode not in ("1", "L", "F", "RGB") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    pixels = np.asarray(image) != 0  # (H, W) or (H, W, 3)
    return Image.fromarray((pixels.any(-1) if pixels.ndim == 3 else pixels).astype(np.uint8) * 255)


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of half the pixels that are refused, and of tags that are passed over
            with Image.open(path, formats=formats()) as image:
                count = pictures_in(image)
                if count == 1:
                    image.load()
                    return image
        raise ValueError(f"{count} pictures in one file; save the one that is meant as a file of its own")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is meta.json up to date?") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: unreadable image (none of the formats that are read)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: image too large, make it smaller ({error})") from None
    except Exception as error:  # decoders raise what they like on a broken file; the user needs its name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: unreadable image ({reason})") from None


def pictures_in(image: Image.Image) -> int:
    """How many a file holds, without the reduced copies and masks that a TIFF may have; goes to the first."""
    if image.format not in _SERIES or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return image.n_frames
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 0b101:
            pages.append(page)
    image.seek(pages[0] if pages else 0)
    return max(len(pages), 1)


def _eight_bit(image: Image.Image, path: Path) -> np.ndarray:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"{path}: pixel values outside 0..65535; save it as 8 or 16 bit")
    return ((pixels + 128) // 257).astype(np.uint8)


def _image_tensor(image: Image.Image, size: int) -> Tensor:
    """Stretched to S x S, bicubic; grey becomes RGB after that, as in the published programs. (3, S, S) uint8"""
    image = image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _mask_tensor(mask: Image.Image, size: int) -> Tensor:
    """Stretched to S x S, bilinear; defect above half of full scale. (S, S) uint8"""
    pixels = np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy((pixels > 127).astype(np.uint8))


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


# --- references -----------------------------------------------------------------------------------------------------


class Shots(NamedTuple):
    """One few-shot setting: which images of each class are the references. k_shot 0 is zero-shot."""

    k_shot: int
    seed: int | None
    references: Mapping[str, Sequence[str]]  # class name -> image paths, relative to the root


ZERO_SHOT = Shots(0, None, {})


def draw_shots(dataset: str, train: Sequence[Sample], classes: Sequence[str], k_shot: int, seed: int) -> Shots:
    """Draw k references per class without replacement.

    For a (dataset, class, seed) there is one permutation of the class's normal training images sorted by path; k shots
    are its first k, whatever else runs, so the references of a smaller k are among those of a larger one.

    Raises:
        ValueError: k_shot is larger than the number of normal training images of a class.
    """
    return Shots(k_shot, seed, {name: _draw(dataset, train, name, k_shot, seed) for name in classes})


def _draw(dataset: str, train: Sequence[Sample], name: str, k_shot: int, seed: int) -> list[str]:
    paths = sorted({sample.img_path for sample in train if sample.cls_name == name and not sample.anomaly})
    if not paths:
        raise ValueError(
            f"--k_shot {k_shot}: {dataset} has no normal training images of class '{name}' to draw from; add some to "
            "its train split, or test zero-shot"
        )
    if k_shot > len(paths):
        raise ValueError(
            f"--k_shot {k_shot}: class '{name}' of {dataset} has {len(paths)} normal training images; take a smaller k"
        )
    random.Random(f"{dataset}/{name}/{seed}").shuffle(paths)
    return paths[:k_shot]


def load_shots(
    path: str | Path,
    samples: Sequence[Sample],
    classes: Sequence[str],
    k_shots: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Shots]:
    """References from a file instead of a draw: our k_shot.json, or a published k_shot.txt (one image path a line).

    Args:
        samples: all samples of meta.json; a reference must be one of its class.
        classes: every one of these needs references.
        k_shots, seeds: keep only these settings of a k_shot.json; what a k_shot.txt must hold.

    Raises:
        ValueError: unreadable, an unknown image, a class without references, a setting that is not in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--references {path}: not to be read ({error})") from None
    known = {(sample.cls_name, sample.img_path) for sample in samples}
    is_json = Path(path).suffix == ".json"
    shots = _from_json(path, text) if is_json else [_from_text(path, text, known, k_shots, seeds)]
    shots = choose_shots(f"--references {path}", shots, k_shots, seeds)
    for shot in (shot for shot in shots if shot.k_shot > 0):
        _check_references(path, shot, known, classes)
    return shots


def choose_shots(
    what: str, shots: Sequence[Shots], k_shots: Sequence[int] | None, seeds: Sequence[int] | None
) -> list[Shots]:
    """Those of a file's settings that have one of the given k and seeds (None: any); k 0 asks for zero-shot besides.

    Raises:
        ValueError: a k or a seed that none of the settings has, naming `what`.
    """
    shots = [shot for shot in shots if shot.k_shot > 0]
    chosen = [s for s in shots if (not k_shots or s.k_shot in k_shots) and (not seeds or s.seed in seeds)]
    lacking = [f"--k_shot {k}" for k in k_shots or () if k > 0 and k not in {shot.k_shot for shot in chosen}]
    lacking += [f"--seed {seed}" for seed in seeds or () if chosen and seed not in {shot.seed for shot in chosen}]
    if lacking or not shots:
        raise ValueError(f"{what}: holds no references for {', '.join(lacking) or 'any setting'}")
    return ([ZERO_SHOT] if 0 in (k_shots or ()) else []) + chosen


def _from_json(path: str | Path, text: str) -> list[Shots]:
    try:
        entries = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"--references {path}: no valid JSON ({error})") from None
    try:
        return parse_shots(entries)
    except ValueError as error:
        raise ValueError(f"--references {path}: {error}") from None


def parse_shots(entries: Any) -> list[Shots]:
    """The settings that a file holds. Raises ValueError for anything else; folders are named after k_shot and seed."""
    try:
        shots = [
            Shots(
                entry["k_shot"], entry["seed"],
                {name: [part.replace("\\", "/") for part in paths] for name, paths in entry["references"].items()},
            )
            for entry in entries
        ]  # fmt: skip
        settings = [shot[:2] for shot in shots]
        sound = all(type(k) is int and k >= 0 and (seed is None or type(seed) is int) for k, seed in settings)
        if not sound or len(set(settings)) != len(settings):
            raise ValueError("k_shot and seed must be whole numbers, each pair once")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'want [{{"k_shot", "seed", "references": {{class: [img_path]}}}}] ({error!r})') from None
    return shots


def _from_text(path, text: str, known: set[tuple[str, str]], k_shots, seeds) -> Shots:
    owner = {img_path: cls_name for cls_name, img_path in known}
    references: dict[str, list[str]] = {}
    for line in filter(None, (line.strip().replace("\\", "/") for line in text.splitlines())):
        if line not in owner:
            raise ValueError(f"--references {path}: '{line}' is no image of meta.json")
        references.setdefault(owner[line], []).append(line)
    if not references:
        raise ValueError(f"--references {path}: names no image")
    k_shots = [k for k in k_shots or () if k > 0]
    if len(k_shots) > 1 or len(seeds or ()) > 1:
        raise ValueError(
            f"--references {path}: a text file holds one setting; give one --k_shot and one --seed, or none"
        )
    k_shot = k_shots[0] if k_shots else max(map(len, references.values()))
    return Shots(k_shot, seeds[0] if seeds else None, references)


def _check_references(path, shot: Shots, known: set[tuple[str, str]], classes: Sequence[str]) -> None:
    for name in classes:
        paths = shot.references.get(name, ())
        if len(paths) != shot.k_shot or not paths:
            raise ValueError(
                f"--references {path}: class '{name}' has {len(paths)} references where k_shot is {shot.k_shot}"
            )
        for img_path in paths:
            if (name, img_path) not in known:
                raise ValueError(f"--references {path}: '{img_path}' is no image of class '{name}' in meta.json")
