"""The folder that the evaluation server of MVTec AD 2 takes: written by `test.py --submission DIR`, and checked.

    python -m report.submission DIR [--data_path data/mvtec2]

    DIR/anomaly_images/<class>/{test_private,test_private_mixed}/NNN_{regular,mixed}.tiff      2-D float16
    DIR/anomaly_images_thresholded/<class>/<part>/NNN_{regular,mixed}.png                      one channel, 0 or 255
    DIR.tar.gz                                                                                 both, for the upload

The check prints one line per problem and ends with 1 where there is one. It looks at folders, names and counts, at
kind, size and values of every image, and that both trees have the same; with --data_path also at the pictures' sizes.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import argparse
import gzip
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data import mvtec2_server
from utils.errors import run_script
from utils.files import atomic_write, clear_leftovers

MAPS, MASKS = "anomaly_images", "anomaly_images_thresholded"
SUFFIXES = {MAPS: ".tiff", MASKS: ".png"}
_LARGEST = float(np.finfo(np.float16).max)
_LEAST = np.float32(np.finfo(np.float16).smallest_subnormal)
_LEVEL = 1  # of gzip: measured, 6 takes twice as long and 5% less space


def to_half(one: NDArray[np.float32], threshold: float, spread: float) -> NDArray[np.float16]:
    """A map as float16, which has 11 bits and ends at 65504: (map - threshold) / spread. No order is turned round, what
    lies above the threshold stays above 0 and nothing else does, and float16 is finest next to the threshold.

    Args:
        one: (H, W).
        threshold: of the pixels.
        spread: of the pixels of normal maps, above 0.

    Raises:
        ValueError: a value beyond the range of float16.
    """
    distance = one - np.float32(threshold)
    scaled = distance / np.float32(spread)
    farthest = max(float(scaled.max()), -float(scaled.min()))
    if not farthest <= _LARGEST:
        raise ValueError(
            f"a pixel lies {farthest:.3g} times the spread of normal maps from the threshold, and float16 ends at "
            f"{_LARGEST:g}; are the normal images copies of each other?"
        )
    np.maximum(scaled, _LEAST, out=scaled, where=distance > 0)
    return scaled.astype(np.float16)


class Submission:
    """A folder that is being filled, image by image.

    Attributes:
        folder, archive: where both go.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.abspath(folder))
        self.archive = self.folder.with_name(f"{self.folder.name}.tar.gz")

    def files(self, part: str, name: str, img_path: str) -> list[Path]:
        """The map and the mask of an image."""
        stem = PurePosixPath(img_path).stem
        return [self.folder / kind / name / part / f"{stem}{suffix}" for kind, suffix in SUFFIXES.items()]

    def is_empty(self) -> bool:
        """Whether nothing would be written over."""
        return not self.archive.exists() and not (self.folder.exists() and any(self.folder.iterdir()))

    def clear(self, *, keep: bool) -> None:
        """Remove what an earlier run has left; keep: but for whole images."""
        self.archive.unlink(missing_ok=True)
        (self.folder / self.archive.name).unlink(missing_ok=True)
        if self.folder.is_dir():
            clear_leftovers(self.folder, (MAPS, MASKS))
        for kind in () if keep else (MAPS, MASKS):
            shutil.rmtree(self.folder / kind, ignore_errors=True)

    def add(
        self, part: str, name: str, img_path: str, one: NDArray[np.float32], threshold: float, spread: float
    ) -> None:
        """Write map and mask of an image.

        Args:
            part, name: test_private or test_private_mixed; the class.
            one: (H, W) of the picture.
            threshold, spread: see `to_half`.

        Raises:
            ValueError: as `to_half`; names the image.
            NotWrittenError: the disk is full.
        """
        try:
            half = to_half(one, threshold, spread)
        except ValueError as error:
            raise ValueError(f"{img_path}: {error}") from None
        map_file, mask_file = self.files(part, name, img_path)
        with atomic_write(map_file) as temporary:
            tifffile.imwrite(temporary, half, metadata=None)
        with atomic_write(mask_file) as temporary:
            Image.fromarray((half > 0).astype(np.uint8) * 255).save(temporary)

    def pack(self) -> None:
        """Write the archive: the same bytes for the same images.

        Until it is whole it lies in the folder, which the next run clears of what a killed one has left: it is large.
        """
        unfinished = self.folder / self.archive.name
        files = sorted(file for kind in (MAPS, MASKS) for file in (self.folder / kind).rglob("*") if file.is_file())
        with atomic_write(unfinished) as temporary, temporary.open("wb") as raw:
            packed = gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0)
            with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for file in files:
                    entry = tarfile.TarInfo(f"{self.folder.name}/{file.relative_to(self.folder).as_posix()}")
                    entry.size = file.stat().st_size
                    with file.open("rb") as content:
                        tar.addfile(entry, content)
        unfinished.replace(self.archive)


