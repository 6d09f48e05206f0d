"""Two runs image by image: whether a measure that images have differs by more than chance (Wilcoxon signed-rank)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metrics.names import PER_IMAGE
from report import predictions
from utils.text import escape_controls

Values = Mapping[tuple[str, str], float]  # (class, img_path) -> its value, the mean over seeds


class Paired(NamedTuple):
    """The images of a class that both runs have, or of all classes.

    images: how many; differences: how many of them differ.
    median: of the differences, the other run minus the first.
    p: two-sided, of the Wilcoxon signed-rank test; None where no image differs.
    """

    name: str
    images: int
    differences: int
    median: float
    p: float | None

    def cells(self) -> list[str]:
        """Its texts in a table: class, images, median difference in percent, p."""
        p = "no image differs" if self.p is None else f"{self.p:.2g}"
        return [self.name, str(self.images), f"{100 * self.median:+.1f}".replace("-", "−"), p]


HEAD = ("objects", "images", "median difference", "p")


def read_measures(folder: Path, k_shot: int) -> dict[str, Values]:
    """Measure -> its value of each image of a run with so many shots, from predictions.csv; only those that are there.

    An image that lacks a value under one seed has none. Raises ValueError as `read_predictions`.
    """
    path = folder / predictions.FILE
    images = [one for one in predictions.read_predictions(path) if one.k_shot == k_shot] if path.is_file() else []
    seeds = len({one.seed for one in images})
    found: dict[str, Values] = {}
    for name in PER_IMAGE:
        values: dict[tuple[str, str], list[float]] = {}
        for one in images:
            if name in one.measures:
                values.setdefault((one.cls_name, one.img_path), []).append(one.measures[name])
        complete = {key: sum(own) / len(own) for key, own in values.items() if len(own) >= seeds}
        if complete:
            found[name] = complete
    return found


def paired(first: Values, other: Values) -> list[Paired]:
    """A row for each class, and one of all their images together where there are several classes; [] without any image
    that both have."""
    shared = [key for key in first if key in other]
    classes = list(dict.fromkeys(name for name, _ in shared))
    groups = {name: [key for key in shared if key[0] == name] for name in classes}
    rows = [_row(name, [other[key] - first[key] for key in keys]) for name, keys in groups.items()]
    if len(classes) > 1:
        rows.append(_row("all images", [other[key] - first[key] for key in shared]))
    return rows


def _row(name: str, differences: Sequence[float]) -> Paired:
    from scipy.stats import wilcoxon  # takes a second to import, and most comparisons need none

    values = np.array(differences)
    count = int(np.count_nonzero(values))
    p = float(wilcoxon(values).pvalue) if count else None  # images that do not differ are left out of the ranks
    return Paired(name, len(values), count, float(np.median(values)), p)


def title(measure: str, other: str, first: str) -> str:
    """What a table of `paired` shows."""
    return f"{measure} image by image: {escape_controls(other)} against {escape_controls(first)}"
