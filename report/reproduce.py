"""Measured results beside the published figures of the same method, dataset and shots: a CSV file and a page.

`reproduce.py` runs the tests; here their folders become tables. A published aupro stands beside aupro_200.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from report import html, tables
from report.compare import COMPARED_METRICS as METRICS
from report.compare import PUBLISHED, of_percent, read_run, signed
from report.tables import Row
from utils.files import atomic_write, read_json
from utils.text import csv_cell, escape_controls

WITHIN = 0.5  # points: what counts as the same figure
NONE = "no published figure"
COLUMNS = ("method", "dataset", "mode", "k_shot", "seeds", "classes", "metric", "measured", "std", "published",
           "difference", "source", "status")  # fmt: skip
_SHOWN = ("model", "pretrained", "image_size", "precision")  # settings of a run that the page names


class Published(NamedTuple):
    """A file in the form of published.json.

    figures: (method, dataset, k) -> sources and their means over classes, as fractions, under the names of METRICS.
    classes: dataset -> how many classes the published means are over.
    protocol: method -> in what its published protocol is another one.
    """

    figures: Mapping[tuple[str, str, int], Sequence[tuple[str, Row]]]
    classes: Mapping[str, int]
    protocol: Mapping[str, Sequence[str]]


class Outcome(NamedTuple):
    """What has become of a test.

    k_shots: that were asked for; [0] without references.
    folder: of its results.
    state: why there are none; "" where there are.
    """

    method: str
    dataset: str
    mode: str
    k_shots: Sequence[int]
    folder: Path
    state: str


class Line(NamedTuple):
    """One metric beside one published figure, in percent; None where there is no number."""

    metric: str
    measured: float | None
    std: float | None
    published: float | None
    difference: float | None
    status: str


class Means(NamedTuple):
    """Over classes and seeds, as fractions. std: empty of one seed; classes: metric -> how many classes have it."""

    mean: Row
    std: Row
    classes: Mapping[str, int]


class Entry(NamedTuple):
    """A method on a dataset with so many references.

    title: "zero-shot", "4-shot, seeds 1 2", ...
    seeds: as one text.
    classes: how many were measured; None where the test has no results.
    settings: of the run, to be shown.
    state: as of `Outcome`.
    sources: of published figures, each with its lines; one without a name where nothing is published.
    """

    method: str
    dataset: str
    mode: str
    k_shot: int
    title: str
    seeds: str
    classes: int | None
    settings: str
    state: str
    sources: Sequence[tuple[str, Sequence[Line]]]


def read_published(path: Path = PUBLISHED) -> Published:
    """Raises ValueError where a file does not have the form of published.json; names it."""
    try:
        content = read_json(path)
        figures: dict[tuple[str, str, int], list[tuple[str, Row]]] = {}
        for figure in content["figures"]:
            place = (str(figure["method"]), str(figure["dataset"]), int(figure["k_shot"]))
            figures.setdefault(place, []).append((str(figure["source"]), of_percent(figure["mean"])))
        classes = {str(name): int(count) for name, count in content.get("classes", {}).items()}
        protocol = {str(name): list(map(str, lines)) for name, lines in content.get("protocol", {}).items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file of published figures") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not in the form of report/published.json ({error!r})") from None
    return Published(figures, classes, protocol)


def entries_of(outcomes: Iterable[Outcome], published: Published) -> list[Entry]:
    """An entry for each k of each outcome; results that cannot be read are none."""
    return [entry for outcome in outcomes for entry in _entries(outcome, published)]


def _entries(outcome: Outcome, published: Published) -> Iterable[Entry]:
    method, dataset, mode, k_shots, folder, state = outcome
    runs: Sequence[tables.Run] = ()
    try:
        runs = () if state else read_run(folder)[1]
    except ValueError as error:
        state = f"failed: {error}"
    if state:
        for k_shot in k_shots:
            title = f"{k_shot}-shot" if k_shot else mode.replace("_", "-")
            lines = _sources((method, dataset, k_shot), Means({}, {}, {}), published, state)
            yield Entry(method, dataset, mode, k_shot, title, "", None, "", state, lines)
        return
    for k_shot, group in tables.by_k(runs).items():
        mean, std = tables.over_seeds([run.mean for run in group])
        own = Means(mean, std if len(group) > 1 else {}, _counts(group))
        lines = _sources((method, dataset, k_shot), own, published, "")
        seeds = " ".join(str(run.seed) for run in group if run.seed is not None)
        title = tables.title(k_shot, group)
        yield Entry(method, dataset, mode, k_shot, title, seeds, len(group[0].classes), _settings(folder), "", lines)


def _settings(folder: Path) -> str:
    """What the page names of a run's settings, which config.json has."""
    try:
        settings: Mapping[str, Any] = read_json(folder / "config.json")["settings"]
        return ", ".join(str(settings[key]) for key in _SHOWN if settings.get(key) is not None)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return ""


def _counts(runs: Sequence[tables.Run]) -> dict[str, int]:
    """Metric -> how many classes have it under every seed."""
    names = runs[0].classes
    return {key: sum(all(run.classes[name].get(key) is not None for run in runs) for name in names) for key in METRICS}


