"""The score of every test image, one row each: predictions.csv."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.meta import Sample, shown_kind
from data.references import FewShotSetting
from metrics.curves import Points
from metrics.names import ABOVE, PER_IMAGE
from report.judged import VERDICTS, JudgedClass
from utils.files import atomic_write
from utils.text import csv_cell, csv_value

FILE = "predictions.csv"


class ClassScores(Protocol):
    """The results of one class under one few-shot setting, as `engine.evaluation.score` yields them."""

    @property
    def setting(self) -> int: ...  # index into the few-shot settings

    @property
    def name(self) -> str: ...  # of the class

    @property
    def metrics(self) -> Mapping[str, float | None]: ...  # fractions; None where a metric cannot be computed

    @property
    def indices(self) -> Sequence[int]: ...  # of the images, into the samples

    @property
    def scores(self) -> Sequence[float]: ...  # of the images

    @property
    def score_components(self) -> Mapping[str, Sequence[float]]: ...  # what the scores are made of, per image

    @property
    def curves(self) -> Mapping[str, Points]: ...  # of the pixels

    @property
    def image_measures(self) -> Mapping[str, Sequence[float | None]]: ...  # of MEASURES, per image


class ScoredImage(NamedTuple):
    """One test image under one few-shot setting: a row of predictions.csv."""

    img_path: str
    cls_name: str
    specie_name: str  # kind of defect, "good", or "" where the dataset does not say
    anomaly: int  # 0 or 1
    k_shot: int
    seed: int | None  # None: zero-shot
    score: float
    score_components: Mapping[str, float] = {}
    measures: Mapping[str, float] = {}  # of MEASURES; what cannot be computed is not there
    judged_score: float | None = None  # on the scale of normal images, which verdicts are about
    verdict: str = ""  # "anomalous" or "normal"; "" where there is no threshold

    @property
    def kind(self) -> str:
        """See `shown_kind`."""
        return shown_kind(self.specie_name, self.anomaly)


_COLUMNS = ScoredImage._fields[:-4]  # those of components and measures follow, then those of verdicts, if any
_JUDGED = ("judged_score", "verdict")
MEASURES = (*PER_IMAGE, ABOVE)


def scored_images(
    result: ClassScores, setting: FewShotSetting, samples: Sequence[Sample], judged: JudgedClass | None = None
) -> list[ScoredImage]:
    """The images of one class under one setting, in the order of the samples."""
    verdicts = [VERDICTS[above] for above in judged.verdicts] if judged else []
    return [
        ScoredImage(
            img_path=sample.img_path,
            cls_name=sample.cls_name,
            specie_name=sample.specie_name,
            anomaly=sample.anomaly,
            k_shot=setting.k_shot,
            seed=setting.seed,
            score=result.scores[place],
            score_components={key: values[place] for key, values in result.score_components.items()},
            measures={
                key: value for key, values in result.image_measures.items() if (value := values[place]) is not None
            },
            judged_score=judged.scores[place] if judged and verdicts else None,
            verdict=verdicts[place] if verdicts else "",
        )
        for place, sample in enumerate(samples[index] for index in result.indices)
    ]


def write_predictions(path: Path, images: Iterable[ScoredImage]) -> None:
    """Write a row per image and setting; a component or measure that only some images have is blank for the others."""
    images = list(images)
    rows = [{**image._asdict(), **image.score_components, **image.measures} for image in images]
    components = dict.fromkeys(key for kind in ("score_components", "measures") for row in rows for key in row[kind])
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        judged = _JUDGED if any(image.verdict for image in images) else ()
        writer = csv.DictWriter(file, [*_COLUMNS, *components, *judged], restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)


def read_predictions(path: Path) -> list[ScoredImage]:
    """What `write_predictions` has written.

    Raises:
        ValueError: the file is missing, holds no rows or is not what test.py writes; names the file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            images = [_parse(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the --save_path of a finished test.py") from None
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not what test.py writes ({error!r}); run the test again") from None
    if not images:
        raise ValueError(f"{path}: holds no images; run the test again")
    return images


def _parse(row: Mapping[str, Any]) -> ScoredImage:
    anomaly = int(row["anomaly"])
    if anomaly not in (0, 1):
        raise ValueError(f"anomaly {anomaly} is neither 0 nor 1")
    return ScoredImage(
        img_path=csv_value(row["img_path"]),
        cls_name=csv_value(row["cls_name"]),
        specie_name=csv_value(row["specie_name"]),
        anomaly=anomaly,
        k_shot=int(row["k_shot"]),
        seed=int(row["seed"]) if row["seed"] else None,
        score=float(row["score"]),
        score_components={
            key: float(value) for key, value in row.items() if key not in (*_COLUMNS, *MEASURES, *_JUDGED) and value
        },
        measures={key: float(row[key]) for key in MEASURES if row.get(key)},
        judged_score=float(row["judged_score"]) if row.get("judged_score") else None,
        verdict=row.get("verdict") or "",
    )
