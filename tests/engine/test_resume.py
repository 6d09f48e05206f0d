"""What a test has kept of its finished classes, and what somebody may have put in its place."""

import base64
import io
import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from data.meta import Sample
from engine.class_scores import ClassScores
from engine.resume import FOLDER, ClassResult, FinishedClasses
from metrics.names import IMAGE, PIXEL, Measures
from report.gallery import Gallery, SelectedImages
from report.predictions import ScoredImage
from utils.logs import LOG

SAMPLES = [
    Sample(f"{name}/{number}.png", "", name, "hole" if number else "good", int(number > 0))
    for name in ("brick", "tile\n\x1b[2J")
    for number in range(3)
]
CLASSES = ["brick", "tile\n\x1b[2J"]
NESTED = "[" * 100_000 + "]" * 100_000


def picture(width: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 8)).save(file, "WEBP")
    return file.getvalue()


def result(name: str) -> ClassResult:
    indices = [index for index, sample in enumerate(SAMPLES) if sample.cls_name == name]
    metrics = {key: 0.5 for key in (*PIXEL, *IMAGE)} | {"aupro": None}
    scores = [
        ClassScores(n, name, metrics, indices, [0.25] * 3, {"text": [0.5] * 3}, {"roc": [[0.0, 1.0], [0.0, 1.0]]})
        for n in range(2)
    ]
    sample = SAMPLES[indices[1]]
    hit = ScoredImage(sample.img_path, name, sample.specie_name, sample.anomaly, 0, None, 0.25, {"text": 0.5})
    return ClassResult(scores, {0: Gallery(SelectedImages([hit], [], []), {hit.img_path: picture()}).to_json()})


@pytest.fixture
def kept(tmp_path):
    """(the finished classes of a folder, the file of the first, what it holds)."""
    finished = FinishedClasses(tmp_path, {"seed": 1}, CLASSES)
    for name in CLASSES:
        finished.keep(name, result(name))
    path = tmp_path / FOLDER / "0.json"
    return finished, path, json.loads(path.read_text())


def load(finished):
    return finished.load(dict.fromkeys(CLASSES, []), Gallery.from_json, SAMPLES, 2)


def test_finished_classes_come_back(kept):
    assert load(kept[0]) == {name: result(name) for name in CLASSES}


def change(held, path, value) -> str:
    """JSON of `held` with another value at a path of keys."""
    place = held
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(held)


THUMBNAIL = SAMPLES[1].img_path
PLANTED = {
    "scores of another class": (["scores", 0, "name"], "tile"),
    "scores of another setting": (["scores", 1, "setting"], 7),
    "too few settings": (["scores"], []),
    "scores that are no list": (["scores"], 3),
    "a score that is no number": (["scores", 0, "scores", 0], "high"),
    "a score that is infinite": (["scores", 0, "scores", 0], float("inf")),
    "a score too large for a float": (["scores", 0, "scores", 0], 10**400),
    "too few scores": (["scores", 0, "scores"], [0.5]),
    "images that are not there": (["scores", 0, "indices"], [0, 1, 99]),
    "a component without values": (["scores", 0, "score_components", "text"], None),
    "no metric": (["scores", 0, "metrics"], {}),
    "metrics that are a list": (["scores", 0, "metrics"], []),
    "a metric that is a text": (["scores", 0, "metrics", "auroc_px"], "<b>"),
    "a key too many": (["scores", 0, "more"], 1),
    "a curve without points": (["scores", 0, "curves", "roc"], [[], []]),
    "a curve of texts": (["scores", 0, "curves", "roc"], ["a", "b"]),
    "pictures of a setting that is none": (["page", "9"], {"hits": [], "missed": [], "alarms": [], "thumbnails": {}}),
    "pictures of no setting": (["page", "x"], {"hits": [], "missed": [], "alarms": [], "thumbnails": {}}),
    "a list of pictures too few": (["page", "0"], {"hits": [], "missed": [], "thumbnails": {}}),
    "a picture that is none": (["page", "0", "thumbnails", THUMBNAIL], base64.b64encode(b"RIFF").decode()),
    "a picture that is huge": (["page", "0", "thumbnails", THUMBNAIL], base64.b64encode(picture(5000)).decode()),
    "a picture that is no text": (["page", "0", "thumbnails", THUMBNAIL], 3),
    "an image without a picture": (["page", "0", "hits", 0, "img_path"], "brick/9.png"),
    "a score of an image that is a text": (["page", "0", "hits", 0, "score"], "high"),
    "an image that is a text": (["page", "0", "hits", 0], "row"),
    "no identity": (["identity"], None),
}


@pytest.mark.parametrize("situation", PLANTED)
def test_a_planted_result_is_scored_anew(kept, situation, caplog, monkeypatch):
    monkeypatch.setattr(LOG, "propagate", True)
    finished, path, held = kept
    path.write_text(change(held, *PLANTED[situation]))
    with caplog.at_level("INFO", logger="vand"):
        assert list(load(finished)) == CLASSES[1:]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path} is ") and "'brick' is scored anew" in record.getMessage()


@pytest.mark.parametrize("text", [NESTED, "", "3", "[]", '"identity"', "{}", "{"])
def test_a_broken_result_is_scored_anew(kept, text, caplog, monkeypatch):
    monkeypatch.setattr(LOG, "propagate", True)
    finished, path, _ = kept
    path.write_text(text)
    with caplog.at_level("INFO", logger="vand"):
        assert list(load(finished)) == CLASSES[1:]
    assert caplog.messages == [f"{path} is broken: 'brick' is scored anew"]


def test_a_result_that_is_no_file_is_not_waited_for(kept):
    finished, path, _ = kept
    path.unlink()
    os.mkfifo(path)
    assert list(load(finished)) == CLASSES[1:]
    finished.keep("brick", result("brick"))
    assert list(load(finished)) == CLASSES


def test_measures_of_another_command_are_none_of_this(tmp_path):
    """What was kept must hold the measures that are asked for, and of every image a number or nothing."""
    measures = Measures(("aupimo",))
    finished = FinishedClasses(tmp_path, {"seed": 1}, CLASSES[:1], measures)
    plain = result("brick")
    scores = [replace(one, metrics=one.metrics | dict.fromkeys(measures.metric_names(), 0.5),
                      image_measures={"aupimo": [None, 0.5, 0.25]}) for one in plain.scores]  # fmt: skip
    for kept, known in (
        (scores, True),
        (plain.scores, False),
        ([replace(scores[0], image_measures={"aupimo": ["x", 0.5, 0.5]}), scores[1]], False),
        ([replace(scores[0], image_measures={"aupimo": [0.5]}), scores[1]], False),
        ([replace(scores[0], image_measures={"more": [0.5] * 3}), scores[1]], False),
    ):
        finished.keep("brick", plain._replace(scores=kept))
        loaded = finished.load({"brick": []}, Gallery.from_json, SAMPLES, 2)
        assert ("brick" in loaded) == known and (not known or loaded["brick"].scores == kept)
