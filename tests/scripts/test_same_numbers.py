"""The same seed gives the same numbers, whatever the batch size, the number of workers and the order of the samples."""

import csv
import json
import random
import shutil

import numpy as np
import pytest
import torch

import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE
from data import meta
from engine import checkpoint

CASES = REFERENCE / "cases"
METHODS = {
    "april_gan": ["--checkpoint_path", CASES / "aprilgan_train_mvtec/checkpoint.pth", "--k_shot", 0, 2, "--seed", 3],
    "winclip": ["--k_shot", 0, 2, "--seed", 3],
    "sdp": [],
    "sdp_plus": ["--checkpoint_path", CASES / "sdpplus_mvtec_to_visa/checkpoint.pth"],
    "vcp_clip": ["--checkpoint_path", CASES / "vcp_four_steps_mvtec/after4.pth"],
    "anomaly_clip": ["--features_list", 2, 4],
}


@pytest.fixture(scope="module")
def shuffled(mini_visa, tmp_path_factory):
    """The dataset with its samples and classes in another order."""
    root = tmp_path_factory.mktemp("shuffled") / "visa"
    shutil.copytree(mini_visa, root)
    document = json.loads((root / "meta.json").read_text())
    for split, classes in document.items():
        for samples in classes.values():
            random.Random(0).shuffle(samples)
        document[split] = dict(reversed(classes.items()))
    (root / "meta.json").write_text(json.dumps(document))
    return root


def scores(out) -> dict[tuple, float]:
    with (out / "predictions.csv").open(newline="") as file:
        return {(row["img_path"], row["k_shot"]): float(row["score"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("method", METHODS)
def test_any_batch_size_worker_count_and_order(method, tiny_a, learned_prompts, mini_visa, shuffled, tmp_path):
    trained = ["--checkpoint_path", learned_prompts] if method == "anomaly_clip" else []

    def run(name: str, root, *flags) -> dict[str, np.ndarray]:
        argv = ["--method", method, *METHODS[method], *trained, *tiny_a.flags, "--image_size", 96, "--dataset", "visa",
                "--data_path", root, "--no_images", "--save_maps", "--save_path", tmp_path / name, *flags]  # fmt: skip
        test_script.main([str(word) for word in argv])
        maps = (tmp_path / name / "maps").rglob("*.npy")
        return {path.relative_to(tmp_path / name).as_posix(): np.load(path) for path in maps}

    expected = run("one", mini_visa, "--batch_size", 1, "--num_workers", 0)
    own = run("other", shuffled, "--batch_size", 7, "--num_workers", 2)
    assert own.keys() == expected.keys() and len(own) == (64 if "--k_shot" in METHODS[method] else 32)
    for path, one in expected.items():
        np.testing.assert_allclose(own[path], one, atol=1e-5, rtol=0, err_msg=path)
    assert scores(tmp_path / "other") == pytest.approx(scores(tmp_path / "one"), abs=1e-4)


def test_training_with_any_number_of_workers(tiny_a, mini_mvtec, tmp_path):
    """Bit for bit, mosaics and augmentation included."""
    for workers in (0, 2):
        argv = [*tiny_a.flags, "--image_size", 96, "--train_data_path", mini_mvtec, "--class", "brick", "--epoch", 1,
                "--aug_rate", 0.5, "--augment", "--num_workers", workers,
                "--save_path", tmp_path / str(workers)]  # fmt: skip
        train_script.main([str(word) for word in argv])
    one, other = (checkpoint.load(tmp_path / str(workers)).state["trainable_linearlayer"] for workers in (0, 2))
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- what is wrong is named -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anomaly", [2, "1", None, 0.5])
def test_a_wrong_label_is_named_with_its_file(anomaly, fails, tiny_a, mini_visa, tmp_path):
    document = json.loads((mini_visa / "meta.json").read_text())
    sample = document["test"]["grass"][3]
    sample["anomaly"] = anomaly
    (tmp_path / "meta.json").write_text(json.dumps(document))
    line = fails(test_script.main, *tiny_a.flags, "--data_path", mini_visa, "--meta_path", tmp_path / "meta.json")
    assert f'class "grass", sample 3 ("{sample["img_path"]}"): anomaly must be 0 (normal) or 1 (defect)' in line
    assert meta.read(mini_visa)["test"][3].img_path == sample["img_path"]


def test_normal_images_that_give_no_number_are_named(fails, tiny_a, tmp_path):
    """Finite weights whose products are not."""
    content = torch.load(CASES / "aprilgan_train_mvtec/checkpoint.pth", weights_only=True)
    content["trainable_linearlayer"]["fc.0.weight"][:] = 1e38
    torch.save(content, tmp_path / "c.pth")
    good = REFERENCE / "data/mini_mvtec/brick/train/good"
    line = fails(predict_script.main, good, "--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--num_workers",
                 0, "--calibrate", good, "--checkpoint_path", tmp_path / "c.pth", "--save_path",
                 tmp_path / "out")  # fmt: skip
    assert f"the anomaly map or score of normal image 1 of {good} holds NaN or infinity" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "log.txt"]
