"""The files of a test run: tables, predictions, the page."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import METHODS
from report import html, tables
from report.tables import METRICS, Run
from utils.files import atomic_write, write_json
from utils.logs import LOG


def write_tables(save_path: Path, runs: Sequence[Run], settings: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """metrics.json, metrics.csv and table.md. settings: what all runs share; extra: see `markdown`."""
    with atomic_write(save_path / "table.md") as path:
        path.write_text(tables.markdown(runs, extra) + "\n", encoding="utf-8")
    write_json(save_path / "metrics.json", tables.as_json(runs, settings))
    with atomic_write(save_path / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["k_shot", "seed", "objects", *METRICS])
        for k_shot, seed, name, row in tables.csv_rows(runs):
            writer.writerow([k_shot, "" if seed is None else seed, name, *(tables.blank(row[key]) for key in METRICS)])


def prediction_rows(result: Any, setting: Any, samples: Sequence[Any]) -> list[dict[str, Any]]:
    """A row per image of `engine.evaluation.ClassScores`: what it is, its setting, score and score components."""
    rows = []
    for place, index in enumerate(result.indices):
        sample = samples[index]
        row = {key: getattr(sample, key) for key in ("img_path", "cls_name", "specie_name", "anomaly")}
        score_components = {key: values[place] for key, values in result.score_components.items()}
        rows.append(
            {**row, "k_shot": setting.k_shot, "seed": setting.seed, "score": result.scores[place], **score_components}
        )
    return rows


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """predictions.csv: a row per image and setting."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_results(settings, description, shots, classes, results, rows, galleries) -> None:
    save_path = Path(settings.save_path)
    runs = tables.collect(results, shots, classes)
    few = [shot._asdict() for shot in shots if shot.k_shot > 0]
    if few:
        write_json(save_path / "k_shot.json", few)
    write_predictions(save_path / "predictions.csv", rows)
    extra = METHODS[settings.method].PRESET.extra_metrics
    write_tables(save_path, runs, {**description, "mode": settings.mode}, extra)
    html.write_page(save_path / "report.html", runs, rows, results, galleries, extra)
    for name, missing in tables.absent(runs).items():
        LOG.warning("%s: %s cannot be computed (one label only, no masks, or constant maps)", name, ", ".join(missing))
    LOG.info("\n%s\n\nresults are in %s", tables.markdown(runs, extra), save_path)
