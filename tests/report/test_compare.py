"""Runs side by side: both forms of metrics.json, differences, the best, published figures, and errors in one line."""

import json

import pytest

from report.compare import PUBLISHED, class_rows, compare, main, markdown, mean_rows, paired_tests, partial
from report.tables import METRICS, TABLE, Run
from report.write import write_tables

SETTINGS = {"method": "winclip", "dataset": "mvtec", "image_size": 240}


def row(value: float, **other) -> dict:
    return {**dict.fromkeys(METRICS, value), **other}


def made(folder, runs, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, runs, {**SETTINGS, **settings})
    return folder


@pytest.fixture
def one(tmp_path):
    return made(tmp_path / "results/one", [Run(1, 7, {"screw": row(0.5), "wood": row(0.8, aupro=None)})])


@pytest.fixture
def seeds(tmp_path):
    runs = [Run(k, seed, {"screw": row(0.6 + seed / 100), "wood": row(0.8)}) for k in (1, 4) for seed in (1, 3)]
    return made(tmp_path / "results/more/seeds", runs, image_size=336)


def rows_of(lines) -> dict:
    return dict(lines)


def test_columns(one, seeds):
    columns = compare([one, seeds / "metrics.json"])
    own = [column for column in columns if not column.published]
    assert [(c.label, c.title, c.settings["k_shot"]) for c in own] == [
        ("one", "winclip, 1-shot, seed 7", 1),
        ("more/seeds", "winclip, 1-shot, seeds 1 3", 1),
        ("more/seeds", "winclip, 4-shot, seeds 1 3", 4),
    ]
    cells = rows_of(class_rows(columns, "ap_px"))["screw"]
    assert [(c.text, c.difference, c.best) for c in cells[:3]] == [
        ("50.0", "", False), ("62.0 ± 1.0", "+12.0", True), ("62.0 ± 1.0", "+12.0", True)
    ]  # fmt: skip
    assert [c.best for c in rows_of(class_rows(columns, "ap_px"))["wood"][:3]] == [True] * 3
    cells = rows_of(class_rows(columns, "aupro"))["wood"]
    assert [(c.text, c.difference, c.best) for c in cells[:3]] == [
        ("", "", False), ("80.0 ± 0.0", "", True), ("80.0 ± 0.0", "", True)
    ]  # fmt: skip


def test_means_of_other_classes_are_not_compared(one, seeds, tmp_path):
    other = made(tmp_path / "results/other", [Run(1, 1, {"screw": row(0.9)})])
    columns = compare([one, seeds, other])
    cells = rows_of(mean_rows(columns, ["ap_px", "aupro"]))
    assert [(c.text, c.difference, c.best) for c in cells["ap_px"][:4]] == [
        ("65.0", "", False), ("71.0 ± 0.5", "+6.0", True), ("71.0 ± 0.5", "+6.0", True), ("90.0", "", False)
    ]  # fmt: skip
    assert [(c.text, c.difference) for c in cells["aupro"][:2]] == [("50.0", ""), ("71.0 ± 0.5", "")]
    assert partial(columns) == ["other"] and "not compared: other." in markdown(columns, ["ap_px"])
    assert rows_of(class_rows(columns, "ap_px"))["wood"][3].text == ""


def test_published_figures(one, seeds):
    columns = compare([one, seeds])
    others = [column for column in columns if column.published]
    assert {(column.label, column.title) for column in others} == {
        (source, f"winclip, {k}-shot")
        for source in ("paper, arXiv 2303.14814", "re-implementation Accurate-WinCLIP-pytorch")
        for k in (1, 4)
    }
    (column,) = [c for c in others if c.label.startswith("re-") and "1-shot" in c.title]
    assert column.mean[0]["auroc_px"] == pytest.approx(0.936) and column.mean[0]["aupro"] is None
    assert column.mean[0]["aupro_200"] == pytest.approx(0.841)
    assert column.classes["screw"][0]["f1_px"] == pytest.approx(0.235)
    cell = rows_of(class_rows(columns, "f1_px"))["screw"][columns.index(column)]
    assert (cell.text, cell.difference, cell.best) == ("23.5", "", False)


def test_published_figures_are_sound():
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert "percent" in content["note"] and "not measured by this project" in content["note"]
    for figure in content["figures"]:
        assert max(figure["mean"].values()) > 1
        for values in (figure["mean"], *figure["classes"].values()):
            # 0.0 is a figure too: the published ap_px of two classes, which the published mean counts in.
            assert values and all(0 <= value <= 100 and key in TABLE for key, value in values.items())
        for key, value in figure["mean"].items():
            own = [values[key] for values in figure["classes"].values() if key in values]
            if own:
                assert sum(own) / len(own) == pytest.approx(value, abs=0.3), (figure["source"], figure["k_shot"], key)


def test_terminal_and_page(one, seeds, tmp_path, capsys):
    page = tmp_path / "deep/compared.html"
    main([str(one), str(seeds), "--save_path", str(page), "--metrics", "ap_px", "auroc_sp"])
    out = capsys.readouterr().out
    assert "1. one: winclip, 1-shot, seed 7" in out and "| ap_px    | 65.0 | **71.0 ± 0.5** (+6.0) |" in out
    assert "Published figures were not measured by this project" in out and "(published)" in out
    html = page.read_text(encoding="utf-8")
    assert "<small>+12.0</small>" in html and 'id="ap_px"' in html and 'id="f1_px"' not in html
    assert ">240</td>" in html and ">336</td>" in html and "mvtec (all)" in html


