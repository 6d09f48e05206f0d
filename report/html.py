"""report.html: one page of a run that needs nothing else, with its table, curves, scores and telling pictures."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from metrics.curves import Points
from metrics.image import image_curves
from metrics.names import split_kind
from report import charts, judged, tables
from report.charts import Chart, Histogram
from report.gallery import Gallery
from report.judged import JudgedClass, ThresholdRow
from report.predictions import ClassScores, ScoredImage
from report.tables import TABLE, Row, Run
from utils.files import atomic_write
from utils.text import escape_controls

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_HEADLINES = {
    "hits": ("Clearest hits", "defects with the highest scores"),
    "missed": ("Worst misses", "defects with the lowest scores"),
    "alarms": ("Worst false alarms", "normal images with the highest scores"),
}
_LEGEND = {"ROC": ("AUROC", "auroc"), "Precision and recall": ("AP", "ap"), "PRO": ("AUPRO", "aupro")}


def write_page(
    path: Path,
    runs: Sequence[Run],
    images: Iterable[ScoredImage],
    results: Iterable[ClassScores],
    galleries: Mapping[tuple[int, str], Gallery],
    extra: Sequence[str] = (),
    verdicts: Sequence[JudgedClass] = (),
) -> None:
    """Write the page.

    Args:
        path: where to; a config.json beside it says the settings.
        runs: one per few-shot setting.
        images: of all settings and classes.
        results: of all settings and classes, for the curves of the pixels.
        galleries: (setting, class) -> its pictures; what is not there has none.
        extra: metrics to show beside those of `tables.TABLE`.
        verdicts: thresholds and verdicts, where they were asked for.
    """
    curves = {(result.setting, result.name): result.curves for result in results}
    scored: _Scored = {}
    for image in images:
        scored.setdefault((image.k_shot, image.seed, image.cls_name), []).append(image)
    (_, columns), *of_kinds = tables.by_kind((*TABLE, *extra))
    pixel_f1 = {(n, name): row.get("f1_px_given") for n, run in enumerate(runs) for name, row in run.classes.items()}
    panels = [
        _Panel(
            tables.title(k_shot, group),
            table(columns, tables.by_class(group), len(group) > 1),
            [(kind, table(own, tables.by_class(group), len(group) > 1)) for kind, own in of_kinds],
            [_class_view(name, runs, group, curves, scored, galleries) for name in group[0].classes],
            group[0].seed if len(group) > 1 else None,
            judged.rows(verdicts, [runs.index(run) for run in group], [run.seed for run in group], pixel_f1),
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
        finalize=lambda value: escape_controls(value) if type(value) is str else value,  # not of Markup
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
    """A cell: the text as shown, and the value to sort by, None where there is none."""

    text: str
    value: float | None


class Table(NamedTuple):
    """The metrics of all classes under one k."""

    columns: Sequence[str]
    rows: list[tuple[str, list[Cell]]]  # class, its metrics
    mean: list[Cell]


def table(columns: Sequence[str], by_class: Sequence[tuple[str, Sequence[Row]]], seeds: bool) -> Table:
    """The table of one k from `tables.by_class`; with several seeds, mean ± standard deviation."""
    lines = []
    for name, group in by_class:
        mean, std = tables.over_seeds(group)
        lines.append(
            (name, [Cell(tables.cell(key, mean[key], std[key] if seeds else None), mean[key]) for key in columns])
        )
    return Table([split_kind(key)[0] for key in columns], lines[:-1], lines[-1][1])


_Curves = Mapping[tuple[int, str], Mapping[str, Points]]  # (setting, class) -> curves of its pixels
_Scored = dict[tuple[int, int | None, str], list[ScoredImage]]  # (k_shot, seed, class) -> its images


class _Panel(NamedTuple):
    """All that belongs to one k.

    kinds: title and table of each kind of anomalies, where they are counted apart.
    """

    title: str
    table: Table
    kinds: list[tuple[str, Table]]
    classes: list["_ClassView"]
    seed: int | None  # that histograms and pictures are of, where there are several
    thresholds: list[ThresholdRow]


class _ClassView(NamedTuple):
    name: str
    normal: int
    anomalous: int
    charts: list[tuple[Chart, list[tuple[str, str]]]]  # and a legend: kind, text
    histogram: Histogram
    gallery: list[tuple[tuple[str, str], list["_Picture"]]]  # of _HEADLINES, pictures


class _Picture(NamedTuple):
    file: str
    kind: str
    score: float
    rank: str
    source: str  # data URI
    width: int
    height: int


def _class_view(
    name: str,
    runs: Sequence[Run],
    group: Sequence[Run],
    curves: _Curves,
    scored: _Scored,
    galleries: Mapping[tuple[int, str], Gallery],
) -> _ClassView:
    """One class under one k; group: the runs of this k, one per seed."""
    of_seeds = [scored[run.k_shot, run.seed, name] for run in group]
    first = of_seeds[0]
    lines: dict[str, list[Mapping[str, Points]]] = {
        "image": [image_curves([one.anomaly for one in images], [one.score for one in images]) for images in of_seeds],
        "pixel": [curves[runs.index(run), name] for run in group],
    }
    mean, std = tables.over_seeds([run.classes[name] for run in group])
    gallery = galleries.get((runs.index(group[0]), name))
    anomalous = sum(image.anomaly for image in first)
    return _ClassView(
        name,
        len(first) - anomalous,
        anomalous,
        [(chart, _legend(chart, mean, std, len(group) > 1)) for chart in charts.charts(lines)],
        charts.histogram(first),
        _lists(gallery, first) if gallery else [],
    )


def _legend(chart: Chart, mean: Row, std: Row, seeds: bool) -> list[tuple[str, str]]:
    short, key = _LEGEND[chart.title]
    keys = {"image": f"{key}_sp", "pixel": "aupro" if key == "aupro" else f"{key}_px"}
    return [
        (kind, f"{kind} {short} {tables.cell(keys[kind], mean[keys[kind]], std[keys[kind]] if seeds else None)}")
        for kind in dict.fromkeys(kind for kind, _ in chart.lines)
    ]


def _lists(gallery: Gallery, images: Sequence[ScoredImage]) -> list[tuple[tuple[str, str], list[_Picture]]]:
    return [
        (_HEADLINES[key], [_picture(one, gallery.thumbnails[one.img_path], images) for one in chosen])
        for key, chosen in gallery.selected._asdict().items()
        if chosen
    ]


def _picture(image: ScoredImage, thumbnail: bytes, images: Sequence[ScoredImage]) -> _Picture:
    others = [other.score for other in images if other.anomaly != image.anomaly]
    below = sum(score < image.score for score in others)
    rank = f"above {below} of {len(others)} {'normal images' if image.anomaly else 'defects'}" if others else ""
    source = "data:image/webp;base64," + base64.b64encode(thumbnail).decode()
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return _Picture(image.img_path, image.kind, image.score, rank, source, *picture.size)


def _config(path: Path) -> dict[str, Any] | None:
    """config.json of the run; None where there is none."""
    if not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config
