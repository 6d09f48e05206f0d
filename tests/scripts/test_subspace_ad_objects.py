"""SubspaceAD for one's own images: scale from the references left out in turn, stored subspaces, export."""

import csv
import json
import shutil

import numpy as np
import pytest

import export as export_script
import predict as predict_script
import test as test_script
from conftest import REFERENCE

MODEL = [
    "--method", "subspace_ad", "--model", "tiny-r", "--config_path", REFERENCE / "models/tiny-r.json",
    "--pretrained", REFERENCE / "models/tiny-r.pt", "--image_size", 112, "--augmentations", 2,
]  # fmt: skip
IMAGES = REFERENCE / "data/mini_mvtec/brick"


def run(script, *flags) -> int:
    return script.main([str(flag) for flag in flags])


def scores_of(folder, table="scores.csv") -> dict[tuple[str, ...], float]:
    with (folder / table).open(newline="", encoding="utf-8") as file:
        keys = ("img_path", "k_shot", "seed")
        return {tuple(row[key] for key in keys if key in row): float(row["score"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    for number in range(3):
        shutil.copy(IMAGES / f"train/good/{number:03d}.png", folder)
    return folder


def test_exported_detector_gives_the_same_scores(references, tmp_path):
    """The resizer of this method is not that of the others; the file says which."""
    flags = [*MODEL, "--class_name", "brick", "--references", references, "--center_crop", True]
    run(export_script, *flags, "--save_path", tmp_path / "onnx")
    card = json.loads((tmp_path / "onnx/detector.json").read_text())
    assert card["input_spec"]["resizer"] == "torchvision" and card["input_spec"]["center_crop"] is True
    assert "interpolate on uint8" in card["preprocessing"] and "0.875" in card["preprocessing"]
    run(
        predict_script, IMAGES / "test/hole", *flags, "--device", "cpu", "--save_path", tmp_path / "here", "--no_images"
    )
    run(
        predict_script,
        IMAGES / "test/hole",
        "--onnx",
        tmp_path / "onnx",
        "--save_path",
        tmp_path / "there",
        "--no_images",
    )
    here, there = scores_of(tmp_path / "here"), scores_of(tmp_path / "there")
    assert here.keys() == there.keys() and len(here) == 5
    np.testing.assert_allclose(list(here.values()), list(there.values()), atol=1e-4)
    calibration = json.loads((tmp_path / "here/calibration.json").read_text())
    assert calibration["normal_images"] == 3 and calibration["limits"].keys() == {"map_mtop1p"}


def test_stored_subspaces(mini_mvtec, tmp_path):
    flags = [
        *MODEL,
        "--device",
        "cpu",
        "--dataset",
        "mvtec",
        "--data_path",
        mini_mvtec,
        "--class",
        "coins",
        "--no_images",
    ]
    memory = tmp_path / "memory.safetensors"
    run(
        test_script,
        *flags,
        "--k_shot",
        1,
        2,
        "--seed",
        1,
        2,
        "--save_memory",
        memory,
        "--save_path",
        tmp_path / "drawn",
    )
    run(test_script, *flags, "--memory", memory, "--save_path", tmp_path / "stored")
    drawn, stored = (scores_of(tmp_path / name, "predictions.csv") for name in ("drawn", "stored"))
    assert drawn == stored and len(drawn) == 4 * 16
