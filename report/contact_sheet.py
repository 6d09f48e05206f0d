"""Draw the clearest hits and the worst misses of a test on one sheet.

    python -m report.contact_sheet results/quickstart/demo_objects/few_shot [--k_shot 4] [--seed 1]

Needs the pictures of the run (test.py without --no_images) and writes sheet.png beside its tables.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from report.gallery import choose
from report.overlays import split_panels
from utils.errors import run_script
from utils.files import atomic_write

_PANEL, _GAP, _MARGIN, _COLUMNS = 204, 6, 26, 2
_WIDTH = 3 * _PANEL + 2 * _GAP  # of an entry: photograph, map, truth
_INK, _FAINT, _LINE = (25, 25, 25), (105, 105, 105), (215, 215, 215)
Row = Mapping[str, Any]  # of predictions.csv: img_path, cls_name, specie_name, anomaly (0 or 1), score
NOTE = "Each: photograph, anomaly map (blue: as usual, red: unlike it), truth. The green outline is the true defect."
TITLES = (
    "Clearest hits: the defects with the highest scores",
    "Worst misses: the defects with the lowest scores",
    "Worst false alarms: the normal images with the highest scores",
)


class Section(NamedTuple):
    """A headline, and under it entries: a row of predictions.csv and its photograph, map and truth."""

    title: str
    entries: Sequence[tuple[Row, Sequence[Image.Image]]]


def draw_sheet(title: str, note: str, sections: Sequence[Section]) -> Image.Image:
    """All sections below each other, entries in two columns; sections without entries are left out."""
    sections = [section for section in sections if section.entries]
    strips = [_text(title, 26, _INK), _text(note, 15, _FAINT)]
    for section in sections:
        strips.append(_headline(section.title))
        for start in range(0, len(section.entries), _COLUMNS):
            entries = [_entry(row, panels) for row, panels in section.entries[start : start + _COLUMNS]]
            strips.append(_beside(entries))
    height = sum(strip.height for strip in strips) + 2 * _MARGIN
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH + (_COLUMNS + 1) * _MARGIN, height), "white")
    top = _MARGIN
    for strip in strips:
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height
    return sheet


def _entry(row: Row, panels: Sequence[Image.Image]) -> Image.Image:
    """Class, kind and score over the three panels, the file's name below."""
    height = max(round(_PANEL * panel.height / panel.width) for panel in panels)
    picture = Image.new("RGB", (_WIDTH, 26 + height + 26), "white")
    kind = row["specie_name"] or ("defect" if int(row["anomaly"]) else "normal")
    pen = ImageDraw.Draw(picture)
    pen.text((0, 2), _fitting(f"{row['cls_name']}: {kind}", 17, _WIDTH - 130), _INK, _font(17))
    pen.text((_WIDTH, 2), f"score {float(row['score']):.2f}", _INK, _font(17), anchor="ra")
    for number, panel in enumerate(panels):
        resized = panel.resize((_PANEL, round(_PANEL * panel.height / panel.width)), Image.Resampling.LANCZOS)
        picture.paste(resized, (number * (_PANEL + _GAP), 26))
    pen.text((0, 29 + height), _fitting(row["img_path"], 13, _WIDTH), _FAINT, _font(13))
    return picture


def _beside(entries: Sequence[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (_COLUMNS * _WIDTH + _MARGIN, max(entry.height for entry in entries)), "white")
    for number, entry in enumerate(entries):
        strip.paste(entry, (number * (_WIDTH + _MARGIN), 0))
    return strip


def _headline(text: str) -> Image.Image:
    strip = Image.new("RGB", (_COLUMNS * _WIDTH + _MARGIN, 52), "white")
    pen = ImageDraw.Draw(strip)
    pen.line([0, 12, strip.width, 12], _LINE, 2)
    pen.text((0, 20), text, _INK, _font(20))
    return strip


def _text(text: str, size: int, ink: tuple) -> Image.Image:
    strip = Image.new("RGB", (_COLUMNS * _WIDTH + _MARGIN, round(1.5 * size)), "white")
    ImageDraw.Draw(strip).text((0, 0), text, ink, _font(size))
    return strip


def _fitting(text: str, size: int, width: int) -> str:
    """The end of a text that is too long: names differ there."""
    short = text
    while _font(size).getlength(short) > width:
        short = "…" + short[2:]
    return short


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


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
        Section(title, [(row, _panels_of(pictures, row)) for row in chosen])
        for title, chosen in zip(TITLES, choose(rows), strict=True)
    ]
    shots = f"{k_shot} normal reference images per class" if k_shot else "no reference images"
    with atomic_write(args.folder / "sheet.png") as path:
        draw_sheet(f"{args.folder.resolve().parent.name}, {shots}", NOTE, sections).save(path)
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


def _panels_of(folder: Path, row: dict) -> list[Image.Image]:
    with Image.open(folder / PurePosixPath(row["img_path"]).with_suffix(".png")) as picture:
        return split_panels(picture.convert("RGB"))


if __name__ == "__main__":
    run_script(main)
