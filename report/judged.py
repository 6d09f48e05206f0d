"""Verdicts of a test: the thresholds that normal images have fixed, and how the test images fall on either side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.references import FewShotSetting
from metrics.thresholds import interval, mean_interval
from utils.files import write_json

FILE = "thresholds.json"
VERDICTS = ("normal", "anomalous")


class JudgedClass(NamedTuple):
    """A class under one few-shot setting, with its threshold or the reason why it has none.

    setting: index into the settings.
    reason: "" where there is a threshold.
    calibration: as calibration.json has it, but for what it was made with; empty without a threshold, as is the rest.
    promise: the rate that the threshold stands for, in words.
    scores: of the test images on the scale of the normal ones, in the order of the class's results.
    labels: 0 or 1 of each.
    pixel_shares: of each the share of its pixels above the threshold of pixels; None where that was not counted.
    """

    setting: int
    name: str
    reason: str = ""
    calibration: Mapping[str, Any] = {}
    promise: str = ""
    scores: Sequence[float] = ()
    labels: Sequence[int] = ()
    pixel_shares: Sequence[float | None] = ()

    @property
    def verdicts(self) -> list[bool]:
        """Whether each test image is anomalous."""
        return [score > self.calibration["threshold"] for score in self.scores]

    def above(self, label: int) -> tuple[int, int]:
        """(images of this label above the threshold, images of it)."""
        own = [verdict for verdict, one in zip(self.verdicts, self.labels, strict=True) if one == label]
        return sum(own), len(own)

    def pixel_alarms(self) -> list[float]:
        """Of each normal test image the share of its pixels above the threshold of pixels."""
        shares = zip(self.pixel_shares, self.labels, strict=True)
        return [share for share, label in shares if not label and share is not None]


def line(one: JudgedClass, setting: FewShotSetting) -> str:
    """What the log says of it."""
    seed = "" if setting.seed is None else f", seed {setting.seed}"
    where = f"{one.name} ({setting.k_shot} shots{seed})" if setting.k_shot else one.name
    if one.reason:
        return f"{where}: no threshold and no verdicts: {one.reason}"
    known = one.calibration
    begin = (
        f"{where}: threshold {known['threshold']:.4g} from {known['normal_images']} normal images: {known['source']}"
    )
    pixels = (
        f"; of their pixels: {pixels_seen(one)}, promised {_rate(known['pixel_fpr'])}" if one.pixel_alarms() else ""
    )
    hits, anomalous = one.above(1)
    return f"{begin}; {one.promise}; of the test set: {seen(one)}{pixels}; {hits} of {anomalous} anomalous images found"


def seen(one: JudgedClass) -> str:
    """The rate of false alarms of the test set, with its interval."""
    alarms, normal = one.above(0)
    if not normal:
        return "it has no normal images"
    low, high = interval(alarms, normal)
    rate = f"{alarms} of {normal} normal images, {100 * alarms / normal:.1f}%"
    return f"{rate} (95% interval {100 * low:.1f}% to {100 * high:.1f}%)"


def pixels_seen(one: JudgedClass) -> str:
    """The share of the pixels of normal test images above the threshold of pixels, with its interval."""
    shares = one.pixel_alarms()
    if not shares:
        return "it has no normal images"
    within, mean = mean_interval(shares), sum(shares) / len(shares)
    reach = "" if within is None else f" (95% interval {_rate(within[0])} to {_rate(within[1])})"
    return f"{_rate(mean)}{reach}"


def _rate(share: float | None) -> str:
    """Two digits, of large shares the percent."""
    if share is None:
        return "not known"
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


class ThresholdRow(NamedTuple):
    """A row of the page's table; texts."""

    name: str
    seed: str
    threshold: str
    source: str
    promised: str
    seen: str
    found: str
    pixels: tuple[str, str, str, str] = ("", "", "", "")  # threshold, promised, seen, F1


def rows(
    judged: Sequence[JudgedClass],
    settings: Sequence[int],
    seeds: Sequence[int | None],
    pixel_f1: Mapping[tuple[int, str], float | None],
) -> list[ThresholdRow]:
    """The rows of some settings, class by class; seeds: one per setting; pixel_f1: (setting, class) -> F1 of the pixels
    at the threshold."""
    found = []
    for setting, seed in zip(settings, seeds, strict=True):
        for one in (one for one in judged if one.setting == setting):
            known, label = one.calibration, "" if seed is None else str(seed)
            if one.reason:
                found.append(ThresholdRow(one.name, label, "none", one.reason, "", "", ""))
                continue
            hits, anomalous = one.above(1)
            source = f"{known['normal_images']} images: {known['source']}"
            found.append(
                ThresholdRow(
                    one.name, label, f"{known['threshold']:.4g}", source, _rate(known["fpr"]), seen(one),
                    f"{hits} of {anomalous}", _pixel_cells(one, pixel_f1.get((setting, one.name))),
                )
            )  # fmt: skip
    return sorted(found, key=lambda row: row.name)


def _pixel_cells(one: JudgedClass, f1: float | None) -> tuple[str, str, str, str]:
    known = one.calibration
    shown = "" if f1 is None else f"{100 * f1:.1f}"
    return f"{known['pixel_threshold']:.4g}", _rate(known["pixel_fpr"]), pixels_seen(one), shown


def write_thresholds(path: Path, judged: Sequence[JudgedClass], settings: Sequence[FewShotSetting]) -> None:
    """Write thresholds.json: a row per setting and class."""
    written = []
    for one in judged:
        setting = settings[one.setting]
        row: dict[str, Any] = {"k_shot": setting.k_shot, "seed": setting.seed, "objects": one.name}
        if one.reason:
            written.append({**row, "threshold": None, "reason": one.reason})
            continue
        (alarms, normal), (hits, anomalous) = one.above(0), one.above(1)
        counts = {"false_alarms": alarms, "normal": normal, "hits": hits, "anomalous": anomalous}
        shares = one.pixel_alarms()
        rates = {
            "fpr_interval_95": interval(alarms, normal) if normal else None,
            "pixel_fpr": sum(shares) / len(shares) if shares else None,
            "pixel_fpr_interval_95": mean_interval(shares),
        }
        written.append({**row, **one.calibration, "test": {**counts, **rates}})
    write_json(path, written)
