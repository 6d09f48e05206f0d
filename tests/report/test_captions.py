"""Text on pictures: every character is drawn or shown as an escape, and none beyond its place."""

import numpy as np
import pytest
from PIL import Image

from report import captions
from report.captions import draw_text, prepare


def ink(text: str, width: int = 200, **keywords) -> np.ndarray:
    """(H, W) bool: where a text is drawn, at x = 10 or ending there."""
    picture = Image.new("RGB", (260, 24), "white")
    draw_text(picture, (10, 3), text, 13, width=width, **keywords)
    return (np.asarray(picture) < 128).any(-1)


def test_text_stays_in_its_place():
    columns = np.flatnonzero(ink("a long name of a file that has no room.png", 120).any(0))
    assert columns[0] >= 10 and 100 < columns[-1] <= 130
    picture = Image.new("RGB", (260, 24), "white")
    draw_text(picture, (250, 3), "score 0.5", 13, width=100, right=True)
    columns = np.flatnonzero((np.asarray(picture) < 128).any((0, 2)))
    assert columns[0] > 150 and columns[-1] <= 250


def test_the_ends_of_a_long_text_stay():
    text, font = prepare("anomalous_0123456789_0123456789.png", 13, 120)
    assert text.startswith("anom") and text.endswith(".png") and "…" in text and font.getlength(text) <= 120
    assert prepare("short", 13, 120)[0] == "short"
    assert len(prepare("wide", 13, 3)[0]) <= 3  # no room at all


@pytest.mark.parametrize("text", ["Gehäuse", "Geha\u0308use", "目", "nut\u202egnp", "two\nlines", "\U0010fffe"])
def test_characters_that_no_font_has_are_escaped(monkeypatch, text):
    """As on a machine that has no fonts."""
    monkeypatch.setattr(captions, "_SYSTEM_FONTS", ())
    captions._fonts.cache_clear()
    try:
        drawn, _ = prepare(text, 13, 400)
    finally:
        captions._fonts.cache_clear()
    assert drawn.isascii() and "\\" in drawn
    assert drawn == {"Geha\u0308use": r"Geh\xe4use", "Gehäuse": r"Geh\xe4use"}.get(text, drawn)


def test_umlauts_are_drawn_where_a_font_has_them():
    text, font = prepare("Gehäuse", 13, 400)
    if font is captions._fonts(13)[0]:
        pytest.skip("no system font here has an umlaut")
    assert text == "Gehäuse" and (ink("ä") != ink("a")).any()
