"""Which normal images are the references: the seeded draw, and files that list them."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from data.meta import Sample
from data.views import ImageViews, parse_views
from utils.files import check_regular
from utils.logs import LOG


class FewShotSetting(NamedTuple):
    """One few-shot setting: which images of each class are the references. k_shot 0 is zero-shot."""

    k_shot: int
    seed: int | None
    references: Mapping[str, Sequence[str]]  # class name -> image paths, relative to the root
    views: Mapping[str, Sequence[ImageViews]] = MappingProxyType({})  # class name -> of each reference; none: as it is
    views_of: str | None = None  # the method that drew them

    def as_dict(self) -> dict[str, Any]:
        """As files of settings have it."""
        own = self._asdict()
        return own if self.views else {key: value for key, value in own.items() if not key.startswith("views")}


ZERO_SHOT = FewShotSetting(0, None, {})


def draw_shots(dataset: str, train: Sequence[Sample], classes: Sequence[str], k_shot: int, seed: int) -> FewShotSetting:
    """Draw k references per class without replacement.

    For a (dataset, class, seed) there is one permutation of the class's normal training images sorted by path; k shots
    are its first k, whatever else runs, so the references of a smaller k are among those of a larger one.

    Raises:
        ValueError: k_shot is larger than the number of normal training images of a class.
    """
    return FewShotSetting(k_shot, seed, {name: _draw(dataset, train, name, k_shot, seed) for name in classes})


class PublishedDraw(Protocol):
    """The draw of a method's published program: its `draw_references`."""

    def __call__(self, train: Mapping[str, Sequence[str]], k_shot: int, seed: int) -> Mapping[str, Sequence[str]]:
        """Class -> references. train: class, in the order of the run -> its normal training images, sorted."""


def draw_as_published(
    draw: PublishedDraw, dataset: str, train: Sequence[Sample], classes: Sequence[str], k_shot: int, seed: int
) -> FewShotSetting:
    """As `draw_shots`, by a published program's own draw, which may give fewer references than k_shot: a line says so.
    Raises ValueError where a class has none."""
    own = {name: _normal_paths(dataset, train, name, k_shot) for name in classes}
    drawn = draw(own, k_shot, seed)
    for name, paths in drawn.items():
        if len(paths) < k_shot:
            LOG.warning(
                "--k_shot %d --seed %d: the published draw takes %d of the %d normal training images of class '%s'",
                k_shot, seed, len(paths), len(own[name]), name,
            )  # fmt: skip
    return FewShotSetting(k_shot, seed, drawn)


def _draw(dataset: str, train: Sequence[Sample], name: str, k_shot: int, seed: int) -> list[str]:
    paths = _normal_paths(dataset, train, name, k_shot)
    if k_shot > len(paths):
        raise ValueError(
            f"--k_shot {k_shot}: class '{name}' of {dataset} has {len(paths)} normal training images; take a smaller k"
        )
    random.Random(f"{dataset}/{name}/{seed}").shuffle(paths)
    return paths[:k_shot]


def _normal_paths(dataset: str, train: Sequence[Sample], name: str, k_shot: int) -> list[str]:
    """Sorted. Raises ValueError where there are none."""
    paths = sorted({sample.img_path for sample in train if sample.cls_name == name and not sample.anomaly})
    if not paths:
        raise ValueError(
            f"--k_shot {k_shot}: {dataset} has no normal training images of class '{name}' to draw from; add some to "
            "its train split, or test zero-shot"
        )
    return paths


def load_shots(
    path: str | Path,
    samples: Sequence[Sample],
    classes: Sequence[str],
    k_shots: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    scored: Sequence[Sample] = (),
) -> list[FewShotSetting]:
    """References from a file instead of a draw: a k_shot.json of this toolkit, or a published k_shot.txt (one image
    path a line). Logs a line about references that are listed more than once, and one about those that are scored too.

    Args:
        samples: all samples of meta.json; a reference must be a normal one of its class.
        classes: every one of these needs references.
        k_shots, seeds: keep only these settings of a k_shot.json; what a k_shot.txt must hold.
        scored: the samples of the test.

    Raises:
        ValueError: unreadable, an unknown or anomalous image, a class without references, a setting that is not in it.
    """
    try:
        check_regular(path)
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--references {path}: not to be read ({error})") from None
    except ValueError as error:  # no regular file
        raise ValueError(f"--references {error}") from None
    known: dict[tuple[str, str], int] = {}  # (class, image) -> anomaly
    for sample in samples:
        place = (sample.cls_name, sample.img_path)
        known[place] = max(sample.anomaly, known.get(place, 0))
    is_json = Path(path).suffix == ".json"
    shots = _from_json(path, text) if is_json else [_from_text(path, text, known, k_shots, seeds)]
    shots = choose_shots(f"--references {path}", shots, k_shots, seeds)
    few_shot = [shot for shot in shots if shot.k_shot > 0]
    for shot in few_shot:
        _check_references(path, shot, known, classes)
    _log_repeats_and_scored(path, few_shot, classes, {(sample.cls_name, sample.img_path) for sample in scored})
    return shots


