"""Pages in a real Chromium, by mouse and by keyboard, light and dark, wide and narrow; skipped where there is none."""

import json

import pytest

from browser import Browser, needs_chromium
from pages import made_up
from report import html
from report.compare import COMPARED_METRICS, compare, write
from report.tables import METRICS, Run
from report.write import write_tables

pytestmark = needs_chromium
NASTY = "<img src=x onerror=document.title='broken'>"
CLASSES = {
    "bolt": {"normal": 8, "anomalous": 8},
    "a class of the longest name that anybody would ever want to give it": {
        "normal": 5,
        "anomalous": 5,
        "masks": False,
    },
    NASTY: {"normal": 6, "anomalous": 9, "kinds": [NASTY]},
    "nut": {"normal": 0, "anomalous": 3},
}
NAMES = "[...document.querySelectorAll('.panel:not([hidden]) table tbody a')].map((a) => a.textContent)"
SHOWN = "[...document.querySelectorAll('.panel:not([hidden]) > h2')].map((h) => h.textContent)"


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = {"settings": {"method": "winclip", "dataset": "mvtec", "model": "m", "pretrained": NASTY,
                           "image_size": 240, "checkpoint_path": None}, "sources": {}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    html.write_page(folder / "report.html", **made_up([(0, None), (4, 1), (4, 2)], CLASSES))
    return folder / "report.html"


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    for name in ("one", "another"):
        values = {metric: 0.1 * len(name) for metric in METRICS}
        runs = [Run(k, seed, {"screw": values, "wood": values}) for k in (1, 4) for seed in (1, 2)]
        (folder / name).mkdir()
        write_tables(folder / name, runs, {"method": "winclip", "dataset": "mvtec"})
    columns = compare([folder / "one", folder / "another"])
    write(folder / "comparison.html", columns, COMPARED_METRICS)
    return folder / "comparison.html"


@pytest.fixture(params=[(1280, False), (390, True)], ids=["wide light", "narrow dark"])
def browser(request, tmp_path):
    width, dark = request.param
    with Browser(tmp_path / "profile", width=width, dark=dark) as started:
        yield started


def test_nothing_is_asked_for_and_nothing_is_wider_than_the_window(browser, report_page, comparison_page):
    for path in (report_page, comparison_page):
        browser.open(path)
        assert browser.complaints() == []
        assert browser.run("document.title") != "broken"
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        brightness = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (brightness < 60) == browser.run("matchMedia('(prefers-color-scheme: dark)').matches")
    browser.open(report_page)
    assert (
        browser.run("Promise.all([...document.images].map((i) => i.decode())).then(() => document.images.length)") > 20
    )


def test_sorting_by_click_and_by_key(browser, report_page):
    browser.open(report_page)
    original = browser.run(NAMES)
    assert original == list(CLASSES)
    button = "document.querySelectorAll('.panel:not([hidden]) th button')"
    values = "[...document.querySelectorAll('.panel:not([hidden]) tbody tr')].map((r) => r.cells[5].textContent)"
    browser.run(f"{button}[5].click()")
    shown = browser.run(values)
    known = [float(value) for value in shown if value]
    assert known == sorted(known, reverse=True) and shown[3] == "" and len(known) == 3  # blank is last
    assert browser.run(f"{button}[5].closest('th').getAttribute('aria-sort')") == "descending"
    browser.run(f"{button}[5].focus()")
    browser.press("Enter")
    assert browser.run(values) == [*shown[2::-1], ""]
    assert browser.run(f"{button}[5].closest('th').getAttribute('aria-sort')") == "ascending"
    browser.press(" ")
    assert browser.run(NAMES) == original and not browser.run("document.querySelectorAll('[aria-sort]').length")
    browser.run(f"{button}[0].click()")
    assert browser.run(NAMES)[-1] == "nut"


def test_choosing_a_setting_by_key_and_by_link(browser, report_page):
    browser.open(report_page)
    assert browser.run(SHOWN) == ["zero-shot"]
    browser.press("Tab")  # the link that skips to the table
    browser.press("Tab")
    assert browser.run("document.activeElement.name") == "setting"
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == ["4-shot, seeds 1 2"]
    browser.run("location.hash = '#class-1-2'")
    assert browser.run(f"new Promise((done) => setTimeout(() => done({SHOWN}), 100))") == ["zero-shot"]
    assert browser.run("document.querySelector('input:checked').value") == "panel-1"


def test_comparison_sorts(browser, comparison_page):
    browser.open(comparison_page)
    first = "[...document.querySelector('table.sortable').tBodies[0].rows].map((r) => r.cells[0].textContent)"
    browser.run("document.querySelector('table.sortable th button').click()")
    assert browser.run(first) == ["screw", "wood"]
    browser.run("document.querySelector('table.sortable th button').click()")
    assert browser.run(first) == ["wood", "screw"]
