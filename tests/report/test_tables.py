"""Tables, JSON and CSV: what is absent stays absent, and seeds become mean ± standard deviation."""

import csv
import json

import pytest

from report import tables
from report.tables import TABLE, Run
from report.write import write_predictions, write_tables

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


def test_what_no_run_has_is_named():
    runs = [Run(0, None, {"nut": row(0.5, aupro=None, aupro_200=None), "bolt": row(0.5)})]
    assert tables.absent(runs) == {"nut": ["aupro", "aupro_200"]}


def test_csv_of_names_with_commas_and_quotes(tmp_path):
    write_predictions(tmp_path / "p.csv", [{"img_path": 'a,"b".png', "score": 0.5}, {"img_path": "ö", "m": 1}])
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"img_path": 'a,"b".png', "score": "0.5", "m": ""}, {"img_path": "ö", "score": "", "m": "1"}]
