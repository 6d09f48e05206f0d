"""The files of a test run: tables, predictions, the page."""

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data.meta import Sample
from data.references import FewShotSetting
from report import html, judged, predictions, tables
from report.gallery import Gallery
from report.judged import JudgedClass
from report.missing import missing_metrics
from report.predictions import ClassScores, scored_images
from report.tables import Run, metric_names
from utils.files import atomic_write, write_json
from utils.logs import LOG, Lines
from utils.text import csv_cell, escape_controls


def write_results(
    save_path: Path,
    results: Iterable[ClassScores],
    settings: Sequence[FewShotSetting],
    samples: Sequence[Sample],
    galleries: Mapping[tuple[int, str], Gallery],
    description: Mapping[str, Any],
    extra: Sequence[str] = (),
    verdicts: Sequence[JudgedClass] | None = None,
) -> None:
    """Write table.md, metrics.json, metrics.csv, predictions.csv, report.html and, of few-shot settings, k_shot.json;
    log the tables, and which metrics are missing and why.

    Args:
        save_path: the folder of results.
        results: of all classes under all settings, in any order.
        settings: the few-shot settings.
        samples: what was scored, class by class.
        galleries: (setting, class) -> the pictures of the page.
        description: what all runs share, for metrics.json.
        extra: metrics to show beside those of `tables.TABLE`.
        verdicts: thresholds and verdicts of all classes under all settings, where they are asked for: they go to
            thresholds.json, predictions.csv, the page and the log.
    """

    def place(result: ClassScores) -> tuple[int, int, int]:
        setting = settings[result.setting]
        return setting.k_shot, setting.seed or 0, min(result.indices)

    results = sorted(results, key=place)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    runs = tables.collect(results, settings, classes, batched=description.get("mode") == "batched")
    few_shot = [setting.as_dict() for setting in settings if setting.k_shot > 0]
    if few_shot:
        write_json(save_path / "k_shot.json", few_shot)
    of_class = {(one.setting, one.name): one for one in verdicts or ()}
    images = list(
        chain.from_iterable(
            scored_images(one, settings[one.setting], samples, of_class.get((one.setting, one.name))) for one in results
        )
    )
    predictions.write_predictions(save_path / predictions.FILE, images)
    write_tables(save_path, runs, description, extra)
    html.write_page(save_path / "report.html", runs, images, results, galleries, extra, verdicts or ())
    if verdicts is not None:
        judged.write_thresholds(save_path / judged.FILE, verdicts, settings)
    for one in verdicts or ():
        text = escape_controls(judged.line(one, settings[one.setting]))
        LOG.log(logging.WARNING if one.reason else logging.INFO, "%s", text)
    for line in missing_metrics(results, samples):
        LOG.warning("%s", escape_controls(line))
    LOG.info("\n%s\n\nresults are in %s", Lines(tables.markdown(runs, extra)), save_path)


def write_tables(save_path: Path, runs: Sequence[Run], settings: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """Write table.md, metrics.json and metrics.csv.

    Args:
        settings: what all runs share.
        extra: metrics that table.md shows beside those of `tables.TABLE`.
    """
    with atomic_write(save_path / "table.md") as path:
        path.write_text(tables.markdown(runs, extra) + "\n", encoding="utf-8")
    write_json(save_path / "metrics.json", tables.as_json(runs, settings))
    with atomic_write(save_path / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer, columns = csv.writer(file), metric_names(row for run in runs for row in run.classes.values())
        writer.writerow(["k_shot", "seed", "objects", *columns])
        for k_shot, seed, name, row in tables.csv_rows(runs):
            writer.writerow([k_shot, seed, csv_cell(name), *(row[key] for key in columns)])
