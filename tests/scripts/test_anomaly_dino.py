"""AnomalyDINO through the scripts: the published cases, references that are replayed, memories, one's own images."""

import csv
import json

import numpy as np
import pytest

import export as export_script
import predict as predict_script
import test as test_script
from conftest import REFERENCE, load_case
from forks import together
from model import foreground

MODELS = REFERENCE / "models"
TINY = ["--model", "tiny-d", "--config_path", MODELS / "tiny-d.json", "--pretrained", MODELS / "tiny-d.pt"]
CASES = {
    "anomalydino_mvtec_k1": "mvtec",
    "anomalydino_mvtec_k4_mask_rotate": "mvtec",
    "anomalydino_visa_k2_mask": "visa",
    "anomalydino_mvtec_batched": "mvtec",
}


def call(main, *argv) -> None:
    main([str(arg) for arg in argv])


def flags_of(case, dataset: str, root) -> list:
    """The command line of a case, references apart."""
    settings = case.facts["hyper_parameters"]
    masking = [name for name, on in settings["masking"].items() if on] or ["none"]
    return [
        "--method", "anomaly_dino", "--dataset", dataset, "--data_path", root, *TINY, "--image_size",
        settings["resolution"], "--preprocess", settings["preset"], "--masking", *masking, "--num_workers", 0,
    ]  # fmt: skip


