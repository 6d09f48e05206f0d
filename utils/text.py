"""Text of unknown origin (names, metadata, messages), made safe for terminals, tables and spreadsheets."""

import re
import unicodedata
from typing import Any

# Marks that turn the direction of what follows, so that a name can look like another one.
_BIDIRECTIONAL = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")
_FORMULA = re.compile(r"'*[=+\-@]")  # what a spreadsheet computes; with the quotes that `csv_cell` puts in front of it


def escape_controls(text: Any) -> str:
    r"""A text on one line: control characters, line ends, marks of direction and bytes that are no text become escapes
    such as \x1b and \u202e. All else stays as it is, backslashes too."""
    text = str(text)
    return text if text.isascii() and text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    code = ord(character)
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or code in _BIDIRECTIONAL:
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def markdown_cell(text: Any) -> str:
    """A text as a cell of a Markdown table: `escape_controls`, and a "|" does not end the cell."""
    return escape_controls(text).replace("|", r"\|")


def csv_cell(value: Any) -> Any:
    r"""A value as a cell of a CSV file. Numbers, None and plain texts stay.

    A text that a spreadsheet would compute, since it begins with = + - or @, gets a ' in front of it, unless it is a
    number. Control characters are escaped as `escape_controls` does it. `csv_value` undoes both.
    """
    if not isinstance(value, str) or _is_number(value):
        return value
    text = escape_controls(_ESCAPE.sub(lambda match: r"\x5c" + match[0][1:], value))
    return f"'{text}" if _FORMULA.match(text) else text


def csv_value(text: str) -> str:
    """The text that `csv_cell` made a cell of."""
    if text.startswith("'") and _FORMULA.match(text):
        text = text[1:]
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters. What is left out is the middle of long words, such as paths, and then of
    the text: a message says at its start what is wrong and where, and at its end what to do."""
    if len(text) > limit:
        text = " ".join(_without_middle(word, max(limit // 3, 20)) for word in text.split(" "))
    return _without_middle(text, limit)


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[len(text) - end :]}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()
