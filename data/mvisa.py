"""VCP-CLIP's standardised tree, made from MVTec AD and VisA: all defects of a class in one folder, bmp and png.

    python data/mvisa.py [--root data/mvisa] [--mvtec data/mvtec] [--visa data/visa]
    python test.py --dataset visa --data_path data/mvisa --meta_path data/mvisa/meta_visa.json ...

Expects one or both sets as published; samples come from their meta.json, or from their folders where there is none.
Writes, <name> being mvtec or visa,

    <root>/<name>/<class>/{train,test}/{good,anomaly}/*.bmp    the same pixels, as RGB
    <root>/<name>/<class>/ground_truth/anomaly/*.png           masks 0 and 255, defect wherever the source is not black
    <root>/meta_<name>.json                                    the format of meta.json, paths relative to <root>

about 15 GB for the full MVTec AD and 50 GB for VisA, by the sizes of their images. A set appears whole or not at all,
and one that is there already is left alone.

Files are called as by the published program, mvtec_000000.bmp in train, mvtec_<defect>_000209.bmp in test and
visa_<name>_000000.bmp, so its own meta_<name>.json can be used with this tree: one number counts through a set, class
by class, train before test, MVTec AD sorted by folder and name and VisA in the order of its list. The specie_name of
our meta_<name>.json stays that of the source, for "anomaly", which the published file has, would say no more than the
label does.
"""

import argparse
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import mvtec_layout, visa_layout
from data.meta import SPLITS, Sample, Samples, missing, read, read_settings, write
from data.regions import read_mask
from data.script import table
from utils.errors import run_script
from utils.logs import log_to
from utils.progress import tracked

LAYOUTS = {"mvtec": mvtec_layout, "visa": visa_layout}
GREY = ("1", "L", "I", "I;16", "F")  # Pillow's modes of one channel whose zero is black


class Copy(NamedTuple):
    """An image and its mask: what they are in the source, and in the tree."""

    split: str
    old: Sample
    new: Sample


# --- what goes where ---


def plan(name: str, source: Path) -> list[Copy]:
    """All images of a set. Raises FileNotFoundError or ValueError where the source is not whole."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; unpack the dataset there or give its place with --{name}")
    samples = _described(source) if (source / "meta.json").exists() else LAYOUTS[name](source).samples
    if gone := missing(source, samples):
        raise ValueError(f"{source / gone[0]}: no such file; is meta.json up to date? ({len(gone)} missing in all)")
    return list(_copies(name, samples))


def _described(source: Path) -> Samples:
    """The samples of a meta.json. Raises ValueError for settings, which the tree's files could not follow."""
    if settings := {key: value for key, value in read_settings(source)._asdict().items() if value}:
        raise ValueError(f"{source / 'meta.json'}: has settings {settings}; the tree holds pixels as they are stored")
    return read(source)


def _copies(name: str, samples: Samples) -> Iterator[Copy]:
    number = itertools.count()
    for cls_name in sorted({sample.cls_name for split in SPLITS for sample in samples[split]}):
        if not re.fullmatch(r"[^./\\][^/\\]*", cls_name):
            raise ValueError(f"class '{cls_name}' of {name} can be no folder; rename it")
        for split in SPLITS:
            own = [sample for sample in samples[split] if sample.cls_name == cls_name]
            if name == "mvtec":
                own.sort(key=lambda sample: sample.img_path.split("/"))
            for sample in own:
                yield Copy(split, sample, _target(name, split, sample, next(number)))


def _target(name: str, split: str, sample: Sample, number: int) -> Sample:
    path = PurePosixPath(sample.img_path)
    word = path.stem if name == "visa" else path.parent.name if split == "test" else ""
    stem = "_".join(filter(None, (name, word, f"{number:06d}")))
    folder, kind = f"{name}/{sample.cls_name}", "anomaly" if sample.anomaly else "good"
    mask_path = f"{folder}/ground_truth/anomaly/{stem}.png" if sample.anomaly and sample.mask_path else ""
    specie = sample.specie_name if sample.anomaly else "good"
    return Sample(f"{folder}/{split}/{kind}/{stem}.bmp", mask_path, sample.cls_name, specie, sample.anomaly)


# --- images ---


def convert(source: Path, old: Sample, target: Path, new: Sample) -> None:
    """Write one image as bmp and its mask as png."""
    picture = _open(source / old.img_path)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{source / old.img_path}: more than 8 bit, which a bmp cannot hold; save it as 8 bit")
    _save(picture.convert("RGB"), target / new.img_path)
    if new.mask_path:
        mask_path = source / old.mask_path
        mask = read_mask(mask_path) if mask_path.is_dir() else _open(mask_path)
        if mask.size != picture.size:
            raise ValueError(f"mask {source / old.mask_path} and its image {old.img_path} are not of the same size")
        pixels = np.asarray(mask if mask.mode in GREY else mask.convert("RGB")) != 0  # (H, W) or (H, W, 3)
        pixels = pixels.any(-1) if pixels.ndim == 3 else pixels
        _save(Image.fromarray(255 * pixels.astype(np.uint8)), target / new.mask_path)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # decoders raise what they like on a broken file; the user needs its name
        raise ValueError(f"{path}: unreadable image ({type(error).__name__})") from None


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture.save(path)
    except OSError as error:
        raise OSError(f"{path}: not to be written ({error.strerror or error}); nothing was kept") from None


# --- sets ---


def make(root: Path, name: str, source: Path, copies: list[Copy]) -> None:
    """Build one set beside its final place and rename it there, so that it appears whole or not at all."""
    partial = root / f".{name}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        for copy in tracked(copies, name, "image"):
            convert(source, copy.old, partial, copy.new)
        samples = {split: [copy.new for copy in copies if copy.split == split] for split in SPLITS}
        written = write(partial, samples, partial / f"meta_{name}.json")
        (partial / name).rename(root / name)
        written.rename(root / written.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{table(samples)}\nwrote {root / name} and {root / written.name}")


def make_all(root: Path, sources: dict[str, Path]) -> None:
    """Make those sets that are not there yet; every source is looked through before the first image is written."""
    log_to(None)  # to the screen
    if not sources:
        raise ValueError("nothing to convert; give --mvtec DIR, --visa DIR or both")
    plans = {}
    for name, source in sources.items():
        if (root / name).exists():
            print(f"{root / name}: already there, {check(root, name)} images; left alone")
        elif (root / f"meta_{name}.json").exists():
            raise ValueError(f"{root / f'meta_{name}.json'}: already there, without its images; move it away")
        else:
            plans[name] = plan(name, source)
    for name, copies in plans.items():
        make(root, name, sources[name], copies)


def check(root: Path, name: str) -> int:
    """The number of images of a set; raises where files of it are gone."""
    again = f"{root / name} is not a whole set, remove it and meta_{name}.json and run again"
    try:
        samples = read(root, root / f"meta_{name}.json")
    except (ValueError, OSError) as error:
        raise ValueError(f"{again} ({str(error).partition(';')[0]})") from None
    if gone := missing(root, samples):
        raise ValueError(f"{again} (no file {gone[0]})")
    return sum(map(len, samples.values()))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/mvisa", metavar="DIR", help="where it goes (default: data/mvisa)")
    for name in LAYOUTS:
        parser.add_argument(f"--{name}", metavar="DIR", help=f"root of the {name} set; left out where not given")
    args = parser.parse_args(argv)
    sources = {name: Path(vars(args)[name]) for name in LAYOUTS if vars(args)[name]}
    run_script(lambda: make_all(Path(args.root), sources))


if __name__ == "__main__":
    main()