def rows_of(path, *keys: str) -> dict:
    """Image, or image and what else tells rows apart -> score."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["img_path"], *(row[key] for key in keys)) if keys else row["img_path"]: float(row["score"])
            for row in rows}  # fmt: skip


def maps_of(out, case, name: str) -> np.ndarray:
    facts = case.facts
    own = [path for path, cls in zip(facts["images"], facts["image_class"], strict=True) if cls == name]
    return np.stack([np.load((out / "maps" / path).with_suffix(".npy")) for path in own])


def assert_agrees(out, case) -> None:
    """Maps, scores and metrics with the published ones."""
    facts, allowed = case.facts, case.facts["tolerance"]
    for name in facts["classes"]:
        maps = maps_of(out, case, name)
        differences = np.abs(maps[:, ::4, ::4] - case.arrays[f"maps_s4/{name}"])
        if "patches_exempt_fraction" in allowed:  # a patch of the case hangs on a chance tie, and so do pixels near it
            assert (differences > allowed["maps_abs"]).mean() < 0.01 and differences.max() < 0.01
            continue
        assert differences.max() < allowed["maps_abs"]
        whole = maps[case.arrays[f"maps_full_index/{name}"]]
        np.testing.assert_allclose(whole, case.arrays[f"maps_full/{name}"], atol=allowed["maps_abs"], rtol=0)
    scores = rows_of(out / "predictions.csv")
    own = [scores[path] for path in facts["images"]]
    np.testing.assert_allclose(own, case.arrays["image_scores"], atol=allowed["scores_abs"], rtol=0)
    measured = json.loads((out / "metrics.json").read_text())
    for name, metrics in facts["metrics"].items():
        row = measured["mean"] if name == "mean" else measured["classes"][name]
        for key, value in metrics.items():
            kind = "aupro" if key == "aupro" else "image" if key.endswith("_sp") else "pixel"
            assert row[key] == pytest.approx(value, abs=allowed[f"metrics_{kind}_abs"]), (name, key)


@pytest.mark.parametrize("name", CASES)
def test_published_case_and_its_replay(name, mini_mvtec, mini_visa, tmp_path):
    """Drawn as published, with the views that the preset asks for; then once more from k_shot.json, whose views hold
    against other flags."""
    case = load_case(name)
    settings = case.facts["hyper_parameters"]
    argv = [*flags_of(case, CASES[name], {"mvtec": mini_mvtec, "visa": mini_visa}[CASES[name]]), "--save_maps"]
    if settings["mode"] == "batched zero-shot":
        call(test_script.main, *argv, "--mode", "batched", "--save_path", tmp_path / "out")
        assert_agrees(tmp_path / "out", case)
        return
    draw = ["--k_shot", settings["shots"], "--seed", settings["seed"], "--reference_draw", "published"]
    call(test_script.main, *argv, *draw, "--save_path", tmp_path / "out")
    assert_agrees(tmp_path / "out", case)
    (shots,) = json.loads((tmp_path / "out/k_shot.json").read_text())
    assert shots["references"] == case.facts["reference_images"]
    if name == "anomalydino_mvtec_k4_mask_rotate":
        replay = ["--references", tmp_path / "out/k_shot.json", "--rotation", "none", "--no_images"]
        call(test_script.main, *argv, *replay, "--save_path", tmp_path / "again")
        assert_agrees(tmp_path / "again", case)


def test_stored_memories_give_the_same_numbers(mini_visa, tmp_path):
    """Several settings at once, whose references are of their own sizes in each class."""
    case = load_case("anomalydino_visa_k2_mask")
    argv = [*flags_of(case, "visa", mini_visa), "--no_images", "--mask_references", True, "--rotation", "grass"]
    kept = tmp_path / "m.safetensors"
    draw = ["--k_shot", 1, 2, "--seed", 0, 1]
    call(test_script.main, *argv, *draw, "--save_memory", kept, "--save_path", tmp_path / "one")
    call(test_script.main, *argv, *draw, "--memory", kept, "--save_path", tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["runs"] for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for own, other in zip(one, two, strict=True):
        assert own["classes"].keys() == other["classes"].keys() == {"grass", "tissue_slide"}
        for name, row in own["classes"].items():
            assert other["classes"][name] == pytest.approx(row, abs=1e-5)


def predict(out, photos, *flags) -> tuple[list[dict[str, str]], dict[str, np.ndarray]]:
    """(rows of scores.csv, maps by file name)"""
    call(predict_script.main, photos, *flags, "--num_workers", 0, "--save_maps", "--save_path", out)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, {path.name: np.load(path) for path in sorted((out / "maps").rglob("*.npy"))}


OWN = ["--class_name", "gravel", "--method", "anomaly_dino", *TINY, "--image_size", 98]


def test_ones_own_images(mini_mvtec, tmp_path):
    """Calibrated on the references; a line about a class that is on no list; maps as large as the photographs."""
    good, photos = mini_mvtec / "gravel/train/good", mini_mvtec / "gravel/test/missing"
    rows, maps = predict(tmp_path / "out", photos, *OWN, "--references", good)
    assert len(rows) == 5 and {row["verdict"] for row in rows} <= {"normal", "anomalous"}
    assert {one.shape for one in maps.values()} == {(128, 160)}
    log = (tmp_path / "out/log.txt").read_text()
    assert "class 'gravel' is not on the published lists of --preprocess agnostic" in log


@pytest.mark.parametrize(
    "options",
    [("--masking", "gravel"), ("--metric", "l2", "--neighbors", 3, "--masking", "all", "--mask_references", True)],
    ids=["masked", "l2"],
)
def test_export(options, mini_mvtec, tmp_path, capfd, monkeypatch):
    """onnxruntime gives the same numbers; photographs of another shape are left out by name."""
    if "l2" in options:  # the steps are most of the graph, and the other case has them all
        monkeypatch.setattr(foreground, "_STEPS", 4)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -r requirements-export.txt")
    good, photos = mini_mvtec / "gravel/train/good", mini_mvtec / "gravel/test/missing"
    own = [*OWN, "--rotation", "none", *options]
    call(export_script.main, *own, "--references", good, "--save_path", tmp_path / "onnx")
    assert "has no foreground" not in "".join(capfd.readouterr())  # of images that only the check looks at
    card = json.loads((tmp_path / "onnx/detector.json").read_text())
    assert (card["input_shape"], card["map_size"]) == ([98, 112], [128, 160])
    assert card["input_spec"] == {"kind": "shorter edge", "side": 98, "multiple": 14}
    rows, maps = predict(tmp_path / "torch", photos, *own, "--references", good)
    other_rows, other_maps = predict(tmp_path / "other", photos, "--onnx", tmp_path / "onnx")
    assert maps.keys() == other_maps.keys() and len(maps) == 5
    for name, one in maps.items():
        np.testing.assert_allclose(other_maps[name], one, atol=1e-3)
    for row, other in zip(rows, other_rows, strict=True):
        assert float(other["score"]) == pytest.approx(float(row["score"]), abs=1e-3)
    code = predict_script.main(
        [str(word) for word in (mini_mvtec / "brick/test/hole", photos, "--onnx", tmp_path / "onnx", "--num_workers", 0,
                                "--save_path", tmp_path / "mixed")]
    )  # fmt: skip
    assert code == 3
    reason = (tmp_path / "mixed/skipped.csv").read_text()
    assert "96 x 96 pixels become 98 x 98, and the exported detector takes 112 x 98" in reason


SETS = {"few_shot": ["--image_size", 98, "--k_shot", 2, "--seed", 0, 1], "batched": ["--image_size", 224, "--mode",
        "batched"]}  # fmt: skip


@pytest.fixture(scope="module")
def alone(mini_mvtec, tmp_path_factory):
    """(flags, mode -> folder of a test by one process); a class of --masking is not in the data."""
    argv = ["--method", "anomaly_dino", "--dataset", "mvtec", "--data_path", mini_mvtec, *TINY, "--num_workers", 0,
            "--no_images", "--device", "cpu", "--class", "gravel", "coins", "--masking", "coins",
            "gravell"]  # fmt: skip
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in SETS}
    for mode, flags in SETS.items():
        call(test_script.main, *argv, *flags, "--save_path", folders[mode])
    return argv, folders


@pytest.mark.parametrize("mode", [*SETS, "replayed"])
def test_a_class_that_the_run_does_not_have_is_named_once(mode, alone, tmp_path):
    argv, folders = alone
    if mode == "replayed":
        flags = ["--image_size", 98, "--references", folders["few_shot"] / "k_shot.json", "--save_path", tmp_path]
        call(test_script.main, *argv, *flags)
    log = (folders.get(mode, tmp_path) / "log.txt").read_text()
    assert log.count("no such class") == 1 and "--masking gravell: this run has no such class" in log


def test_export_without_a_normal_image_to_show_the_shape(fails, mini_mvtec, tmp_path):
    argv = ["--method", "anomaly_dino", "--dataset", "mvtec", "--data_path", mini_mvtec, *TINY, "--image_size", 98,
            "--class", "gravel", "--num_workers", 0, "--no_images"]  # fmt: skip
    kept = tmp_path / "m.safetensors"
    call(test_script.main, *argv, "--k_shot", 1, "--seed", 0, "--save_memory", kept, "--save_path", tmp_path / "test")
    line = fails(export_script.main, *OWN, "--references", kept, "--save_path", tmp_path / "onnx")
    assert "takes images of one shape, which a normal image has to show" in line


@pytest.mark.parametrize(("mode", "rows"), [("few_shot", 64), ("batched", 32)])
def test_two_processes_score_as_one(mode, rows, alone, tmp_path):
    argv, folders = alone
    process = together("test.py", *argv, *SETS[mode], "--save_path", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    own, other = (rows_of(folder / "predictions.csv", "seed") for folder in (tmp_path, folders[mode]))
    assert own == pytest.approx(other, abs=1e-5) and len(own) == rows
