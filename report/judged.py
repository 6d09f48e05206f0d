"""Verdicts of a test: the thresholds that normal images have fixed, and how the test images fall on either side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.references import FewShotSetting
from metrics.thresholds import interval
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
    """

    setting: int
    name: str
    reason: str = ""
    calibration: Mapping[str, Any] = {}
    promise: str = ""
    scores: Sequence[float] = ()
    labels: Sequence[int] = ()

    @property
    def verdicts(self) -> list[bool]:
        """Whether each test image is anomalous."""
        return [score > self.calibration["threshold"] for score in self.scores]

    def above(self, label: int) -> tuple[int, int]:
        """(images of this label above the threshold, images of it)."""
        own = [verdict for verdict, one in zip(self.verdicts, self.labels, strict=True) if one == label]
        return sum(own), len(own)


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
    return f"{begin}; {one.promise}; of the test set: {seen(one)}"


def seen(one: JudgedClass) -> str:
    """The rate of false alarms of the test set, with its interval."""
    alarms, normal = one.above(0)
    if not normal:
        return "it has no normal images"
    low, high = interval(alarms, normal)
    rate = f"{alarms} of {normal} normal images, {100 * alarms / normal:.1f}%"
    return f"{rate} (95% interval {100 * low:.1f}% to {100 * high:.1f}%)"


class ThresholdRow(NamedTuple):
    """A row of the page's table; texts."""

    name: str
    seed: str
    threshold: str
    source: str
    promised: str
    seen: str
    found: str


def rows(judged: Sequence[JudgedClass], settings: Sequence[int], seeds: Sequence[int | None]) -> list[ThresholdRow]:
    """The rows of some settings, class by class; seeds: one per setting."""
    found = []
    for setting, seed in zip(settings, seeds, strict=True):
        for one in (one for one in judged if one.setting == setting):
            known, label = one.calibration, "" if seed is None else str(seed)
            if one.reason:
                found.append(ThresholdRow(one.name, label, "none", one.reason, "", "", ""))
                continue
            hits, anomalous = one.above(1)
            promised = "not known" if known["fpr"] is None else f"{100 * known['fpr']:.2g}%"
            source = f"{known['normal_images']} images: {known['source']}"
            found.append(
                ThresholdRow(
                    one.name, label, f"{known['threshold']:.4g}", source, promised, seen(one), f"{hits} of {anomalous}"
                )
            )
    return sorted(found, key=lambda row: row.name)


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
        low_high = interval(alarms, normal) if normal else None
        counts = {"false_alarms": alarms, "normal": normal, "hits": hits, "anomalous": anomalous}
        written.append({**row, **one.calibration, "test": {**counts, "fpr_interval_95": low_high}})
    write_json(path, written)
