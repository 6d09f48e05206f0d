"""Metrics of all classes -> tables in text, JSON and CSV."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import SEPARATING_LINE, tabulate

import metrics
from data.references import FewShotSetting
from metrics.names import BOTH, IMAGE, KINDS, PIXEL, is_threshold, split_kind
from report.predictions import ClassScores
from utils.text import escape_controls, markdown_cell

Row = Mapping[str, float | None]  # metric -> fraction; None where it cannot be computed
TABLE = ("auroc_px", "f1_px", "ap_px", "aupro", "auroc_sp", "f1_sp", "ap_sp")
METRICS = (*TABLE, *(key for key in PIXEL + IMAGE if key not in TABLE))


@dataclass(frozen=True)
class Run:
    """The metrics of every class under one setting; k_shot 0 is zero-shot, which has no seed.

    together: how many images of a class were scored together, from and to; None where each was scored by itself.
    """

    k_shot: int
    seed: int | None
    classes: Mapping[str, Row]
    together: tuple[int, int] | None = None

    @property
    def mean(self) -> Row:
        """The plain mean over classes."""
        return metrics.mean(list(self.classes.values()))


def collect(
    results: Sequence[ClassScores], settings: Sequence[FewShotSetting], classes: Sequence[str], *, batched: bool = False
) -> list[Run]:
    """A Run per few-shot setting from the results of all classes and settings, in any order.

    batched: whether the images of a class were scored together.
    """
    rows = {(result.setting, result.name): result.metrics for result in results}
    counts = [len(result.indices) for result in results]
    together = (min(counts), max(counts)) if batched else None
    return [
        Run(setting.k_shot, setting.seed, {name: rows[number, name] for name in classes}, together)
        for number, setting in enumerate(settings)
    ]


def as_json(runs: Sequence[Run], settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run: {"settings", "classes", "mean"}. Several: {"runs", "mean", "std"}, the latter two over seeds, per k."""
    entries = [
        {
            "settings": {**settings, "k_shot": run.k_shot, "seed": run.seed, **_together(run)},
            "classes": {name: _plain(row) for name, row in run.classes.items()},
            "mean": _plain(run.mean),
        }
        for run in runs
    ]
    if len(entries) == 1:
        return entries[0]
    per_k = {str(k): over_seeds([run.mean for run in group]) for k, group in by_k(runs).items()}
    return {
        "runs": entries,
        "mean": {k: mean for k, (mean, _) in per_k.items()},
        "std": {k: std for k, (_, std) in per_k.items()},
    }


def _together(run: Run) -> dict[str, list[int]]:
    return {"scored_together": list(run.together)} if run.together else {}


def metric_names(rows: Iterable[Row]) -> tuple[str, ...]:
    """METRICS, and what some rows have beside them."""
    return tuple(dict.fromkeys((*METRICS, *(key for row in rows for key in row))))


def _plain(row: Row) -> dict[str, float | None]:
    return {key: row[key] for key in metric_names([row])}


def markdown(runs: Sequence[Run], extra: Sequence[str] = ()) -> str:
    """One table per k, in percent; several seeds as mean ± standard deviation (of these seeds, not of a sample).

    extra: metrics to show beside those of TABLE.
    """
    blocks = []
    for k_shot, group in by_k(runs).items():
        for kind, columns in by_kind((*TABLE, *extra)):
            rows = []
            for name, seeds in by_class(group):
                mean, std = over_seeds(seeds)
                rows.append([name, *(cell(key, mean[key], std[key] if len(group) > 1 else None) for key in columns)])
            head = ["objects", *(split_kind(key)[0] for key in columns)]
            blocks += [title(k_shot, group) + (f", {kind}" if kind else ""), markdown_table(head, rows)]
    return "\n\n".join(blocks)


def by_kind(columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(title, its columns) of each table: the one of all anomalies, which has none, then those of kinds of anomalies,
    where columns belong to some."""
    titles = {"": "", **{kind: f"{kind} anomalies and the good images" for kind in KINDS}}
    titles[BOTH] = f"mean of {' and '.join(KINDS)}"
    tables = {kind: [key for key in columns if split_kind(key)[1] == kind] for kind in titles}
    return [(titles[kind], chosen) for kind, chosen in tables.items() if chosen]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, columns aligned; names in it can neither break it nor move a terminal's cursor."""
    lines = [[markdown_cell(text) for text in line] for line in (head, *rows)]
    # tabulate makes columns with a heading two wider than they need be; a first row and a line below it are not.
    drawn: str = tabulate([lines[0], SEPARATING_LINE, *lines[1:]], tablefmt="pipe", disable_numparse=True)
    return drawn.partition("\n")[2]  # without the line above the first row


def title(k_shot: int, runs: Sequence[Run]) -> str:
    """What a table's runs, which share k_shot, are: "zero-shot", "4-shot, seeds 1 2"."""
    if together := runs[0].together:
        count = f"{together[0]}" if together[0] == together[1] else f"{together[0]} to {together[1]}"
        return f"zero-shot, scored together with {count} images"
    if k_shot == 0:
        return "zero-shot"
    seeds = [escape_controls(run.seed) for run in runs if run.seed is not None]
    return f"{k_shot}-shot" + (f", seed{'s' * (len(seeds) > 1)} {' '.join(seeds)}" if seeds else "")


def cell(key: str, mean: float | None, std: float | None) -> str:
    """A metric as tables show it, in percent; blank where there is none, no deviation where std is None."""
    if mean is None:
        return ""
    if is_threshold(key):  # on the scale of the maps, or of the scores
        return f"{mean:.3g}" + (f" ± {std:.2g}" if std is not None else "")
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def by_class(runs: Sequence[Run]) -> list[tuple[str, list[Row]]]:
    """(class, its row in every run), and the mean at the end."""
    rows = [(name, [run.classes[name] for run in runs]) for name in runs[0].classes]
    return [*rows, ("mean", [run.mean for run in runs])]


def by_k(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """k_shot -> its runs, one per seed."""
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.k_shot, []).append(run)
    return groups


def over_seeds(rows: Sequence[Row]) -> tuple[Row, Row]:
    """Mean and standard deviation of each metric; None where any seed lacks it."""
    values = {key: [row.get(key) for row in rows] for key in metric_names(rows)}
    known = {key: [value for value in each if value is not None] for key, each in values.items()}
    complete = {key: each if len(each) == len(rows) else None for key, each in known.items()}
    return (
        {key: None if each is None else float(np.mean(each)) for key, each in complete.items()},
        {key: None if each is None else float(np.std(each)) for key, each in complete.items()},
    )


def csv_rows(runs: Sequence[Run]) -> Iterable[tuple[int, int | str | None, str, Row]]:
    """(k_shot, seed, class, its metrics) of every run; of several seeds also "mean" and "std" in the seed's place."""
    for run in runs:
        for name, (row,) in by_class([run]):
            yield run.k_shot, run.seed, name, row
    for k_shot, group in by_k(runs).items():
        if len(group) > 1:
            for name, seeds in by_class(group):
                mean, std = over_seeds(seeds)
                yield k_shot, "mean", name, mean
                yield k_shot, "std", name, std
