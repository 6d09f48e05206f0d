"""The scores of images without labels: unlabelled.csv, a row per image and few-shot setting."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.files import atomic_write
from utils.text import csv_cell

FILE = "unlabelled.csv"


class UnlabelledRow(NamedTuple):
    """An image under a few-shot setting.

    part: of the dataset, such as test_private.
    score: as in predictions.csv: rescaled over the images of its class and part where the method does so.
    judged_score, verdict: on the scale of normal images; None and "" where there is no threshold.
    score_components: what the scores are made of.
    """

    part: str
    img_path: str
    cls_name: str
    specie_name: str
    k_shot: int
    seed: int | None
    score: float
    judged_score: float | None
    verdict: str
    score_components: Mapping[str, float]


def write_unlabelled(path: Path, rows: Sequence[UnlabelledRow]) -> None:
    """Write the rows; a component that only some images have is blank for the others."""
    components = dict.fromkeys(key for row in rows for key in row.score_components)
    judged = any(row.verdict for row in rows)
    first, last = UnlabelledRow._fields[:-3], ("judged_score", "verdict") if judged else ()
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*first, *components, *last], restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            cells = {**row._asdict(), **row.score_components}
            writer.writerow({key: csv_cell(value) for key, value in cells.items()})
