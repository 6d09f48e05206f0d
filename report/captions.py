"""Text on pictures: a font that has the characters, and texts that fit their place."""

import functools
import unicodedata

from PIL import Image, ImageDraw, ImageFont

from utils.text import escape_controls

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
INK = (25, 25, 25)
# Pillow's own font has English letters only. Those of the usual systems have more; the one that has most is taken.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "Arial Unicode.ttf", "msyh.ttc", "malgun.ttf",
)  # fmt: skip
_MISSING = "\uffff"  # a character that no font has: drawn as the font's sign for one


def draw_text(
    picture: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    *,
    width: int,
    ink: tuple[int, int, int] = INK,
    right: bool = False,
) -> None:
    """Write one line of text; what is too wide loses its middle, and characters that no font has become escapes.

    Args:
        picture: is changed.
        place: (x, y) of the upper left corner in pixels, of the upper right one with `right`.
        size: of the font in pixels.
        width: the room for the text in pixels.
    """
    text, font = prepare(text, size, width)
    ImageDraw.Draw(picture).text(place, text, ink, font, anchor="ra" if right else "la")


def prepare(text: str, size: int, width: int) -> tuple[str, Font]:
    """(the text as it is drawn, the font that has its characters); see `draw_text`."""
    text = unicodedata.normalize("NFC", escape_controls(text))
    font = max(_fonts(size), key=lambda one: sum(_has(one, character) for character in set(text)))
    text = "".join(one if _has(font, one) else one.encode("unicode_escape").decode() for one in text)
    kept, short = len(text), text
    while font.getlength(short) > width and kept > 2:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short, font


@functools.lru_cache
def _fonts(size: int) -> tuple[Font, ...]:
    fonts = [ImageFont.load_default(size)]
    for name in _SYSTEM_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:  # not on this system
            continue
    return tuple(fonts)


@functools.lru_cache(4096)
def _has(font: Font, character: str) -> bool:
    if character.isascii():
        return True
    drawn, missing = font.getmask(character), font.getmask(_MISSING)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
