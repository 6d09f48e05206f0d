"""Kinds of defect that the pixels of masks name, as MVTec LOCO AD's defects_config.json lists them."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_KEYS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")


class DefectKind(NamedTuple):
    """A kind of defect, and how much of one of its regions has to be found.

    Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
    Localization", section 4: a region counts as found in full once its saturation area is covered.
    """

    name: str
    pixel_value: int  # of the region in its mask, 1..65535
    threshold: float  # above 0: pixels, or a share of the region's area
    relative: bool  # whether it is a share

    def saturation(self, area: int) -> float:
        """The saturation area in pixels of a region of so many; at most the region itself, as the paper defines it."""
        return min(self.threshold * area if self.relative else self.threshold, float(area))


def parse_kinds(entries: Any, where: str) -> dict[int, DefectKind]:
    """The rows of a defects_config.json, by pixel value.

    Args:
        where: the place of the rows, for messages.

    Raises:
        ValueError: not such rows, or two of one pixel value; names the row.
    """
    if not isinstance(entries, list):
        raise ValueError(f"{where} must be a list of {{{', '.join(_KEYS)}}}")
    kinds: dict[int, DefectKind] = {}
    for number, entry in enumerate(entries, start=1):
        kind = _kind(entry, f"{where}: entry {number}")
        if kind.pixel_value in kinds:
            raise ValueError(f"{where}: entry {number}: pixel_value {kind.pixel_value} is listed twice")
        kinds[kind.pixel_value] = kind
    return kinds


def _kind(entry: Any, where: str) -> DefectKind:
    if not isinstance(entry, dict) or not isinstance(entry.get("defect_name"), str):
        raise ValueError(f"{where}: expected an object with {', '.join(_KEYS)}")
    name, value, threshold, relative = (entry.get(key, 0) for key in _KEYS)
    if type(value) is not int or not 0 < value < 2**16:
        raise ValueError(f"{where}: pixel_value must be a whole number from 1 to 65535, got {_shown(value)}")
    if type(relative) is not bool:
        raise ValueError(f"{where}: relative_saturation must be true or false, got {_shown(relative)}")
    is_number = type(threshold) in (int, float) and math.isfinite(threshold)
    if not is_number or threshold <= 0 or (relative and threshold > 1):
        expected = "a share above 0, at most 1" if relative else "a number of pixels above 0"
        raise ValueError(f"{where}: saturation_threshold must be {expected}, got {_shown(threshold)}")
    return DefectKind(name, value, threshold, relative)


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def kind_entries(kinds: Mapping[int, DefectKind]) -> list[dict[str, Any]]:
    """The rows that `parse_kinds` reads."""
    return [dict(zip(_KEYS, kind, strict=True)) for kind in kinds.values()]
