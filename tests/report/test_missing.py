"""Which metric of a class is missing, because of what."""

import numpy as np
import pytest

from data.meta import Sample
from engine.class_scores import ClassScores
from metrics import evaluate
from metrics.names import IMAGE_GIVEN, Measures
from report.missing import missing_metrics
from report.tables import METRICS

PIXEL = "auroc_px, f1_px, ap_px, aupro, aupro_200, iou_px, threshold_px cannot be computed"
IMAGE = "auroc_sp, f1_sp, ap_sp cannot be computed"
PRO, PRO_200 = "aupro, aupro_200 cannot be computed", "aupro_200 cannot be computed"
ALL = f"{', '.join(METRICS)} cannot be computed"
NORMAL, DEFECT, UNMASKED = (
    Sample("good.png", "", "nut", "good", 0),
    Sample("bad.png", "mask.png", "nut", "hole", 1),
    Sample("odd.png", "", "nut", "hole", 1),
)
MASK, EMPTY = np.pad(np.ones((3, 3)), 4), np.zeros((11, 11))
MAP = np.arange(121.0).reshape(11, 11)


def lines(samples, maps=None, masks=None, settings=1) -> list[str]:
    """Of one class; with masks, from metrics as they are computed."""
    labels, scores = [sample.anomaly for sample in samples], list(range(len(samples)))
    row = evaluate(maps, masks, labels, scores)
    results = [ClassScores(n, "nut", row, list(range(len(samples))), scores, {}, {}) for n in range(settings)]
    return missing_metrics(results, samples)


@pytest.mark.parametrize(
    ("samples", "maps", "masks", "line"),
    [
        ([NORMAL] * 2, [MAP] * 2, [EMPTY] * 2, f"{ALL}: its test images are all normal"),
        ([DEFECT] * 2, [MAP] * 2, [MASK] * 2, f"{IMAGE}: its test images are all anomalous"),
        ([NORMAL, DEFECT, UNMASKED], None, None, f"{PIXEL}: 1 of its 2 anomalous images has no mask"),
        ([NORMAL, DEFECT], [MAP] * 2, [EMPTY] * 2, f"{PIXEL}: its masks hold no defect pixel at the size of the maps"),
        ([DEFECT, NORMAL], [EMPTY] * 2, [MASK, EMPTY], f"{PRO}: all pixels of its maps have one value"),
        ([DEFECT, NORMAL], [MASK, EMPTY], [MASK, EMPTY], f"{PRO_200}: the false positive rates of its 200 thresholds "
                                                         "do not differ below 0.3"),
    ],
)  # fmt: skip
def test_the_cause_is_named(samples, maps, masks, line):
    assert lines(samples, maps, masks) == [f"nut: {line}"]


def test_nothing_is_said_where_nothing_is_missing():
    assert lines([DEFECT, NORMAL], [MAP, MAP], [MASK, EMPTY]) == []


MISSING = "aupro_fpr0.1, aupimo, aupimo_q1, aupimo_median, aupimo_q3, auspro_fpr0.1 cannot be computed"
RATE = "aupimo, aupimo_q1, aupimo_median, aupimo_q3 cannot be computed: its normal images cannot tell a false positive"


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([NORMAL, DEFECT], [RATE, "ece_sp cannot be computed: its scores are no probabilities"]),
        ([NORMAL, UNMASKED], [f"{PIXEL.removesuffix(' cannot be computed')}, {MISSING}: 1 of its 1 anomalous"]),
        ([DEFECT] * 2, ["aupimo, aupimo_q1, aupimo_median, aupimo_q3, f", "its test images are all anomalous"]),
    ],
)
def test_measures_that_are_missing_have_causes(samples, expected):
    """As the engine gives them, with two thresholds asked for of which one is given."""
    measures = Measures(("aupimo", "spro", "ece", "fpr95"), (0.1,), given=True)
    labels = [sample.anomaly for sample in samples]
    masked = all(sample.mask_path for sample in samples if sample.anomaly)
    row = evaluate([MAP] * 2 if masked else None, [MASK * label for label in labels], labels, [1.0, 2.0])
    row |= dict.fromkeys(measures.metric_names()) | {"threshold_sp_given": 0.5}
    if masked:
        row |= dict.fromkeys(("aupro_fpr0.1", "auspro_fpr0.1"), 0.5)
    if len(set(labels)) == 2:
        row |= dict.fromkeys((*IMAGE_GIVEN, "fpr95_sp"), 0.5)
    found = missing_metrics([ClassScores(0, "nut", row, [0, 1], [1.0, 2.0], {}, {})], samples)
    assert all(any(words in line for line in found) for words in expected), found
    given = "threshold_px_given, fpr_px_given, f1_px_given, f1_px_oracle"
    assert f"nut: {given} cannot be computed: no threshold is given" in found


def test_several_settings_say_it_once():
    assert len(lines([NORMAL, UNMASKED], settings=3)) == 1
