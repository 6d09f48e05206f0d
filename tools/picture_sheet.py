"""Draw the clearest hits and the worst misses of a test on one sheet.

    python tools/picture_sheet.py results/quickstart/demo_objects/few_shot [--k_shot 4] [--seed 1]

Needs the pictures of the run (test.py without --no_images) and writes sheet.png beside its tables.
"""

import argparse
import csv
import sys
from pathlib import Path, PurePosixPath

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import report, runtime, sheet, visualize  # noqa: E402 - the checkout is no installed package

NOTE = "Each: photograph, anomaly map (blue: as usual, red: unlike it), truth. The green outline is the true defect."
TITLES = (
    "Clearest hits: the defects with the highest scores",
    "Worst misses: the defects with the lowest scores",
    "Worst false alarms: the normal images with the highest scores",
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--save_path of the test")
    parser.add_argument("--k_shot", type=int, help="which setting, where there are several (default: the last)")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args(argv)
    rows, k_shot, seed = of_setting(read(args.folder / "predictions.csv"), args.k_shot, args.seed)
    pictures = args.folder / "imgs"
    own = pictures / (f"k{k_shot}_seed{seed}" if k_shot else "zero_shot")
    pictures = own if own.is_dir() else pictures
    sections = [
        sheet.Section(title, [(row, panels(pictures, row)) for row in chosen])
        for title, chosen in zip(TITLES, report.choose(rows), strict=True)
    ]
    shots = f"{k_shot} normal reference images per class" if k_shot else "no reference images"
    with runtime.replacing(args.folder / "sheet.png") as path:
        sheet.draw(f"{args.folder.resolve().parent.name}, {shots}", NOTE, sections).save(path)
    print(f"wrote {args.folder / 'sheet.png'}")


def read(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_setting(rows: list[dict], k_shot: int | None, seed: int | None) -> tuple[list[dict], int, str]:
    """The rows of one setting, its k_shot and its seed ("" for none). Raises ValueError where it is not there."""
    known = list(dict.fromkeys((int(row["k_shot"]), row["seed"]) for row in rows))
    fitting = [(k, s) for k, s in known if k_shot in (None, k) and seed in (None, int(s or -1))]
    if not fitting:
        raise ValueError(f"no --k_shot {k_shot} --seed {seed} in predictions.csv; it has (k_shot, seed) {known}")
    chosen = fitting[0] if k_shot is not None else fitting[-1]
    return [row for row in rows if (int(row["k_shot"]), row["seed"]) == chosen], *chosen


def panels(folder: Path, row: dict) -> list[Image.Image]:
    with Image.open(folder / PurePosixPath(row["img_path"]).with_suffix(".png")) as picture:
        return visualize.panels(picture.convert("RGB"))


if __name__ == "__main__":
    runtime.run(main)
