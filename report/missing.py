"""Why a metric of a class is missing."""

from collections.abc import Iterable, Mapping, Sequence

from data.meta import Sample
from metrics.names import IMAGE, PIXEL
from report.predictions import ClassScores
from report.tables import METRICS


def missing_metrics(results: Iterable[ClassScores], samples: Sequence[Sample]) -> list[str]:
    """A line per class and cause: "<class>: <metrics> cannot be computed: <cause>"; none where nothing is missing.

    Args:
        results: of all classes and settings; what is missing under several settings is named once.
        samples: the samples that the results' indices count.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for result in results:
        for key, cause in _causes([samples[index] for index in result.indices], result.metrics).items():
            found.setdefault((result.name, cause), set()).add(key)
    return [
        f"{name}: {', '.join(key for key in METRICS if key in keys)} cannot be computed: {cause}"
        for (name, cause), keys in found.items()
    ]


def _causes(samples: Sequence[Sample], row: Mapping[str, float | None]) -> dict[str, str]:
    """Missing metric of a class -> its cause."""
    causes = {}
    for key in METRICS:
        if row[key] is None:
            if key in IMAGE:
                causes[key] = _one_label(samples)
            elif all(row[other] is None for other in PIXEL):
                causes[key] = _no_pixels(samples)
            elif row["aupro"] is None:
                causes[key] = "all pixels of its maps have one value"
            else:  # aupro_200
                causes[key] = "the false positive rates of its 200 thresholds do not differ below 0.3"
    return causes


def _one_label(samples: Sequence[Sample]) -> str:
    return f"its test images are all {'anomalous' if samples[0].anomaly else 'normal'}"


def _no_pixels(samples: Sequence[Sample]) -> str:
    anomalous = [sample for sample in samples if sample.anomaly]
    without = sum(not sample.mask_path for sample in anomalous)
    if not anomalous:
        return _one_label(samples)
    if without:
        return f"{without} of its {len(anomalous)} anomalous images {'has' if without == 1 else 'have'} no mask"
    normal = "" if len(anomalous) < len(samples) else ", or no normal one,"
    return f"its masks hold no defect pixel{normal} at the size of the maps"
