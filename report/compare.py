"""Several result folders side by side, and the published figures that belong to them.

    python -m report.compare RUN RUN ... [--metrics auroc_px aupro] [--save_path comparison.html]

prints markdown and writes one HTML page. RUN is the --save_path of a test.py; several k of one run are columns of their
own, several seeds are mean ± standard deviation. Differences are to the first column. Where images have measures of
their own (AUPIMO), those of each run are paired with those of the first: Wilcoxon signed-rank test.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metrics.names import LOWER_IS_BETTER, PER_IMAGE, is_measure, is_threshold
from report import html, paired, tables
from report.tables import METRICS, Row, Run
from utils.errors import run_script
from utils.files import result_folder
from utils.text import escape_controls

COMPARED_METRICS = ("auroc_px", "f1_px", "ap_px", "aupro", "aupro_200", "auroc_sp", "f1_sp", "ap_sp")
CHOICES = tuple(key for key in METRICS if not is_threshold(key))  # which is neither good nor bad
_OF_RUNS = ("k_shot", "seed", "scored_together")  # settings that belong to a run alone
PUBLISHED = Path(__file__).resolve().with_name("published.json")


class Column(NamedTuple):
    """One k of one run, or the published figures of one source.

    label: the run, or the source.
    title: method, k and seeds, such as "winclip, 4-shot, seeds 1 2".
    settings: of the run.
    classes: name -> mean and standard deviation of each metric over seeds, as fractions; the latter None of one seed.
    mean: the same of the mean over classes.
    published: whether the figures were measured by others.
    images: measure -> the value of each image; of no published one.
    """

    label: str
    title: str
    settings: Mapping[str, Any]
    classes: Mapping[str, tuple[Row, Row | None]]
    mean: tuple[Row, Row | None]
    published: bool = False
    images: Mapping[str, paired.Values] = {}


class Entry(NamedTuple):
    """A cell: the figure, its difference to the first column, and whether no run's is better."""

    text: str
    difference: str
    best: bool
    value: float | None


def main(argv: Sequence[str] | None = None) -> None:
    parser = _Parser(prog="python -m report.compare", description="Compare result folders of test.py side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--save_path of a test, or its metrics.json")
    parser.add_argument(
        "--metrics", nargs="+", type=metric_name, metavar="METRIC",
        help="which to show, also those of test.py --measures (default: all but iou_px)",
    )  # fmt: skip
    parser.add_argument("--save_path", default="./comparison.html", help="the HTML page (default ./comparison.html)")
    args = parser.parse_args(argv)
    save_path = Path(args.save_path)
    if save_path.is_dir():
        raise ValueError(f"--save_path {save_path}: is a folder; name a file, such as comparison.html")
    result_folder(str(save_path.parent))
    columns = compare([Path(run) for run in args.runs])
    metrics = with_values(columns, args.metrics or (*COMPARED_METRICS, *further_metrics(columns)))
    print(markdown(columns, metrics))
    write(save_path, columns, metrics)
    print(f"\nthe same as a page: {save_path}")


def metric_name(text: str) -> str:
    """A metric that can be compared. Raises argparse.ArgumentTypeError for any other."""
    if text not in CHOICES and (is_threshold(text) or not is_measure(text)):
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(CHOICES)}, or a column of test.py --measures)"
        )
    return text


