"""Why a metric of a class is missing."""

from collections.abc import Iterable, Mapping, Sequence

from data.meta import Sample
from metrics.names import AUPIMO, ECE, FPR95, FPR_GIVEN, IMAGE, IMAGE_GIVEN, PIXEL, PIXEL_GIVEN, split_kind
from report.predictions import ClassScores
from report.tables import metric_names


def missing_metrics(results: Iterable[ClassScores], samples: Sequence[Sample]) -> list[str]:
    """A line per class and cause: "<class>: <metrics> cannot be computed: <cause>"; none where nothing is missing.

    Args:
        results: of all classes and settings; what is missing under several settings is named once.
        samples: the samples that the results' indices count.
    """
    results, found = list(results), dict[tuple[str, str], set[str]]()
    order = metric_names(result.metrics for result in results)
    for result in results:
        for key, cause in _causes([samples[index] for index in result.indices], result.metrics).items():
            found.setdefault((result.name, cause), set()).add(key)
    return [
        f"{name}: {', '.join(key for key in order if key in keys)} cannot be computed: {cause}"
        for (name, cause), keys in found.items()
    ]


def _causes(samples: Sequence[Sample], row: Mapping[str, float | None]) -> dict[str, str]:
    """Missing metric of a class -> its cause."""
    causes = {}
    for key in metric_names([row]):
        name, kind = split_kind(key)
        if row[key] is None:
            if (
                key in (*PIXEL_GIVEN, *IMAGE_GIVEN)
                and row[f"threshold_{'px' if key in PIXEL_GIVEN else 'sp'}_given"] is None
            ):
                causes[key] = "no threshold is given"
            elif key == ECE:
                causes[key] = "its scores are no probabilities"
            elif kind:
                causes[key] = "its test images lack a kind of anomaly, good images, or masks of them"
            elif key in (*IMAGE, *IMAGE_GIVEN, FPR95, FPR_GIVEN):
                causes[key] = _one_label(samples)
            elif all(row[other] is None for other in PIXEL):
                causes[key] = _no_pixels(samples)
            elif key in AUPIMO:
                causes[key] = _no_rate(samples)
            elif row["aupro"] is None:
                causes[key] = "all pixels of its maps have one value"
            elif name.startswith("auspro"):
                causes[key] = "none of its regions is left at the size of the maps"
            else:  # aupro_200
                causes[key] = "the false positive rates of its 200 thresholds do not differ below 0.3"
    return causes


def _no_rate(samples: Sequence[Sample]) -> str:
    if all(sample.anomaly for sample in samples):
        return _one_label(samples)
    return (
        "its normal images cannot tell a false positive rate of 1e-5: they have fewer than 100000 pixels together, or "
        "more than one in 100000 share the highest value"
    )


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