def _sources(place: tuple[str, str, int], own: Means, published: Published, state: str) -> list[tuple[str, list[Line]]]:
    """Every source with a line for each metric that it or the run has."""
    wanted, found = published.classes.get(place[1]), []
    for source, figures in published.figures.get(place, [("", {})]):
        lines = []
        for key in METRICS:
            mine, others, count = own.mean.get(key), figures.get(key), own.classes.get(key)
            if mine is None and others is None:
                continue
            status = state or (NONE if others is None else "not measured" if mine is None else "compared")
            if status == "compared" and wanted not in (None, count):
                status = f"measured on {count} class{'es' * (count != 1)}, published of {wanted}"
            difference = None
            if mine is not None and others is not None and status == "compared":
                difference = 100 * (mine - others)
            lines.append(Line(key, _percent(mine), _percent(own.std.get(key)), _percent(others), difference, status))
        found.append((source, lines))
    return found


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def summary(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(method, "within 0.5 points: 12 of 14 (source), ..."), a line for each method."""
    found = []
    for method in dict.fromkeys(entry.method for entry in entries):
        own = [(source, line) for one in entries if one.method == method for source, lines in one.sources
               for line in lines if line.published is not None]  # fmt: skip
        counts = []
        for source in dict.fromkeys(source for source, _ in own):
            lines = [line for name, line in own if name == source]
            compared = [line.difference for line in lines if line.difference is not None]
            rest = len(lines) - len(compared)
            if compared:
                within = f"{sum(map(is_within, compared))} of {len(compared)}"
                counts.append(f"{within} ({source}{f'; {rest} more not compared' if rest else ''})")
        reasons = dict.fromkeys(line.status for _, line in own)
        nothing = f"nothing compared: {', '.join(reasons) or NONE}"
        text = f"within {WITHIN} points: {', '.join(counts)}" if counts else nothing
        found.append((method, text))
    return found


def is_within(difference: float) -> bool:
    """Whether a difference counts as none, judged as tables show it: published figures are rounded too."""
    return round(abs(difference), 1) <= WITHIN


def write(path: Path, entries: Sequence[Entry], published: Published) -> None:
    """Write path.csv, all numbers in percent, and path.html."""
    with atomic_write(path.with_name(f"{path.name}.csv")) as file, file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for entry in entries:
            for source, lines in entry.sources:
                for line in lines or [Line("", None, None, None, None, entry.state or "no metric can be computed")]:
                    place = (entry.method, entry.dataset, entry.mode, entry.k_shot, entry.seeds, entry.classes)
                    row = (*place, line.metric, *map(_number, line[1:5]), source, line.status)
                    writer.writerow(map(csv_cell, row))
    methods = list(dict.fromkeys(entry.method for entry in entries))
    html.render(
        path.with_name(f"{path.name}.html"),
        "reproduce.html.j2",
        metrics=METRICS,
        summary=summary(entries),
        missing=[entry for entry in entries if entry.state],
        methods=[(name, _table(name, entries), published.protocol.get(name, ())) for name in methods],
        within=WITHIN,
        none=NONE,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


class Shown(NamedTuple):
    """A row of the page: what was measured, or a published source. note: what is to be said of it."""

    dataset: str
    title: str
    source: str
    note: str
    cells: Sequence[tuple[str, str, bool]]  # figure, difference, whether it is within WITHIN


def _table(method: str, entries: Sequence[Entry]) -> list[Shown]:
    """The rows of a method that has results, those of an entry below one another; [] where it has none."""
    rows = []
    for entry in entries:
        if entry.method != method or entry.state:
            continue
        own = {line.metric: line for _, lines in entry.sources for line in lines}
        figures = [tables.cell(key, _fraction(own[key].measured), _fraction(own[key].std)) if key in own else ""
                   for key in METRICS]  # fmt: skip
        cells = [(figure, "", False) for figure in figures]
        rows.append(Shown(entry.dataset, entry.title, "measured", entry.settings, cells))
        for source, lines in entry.sources:
            if not source:
                rows.append(Shown(entry.dataset, entry.title, NONE, "", [("", "", False)] * len(METRICS)))
                continue
            by_metric = {line.metric: line for line in lines}
            notes = dict.fromkeys(one.status for one in lines if one.status not in ("compared", "not measured", NONE))
            cells = [_cell(by_metric.get(key)) for key in METRICS]
            rows.append(Shown(entry.dataset, entry.title, source, ", ".join(notes), cells))
    return rows


def _fraction(value: float | None) -> float | None:
    return None if value is None else value / 100


def _cell(line: Line | None) -> tuple[str, str, bool]:
    if line is None or line.published is None:
        return "", "", False
    figure = tables.cell(line.metric, line.published / 100, None)
    if line.difference is None:
        return figure, "", False
    return figure, signed(line.difference), is_within(line.difference)


def text(entries: Sequence[Entry]) -> str:
    """The summary for a terminal, and what is not measured."""
    missing: dict[str, list[str]] = {}
    for entry in entries:
        if entry.state:
            missing.setdefault(f"{entry.method} on {entry.dataset}: {entry.state}", []).append(entry.title)
    lines = [f"{method}: {found}" for method, found in summary(entries)]
    lines += [f"not measured: {place} ({', '.join(titles)})" for place, titles in missing.items()]
    return "\n".join(map(escape_controls, lines))
