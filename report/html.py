"""report.html: one page of a run that needs nothing else, with its table, curves, scores and telling pictures."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from metrics.image import image_curves
from report import charts, tables
from report.charts import Chart, Histogram
from report.gallery import SelectedImages, choose
from report.tables import TABLE, Row, Run
from utils.files import atomic_write

PICTURES = 360  # in a page, at 15 to 30 kB each
_PER_LIST = (3, 2, 1, 0)
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_HEADLINES = SelectedImages(
    ("Clearest hits", "defects with the highest scores"),
    ("Worst misses", "defects with the lowest scores"),
    ("Worst false alarms", "normal images with the highest scores"),
)
_LEGEND = {"ROC": ("AUROC", "auroc"), "Precision and recall": ("AP", "ap"), "PRO": ("AUPRO", "aupro")}


def pictured_settings(k_shots: Sequence[int]) -> list[int]:
    """The settings that have pictures and histograms, as indices: the first of each k."""
    return [k_shots.index(k) for k in dict.fromkeys(k_shots)]


def chooser(galleries: int) -> Callable[[Sequence[Mapping[str, Any]]], SelectedImages]:
    """`gallery.choose` for the rows of a class, with as many images as all galleries of a page leave room for."""
    count = next(count for count in _PER_LIST if 3 * count * galleries <= PICTURES)
    return partial(choose, hits=count, misses=count, per_class=count)


def write_page(
    path: Path,
    runs: Sequence[Run],
    rows: Iterable[Mapping[str, Any]],
    results: Iterable[Any],
    galleries: Mapping[tuple[int, str], SelectedImages],
    extra: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: where to; a config.json beside it says the settings.
        runs: one per few-shot setting.
        rows: `write.prediction_rows` of all settings and classes.
        results: `engine.evaluation.ClassScores` of all settings and classes, for the curves of the pixels.
        galleries: (setting, class) -> `gallery.choose`, each row with its "picture" (WebP); settings without are left
            out.
        extra: metrics to show beside those of `tables.TABLE`.
    """
    curves = {(result.setting, result.name): result.curves for result in results}
    scored: dict[tuple, list] = {}
    for row in rows:
        scored.setdefault((row["k_shot"], row["seed"], row["cls_name"]), []).append(row)
    panels = [
        _Panel(
            tables.title(k_shot, group),
            table((*TABLE, *extra), tables.by_class(group), len(group) > 1),
            [_class_view(name, runs, group, curves, scored, galleries) for name in group[0].classes],
            group[0].seed if len(group) > 1 else None,
        )
        for k_shot, group in tables.by_k(runs).items()
    ]
    config = _config(path.with_name("config.json"))
    render(path, "report.html.j2", panels=panels, config=config)


def render(path: Path, template: str, **values: Any) -> None:
    """Write a page of report/templates; every value in it is escaped, and its script is the only one that may run."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        values, script=Markup(script), script_hash=f"sha256-{digest}", style=Markup(style)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


class Cell(NamedTuple):
    """text as shown, value to sort by; None where there is none."""

    text: str
    value: float | None


class Table(NamedTuple):
    columns: Sequence[str]
    rows: list[tuple[str, list[Cell]]]
    mean: list[Cell]


def table(columns: Sequence[str], by_class: Sequence[tuple[str, Sequence[Row]]], seeds: bool) -> Table:
    """The table of one k from `tables.by_class`; with several seeds, mean ± standard deviation."""
    lines = []
    for name, group in by_class:
        mean, std = tables.over_seeds(group)
        lines.append(
            (name, [Cell(tables.cell(key, mean[key], std[key] if seeds else None), mean[key]) for key in columns])
        )
    return Table(columns, lines[:-1], lines[-1][1])


class _Panel(NamedTuple):
    """All that belongs to one k."""

    title: str
    table: Table
    classes: list["_ClassView"]
    seed: int | None  # that histograms and pictures are of, where there are several


class _ClassView(NamedTuple):
    name: str
    normal: int
    anomalous: int
    charts: list[tuple[Chart, list[tuple[str, str]]]]  # and a legend: kind, text
    histogram: Histogram
    gallery: list[tuple[tuple[str, str], list["_Picture"]]] | None  # of _HEADLINES, pictures


class _Picture(NamedTuple):
    file: str
    kind: str
    score: float
    rank: str
    source: str  # data URI
    width: int
    height: int


def _class_view(name: str, runs, group, curves, scored, galleries) -> _ClassView:
    of_seeds = [scored[run.k_shot, run.seed, name] for run in group]
    first = of_seeds[0]
    lines = {
        "image": [image_curves([r["anomaly"] for r in rows], [r["score"] for r in rows]) for rows in of_seeds],
        "pixel": [curves[runs.index(run), name] for run in group],
    }
    metrics = tables.over_seeds([run.classes[name] for run in group])
    gallery = galleries.get((runs.index(group[0]), name))
    anomalous = sum(row["anomaly"] for row in first)
    return _ClassView(
        name,
        len(first) - anomalous,
        anomalous,
        [(chart, _legend(chart, *metrics, len(group) > 1)) for chart in charts.charts(lines)],
        charts.histogram(first),
        gallery and _gallery(gallery, first),
    )


def _legend(chart: Chart, mean: Row, std: Row, seeds: bool) -> list[tuple[str, str]]:
    short, key = _LEGEND[chart.title]
    keys = {"image": f"{key}_sp", "pixel": "aupro" if key == "aupro" else f"{key}_px"}
    return [
        (kind, f"{kind} {short} {tables.cell(keys[kind], mean[keys[kind]], std[keys[kind]] if seeds else None)}")
        for kind in dict.fromkeys(kind for kind, _ in chart.lines)
    ]


def _gallery(chosen: SelectedImages, rows: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], list[_Picture]]]:
    lists = zip(_HEADLINES, chosen, strict=True)
    return [(headline, [_picture(row, rows) for row in one]) for headline, one in lists if one]


def _picture(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> _Picture:
    others = [other["score"] for other in rows if other["anomaly"] != row["anomaly"]]
    below = sum(score < row["score"] for score in others)
    rank = f"above {below} of {len(others)} {'normal images' if row['anomaly'] else 'defects'}" if others else ""
    source = "data:image/webp;base64," + base64.b64encode(row["picture"]).decode()
    with Image.open(io.BytesIO(row["picture"])) as picture:
        return _Picture(row["img_path"], charts.kind_of(row), row["score"], rank, source, *picture.size)


def _config(path: Path) -> dict[str, Any] | None:
    """config.json of the run; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
