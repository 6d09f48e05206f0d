"""Measured beside published: differences, counts, what has no figure and says so, and every preset with its row."""

import csv
import json

import pytest

from config.flags import DATASETS, PUBLISHED_DATASETS
from model import METHODS, capabilities
from report.reproduce import NONE, Outcome, entries_of, read_published, summary, text, write
from report.tables import METRICS, Run
from report.write import write_tables


def made(folder, outcome: tuple, runs) -> Outcome:
    (folder / "run").mkdir(parents=True)
    write_tables(folder / "run", runs, {"method": outcome[0], "dataset": outcome[1]})
    settings = {"settings": {"model": "<b>ViT", "image_size": 240, "precision": "fp32"}}
    (folder / "run/config.json").write_text(json.dumps(settings))
    return Outcome(*outcome, [run.k_shot for run in runs], folder / "run", "")


def row(value: float, **other) -> dict:
    return {**dict.fromkeys(METRICS, value), **other}


@pytest.fixture
def published(tmp_path):
    figures = [
        {"source": "paper <i>", "method": "winclip", "dataset": "mvtec", "k_shot": 1,
         "mean": {"auroc_px": 70.24, "aupro": 72.0, "ap_px": 70.6, "f1_px": 1.0, "auroc_sp": 70.0}},
        {"source": "other", "method": "winclip", "dataset": "mvtec", "k_shot": 1, "mean": {"ap_sp": 69.4}},
        {"source": "paper <i>", "method": "winclip", "dataset": "visa", "k_shot": 0, "mean": {"auroc_sp": 80.0}},
    ]  # fmt: skip
    (tmp_path / "made_up.json").write_text(json.dumps({"figures": figures, "classes": {"mvtec": 2, "visa": 12}}))
    return read_published(tmp_path / "made_up.json")


def rows_of(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_differences_and_counts(tmp_path, published):
    """Two seeds of 60 and 80 percent are 70 ± 10; means of other classes are not compared."""
    seeds = [Run(1, seed, {"nut": row(seed / 10), "bolt": row(seed / 10, auroc_sp=None)}) for seed in (6, 8)]
    for name in ("nut", "bolt"):
        seeds[0].classes[name]["f1_px"] = None
    outcomes = [
        made(tmp_path / "1", ("winclip", "mvtec", "few_shot"), seeds),
        made(tmp_path / "2", ("winclip", "visa", "zero_shot"), [Run(0, None, {"nut": row(0.8)})]),
        made(tmp_path / "3", ("sdp", "btad", "zero_shot"), [Run(0, None, {"01": row(0.8, aupro=None)})]),
        Outcome("musc", "mvtec", "batched", [0], tmp_path, "dataset absent"),
        Outcome("musc", "visa", "batched", [0], tmp_path / "nothing", ""),
    ]
    entries = entries_of(outcomes, published)
    write(tmp_path / "a.b", entries, published)
    lines = rows_of(tmp_path / "a.b.csv")
    own = {(line["source"], line["metric"]): line for line in lines if line["dataset"] == "mvtec"}
    figures = [own["paper <i>", key] for key in ("auroc_px", "aupro_200", "ap_px", "f1_px", "aupro", "auroc_sp")]
    shown = ("measured", "std", "published", "difference", "status")
    assert [tuple(line[key] for key in shown) for line in figures] == [
        ("70", "10", "70.24", "-0.24", "compared"),
        ("70", "10", "72", "-2", "compared"),
        ("70", "10", "70.6", "-0.6", "compared"),
        ("", "", "1", "", "not measured"),
        ("70", "10", "", "", NONE),
        ("70", "10", "70", "", "measured on 1 class, published of 2"),
    ]  # fmt: skip
    assert (own["other", "ap_sp"]["difference"], own["other", "ap_sp"]["seeds"]) == ("0.6", "6 8")
    (visa,) = (line for line in lines if line["dataset"] == "visa" and line["published"])
    assert (visa["difference"], visa["status"]) == ("", "measured on 1 class, published of 12")
    sdp = [line for line in lines if line["method"] == "sdp"]
    assert {line["status"] for line in sdp} == {NONE} and "aupro" not in {line["metric"] for line in sdp}
    musc = [(line["metric"], line["measured"], line["status"].partition(": ")[0]) for line in lines[-2:]]
    assert musc == [("", "", "dataset absent"), ("", "", "failed")]
    assert summary(entries) == [
        ("winclip", "within 0.5 points: 1 of 3 (paper <i>; 3 more not compared), 0 of 1 (other)"),
        ("sdp", f"nothing compared: {NONE}"),
        ("musc", f"nothing compared: {NONE}"),
    ]
    assert "not measured: musc on mvtec: dataset absent (batched)" in text(entries).splitlines()
    page = (tmp_path / "a.b.html").read_text(encoding="utf-8")
    assert page.count(f">{NONE}<") == 1 and "paper &lt;i&gt;" in page and "&lt;b&gt;ViT, 240, fp32" in page
    assert page.count('class="best"') == 1 and "<small>−0.2</small>" in page and "70.0 ± 10.0" in page


def test_every_preset_has_its_published_row_or_says_that_there_is_none(tmp_path):
    published, outcomes = read_published(), []
    for mode, k_shots in (("few_shot", (1, 2, 4, 8)), ("other", (0,))):  # of which every place has a copy
        made(tmp_path / mode, ("", "", ""), [Run(k, 1, {"nut": row(0.9)}) for k in k_shots])
    for method in METHODS:
        for dataset in PUBLISHED_DATASETS:
            for mode in (mode for mode in ("zero_shot", "few_shot", "batched") if getattr(capabilities(method), mode)):
                folder = tmp_path / (mode if mode == "few_shot" else "other") / "run"
                outcomes.append(Outcome(method, dataset, mode, [0], folder, ""))
    entries = entries_of(outcomes, published)
    write(tmp_path / "all", entries, published)
    places, with_row = {}, set()
    for line in rows_of(tmp_path / "all.csv"):
        place = line["method"], line["dataset"], int(line["k_shot"])
        places.setdefault(place, set()).add(line["status"])
        if line["published"]:
            with_row.add(place)
            assert line["source"]
    assert with_row == published.figures.keys()  # none is of a preset that no run asks for
    assert len(places) == len(entries)
    for place, states in places.items():
        assert place in with_row or states == {NONE}, place
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert page.count(f">{NONE}<") == len(places) - len(with_row) > 0
    # On the two datasets that papers share, what has no row up to 4 shots.
    main = {place for place in places if place[1] in ("mvtec", "visa") and place[2] < 8}
    assert main - with_row == {("sdp", "visa", 0), ("sdp_plus", "visa", 0)}
    assert published.protocol.keys() == METHODS.keys() and published.classes.keys() <= set(DATASETS)
    assert {dataset for _, dataset, _ in with_row} == published.classes.keys()


@pytest.mark.parametrize("content", ["{", "[]", '{"figures": [{"method": "winclip"}]}', '{"figures": {"mean": 3}}',
                                     '{"figures": [], "classes": {"mvtec": "many"}}'])  # fmt: skip
def test_a_broken_file_of_figures_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="x.json: not in the form of report/published.json"):
        read_published(tmp_path / "x.json")
    with pytest.raises(ValueError, match="none.json: cannot be read"):
        read_published(tmp_path / "none.json")
