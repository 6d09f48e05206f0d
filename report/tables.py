"""Rows of metrics -> tables in text, JSON and CSV."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import metrics
from metrics.image import IMAGE
from metrics.pixel import PIXEL

Row = Mapping[str, float | None]  # metric -> fraction; None where it cannot be computed
TABLE = ("auroc_px", "f1_px", "ap_px", "aupro", "auroc_sp", "f1_sp", "ap_sp")
METRICS = (*TABLE, *(key for key in PIXEL + IMAGE if key not in TABLE))


@dataclass(frozen=True)
class Run:
    """The metrics of every class under one setting; k_shot 0 is zero-shot, which has no seed."""

    k_shot: int
    seed: int | None
    classes: Mapping[str, Row]

    @property
    def mean(self) -> Row:
        """The plain mean over classes."""
        return metrics.mean(list(self.classes.values()))


def collect(results: Iterable[Any], settings: Sequence[Any], classes: Sequence[str]) -> list[Run]:
    """A Run per few-shot setting from `engine.evaluation.ClassScores` of all classes and settings, in any order."""
    found = {(result.setting, result.name): result.metrics for result in results}
    return [
        Run(setting.k_shot, setting.seed, {name: found[number, name] for name in classes})
        for number, setting in enumerate(settings)
    ]


def as_json(runs: Sequence[Run], settings: Mapping[str, Any]) -> dict:
    """One run: {"settings", "classes", "mean"}. Several: {"runs", "mean", "std"}, the latter two over seeds, per k."""
    entries = [
        {
            "settings": {**settings, "k_shot": run.k_shot, "seed": run.seed},
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


def markdown(runs: Sequence[Run], extra: Sequence[str] = ()) -> str:
    """One table per k, in percent; several seeds as mean ± standard deviation (of these seeds, not of a sample).

    extra: metrics to show beside those of TABLE.
    """
    return "\n\n".join(_table(k, group, (*TABLE, *extra)) for k, group in by_k(runs).items())


def _table(k_shot: int, runs: Sequence[Run], columns: Sequence[str]) -> str:
    rows = [["objects", *columns]]
    for name, seeds in by_class(runs):
        mean, std = over_seeds(seeds)
        rows.append([name, *(cell(key, mean[key], std[key] if len(runs) > 1 else None) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join([":" + "-" * (width + 1) for width in widths]) + "|"
    return "\n".join([title(k_shot, runs), "", lines[0], rule, *lines[1:]])


def title(k_shot: int, runs: Sequence[Run]) -> str:
    """What a table's runs, which share k_shot, are: "zero-shot", "4-shot, seeds 1 2"."""
    if k_shot == 0:
        return "zero-shot"
    seeds = [str(run.seed) for run in runs if run.seed is not None]
    return f"{k_shot}-shot" + (f", seed{'s' * (len(seeds) > 1)} {' '.join(seeds)}" if seeds else "")


def cell(key: str, mean: float | None, std: float | None) -> str:
    """A metric as tables show it, in percent; blank where there is none, no deviation where std is None."""
    if mean is None:
        return ""
    if key == "threshold_px":  # on the scale of the maps
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


def over_seeds(rows: Sequence[Row]) -> tuple[dict, dict]:
    """Mean and standard deviation of each metric; None where any seed lacks it."""
    mean, std = {}, {}
    for key in METRICS:
        values = [row[key] for row in rows]
        known = None not in values
        mean[key] = float(np.mean(values)) if known else None
        std[key] = float(np.std(values)) if known else None
    return mean, std


def csv_rows(runs: Sequence[Run]) -> Iterable[tuple[int, Any, str, Row]]:
    for run in runs:
        for name, (row,) in by_class([run]):
            yield run.k_shot, run.seed, name, row
    for k_shot, group in by_k(runs).items():
        if len(group) > 1:
            for name, seeds in by_class(group):
                mean, std = over_seeds(seeds)
                yield k_shot, "mean", name, mean
                yield k_shot, "std", name, std


def _plain(row: Row) -> dict[str, float | None]:
    return {key: row[key] for key in METRICS}


def blank(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def absent(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Class -> metrics that no run has."""
    return {
        name: missing
        for name in runs[0].classes
        if (missing := [key for key in METRICS if all(run.classes[name][key] is None for run in runs)])
    }
