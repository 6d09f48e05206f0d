"""Draw the clearest hits and the worst misses of a test on one sheet.

    python -m report.contact_sheet results/quickstart/demo_objects/few_shot [--k_shot 4] [--seed 1]

Needs the pictures of the run (test.py without --no_images) and writes sheet.png beside its tables.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from data.images import result_names
from report.captions import INK, draw_text
from report.gallery import choose
from report.map_files import OVERLAYS, setting_folder
from report.overlays import split_panels
from report.predictions import FILE, ScoredImage, read_predictions
from utils.errors import run_script
from utils.files import atomic_write

_PANEL, _GAP, _MARGIN, _COLUMNS = 204, 6, 26, 2
_WIDTH = 3 * _PANEL + 2 * _GAP  # of an entry: photograph, map, truth
_FAINT, _LINE = (105, 105, 105), (215, 215, 215)
_SCORE = 120  # the room for a score, in pixels
_NOTE = "Each: photograph, anomaly map (blue: as usual, red: unlike it), truth. The outline is the true defect."
_TITLES = (
    "Clearest hits: the defects with the highest scores",
    "Worst misses: the defects with the lowest scores",
    "Worst false alarms: the normal images with the highest scores",
)


class Section(NamedTuple):
    """A headline, and under it entries: an image and its photograph, map and truth."""

    title: str
    entries: Sequence[tuple[ScoredImage, Sequence[Image.Image]]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--save_path of the test")
    parser.add_argument("--k_shot", type=int, help="which setting, where there are several (default: the last)")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args(argv)
    images = of_setting(read_predictions(args.folder / FILE), args.k_shot, args.seed)
    folder = args.folder / OVERLAYS
    k_shot, seed = images[0].k_shot, images[0].seed
    subfolder = folder / setting_folder(k_shot, seed)
    folder = subfolder if subfolder.is_dir() else folder
    names = result_names([image.img_path for image in images])
    sections = [
        Section(title, [(image, _panels_of(folder / f"{names[image.img_path]}.png")) for image in selected])
        for title, selected in zip(_TITLES, choose(images), strict=True)
    ]
    references = f"{k_shot} normal reference images per class, seed {seed}" if k_shot else "no reference images"
    with atomic_write(args.folder / "sheet.png") as path:
        draw_sheet(f"{_run_name(args.folder)}: {references}", _NOTE, sections).save(path)
    print(f"wrote {args.folder / 'sheet.png'}")


def _run_name(folder: Path) -> str:
    """Method and dataset of a test; of results that do not say them, the folder above."""
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        settings = (content.get("runs") or [content])[0]["settings"]
        return f"{settings['method']} on {settings['dataset']}"
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return folder.resolve().parent.name


def of_setting(images: Sequence[ScoredImage], k_shot: int | None, seed: int | None) -> list[ScoredImage]:
    """The images of one setting: the first that fits, without a k_shot the last. Raises ValueError where none does."""
    known = list(dict.fromkeys((image.k_shot, image.seed) for image in images))
    fitting = [setting for setting in known if k_shot in (None, setting[0]) and seed in (None, setting[1])]
    if not fitting:
        raise ValueError(f"no --k_shot {k_shot} --seed {seed} in {FILE}; it has (k_shot, seed) {known}")
    chosen = fitting[0] if k_shot is not None else fitting[-1]
    return [image for image in images if (image.k_shot, image.seed) == chosen]


def _panels_of(path: Path) -> list[Image.Image]:
    with Image.open(path) as picture:
        return split_panels(picture.convert("RGB"))


def draw_sheet(title: str, note: str, sections: Sequence[Section]) -> Image.Image:
    """All sections below each other, entries in two columns; sections without entries are left out."""
    sections = [section for section in sections if section.entries]
    strips = [_text(title, 26, INK), _text(note, 15, _FAINT)]
    for section in sections:
        strips.append(_headline(section.title))
        for start in range(0, len(section.entries), _COLUMNS):
            entries = [_entry(image, panels) for image, panels in section.entries[start : start + _COLUMNS]]
            strips.append(_beside(entries))
    height = sum(strip.height for strip in strips) + 2 * _MARGIN
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH + (_COLUMNS + 1) * _MARGIN, height), "white")
    top = _MARGIN
    for strip in strips:
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height
    return sheet


def _entry(image: ScoredImage, panels: Sequence[Image.Image]) -> Image.Image:
    """Class, kind and score over the three panels, the file's name below."""
    height = max(round(_PANEL * panel.height / panel.width) for panel in panels)
    picture = Image.new("RGB", (_WIDTH, 26 + height + 26), "white")
    draw_text(picture, (0, 2), f"{image.cls_name}: {image.kind}", 17, width=_WIDTH - _SCORE - _GAP)
    draw_text(picture, (_WIDTH, 2), f"score {image.score:.2f}", 17, width=_SCORE, right=True)
    for number, panel in enumerate(panels):
        resized = panel.resize((_PANEL, round(_PANEL * panel.height / panel.width)), Image.Resampling.LANCZOS)
        picture.paste(resized, (number * (_PANEL + _GAP), 26))
    draw_text(picture, (0, 29 + height), image.img_path, 13, width=_WIDTH, ink=_FAINT)
    return picture


def _beside(entries: Sequence[Image.Image]) -> Image.Image:
    strip = _strip(max(entry.height for entry in entries))
    for number, entry in enumerate(entries):
        strip.paste(entry, (number * (_WIDTH + _MARGIN), 0))
    return strip


def _headline(text: str) -> Image.Image:
    strip = _strip(52)
    ImageDraw.Draw(strip).line([0, 12, strip.width, 12], _LINE, 2)
    draw_text(strip, (0, 20), text, 20, width=strip.width)
    return strip


def _text(text: str, size: int, ink: tuple[int, int, int]) -> Image.Image:
    strip = _strip(round(1.5 * size))
    draw_text(strip, (0, 0), text, size, width=strip.width, ink=ink)
    return strip


def _strip(height: int) -> Image.Image:
    """An empty part of the sheet, as wide as its columns."""
    return Image.new("RGB", (_COLUMNS * _WIDTH + _MARGIN, height), "white")


if __name__ == "__main__":
    run_script(main)
