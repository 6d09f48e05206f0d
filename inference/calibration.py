"""The scale of a detector's scores for one object, and the threshold of its verdicts, from normal images.

The published image scores are rescaled over the whole test set of a class. One's own images have no such set, so the
scale comes from normal images: a folder of them, or the references themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.files import read_json, write_json


@dataclass(frozen=True)
class Calibration:
    """The scale of a detector's scores for one object.

    limits: term of the image score -> (low, high) over the normal images.
    threshold: a score above it is an anomaly.
    fpr: the false-positive rate that the threshold stands for, on normal images like these.
    normal_images: how many there were, copies aside; source: where they came from.
    heat: (low, high) of the colour scale of maps.
    made_with: what identifies the detector and the object.
    """

    limits: dict[str, tuple[float, float]]
    threshold: float
    fpr: float
    normal_images: int
    source: str
    heat: tuple[float, float]
    made_with: dict[str, Any]

    def verdict(self, score: float) -> str:
        """ "anomalous" or "normal"."""
        return "anomalous" if score > self.threshold else "normal"

    def save(self, path: Path) -> None:
        """Write calibration.json."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """What `save` wrote. Raises ValueError for any other file; names it."""
        try:
            return cls.from_dict(read_json(path))
        except FileNotFoundError:
            raise ValueError(f"calibration {path}: no such file") from None
        except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"calibration {path}: no file that predict.py wrote ({error})") from None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """From the JSON that `save` writes. Raises AttributeError, KeyError, OverflowError, TypeError or ValueError for
        anything else."""
        limits = {str(key): _low_high(value) for key, value in content["limits"].items()}
        threshold, fpr, count = float(content["threshold"]), float(content["fpr"]), int(content["normal_images"])
        sound = limits and math.isfinite(threshold) and 0 < fpr < 1 and count >= 1
        if not sound or content.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("other keys than it should have, or numbers out of range")
        heat, made_with = _low_high(content["heat"]), dict(content["made_with"])
        return cls(limits, threshold, fpr, count, str(content["source"]), heat, made_with)


def _low_high(value: Any) -> tuple[float, float]:
    low, high = map(float, value)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{value} are no limits")
    return low, high


def limits_of(score_components: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each term over normal images; where they are equal, the unit is 1."""
    lows_highs = {key: (float(min(values)), float(max(values))) for key, values in score_components.items()}
    return {key: (low, high if high > low else low + 1.0) for key, (low, high) in lows_highs.items()}


def threshold_of(scores: Sequence[float], fpr: float) -> tuple[float, float]:
    """The lowest threshold above which a further normal image falls with a probability of at most `fpr`, if it is like
    the given ones (split conformal prediction: the ceil((n + 1)(1 - fpr))-th of n sorted scores).

    Returns:
        (threshold, the rate that it stands for): with few images, the highest score and 1 / (n + 1), which is more than
        was asked for.
    """
    ordered = sorted(scores)
    rank = min(math.ceil((len(ordered) + 1) * (1 - fpr) - 1e-9), len(ordered))
    return ordered[rank - 1], max(fpr, 1 / (len(ordered) + 1))


def images_needed(fpr: float) -> int:
    """How many normal images it takes for `threshold_of` to keep the rate."""
    return math.ceil(1 / fpr - 1 - 1e-9)
