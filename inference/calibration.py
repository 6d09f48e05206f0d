"""The scale of a detector's scores for one object, and the thresholds of its verdicts, from normal images.

The published image scores are rescaled over the whole test set of a class. One's own images have no such set, so the
scale comes from normal images: a folder of them, or the references themselves. The rules of the thresholds are in
metrics/thresholds.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.files import read_json, write_json

_OPTIONAL = ("rule", "pixel_threshold", "pixel_fpr")  # only where --threshold names a rule


@dataclass(frozen=True)
class Calibration:
    """The scale of a detector's scores for one object.

    limits: term of the image score -> (low, high) over the normal images.
    threshold: a score above it is an anomaly.
    fpr: the false-positive rate that the threshold stands for, on normal images like these; None: not known.
    normal_images: how many there were, copies aside; source: where they came from.
    heat: (low, high) of the colour scale of maps.
    made_with: what identifies the detector and the object.
    rule: that gave the threshold, in words; None: conformal, which nobody asked for by name.
    pixel_threshold, pixel_fpr: the same of the pixels of maps, where a rule was named; pixel_fpr None: not known.
    """

    limits: dict[str, tuple[float, float]]
    threshold: float
    fpr: float | None
    normal_images: int
    source: str
    heat: tuple[float, float]
    made_with: dict[str, Any]
    rule: str | None = None
    pixel_threshold: float | None = None
    pixel_fpr: float | None = None

    def verdict(self, score: float) -> str:
        """ "anomalous" or "normal"."""
        return "anomalous" if score > self.threshold else "normal"

    def promise(self) -> str:
        """The rate that the threshold stands for, in words."""
        if self.fpr is None:
            return "how many normal images lie above it is not known"
        share = f"{100 * self.fpr:.1f}%" if self.fpr >= 0.001 else f"{100 * self.fpr:.2g}%"
        normally = ", if their scores are normally distributed" if (self.rule or "").startswith("mean_std") else ""
        return f"about {share} of normal images lie above it{normally}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; without a named rule, what earlier versions wrote."""
        return {key: value for key, value in asdict(self).items() if self.rule or key not in _OPTIONAL}

    def save(self, path: Path) -> None:
        """Write calibration.json."""
        write_json(path, self.as_dict())

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
        threshold, count = float(content["threshold"]), int(content["normal_images"])
        rule = str(content["rule"]) if "rule" in content else None
        optional = _OPTIONAL if rule else ()
        wanted = {key for key in cls.__dataclass_fields__ if key not in _OPTIONAL or key in optional}
        if not (limits and math.isfinite(threshold) and count >= 1 and content.keys() == wanted):
            raise ValueError("other keys than it should have, or numbers out of range")
        fpr = _rate(content["fpr"], known=rule is None)
        heat, made_with = _low_high(content["heat"]), dict(content["made_with"])
        own = cls(limits, threshold, fpr, count, str(content["source"]), heat, made_with)
        if rule is None:
            return own
        pixel = float(content["pixel_threshold"])
        if not math.isfinite(pixel):
            raise ValueError("pixel_threshold is no number")
        more: dict[str, Any] = {"rule": rule, "pixel_threshold": pixel, "pixel_fpr": _rate(content["pixel_fpr"])}
        return cls(**{**vars(own), **more})


def _rate(value: Any, *, known: bool = False) -> float | None:
    if value is None and not known:
        return None
    if not 0 < float(value) < 1:
        raise ValueError(f"{value} is no rate")
    return float(value)


def _low_high(value: Any) -> tuple[float, float]:
    low, high = map(float, value)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{value} are no limits")
    return low, high


def limits_of(score_components: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each term over normal images; where they are equal, the unit is 1."""
    lows_highs = {key: (float(min(values)), float(max(values))) for key, values in score_components.items()}
    return {key: (low, high if high > low else low + 1.0) for key, (low, high) in lows_highs.items()}
