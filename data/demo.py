"""Sample data: two small datasets made from photographs that come with scikit-image; nothing is downloaded.

    python data/demo.py [--root data/demo] [--times N]

Writes <root>/demo_textures (brick, grass, gravel, wood; MVTec AD's layout) and <root>/demo_objects (coffee_cup, coins,
printed_page, retina; VisA's layout), each with its meta.json and 40 training, 32 normal and 48 defect images for
testing: 7 MB in 6 seconds. Normal images are crops that differ in place, scale, angle and light; defects are drawn, and
a mask holds the pixels that a defect changed (in demo_objects before JPEG compression), no other pixel differs. A set
that is there already is left alone, however many images it has. --times 10 draws ten times as many images for testing,
the usual ones among them.

This is data to try the commands on, not a benchmark: no result on it says anything about real inspection.
"""

import argparse
import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

if not __package__:  # run as a script: the packages of the project lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.layouts import mvtec_layout, visa_layout
from data.meta import missing, read, write
from data.script import table
from utils.errors import run_script
from utils.logs import log_to

try:
    from data.demo_scenes import OBJECTS, TEXTURES, defect_image, generator, normal_image
except ModuleNotFoundError as error:
    sys.exit(f"error: the sample data is made from scikit-image's photographs: pip install scikit-image ({error})")

TRAIN, GOOD, DEFECT = 10, 8, 12  # images per class: normal to train, normal to test, defect to test


def save(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W) or (H, W, C); the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, quality=92)  # of JPEG; PNG has none


def make_textures(root: Path, times: int) -> None:
    """MVTec AD's layout, a folder for each kind of defect, masks 0 and 255."""
    for name, recipe in TEXTURES.items():
        for split, count in (("train", TRAIN), ("test", GOOD * times)):
            for index in range(count):
                save(
                    normal_image(recipe, generator(name, split, index)),
                    root / name / split / "good" / f"{index:03d}.png",
                )
        for index in range(DEFECT * times):
            defect = recipe.defects[index % len(recipe.defects)]
            image, mask = defect_image(recipe, defect, 1, generator(name, defect.__name__, index))
            stem = f"{index // len(recipe.defects):03d}"
            save(image, root / name / "test" / defect.__name__ / f"{stem}.png")
            save(255 * (mask > 0).astype(np.uint8), root / name / "ground_truth" / defect.__name__ / f"{stem}_mask.png")


def make_objects(root: Path, times: int) -> None:
    """VisA's layout, its split file, masks that number one to three defects."""
    rows = [("object", "split", "label", "image", "mask")]
    for name, recipe in OBJECTS.items():
        for index in range(TRAIN + GOOD * times):
            image = f"{name}/Data/Images/Normal/{index:04d}.JPG"
            save(normal_image(recipe, generator(name, "normal", index)), root / image)
            rows.append((name, "train" if index < TRAIN else "test", "normal", image, ""))
        for index in range(DEFECT * times):
            image, mask = f"{name}/Data/Images/Anomaly/{index:03d}.JPG", f"{name}/Data/Masks/Anomaly/{index:03d}.png"
            rng = generator(name, "anomaly", index)
            pixels, labels = defect_image(
                recipe, recipe.defects[index % len(recipe.defects)], int(rng.integers(1, 4)), rng
            )
            save(pixels, root / image)
            save(labels, root / mask)
            rows.append((name, "test", "anomaly", image, mask))
    (root / "split_csv").mkdir()
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


SETS = {"demo_textures": (make_textures, mvtec_layout), "demo_objects": (make_objects, visa_layout)}


def make_all(root: Path, times: int) -> None:
    log_to(None)  # to the screen
    for name in SETS:
        make(root, name, times)


def make(root: Path, name: str, times: int) -> None:
    """Build one set beside its final place and rename it there, so that it appears whole or not at all."""
    target, partial = root / name, root / f".{name}.{os.getpid()}"
    if target.exists():
        print(f"{target}: already there, {check(target)} images; left alone")
        return
    draw, layout = SETS[name]
    partial.mkdir(parents=True)
    try:
        draw(partial, times)
        samples = layout(partial).samples
        write(partial, samples)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{table(samples)}\nwrote {target}")


def check(target: Path) -> int:
    """The number of images of a set; raises where files of it are gone."""
    try:
        samples = read(target)
    except (ValueError, OSError) as error:
        reason = str(error).partition(";")[0]
        raise ValueError(f"{target} is not a whole set, remove it and run again ({reason})") from None
    if gone := missing(target, samples):
        raise ValueError(f"{target} is not a whole set, remove it and run again (no file {gone[0]})")
    return sum(map(len, samples.values()))


def multiple(text: str) -> int:
    """The value of --times."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/demo", metavar="DIR", help="where the sets go (default: data/demo)")
    parser.add_argument("--times", type=multiple, default=1, metavar="N", help="times as many test images (default: 1)")
    args = parser.parse_args(argv)
    run_script(lambda: make_all(Path(args.root), args.times))


if __name__ == "__main__":
    main()
