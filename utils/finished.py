"""What is known of the classes that a test has finished: kept until all are, so that an interrupted test goes on."""

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from utils.engine import ClassScores
from utils.report import Chosen
from utils.runtime import LOG, write_json

FOLDER = "finished"


class Finished(NamedTuple):
    """A class under all settings: scores and metrics, and the pictures of report.html by setting."""

    scores: list[ClassScores]
    galleries: dict[int, Chosen]


class FinishedClasses:
    """The results of finished classes, a JSON file each, which appears when the last picture of the class is there.

    Args:
        folder: of the results.
        identity: all that the results depend on, as JSON can hold it; results of anything else are not taken.
        classes: the classes of the test, in order.
    """

    def __init__(self, folder: Path, identity: Any, classes: Sequence[str]):
        self._folder, self._classes = folder / FOLDER, list(classes)
        self.identity = sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def load(self, pictures: Mapping[str, Sequence[Path]]) -> dict[str, Finished]:
        """Class -> what an interrupted test has kept of it; says in the log what cannot be used.

        pictures: class -> the files that it has written besides, without which it is scored anew.
        """
        found = {}
        for number, name in enumerate(self._classes):
            path = self._file(number)
            if not path.is_file():
                continue
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
                if held["identity"] != self.identity:
                    LOG.info("%s is of other settings, weights or images: '%s' is scored anew", path, name)
                    continue
                missing = next((path for path in pictures[name] if not path.is_file()), None)
                if missing:
                    LOG.info("%s is missing: '%s' is scored anew", missing, name)
                    continue
                galleries = {int(setting): _decoded(lists) for setting, lists in held["galleries"].items()}
                found[name] = Finished([ClassScores(**one) for one in held["scores"]], galleries)
            except (AttributeError, KeyError, OSError, TypeError, ValueError):
                LOG.warning("%s is broken: '%s' is scored anew", path, name)
        return found

    def keep(self, name: str, finished: Finished) -> None:
        held = {
            "identity": self.identity,
            "scores": [asdict(one) for one in finished.scores],
            "galleries": {setting: _encoded(chosen) for setting, chosen in finished.galleries.items()},
        }
        write_json(self._file(self._classes.index(name)), held)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.json"  # a class name may be no name for a file


def of_files(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells whether files have changed, without reading them: path, bytes, time of the last change; those that are
    there."""
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _encoded(chosen: Chosen) -> list[list[dict[str, Any]]]:
    return [[{**row, "picture": base64.b64encode(row["picture"]).decode()} for row in rows] for rows in chosen]


def _decoded(lists: Sequence[Sequence[Mapping[str, Any]]]) -> Chosen:
    return Chosen(*([{**row, "picture": base64.b64decode(row["picture"])} for row in rows] for rows in lists))
