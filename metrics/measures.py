"""What a run measures beside the metrics that every run has: see `metrics.names.Measures`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from metrics.image import calibration_error, f1_above, fpr_at_tpr, image_metrics
from metrics.names import AUPIMO, ECE, FPR95, IMAGE_GIVEN, KINDS, Measures, of_kind
from metrics.pimo import PimoCounts, spread
from metrics.spro import SaturatedRegion, SproCounts, mean_of_kinds


class Thresholds(NamedTuple):
    """Thresholds that were fixed without the test images; what is greater is anomalous. None: there is none.

    pixel: of the maps. image: of the scores.
    """

    pixel: float | None = None
    image: float | None = None


class PixelMeasures:
    """The pixel measures of one class that need counts of their own, image by image: AUPIMO and AU-sPRO.

    Args:
        measures: what is wanted.
        normal_images: how many images of the class are normal.
    """

    def __init__(self, measures: Measures, normal_images: int) -> None:
        self._measures = measures
        self._pimo = PimoCounts(normal_images) if "aupimo" in measures.chosen else None
        self._spro = SproCounts() if "spro" in measures.chosen else None

    def update(
        self, index: int, one: Tensor, defect: Tensor, regions: Sequence[SaturatedRegion], *, anomalous: bool, kind: str
    ) -> None:
        """Count the pixels of an image.

        Args:
            index: of the image.
            one: (H, W) float32, its map.
            defect: (H, W) non-zero where there is a defect.
            regions: its defects, where AU-sPRO is wanted.
            anomalous: its label.
            kind: its specie_name, which says to which of KINDS it belongs, where they are counted apart.
        """
        if self._pimo and anomalous:
            self._pimo.add_anomalous(index, one, defect)
        elif self._pimo:
            self._pimo.add_normal(one)
        if self._spro:
            self._spro.update(one, regions, self._group(kind) if anomalous else "good")

    def _group(self, kind: str) -> str:
        if not self._measures.by_kind:
            return ""
        return next((name for name, specie in KINDS.items() if specie == kind), kind)

    def merge(self, other: "PixelMeasures") -> None:
        """Add what another process has counted of the same class."""
        if self._pimo and other._pimo:
            self._pimo.merge(other._pimo)
        if self._spro and other._spro:
            self._spro.merge(other._spro)

    def compute(self) -> dict[str, float | None]:
        """Their names in `Measures.metric_names`; None is what cannot be computed."""
        row: dict[str, float | None] = {}
        if self._pimo:
            row |= spread(self._pimo.compute().values())
        if self._spro:
            row |= self._spro.compute(self._measures)
        return row

    def per_image(self) -> dict[str, dict[int, float]]:
        """Name -> image -> its value, of the images that have one."""
        return {AUPIMO[0]: self._pimo.compute()} if self._pimo else {}


def image_measures(
    measures: Measures,
    labels: Any,
    scores: Any,
    *,
    probabilities: bool,
    kinds: Sequence[str] = (),
    threshold: float | None = None,
) -> dict[str, float | None]:
    """The image measures of one class.

    Args:
        labels, scores: (N,) as in `image_metrics`.
        probabilities: whether the scores are probabilities of an anomaly, without which there is no calibration error.
        kinds: (N,) the specie_name of each image, where kinds are counted apart.
        threshold: of the scores, where one is given.

    Returns:
        Their names in `Measures.metric_names`; None is what cannot be computed.
    """
    row: dict[str, float | None] = dict.fromkeys(IMAGE_GIVEN) if measures.given else {}
    if measures.given and threshold is not None:
        best = image_metrics(labels, scores)["f1_sp"]
        row |= dict(zip(IMAGE_GIVEN, (threshold, f1_above(labels, scores, threshold), best), strict=True))
    if "fpr95" in measures.chosen:
        row[FPR95] = fpr_at_tpr(labels, scores)
    if "ece" in measures.chosen:
        row[ECE] = calibration_error(labels, scores) if probabilities else None
    if measures.by_kind and "spro" in measures.chosen:
        labels, scores = np.asarray(labels), np.asarray(scores)
        for kind, specie in KINDS.items():
            own = (labels == 0) | (np.asarray(kinds) == specie)
            row[of_kind("auroc_sp", kind)] = image_metrics(labels[own], scores[own])["auroc_sp"]
        row |= mean_of_kinds(row, ["auroc_sp"])
    return row
