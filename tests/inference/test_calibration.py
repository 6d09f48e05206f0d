"""Scale and threshold from normal images."""

import numpy as np
import pytest

from inference.calibration import Calibration, limits_of
from metrics.thresholds import conformal, images_needed


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2, 0.5])
def test_threshold_keeps_the_rate_on_further_images(fpr):
    """Over many draws of calibration images, a further one of the same kind lies above it at the promised rate."""
    rng, above = np.random.default_rng(0), 0
    for _ in range(4000):
        *known, further = rng.normal(size=120)
        threshold, rate = conformal(known, fpr)
        assert rate == fpr
        above += further > threshold
    assert above / 4000 <= fpr + 0.02 and above / 4000 >= fpr - 0.03


def test_few_images_promise_what_they_can():
    assert conformal([0.3, 0.1, 0.2], 0.05) == (0.3, 0.25)
    assert conformal([0.3], 0.4) == (0.3, 0.5)
    assert conformal([0.4, 0.1, 0.2, 0.3], 0.2) == (0.4, 0.2)
    assert conformal([0.4, 0.1, 0.2, 0.3], 0.4) == (0.3, 0.4)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_how_many_images_keep_a_rate(fpr):
    count = images_needed(fpr)
    assert conformal(range(count), fpr)[1] == pytest.approx(fpr)
    assert count == 1 or conformal(range(count - 1), fpr)[1] > fpr + 1e-6


def test_limits():
    assert limits_of({"a": [2.0, 1.0, 1.5], "b": [3.0]}) == {"a": (1.0, 2.0), "b": (3.0, 4.0)}


def test_file(tmp_path):
    calibration = Calibration({"a": (0.0, 2.0)}, 0.5, 0.05, 7, "good/", (0.1, 0.9), {"method": "winclip"})
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"limits": {"a": [1, 1]}}', '{"limits": {"a": 1}}'])
def test_refuses_another_file(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match="calibration.json: no file that predict.py wrote") as error:
        Calibration.load(tmp_path / "calibration.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "NaN"},
        {"heat": [1, 0]},
        {"limits": {"a": [0, float("inf")]}},
        {"limits": {}},
        {"fpr": float("nan")},
        {"normal_images": float("inf")},
        {"normal_images": 0},
    ],
)
def test_refuses_numbers_that_are_none(tmp_path, change):
    import json

    good = Calibration({"a": (0.0, 2.0)}, 0.5, 0.05, 7, "good/", (0.1, 0.9), {})
    (tmp_path / "calibration.json").write_text(json.dumps({**vars(good), **change}))
    with pytest.raises(ValueError, match="no file that predict.py wrote"):
        Calibration.load(tmp_path / "calibration.json")