def further_metrics(columns: Sequence[Column]) -> list[str]:
    """What runs were asked to measure beside METRICS (--measures), in their order."""
    every = tables.metric_names(column.mean[0] for column in columns)
    return [key for key in every if key not in METRICS and not is_threshold(key)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the flags")


def compare(paths: Sequence[Path]) -> list[Column]:
    """The columns of all runs in their order, then the published ones of the same methods, dataset and k.

    Raises:
        ValueError: a folder without results, a broken metrics.json, runs of different datasets.
    """
    columns: list[Column] = []
    for path, label in zip(paths, labels(paths), strict=True):
        settings, runs = read_run(path)
        for k_shot, group in tables.by_k(runs).items():
            column = _column(label, settings, k_shot, group)
            measured = any(key in column.mean[0] for key in PER_IMAGE)
            images = paired.read_measures(_folder(path), k_shot) if measured else {}
            columns.append(column._replace(images=images))
    datasets = {column.settings.get("dataset"): column.label for column in columns}
    if len(datasets) > 1:
        named = ", ".join(f"{label} ({dataset})" for dataset, label in datasets.items())
        raise ValueError(f"these runs are of different datasets: {named}; compare runs of one dataset")
    return columns + published(columns)


def labels(paths: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths without the parents that all share."""
    parts = [_folder(path).resolve().parts for path in paths]
    shared = 0
    while all(len(part) > shared + 1 and part[: shared + 1] == parts[0][: shared + 1] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def read_run(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """(settings that all its runs share, a Run per k and seed) from metrics.json, of one setting or of several.

    Raises:
        ValueError: it is missing or not what `report.as_json` writes; names the file.
    """
    file = _folder(path) / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content.get("runs") or [content]
        runs = [_run(entry) for entry in entries]
        settings = {key: value for key, value in entries[0]["settings"].items() if key not in _OF_RUNS}
        hash(_identity(settings))  # which runs are compared by
    except OSError as error:
        raise ValueError(f"{path}: no results ({error.strerror}: {file}); give the --save_path of a test.py") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not what test.py writes ({error!r}); run the test again") from None
    return settings, runs


def _folder(path: Path) -> Path:
    return path.parent if path.name == "metrics.json" else path


def _run(entry: Mapping[str, Any]) -> Run:
    classes = {
        name: {key: _fraction(row.get(key)) for key in (*METRICS, *filter(is_measure, row))}
        for name, row in entry["classes"].items()
    }
    if not classes:
        raise ValueError("no classes")
    settings = entry["settings"]
    together = settings.get("scored_together")
    return Run(int(settings["k_shot"]), settings["seed"], classes, together and (int(together[0]), int(together[1])))


def _fraction(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is no number")


def _column(label: str, settings: Mapping[str, Any], k_shot: int, runs: Sequence[Run]) -> Column:
    lines: list[tuple[str, tuple[Row, Row | None]]] = []
    for name, seeds in tables.by_class(runs):
        mean, std = tables.over_seeds(seeds)
        lines.append((name, (mean, std if len(runs) > 1 else None)))
    settings = {**settings, "k_shot": k_shot}
    title = f"{settings.get('method', 'unknown method')}, {tables.title(k_shot, runs)}"
    return Column(label, title, settings, dict(lines[:-1]), lines[-1][1])


def published(columns: Sequence[Column]) -> list[Column]:
    """Figures of others for the same method, dataset and k as any of the columns; their aupro is our aupro_200."""
    wanted = {_identity(column.settings) for column in columns}
    figures = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    return [
        Column(
            figure["source"],
            f"{figure['method']}, {figure['k_shot']}-shot" if figure["k_shot"] else f"{figure['method']}, zero-shot",
            {},
            {name: (of_percent(row), None) for name, row in figure["classes"].items()},
            (of_percent(figure["mean"]), None),
            published=True,
        )
        for figure in figures
        if _identity(figure) in wanted
    ]


def _identity(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(settings.get(key) for key in ("method", "dataset", "k_shot"))


def of_percent(row: Mapping[str, float]) -> dict[str, float | None]:
    """A published row of percents as fractions under our names: its aupro is our aupro_200."""
    row = {"aupro_200" if key == "aupro" else key: value / 100 for key, value in row.items()}
    return {key: row.get(key) for key in METRICS}


def with_values(columns: Sequence[Column], metrics: Sequence[str]) -> list[str]:
    """The metrics that at least one column has in at least one class."""
    return [key for key in metrics if any(column.mean[0].get(key) is not None for column in columns)]


def mean_rows(columns: Sequence[Column], metrics: Sequence[str]) -> list[tuple[str, list[Entry]]]:
    """Metric -> its mean over classes in every column; a difference where both means are of the same classes."""
    return [
        (key, _entries(key, columns, [column.mean for column in columns], _measured(key, columns))) for key in metrics
    ]


def class_rows(columns: Sequence[Column], key: str) -> list[tuple[str, list[Entry]]]:
    """Class -> one metric in every column; the classes of all runs."""
    names = dict.fromkeys(name for column in columns if not column.published for name in column.classes)
    return [
        (name, _entries(key, columns, [column.classes.get(name, ({}, None)) for column in columns])) for name in names
    ]


def _measured(key: str, columns: Sequence[Column]) -> list[set[str]]:
    """The classes that have the metric, per column."""
    return [{name for name, (mean, _) in column.classes.items() if mean.get(key) is not None} for column in columns]


def _entries(
    key: str,
    columns: Sequence[Column],
    values: Sequence[tuple[Row, Row | None]],
    measured: Sequence[set[str]] | None = None,
) -> list[Entry]:
    """A row of cells; where `measured` differs from the first column's, a cell is neither best nor has a difference."""
    compared = [
        None if column.published or (measured is not None and measured[number] != measured[0]) else mean.get(key)
        for number, (column, (mean, _)) in enumerate(zip(columns, values, strict=True))
    ]
    # What shows the same figure is equally good.
    figures = [round(100 * value, 1) for value in compared if value is not None]
    first, best = values[0][0].get(key), min if key in LOWER_IS_BETTER else max
    entries = []
    for number, ((mean, std), own) in enumerate(zip(values, compared, strict=True)):
        entries.append(
            Entry(
                tables.cell(key, mean.get(key), None if std is None else std.get(key)),
                "" if number == 0 or own is None or first is None else signed(100 * (own - first)),
                own is not None and len(figures) > 1 and round(100 * own, 1) == best(figures),
                mean.get(key),
            )
        )
    return entries


def signed(difference: float) -> str:
    """A difference in points with its sign, as tables show it."""
    text = f"{difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def partial(columns: Sequence[Column]) -> list[str]:
    """Labels of the runs whose means are over other classes than the first's."""
    own = [column for column in columns if not column.published]
    return list(dict.fromkeys(column.label for column in own if column.classes.keys() != own[0].classes.keys()))


def paired_tests(columns: Sequence[Column], metrics: Sequence[str]) -> list[tuple[str, list[paired.Paired]]]:
    """(title, rows) of the paired tests: every run against the first, by each of the metrics that images have."""
    first, found = columns[0], []
    for column in columns[1:]:
        for key in filter(first.images.__contains__, metrics):
            rows = paired.paired(first.images[key], column.images.get(key, {}))
            names = (f"{one.label}, {one.title}" for one in (column, first))
            found += [(paired.title(key, *names), rows)] if rows else []
    return found


def markdown(columns: Sequence[Column], metrics: Sequence[str]) -> str:
    """The columns as a numbered list, a table of the means, one per metric with the classes, and the paired tests.

    (Their names would make tables too wide for a terminal.)
    """
    named = [
        f"{number}. {escape_controls(column.label)}: {column.title}{' (published)' if column.published else ''}"
        for number, column in enumerate(columns, start=1)
    ]
    heads = [str(number) for number in range(1, len(columns) + 1)]
    blocks = ["\n".join(named), "Percent; differences are to the first column, the best run is bold.", _notes(columns)]
    blocks.append(_table(["mean", *heads], mean_rows(columns, metrics)))
    blocks += [_table([key, *heads], class_rows(columns, key)) for key in metrics]
    for title, rows in paired_tests(columns, metrics):
        blocks += [f"{title}; p of the Wilcoxon signed-rank test, two-sided",
                   tables.markdown_table(paired.HEAD, [row.cells() for row in rows])]  # fmt: skip
    return "\n\n".join(filter(None, blocks))


def _notes(columns: Sequence[Column]) -> str:
    notes = []
    if any(column.published for column in columns):
        notes.append("Published figures were not measured by this project; their aupro stands as aupro_200.")
    if partial(columns):
        names = escape_controls(", ".join(partial(columns)))
        notes.append(f"Scored on other classes than the first, so means are not compared: {names}.")
    return "\n".join(notes)


def _table(head: Sequence[str], lines: Iterable[tuple[str, Sequence[Entry]]]) -> str:
    return tables.markdown_table(head, [[name, *map(_text, entries)] for name, entries in lines])


def _text(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} ({entry.difference})" if entry.difference else text


def write(path: Path, columns: Sequence[Column], metrics: Sequence[str]) -> None:
    """The same tables as one HTML page, and what the runs' settings have in common and what not."""
    own = [column for column in columns if not column.published]
    keys = dict.fromkeys(key for column in own for key in column.settings)
    lines = [(key, [column.settings.get(key) for column in own]) for key in keys if key != "k_shot"]
    html.render(
        path,
        "comparison.html.j2",
        columns=columns,
        own=own,
        means=mean_rows(columns, metrics),
        classes=[(key, class_rows(columns, key)) for key in metrics],
        partial=partial(columns),
        tests=paired_tests(columns, metrics),
        test_head=paired.HEAD,
        different=[line for line in lines if any(value != line[1][0] for value in line[1])],
        common=[(key, values[0]) for key, values in lines if all(value == values[0] for value in values)],
    )


if __name__ == "__main__":
    run_script(main)
