"""Names that would move the cursor, break a table, or be computed by a spreadsheet."""

import csv
import io

import pytest

from utils.text import csv_cell, csv_value, escape_controls, markdown_cell, shorten

HOSTILE = [
    "plain", "Gehäuse 目", "", "two\nlines", "\x1b[2Jgone", "a\tb", "\t=1+1", "\r\n", "abc\u202egnp.exe", "\u2028",
    "bytes \udc80", "=HYPERLINK(\"http://a\")", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "'=1", "''-x", "'quoted'",
    "C:\\users\\x", "\\x1b", "\\u202e", "\\x5cx1b", "-1.5", "1e5", "a|b", "'-5",
]  # fmt: skip


def test_control_characters_become_escapes():
    assert escape_controls("a\x1b[31m\nb\x7f\x9b") == r"a\x1b[31m\x0ab\x7f\x9b"
    assert escape_controls("abc\u202egnp\u2066 \u2028 \udc80") == r"abc\u202egnp\u2066 \u2028 \udc80"
    assert escape_controls("Gehäuse 目 'é' \\n") == "Gehäuse 目 'é' \\n"


def test_a_bar_does_not_end_a_table_cell():
    assert markdown_cell("a|b\n|c|") == r"a\|b\x0a\|c\|"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_csv_cell_is_no_formula_and_comes_back(text):
    cell = csv_cell(text)
    assert csv_value(cell) == text
    assert cell.isprintable() and (cell[:1] not in tuple("=+-@\t\r") or float(cell))
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell, "next"])
    assert next(csv.reader(io.StringIO(file.getvalue()))) == [cell, "next"]


@pytest.mark.parametrize("value", [-1.5, 3, None, True, "-1.5", "2e-5"])
def test_numbers_stay_in_a_csv_file(value):
    assert csv_cell(value) is value


def test_a_long_message_keeps_its_ends():
    assert shorten("short", 10) == "short"
    assert shorten(f"/{'a' * 100}/b.png: broken, make it anew", 60) == "/aaaaaaaaaa...b.png: broken, make it anew"
    assert shorten("words " * 20 + "end", 30) == "words words words... words end"