def choose_shots(
    what: str, shots: Sequence[FewShotSetting], k_shots: Sequence[int] | None, seeds: Sequence[int] | None
) -> list[FewShotSetting]:
    """Those of a file's settings that have one of the given k and seeds (None: any); k 0 asks for zero-shot besides.

    Raises:
        ValueError: a k or a seed that none of the settings has, naming `what`.
    """
    shots = [shot for shot in shots if shot.k_shot > 0]
    chosen = [s for s in shots if (not k_shots or s.k_shot in k_shots) and (not seeds or s.seed in seeds)]
    lacking = [f"--k_shot {k}" for k in k_shots or () if k > 0 and k not in {shot.k_shot for shot in chosen}]
    lacking += [f"--seed {seed}" for seed in seeds or () if chosen and seed not in {shot.seed for shot in chosen}]
    if lacking or not shots:
        raise ValueError(f"{what}: holds no references for {', '.join(lacking) or 'any setting'}")
    return ([ZERO_SHOT] if 0 in (k_shots or ()) else []) + chosen


def _from_json(path: str | Path, text: str) -> list[FewShotSetting]:
    try:
        entries = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"--references {path}: no valid JSON ({error})") from None
    try:
        return parse_shots(entries)
    except ValueError as error:
        raise ValueError(f"--references {path}: {error}") from None


def parse_shots(entries: Any) -> list[FewShotSetting]:
    """The settings that a file holds. Raises ValueError for anything else; folders are named after k_shot and seed."""
    try:
        shots = [_parse_shot(entry) for entry in entries]
        settings = [shot[:2] for shot in shots]
        sound = all(type(k) is int and k >= 0 and (seed is None or type(seed) is int) for k, seed in settings)
        if not sound or len(set(settings)) != len(settings):
            raise ValueError("k_shot and seed must be whole numbers, each pair once")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'must be [{{"k_shot", "seed", "references": {{class: [img_path]}}}}] ({error!r})') from None
    return shots


def _parse_shot(entry: Mapping[str, Any]) -> FewShotSetting:
    references = {name: [part.replace("\\", "/") for part in paths] for name, paths in entry["references"].items()}
    views = {name: parse_views(value, len(references[name])) for name, value in entry.get("views", {}).items()}
    if views and views.keys() != references.keys():
        raise ValueError("views must be given for every class, or for none")
    return FewShotSetting(entry["k_shot"], entry["seed"], references, views, entry.get("views_of") if views else None)


def _from_text(
    path: str | Path,
    text: str,
    known: Mapping[tuple[str, str], int],
    k_shots: Sequence[int] | None,
    seeds: Sequence[int] | None,
) -> FewShotSetting:
    owner = {img_path: cls_name for cls_name, img_path in known}
    references: dict[str, list[str]] = {}
    for line in filter(None, (line.strip().replace("\\", "/") for line in text.splitlines())):
        if line not in owner:
            raise ValueError(f"--references {path}: '{line}' is no image of meta.json")
        references.setdefault(owner[line], []).append(line)
    if not references:
        raise ValueError(f"--references {path}: names no image")
    k_shots = [k for k in k_shots or () if k > 0]
    if len(k_shots) > 1 or len(seeds or ()) > 1:
        raise ValueError(
            f"--references {path}: a text file holds one setting; give one --k_shot and one --seed, or none"
        )
    k_shot = k_shots[0] if k_shots else max(map(len, references.values()))
    return FewShotSetting(k_shot, seeds[0] if seeds else None, references)


def _check_references(
    path: str | Path, shot: FewShotSetting, known: Mapping[tuple[str, str], int], classes: Sequence[str]
) -> None:
    for name in classes:
        paths = shot.references.get(name, ())
        fewer = shot.views_of is not None and 0 < len(paths) < shot.k_shot  # as published programs draw
        if (len(paths) != shot.k_shot and not fewer) or not paths:
            raise ValueError(
                f"--references {path}: class '{name}' has {len(paths)} references where k_shot is {shot.k_shot}"
            )
        for img_path in paths:
            if (name, img_path) not in known:
                raise ValueError(f"--references {path}: '{img_path}' is no image of class '{name}' in meta.json")
            if known[name, img_path]:
                raise ValueError(
                    f"--references {path}: '{img_path}' of class '{name}' is a defect in meta.json; references must be "
                    "normal images"
                )


def _log_repeats_and_scored(
    path: str | Path, shots: Sequence[FewShotSetting], classes: Sequence[str], scored: set[tuple[str, str]]
) -> None:
    """Log what a user may not have meant; published files have both."""
    repeated, shared = [], set()
    for shot in shots:
        counts = Counter((name, img_path) for name in classes for img_path in shot.references[name])
        repeated += [place for place, count in counts.items() for _ in range(count - 1)]
        shared |= counts.keys() & scored
    if repeated:
        LOG.warning(
            "--references %s: %d references are repeats, the first of %s; each counts as often as it is listed",
            path, len(repeated), repeated[0][1],
        )  # fmt: skip
    if shared:
        LOG.warning(
            "--references %s: %d references are test images too, the first is %s; their own scores say little",
            path, len(shared), min(shared)[1],
        )  # fmt: skip
