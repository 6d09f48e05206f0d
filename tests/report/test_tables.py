"""Tables, JSON and CSV: what is absent stays absent, and seeds become mean ± standard deviation."""

import csv
import json

import pytest

from metrics.names import Measures
from report import tables
from report.tables import TABLE, Run
from report.write import write_tables
from utils.text import csv_value

KEYS = (*TABLE, "aupro_200", "iou_px", "threshold_px")


def row(value: float, **other) -> dict:
    return {**dict.fromkeys(KEYS, value), **other}


def test_one_run():
    run = Run(0, None, {"nut": row(0.5), "bolt": row(0.7, aupro=None)})
    result = tables.as_json([run], {"method": "april_gan"})
    assert result["settings"] == {"method": "april_gan", "k_shot": 0, "seed": None}
    assert result["classes"]["bolt"]["aupro"] is None
    assert result["mean"]["auroc_px"] == pytest.approx(0.6) and result["mean"]["aupro"] == 0.5
    assert tables.markdown([run]).splitlines() == [
        "zero-shot",
        "",
        "| objects | auroc_px | f1_px | ap_px | aupro | auroc_sp | f1_sp | ap_sp |",
        "|:--------|:---------|:------|:------|:------|:---------|:------|:------|",
        "| nut     | 50.0     | 50.0  | 50.0  | 50.0  | 50.0     | 50.0  | 50.0  |",
        "| bolt    | 70.0     | 70.0  | 70.0  |       | 70.0     | 70.0  | 70.0  |",
        "| mean    | 60.0     | 60.0  | 60.0  | 50.0  | 60.0     | 60.0  | 60.0  |",
    ]


def test_kinds_of_anomalies_have_tables_of_their_own(tmp_path):
    """Three more tables: structural, logical, and the mean of both; what was asked for is in all files."""
    names = Measures(("spro",), by_kind=True).metric_names()
    extra = dict(zip(names, (0.1, 0.2, 0.3, None, 0.2, None), strict=True))
    runs = [Run(0, None, {"nut": row(0.5, **extra, threshold_sp_given=7.25)})]
    blocks = tables.markdown(runs, ("threshold_sp_given", *names)).split("\n\n")
    assert blocks[::2] == ["zero-shot", "zero-shot, structural anomalies and the good images",
                           "zero-shot, logical anomalies and the good images",
                           "zero-shot, mean of structural and logical"]  # fmt: skip
    assert "auroc_sp" in blocks[1] and "auspro" not in blocks[1] and "| 7.25 " in blocks[1]
    assert blocks[3].splitlines()[0] == "| objects | auroc_sp | auspro_fpr0.05 |"
    assert blocks[3].splitlines()[2] == "| nut     | 10.0     | 20.0           |"
    assert blocks[5].splitlines()[2] == "| nut     | 30.0     |                |"
    write_tables(tmp_path, runs, {})
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"]["nut"]["auroc_sp.logical"] == 0.3
    assert "auspro_fpr0.05.both" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_several_seeds_and_shots():
    runs = [Run(1, 5, {"nut": row(0.2)}), Run(1, 6, {"nut": row(0.4)}), Run(4, 5, {"nut": row(0.9)})]
    result = tables.as_json(runs, {})
    assert [entry["settings"] for entry in result["runs"]] == [
        {"k_shot": k, "seed": seed} for k, seed in ((1, 5), (1, 6), (4, 5))
    ]
    assert result["mean"]["1"]["ap_px"] == pytest.approx(0.3) and result["std"]["1"]["ap_px"] == pytest.approx(0.1)
    assert result["mean"]["4"]["ap_px"] == 0.9 and result["std"]["4"]["ap_px"] == 0.0
    table = tables.markdown(runs)
    assert "1-shot, seeds 5 6" in table and "| nut     | 30.0 ± 10.0 |" in table
    assert "4-shot, seed 5" in table and "| nut     | 90.0 " in table


def test_a_metric_that_a_seed_lacks_has_no_mean():
    runs = [Run(1, 5, {"nut": row(0.2)}), Run(1, 6, {"nut": row(0.4, aupro=None)})]
    assert tables.as_json(runs, {})["mean"]["1"]["aupro"] is None


def test_files(tmp_path):
    runs = [Run(1, 5, {"nut": row(1 / 3, aupro=None)}), Run(1, 6, {"nut": row(0.4, aupro=None)})]
    write_tables(tmp_path, runs, {"dataset": "mvtec"})
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"][0]["classes"]["nut"]["auroc_px"] == 1 / 3
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["k_shot"], r["seed"], r["objects"]) for r in rows] == [
        ("1", "5", "nut"), ("1", "5", "mean"), ("1", "6", "nut"), ("1", "6", "mean"),
        ("1", "mean", "nut"), ("1", "std", "nut"), ("1", "mean", "mean"), ("1", "std", "mean")]  # fmt: skip
    assert float(rows[0]["auroc_px"]) == 1 / 3 and rows[0]["aupro"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.json", "table.md"]


def test_a_class_called_mean_keeps_its_own_row(tmp_path):
    runs = [Run(0, None, {"mean": row(0.2), "nut": row(0.6)})]
    write_tables(tmp_path, runs, {})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [float(r["ap_px"]) for r in csv.DictReader(file)] == pytest.approx([0.2, 0.6, 0.4])


HOSTILE = ["a|b", "two\nlines", "\x1b[2Jgone", "=1+1", "Gehäuse"]


def test_names_break_no_table(tmp_path):
    run = Run(0, None, {name: row(0.5) for name in HOSTILE})
    write_tables(tmp_path, [run], {})
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) == 2 + 2 + len(HOSTILE) + 1 and len({len(line) for line in lines[2:]}) == 1
    assert [line.split(" | ")[0].strip("| ") for line in lines[4:]] == [
        r"a\|b", r"two\x0alines", r"\x1b[2Jgone", "=1+1", "Gehäuse", "mean"
    ]  # fmt: skip
    assert list(json.loads((tmp_path / "metrics.json").read_text())["classes"]) == HOSTILE


def test_a_spreadsheet_computes_no_name(tmp_path):
    write_tables(tmp_path, [Run(0, None, {name: row(-0.5) for name in HOSTILE})], {})
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["objects"] for r in rows[3:5]] == ["'=1+1", "Gehäuse"]
    assert [csv_value(r["objects"]) for r in rows] == [*HOSTILE, "mean"]
    assert {r["ap_px"] for r in rows} == {"-0.5"}  # a number stays one
