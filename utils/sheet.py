"""The picture sheet of a run, of the images that `report.choose` has chosen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

_PANEL, _GAP, _MARGIN, _COLUMNS = 204, 6, 26, 2
_WIDTH = 3 * _PANEL + 2 * _GAP  # of an entry: photograph, map, truth
_INK, _FAINT, _LINE = (25, 25, 25), (105, 105, 105), (215, 215, 215)

Row = Mapping[str, Any]  # of predictions.csv: img_path, cls_name, specie_name, anomaly (0 or 1), score


class Section(NamedTuple):
    """A headline, and under it entries: a row of predictions.csv and its photograph, map and truth."""

    title: str
    entries: Sequence[tuple[Row, Sequence[Image.Image]]]


def draw(title: str, note: str, sections: Sequence[Section]) -> Image.Image:
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
