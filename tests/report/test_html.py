"""report.html: complete, self-contained, escaped, and blank where nothing can be computed."""

import json
import re
from html.parser import HTMLParser

import pytest

from pages import made_up
from report import html

NASTY = "<script>alert('1')</script> & \"nut\""


class Parsed(HTMLParser):
    """Tags with their attributes, and the visible words."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag, **wanted) -> list[dict]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def written(folder, *arguments, **keywords) -> Parsed:
    html.write_page(folder / "report.html", **made_up(*arguments, **keywords))
    return Parsed(folder / "report.html")


def assert_self_contained(parsed: Parsed) -> None:
    assert len(parsed.all("script")) == 1 and not parsed.all("script")[0]
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert re.match("data:|#", attributes.get(name, "#"))
    assert not re.search(r"url\(|@import", parsed.source)


def test_all_parts(tmp_path):
    parsed = written(tmp_path, [(4, 1)], {"nut": {"normal": 6, "anomalous": 8}, "bolt": {"normal": 3, "anomalous": 3}})
    assert_self_contained(parsed)
    labels = [re.split(" of |, ", tag["aria-label"])[0] for tag in parsed.all("svg", role="img")]
    assert labels[:6] == ["ROC", "Precision and recall", "PRO", "good: 6 images", "hole: 4 images", "scratch: 4 images"]
    for words in ("4-shot, seed 1", "Clearest hits", "Worst misses", "Worst false alarms", "nut/scratch/", "6 normal"):
        assert words in parsed.text
    assert len(parsed.all("img")) == 6 + 5 and all(tag["alt"] for tag in parsed.all("img"))
    assert not parsed.all("fieldset")  # one setting: nothing to choose


def test_names_are_escaped(tmp_path):
    config = {"settings": {"method": NASTY, "dataset": "x", "model": NASTY, "pretrained": NASTY, "image_size": 8,
                           "checkpoint_path": NASTY, "classes": [NASTY]}, "sources": {}, "git": NASTY}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    parsed = written(tmp_path, [(0, None)], {NASTY: {"normal": 2, "anomalous": 4, "kinds": [NASTY]}})
    assert_self_contained(parsed)
    assert NASTY in parsed.text and "<script>alert" not in parsed.source


def test_without_masks(tmp_path):
    parsed = written(tmp_path, [(0, None)], {"head": {"normal": 5, "anomalous": 5, "masks": False}})
    labels = [tag["aria-label"] for tag in parsed.all("svg")]
    assert not [label for label in labels if "pixel" in label or label.startswith("PRO")]
    assert [label for label in labels if label.startswith("ROC of head: image AUROC")]
    assert len(parsed.all("td")) == 14 and len([t for t in parsed.all("td") if "data-value" in t]) == 3
    assert "Curves that are not here cannot be computed" in parsed.text


@pytest.mark.parametrize(("normal", "anomalous"), [(0, 4), (4, 0), (1, 0), (0, 1)])
def test_one_label_or_one_image(tmp_path, normal, anomalous):
    parsed = written(tmp_path, [(0, None)], {"nut": {"normal": normal, "anomalous": anomalous}})
    assert not [tag for tag in parsed.all("svg") if "image AU" in tag["aria-label"]]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", parsed.source)
    assert len(cells) == 14 and cells[4:7] == ["", "", ""] and "0.0" not in cells[4:7]
    assert ("Worst false alarms" in parsed.text) == (normal > 0) and ("Clearest hits" in parsed.text) == (anomalous > 0)
    assert len(parsed.all("img")) == min(normal, 2) + min(anomalous, 4)
    assert "above" not in parsed.text  # of what is not there


def test_several_seeds_and_shots(tmp_path):
    settings = [(0, None), (1, 5), (1, 6), (4, 5), (4, 6)]
    parsed = written(tmp_path, settings, {"nut": {"normal": 4, "anomalous": 4}})
    assert [tag["value"] for tag in parsed.all("input")] == ["panel-1", "panel-2", "panel-3"]
    assert "1-shot, seeds 5 6" in parsed.text and "pictures: seed 5." in parsed.text
    assert re.search(r"image AUROC \d+\.\d ± \d+\.\d", parsed.text)
    lines = [tag["class"] for tag in parsed.all("path") if tag.get("class", "").startswith("line")]
    assert len(lines) == (1 + 2 + 2) * 5
    assert len({tag["id"] for _, tag in parsed.tags if "id" in tag}) == len([t for _, t in parsed.tags if "id" in t])


def test_a_setting_without_pictures_says_so(tmp_path):
    parsed = written(tmp_path, [(0, None)], {"nut": {"normal": 2, "anomalous": 2}}, pictures=False)
    assert not parsed.all("img") and "No pictures: there are too many classes" in parsed.text


def test_many_kinds_of_defects_share_a_row(tmp_path):
    kinds = [f"kind {number}" for number in range(40)]
    parsed = written(tmp_path, [(0, None)], {"nut": {"normal": 5, "anomalous": 80, "kinds": kinds}})
    assert (
        "29 other kinds" in parsed.text
        and len([t for t in parsed.all("svg") if "scores from" in t["aria-label"]]) == 13
    )


def test_control_characters_are_shown_and_not_obeyed(tmp_path):
    parsed = written(tmp_path, [(0, None)], {"nut\u202egnp\x1b[2J": {"normal": 2, "anomalous": 2}})
    assert r"nut\u202egnp\x1b[2J" in parsed.text
    assert not {"\u202e", "\x1b"} & set(parsed.source)
