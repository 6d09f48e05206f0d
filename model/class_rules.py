"""AnomalyDINO's lists: the classes whose background is masked, and those whose references are rotated."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LOG = logging.getLogger("vand")

# None stands for every class.
_OBJECTS = frozenset(
    # of MVTec AD, and all of VisA
    ("capsule", "hazelnut", "pill", "screw", "toothbrush")
    + ("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2")
    + ("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum")
)
_KNOWN = _OBJECTS.union(
    ("bottle", "cable", "carpet", "grid", "leather", "metal_nut", "tile", "transistor", "wood", "zipper")
)
_TURNED, _NO_CLASS = frozenset(("hazelnut", "screw")), frozenset[str]()


class Preprocessing(NamedTuple):
    """The classes that are masked, and those whose references are rotated; None is every class."""

    masked: frozenset[str] | None
    rotated: frozenset[str] | None


PREPROCESSING: Mapping[str, Preprocessing] = {
    "agnostic": Preprocessing(_OBJECTS, None),
    "informed": Preprocessing(_OBJECTS, _TURNED),
    "masking_only": Preprocessing(_OBJECTS, _NO_CLASS),
    "agnostic_no_mask": Preprocessing(_NO_CLASS, None),
    "informed_no_mask": Preprocessing(_NO_CLASS, _TURNED),
    "force_mask_rotation": Preprocessing(None, None),
    "force_mask_no_rotation": Preprocessing(None, _NO_CLASS),
    "force_no_mask_rotation": Preprocessing(_NO_CLASS, None),
    "force_no_mask_no_rotation": Preprocessing(_NO_CLASS, _NO_CLASS),
}


class ClassRules:
    """Answers by class name; logs once for a class that the published lists would have to know and do not.

    Args:
        preprocess: a key of PREPROCESSING.
        masking, rotation: class names, or "all" or "none" alone, instead of what `preprocess` says.

    Raises:
        ValueError: "all" or "none" among class names.
    """

    def __init__(self, preprocess: str, masking: Sequence[str] | None, rotation: Sequence[str] | None):
        published = PREPROCESSING[preprocess]
        self._preprocess = preprocess
        self._named = {"--masking": masking or (), "--rotation": rotation or ()}
        self._masked = published.masked if masking is None else _classes("--masking", masking)
        self._rotated = published.rotated if rotation is None else _classes("--rotation", rotation)
        # Only a list that is asked can lack a class.
        self._asks_lists = bool((masking is None and published.masked) or (rotation is None and published.rotated))
        self._logged: set[str] = set()
        self._missed: set[tuple[str, str]] = set()  # flag and class

    @property
    def masks_any(self) -> bool:
        """Whether there is a class that is masked."""
        return self._masked != _NO_CLASS

    def masks(self, name: str) -> bool:
        """Whether the background of a class is left out."""
        return self._has(self._masked, name)

    def rotates(self, name: str) -> bool:
        """Whether the references of a class are seen in eight rotations."""
        return self._has(self._rotated, name)

    def check_names(self, classes: Sequence[str]) -> None:
        """Log, once each, the classes that a flag names and a run does not have."""
        known = {_plain(name) for name in classes} | {"all", "none"}
        for flag, names in self._named.items():
            for name in names:
                if _plain(name) not in known and (flag, name) not in self._missed:
                    self._missed.add((flag, name))
                    _LOG.warning("%s %s: this run has no such class", flag, name)

    def _has(self, classes: frozenset[str] | None, name: str) -> bool:
        if self._asks_lists and _plain(name) not in _KNOWN | self._logged:
            self._logged.add(_plain(name))
            on = {True: "on", False: "off"}
            _LOG.info(
                "class '%s' is not on the published lists of --preprocess %s: masking %s, rotated references %s; "
                "--masking and --rotation change that",
                name, self._preprocess, on[self.masks(name)], on[self.rotates(name)],
            )  # fmt: skip
        return classes is None or _plain(name) in classes


def _classes(flag: str, names: Sequence[str]) -> frozenset[str] | None:
    """The classes that a flag names; None is every class."""
    if "all" in names or "none" in names:
        if len(names) > 1:
            raise ValueError(f"{flag} {' '.join(names)}: give class names, or all or none alone")
        return None if names[0] == "all" else _NO_CLASS
    return frozenset(map(_plain, names))


def _plain(name: str) -> str:
    """A class name as folders have it."""
    return name.replace(" ", "_")