def test_names_are_escaped(tmp_path, capsys):
    nasty = "<script>alert(1)</script>|\x1b[2J"
    run = made(tmp_path / "<b>run", [Run(0, None, {nasty: row(0.5)})], model=nasty)
    page = tmp_path / "page.html"
    main([str(run), str(run), "--save_path", str(page)])
    assert "<script>alert" not in page.read_text() and "&lt;b&gt;run" in page.read_text()
    out = capsys.readouterr().out
    assert r"| <script>alert(1)</script>\|\x1b[2J |" in out and "\x1b" not in out + page.read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not what test.py writes"),
        ("[]", "not what test.py writes"),
        ('{"settings": {"k_shot": 0, "seed": null, "dataset": []}, "classes": {"nut": {}}}', "not what test.py writes"),
        ('{"settings": {"k_shot": 0, "seed": null}, "classes": {}}', "no classes"),
        ('{"settings": {"k_shot": 0, "seed": null}, "classes": {"nut": {"ap_px": "x"}}}', "'x' is no number"),
        ('{"settings": {"k_shot": 0, "seed": null}, "classes": {"nut": {"ap_px": NaN}}}', "nan is no number"),
    ],
)
def test_broken_results(fails, tmp_path, content, said):
    (tmp_path / "metrics.json").write_text(content)
    line = fails(main, tmp_path, "--save_path", tmp_path / "x.html")
    assert said in line and str(tmp_path / "metrics.json") in line and not (tmp_path / "x.html").exists()


def test_mistakes(fails, one, tmp_path):
    assert f"{tmp_path}/none: no results" in fails(main, tmp_path / "none")
    assert "required: RUN" in fails(main)
    assert "invalid choice: 'threshold_px'" in fails(main, one, "--metrics", "threshold_px")
    assert "is a folder; name a file" in fails(main, one, "--save_path", tmp_path)
    other = made(tmp_path / "other", [Run(0, None, {"nut": row(0.5)})], dataset="visa")
    line = fails(main, one, other)
    assert "different datasets: results/one (mvtec), other (visa)" in line


def measured(folder, values: dict[str, float], *, ece: float) -> None:
    """A run with measures of its images and of its classes."""
    made(folder, [Run(1, 7, {name: row(0.5, aupimo=0.4, ece_sp=ece) for name in ("screw", "wood")})])
    lines = [
        f"{name}/{n}.png,{name},hole,1,1,7,0.5,{value}" for name in ("screw", "wood") for n, value in values.items()
    ]
    head = "img_path,cls_name,specie_name,anomaly,k_shot,seed,score,aupimo"
    (folder / "predictions.csv").write_text("\n".join([head, *lines, "screw/good.png,screw,good,0,1,7,0.1,", ""]))


def test_images_are_paired(tmp_path, capsys):
    """The p of ranks by hand: of n images that all rise, by different amounts, 2 / 2 ** n."""
    first = {str(n): 0.1 for n in range(6)}
    measured(tmp_path / "runs/a", first, ece=0.2)
    measured(tmp_path / "runs/b", {n: value + 0.01 + int(n) / 1000 for n, value in first.items()}, ece=0.1)
    measured(tmp_path / "runs/c", {**first, "5": 0.1, "6": 1.0}, ece=0.3)
    page = tmp_path / "page.html"
    main([str(tmp_path / f"runs/{name}") for name in "abc"] + ["--save_path", str(page)])
    out = capsys.readouterr().out
    columns = compare([tmp_path / f"runs/{name}" for name in "abc"])
    (title, rows), (_, same) = paired_tests(columns, ["aupimo"])
    assert (
        title == "aupimo image by image: b, winclip, 1-shot, seed 7 against a, winclip, 1-shot, seed 7" and title in out
    )
    assert [(r.name, r.images, r.differences) for r in rows] == [
        ("screw", 6, 6),
        ("wood", 6, 6),
        ("all images", 12, 12),
    ]
    assert rows[0].p == pytest.approx(2 / 2**6) and rows[0].median == pytest.approx(0.0125) and rows[2].p < 0.01
    assert [r.p for r in same] == [None] * 3 and same[0].images == 6
    assert "| screw      | 6      | +1.2              | 0.031 " in out and "no image differs" in out
    html = page.read_text(encoding="utf-8")
    assert title in html and "<td>0.031</td>" in html
    cells = rows_of(class_rows(columns, "ece_sp"))["wood"]  # the lower, the better
    assert [(c.text, c.difference, c.best) for c in cells[:3]] == [
        ("20.0", "", False), ("10.0", "−10.0", True), ("30.0", "+10.0", False)
    ]  # fmt: skip
    assert "| ece_sp " in out and "| aupimo " in out


def test_metrics_that_only_some_runs_have(one, fails, tmp_path, capsys):
    measured(tmp_path / "results/b", {"0": 0.5}, ece=0.1)
    main([str(one), str(tmp_path / "results/b"), "--metrics", "ece_sp", "--save_path", str(tmp_path / "page.html")])
    assert "| ece_sp |   | 10.0 |" in capsys.readouterr().out.replace("    |", " |").replace("|      ", "|  ")
    for name in ("aupro_fpr", "threshold_sp_given", "<b>"):
        assert f"invalid choice: '{name}'" in fails(main, one, "--metrics", name)