# --- the check -------------------------------------------------------------------------------------------------------


def problems(folder: Path, root: Path | None = None, *, contents: bool = True) -> Iterator[str]:
    """What the server would refuse, a line each; none where all is well.

    Args:
        root: of the dataset, whose pictures have the sizes that are due.
        contents: read the images, not only their names.
    """
    yield from _differences(folder, SUFFIXES, "")
    for kind, suffix in SUFFIXES.items():
        if not (folder / kind).is_dir():
            continue
        yield from _differences(folder / kind, mvtec2_server.COUNTS, f"{kind}: ")
        for name, count in mvtec2_server.COUNTS.items():
            for part in mvtec2_server.PARTS:
                place = folder / kind / name / part
                if place.parent.is_dir():
                    due = [f"{stem}{suffix}" for stem in mvtec2_server.names(part, count)]
                    yield from _differences(place, due, f"{place.relative_to(folder)}: ")
            if (folder / kind / name).is_dir():
                yield from _differences(folder / kind / name, mvtec2_server.PARTS, f"{kind}/{name}: ")
    for name, count in mvtec2_server.COUNTS.items() if contents else ():
        for part in mvtec2_server.PARTS:
            for stem in mvtec2_server.names(part, count):
                picture = root / name / part / f"{stem}.png" if root else None
                yield from _check_pair(folder, f"{name}/{part}/{stem}", picture)


def _differences(place: Path, due: Sequence[str] | dict[str, str] | dict[str, int], where: str) -> Iterator[str]:
    """What a folder lacks, and what it has too much."""
    try:
        there = {path.name for path in place.iterdir()}
    except OSError:
        yield f"{where or f'{place}: '}no such folder"
        return
    for names, word in (
        ([name for name in due if name not in there], "missing"),
        (sorted(there - set(due)), "too much"),
    ):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            yield f"{where}{len(names)} {word} of {len(due)} that are due: {shown}"


def _check_pair(folder: Path, image: str, picture: Path | None) -> Iterator[str]:
    """What is wrong with the map and the mask of an image, as far as they are there."""
    sizes = {}
    for kind, suffix in SUFFIXES.items():
        file = folder / kind / f"{image}{suffix}"
        if not file.is_file():
            continue
        try:
            pixels: NDArray = tifffile.imread(file) if kind == MAPS else np.asarray(Image.open(file))
        except (OSError, ValueError, SyntaxError, KeyError, IndexError, tifffile.TiffFileError) as error:
            yield f"{kind}/{image}{suffix}: cannot be read ({error})"
            continue
        sizes[kind] = pixels.shape[:2]
        if pixels.ndim != 2:
            yield f"{kind}/{image}{suffix}: is not of one channel, but of shape {pixels.shape}"
        elif kind == MAPS and pixels.dtype != np.float16:
            yield f"{kind}/{image}{suffix}: is of type {pixels.dtype}, not float16"
        elif kind == MAPS and not np.isfinite(pixels).all():
            yield f"{kind}/{image}{suffix}: holds NaN or infinity"
        elif kind == MASKS and not np.isin(np.unique(pixels), (0, 255)).all():
            yield f"{kind}/{image}{suffix}: holds other values than 0 and 255"
    if len(set(sizes.values())) > 1:
        yield f"{image}: map and mask differ in size, {' and '.join(map(_size, sizes.values()))}"
    if picture and sizes:
        with Image.open(picture) as opened:
            due = (opened.height, opened.width)
        yield from (f"{kind}/{image}: is {_size(size)}, its picture {_size(due)}" for kind, size in sizes.items()
                    if size != due)  # fmt: skip


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a submission to the server of MVTec AD 2.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="that test.py --submission has written")
    parser.add_argument("--data_path", type=Path, help="root of the dataset, to compare sizes with its pictures")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: no such folder; give the one of --submission")
    count = 0
    for line in problems(args.folder, args.data_path):
        print(line)
        count += 1
    if not count:
        print(f"{args.folder}: {2 * sum(mvtec2_server.COUNTS.values())} images, nothing to complain about")
    return min(count, 1)


if __name__ == "__main__":
    run_script(main)
