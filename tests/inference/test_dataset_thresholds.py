"""Thresholds of a dataset's classes: where they come from, what is stated where there is none, what a test writes."""

import json
from typing import NamedTuple

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from data.input_spec import SquareInput
from data.meta import PixelSettings, Sample
from data.references import ZERO_SHOT, FewShotSetting
from dataset import AnomalyDataset
from engine.batches import batches
from engine.evaluation import score
from engine.ground_truth import GroundTruth, Measuring, asked_measures
from engine.references import References
from engine.test_run import ScoredData
from inference.dataset_thresholds import DatasetThresholds, with_image_f1
from inference.predictor import Predictor
from metrics.thresholds import ThresholdRule
from model.interface import Memory, Prediction
from report import judged
from report.predictions import read_predictions, scored_images, write_predictions

SIDE = 8


class Pixels(NamedTuple):
    values: Tensor  # (B, SIDE, SIDE)


class Grey(nn.Module):
    """The brightness of an image, or its distance to the nearest reference; the score is brought to the scale."""

    needs_text = False
    input_spec = SquareInput(SIDE)

    def encode(self, images):
        return Pixels(images.float().mean(1))

    def zero_shot(self, tokens, names):
        return Prediction(tokens.values, {"map_max": tokens.values.amax((1, 2))})

    def build_memory(self, references):
        return Memory({"grey": Tensor([[one.values.mean()] for one in references])})

    def few_shot(self, zero_shot, tokens, names, memories, found=None):
        banks = [memories[name].banks["grey"].amin() for name in names]
        maps = (tokens.values - Tensor(banks)[:, None, None]).abs()
        return Prediction(maps, {"map_max": maps.amax((1, 2))})

    def image_scores(self, score_components, limits=None):
        low, high = limits["map_max"] if limits else (0, 1)
        return (score_components["map_max"] - low) / (high - low)


def picture(root, name: str, grey: int, anomaly: int = 0) -> Sample:
    Image.new("RGB", (SIDE, SIDE), (grey,) * 3).save(root / f"{name}.png")
    return Sample(f"{name}.png", "", name.split("_")[0], "stain" if anomaly else "good", anomaly)


@pytest.fixture
def run(tmp_path):
    """A class with validation images and one without -> (thresholds of some settings and a rule, data, results)."""
    test = [picture(tmp_path, f"{name}_{n}", grey, int(grey > 150))
            for name in ("cup", "jar") for n, grey in enumerate([100, 110, 130, 240, 250])]  # fmt: skip
    train = [picture(tmp_path, f"jar_train{n}", 100 + 5 * n) for n in range(4)]
    valid = [picture(tmp_path, f"cup_valid{n}", 95 + 2 * n) for n in range(12)]
    samples = {"train": train, "validation": valid, "test": test}
    data = ScoredData(samples, test, ["cup", "jar"], PixelSettings(), {})
    detector, accelerator = Grey(), Accelerator(cpu=True)

    def of(rule: ThresholdRule, shots, *, stored=False):
        memories = References(detector, shots, accelerator, root=tmp_path, batch_size=4, num_workers=0)
        predictor = Predictor(detector, accelerator, rule, {"method": "grey"}, 4)
        thresholds = DatasetThresholds(
            predictor, data, str(tmp_path), shots, memories, stored=stored, num_workers=0
        ).fix()  # fmt: skip
        truth = GroundTruth(tmp_path, test, PixelSettings(), SquareInput(SIDE), own_size=stored)
        measuring = Measuring(asked_measures(None, None, test, given=True), truth, thresholds)
        loader = batches(AnomalyDataset(tmp_path, test, SIDE), 4, 0, accelerator)
        results = list(score(detector, loader, test, shots, memories, accelerator, measuring=measuring))
        return thresholds, data, results

    return of


def test_a_fault_of_one_class_leaves_the_others_their_thresholds(run, tmp_path):
    (tmp_path / "cup_valid3.png").write_text("no picture")
    shots = [FewShotSetting(4, 1, {"jar": [f"jar_train{n}.png" for n in range(4)], "cup": ["jar_train0.png"]})]
    thresholds, _, results = run(ThresholdRule("conformal", 0.1), shots)
    cup, jar = thresholds.judge(results)
    assert "cup_valid3.png" in cup.reason and jar.calibration["normal_images"] == 4


def test_validation_images_are_encoded_once_for_all_settings(run, monkeypatch):
    seen, encode, rule = [], Grey.encode, ThresholdRule("conformal", 0.1, pixels=True)
    monkeypatch.setattr(Grey, "encode", lambda self, images: seen.append(len(images)) or encode(self, images))
    one_each = [dict.fromkeys(("cup", "jar"), [f"jar_train{number}.png"]) for number in (1, 2)]
    settings = [ZERO_SHOT, *(FewShotSetting(1, seed, chosen) for seed, chosen in enumerate(one_each))]
    thresholds = run(rule, settings)[0]
    seen.clear()
    together = thresholds.of_class("cup")
    assert sum(seen) == 12 + 2  # and the references
    assert [run(rule, [setting])[0].of_class("cup") for setting in settings] == [[one] for one in together]
    assert len({one.limits["map_max"] for one in together}) == 3


