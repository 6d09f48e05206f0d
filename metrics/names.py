"""Names of the metrics, in the order of tables and files. Needs no package, so that command lines know them at once."""

import re
from collections.abc import Sequence
from typing import NamedTuple

PIXEL = ("auroc_px", "f1_px", "ap_px", "aupro", "aupro_200", "iou_px", "threshold_px")
IMAGE = ("auroc_sp", "f1_sp", "ap_sp")
VALIDATION_METRICS = tuple(name for name in PIXEL + IMAGE if name != "threshold_px")  # which is no quality

FPR_LIMIT = 0.3  # of `aupro`
SPRO_LIMIT = 0.05  # of AU-sPRO, where no limit is given (Bergmann et al. 2022)

# What a run measures beside the above, if it is asked for (--measures).
MEASURES = ("aupimo", "ece", "fpr95", "spro")
AUPIMO = ("aupimo", "aupimo_q1", "aupimo_median", "aupimo_q3")  # mean and quartiles over the images of a class
PER_IMAGE = ("aupimo",)  # what an image has a value of, too
FPR95, ECE = "fpr95_sp", "ece_sp"
# At a threshold that is given, and at the best one, which nobody knows who has no labels: `f1_px`, `f1_sp`.
FPR_GIVEN = "fpr_px_given"  # mean share of the pixels above it, of the normal images
PIXEL_GIVEN = ("threshold_px_given", FPR_GIVEN, "f1_px_given", "f1_px_oracle")
IMAGE_GIVEN = ("threshold_sp_given", "f1_sp_given", "f1_sp_oracle")
IN_FILES_ALONE = (PIXEL_GIVEN[0], PIXEL_GIVEN[-1], IMAGE_GIVEN[0], IMAGE_GIVEN[-1])  # tables would grow too wide
ABOVE = "above_px"  # the same share of each image
# Kinds of anomalies that MVTec LOCO counts apart, each with the good images -> their specie_name.
KINDS = {"structural": "structural_anomalies", "logical": "logical_anomalies"}
LOWER_IS_BETTER = (FPR95, ECE, FPR_GIVEN)
BOTH = "both"  # in place of a kind: the mean of the two
_BY_KIND = ("auroc_sp",)  # beside AU-sPRO
_LIMITED = r"(?:aupro|auspro)_fpr[0-9.e-]+"


def limited(name: str, limit: float) -> str:
    """The name of an area up to a false positive rate; `aupro` alone is that of 0.3."""
    return name if (name, limit) == ("aupro", FPR_LIMIT) else f"{name}_fpr{limit:g}"


def of_kind(name: str, kind: str) -> str:
    """The name of a metric of one kind of anomalies, or of the mean of both."""
    return f"{name}.{kind}"


def split_kind(key: str) -> tuple[str, str]:
    """(name, kind) of what `of_kind` gives; kind is "" where there is none."""
    name, dot, kind = key.rpartition(".")
    return (name, kind) if dot and kind in (*KINDS, BOTH) else (key, "")


def is_measure(key: str) -> bool:
    """Whether a name is one that `Measures.metric_names` may hold."""
    name = split_kind(key)[0]
    known = (*AUPIMO, FPR95, ECE, *PIXEL_GIVEN, *IMAGE_GIVEN, *(_BY_KIND if name != key else ()))
    return name in known or re.fullmatch(_LIMITED, name) is not None


def is_threshold(key: str) -> bool:
    """Whether a metric is no quality, but a place on the scale of maps or scores."""
    return key.startswith("threshold_")


class Measures(NamedTuple):
    """What is measured beside `PIXEL` and `IMAGE`.

    chosen: of MEASURES.
    fpr_limits: further limits of AU-PRO, and all limits of AU-sPRO; none: SPRO_LIMIT.
    by_kind: whether the anomalies of the dataset are of KINDS.
    given: whether thresholds are given.
    """

    chosen: Sequence[str] = ()
    fpr_limits: Sequence[float] = ()
    by_kind: bool = False
    given: bool = False

    def aupro(self) -> dict[str, float]:
        """Name -> limit of every further AU-PRO."""
        return {limited("aupro", limit): limit for limit in self.fpr_limits if limit != FPR_LIMIT}

    def auspro(self) -> dict[str, float]:
        """Name -> limit of every AU-sPRO."""
        limits = (self.fpr_limits or (SPRO_LIMIT,)) if "spro" in self.chosen else ()
        return {limited("auspro", limit): limit for limit in limits}

    def kinds(self) -> tuple[str, ...]:
        """The kinds of anomalies that are counted apart: "" where all are one."""
        return tuple(KINDS) if self.by_kind else ("",)

    def metric_names(self) -> tuple[str, ...]:
        """The names of all metrics of a class that it stands for, in order."""
        found = [*self.aupro(), *(PIXEL_GIVEN if self.given else ())]
        found += [*(AUPIMO if "aupimo" in self.chosen else ()), *(() if self.by_kind else self.auspro())]
        found += [*(IMAGE_GIVEN if self.given else ())]
        found += [name for name, measure in ((FPR95, "fpr95"), (ECE, "ece")) if measure in self.chosen]
        apart = (*_BY_KIND, *self.auspro()) if self.by_kind and "spro" in self.chosen else ()
        return (*found, *(of_kind(name, kind) for kind in (*KINDS, BOTH) for name in apart))

    def counts_pixels(self) -> bool:
        """Whether any needs counts of pixels of its own."""
        return bool({"aupimo", "spro"} & set(self.chosen))

    def per_image(self) -> tuple[str, ...]:
        """The names of those that every image has a value of."""
        return (*(name for name in PER_IMAGE if name in self.chosen), *((ABOVE,) if self.given else ()))