def test_validation_images_come_first_then_references_and_else_it_is_stated(run, tmp_path):
    references = {"jar": [f"jar_train{n}.png" for n in range(4)], "cup": ["jar_train0.png"]}
    shots = [ZERO_SHOT, FewShotSetting(4, 1, references)]
    thresholds, data, results = run(ThresholdRule("conformal", 0.1, pixels=True), shots)
    found = {(one.setting, one.name): one for one in thresholds.judge(results)}
    cup, jar = found[0, "cup"], found[1, "jar"]
    assert (cup.calibration["normal_images"], cup.calibration["source"]) == (12, "validation of the dataset")
    assert cup.calibration["limits"] == {"map_max": (95.0, 117.0)} and cup.calibration["pixel_threshold"] == 117
    assert cup.calibration["threshold"] == 1  # the 12th of 12, which keep the rate: 12 / 13 is at least 0.9
    assert cup.scores == pytest.approx([(grey - 95) / 22 for grey in (100, 110, 130, 240, 250)])
    assert cup.verdicts == [False, False, True, True, True] and cup.above(0) == (1, 3) and cup.above(1) == (2, 2)
    assert jar.calibration["normal_images"] == 4 and jar.calibration["fpr"] == 0.2 and len(jar.scores) == 5
    assert found[0, "jar"].reason == "the dataset has no validation images of it, and zero-shot has no references"
    assert "--memory holds no images" in run(ThresholdRule(), shots, stored=True)[0].of_class("jar")[1]
    assert judged.line(found[0, "jar"], ZERO_SHOT).startswith("jar: no threshold and no verdicts: the dataset has no")
    line = judged.line(cup, ZERO_SHOT)
    assert "from 12 normal images: validation of the dataset; about 10.0% of normal images lie above it" in line
    assert "of the test set: 1 of 3 normal images, 33.3% (95% interval 0.8% to 90.6%)" in line
    # Pixels: pictures of one grey, of which one of three normal ones lies above 117; no masks, so no F1 of pixels.
    pixels = "; of their pixels: 33% (95% interval 0% to 100%), promised 10%"
    assert line.endswith(f"{pixels}; 2 of 2 anomalous images found")
    assert cup.pixel_alarms() == [0, 0, 1] and cup.pixel_shares == [0, 0, 1, 1, 1]
    row = with_image_f1(results, list(found.values()))[0].metrics
    assert row["fpr_px_given"] == pytest.approx(1 / 3) and row["f1_px_given"] is None
    assert (row["threshold_sp_given"], row["f1_sp_given"], row["f1_sp_oracle"]) == (1, 0.8, 1)

    images = []
    for one in results:
        images += scored_images(one, shots[one.setting], data.samples, found[one.setting, one.name])
    write_predictions(tmp_path / "predictions.csv", images)
    assert read_predictions(tmp_path / "predictions.csv") == images
    assert [one.verdict for one in images if (one.cls_name, one.k_shot) == ("jar", 0)] == [""] * 5
    judged.write_thresholds(tmp_path / judged.FILE, list(found.values()), shots)
    rows = {(row["k_shot"], row["objects"]): row for row in json.loads((tmp_path / judged.FILE).read_text())}
    assert rows[0, "cup"]["test"]["false_alarms"] == 1 and rows[0, "jar"]["threshold"] is None
    assert rows[0, "cup"]["test"]["pixel_fpr"] == pytest.approx(1 / 3)
    shown = judged.rows(list(found.values()), [0], [None], {(0, "cup"): 0.5})
    assert [(row.name, row.promised, row.found) for row in shown] == [("cup", "10%", "2 of 2"), ("jar", "", "")]
    assert shown[0].pixels == ("117", "10%", "33% (95% interval 0% to 100%)", "50.0") and not any(shown[1].pixels)


def test_a_rule_that_promises_no_rate(run):
    thresholds, _, results = run(ThresholdRule("quantile", 0.5, 0.5, pixels=True), [ZERO_SHOT])
    cup = thresholds.judge(results)[0]
    assert cup.calibration["fpr"] is None and cup.calibration["pixel_fpr"] is None
    assert cup.calibration["rule"] == "quantile, 0.5 times 0.5"
    assert cup.calibration["pixel_threshold"] == pytest.approx(0.5 * np.arange(95, 118, 2)[6], abs=1.1)
    assert "how many normal images lie above it is not known" in judged.line(cup, ZERO_SHOT)
