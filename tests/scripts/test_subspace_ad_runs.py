"""SubspaceAD from start to end through test.py, against runs of the published program."""

import csv
import json

import numpy as np
import pytest

import test as test_script
from conftest import REFERENCE, Weights, load_case

CASES = {
    "mvtec_k1": ["--features_list", "-2", "-3", "-4", "--augmentations", "3", "--explained_variance", "0.99"],
    "visa_k4": ["--features_list", "-2", "-3", "-4", "--augmentations", "2", "--explained_variance", "0.95",
                "--resizer", "pil"],
    "mvtec_k2_saliency": ["--features_list", "-2", "-3", "--augmentations", "0", "--explained_variance", "0.97",
                          "--background", "dino_saliency", "--background_percentile", "0.3", "--saliency_layer", "2"],
    "visa_batched": ["--features_list", "-2", "-3", "-4", "--explained_variance", "0.99", "--mode", "batched"],
}  # fmt: skip


def tiny(name: str) -> Weights:
    """A tiny DINOv2: tiny-d without registers, tiny-r with."""
    return Weights(name, *(str(REFERENCE / "models" / f"{name}{suffix}") for suffix in (".json", ".pt")))


@pytest.fixture
def run(request, tmp_path):
    """Scores a case; returns its folder of results."""

    def run_case(name: str, *flags: str):
        case, dataset = load_case(f"subspacead_{name}"), name.partition("_")[0]
        weights = tiny("tiny-d" if "saliency" in name else "tiny-r")
        root = request.getfixturevalue(f"mini_{dataset}")
        argv = ["--method", "subspace_ad", *CASES[name], *weights.flags, "--dataset", dataset, "--data_path", root,
                "--image_size", case.facts["hyper_parameters"]["image_size"], "--class", *case.facts["classes"],
                "--save_path", tmp_path / "results", "--save_maps", "--num_workers", 0, "--device", "cpu",
                *flags]  # fmt: skip
        test_script.main([str(flag) for flag in argv])
        return case, tmp_path / "results"

    return run_case


def assert_run(case, results) -> None:
    """Scores and maps against the stored ones."""
    tolerance = case.facts["tolerance"]
    with (results / "predictions.csv").open(newline="", encoding="utf-8") as file:
        scores = {row["img_path"]: float(row["score"]) for row in csv.DictReader(file)}
    images = case.facts["images"]
    assert len(scores) == len(images)
    np.testing.assert_allclose(
        [scores[image] for image in images], case.arrays["image_scores"], atol=tolerance["scores_abs"], rtol=0
    )
    maps = [np.load((results / "maps" / image).with_suffix(".npy")) for image in images]
    np.testing.assert_allclose(np.stack(maps)[:, ::4, ::4], case.arrays["maps_s4"], atol=tolerance["maps_abs"], rtol=0)
    for index, stored in zip(case.arrays["maps_full_index"], case.arrays["maps_full"], strict=True):
        np.testing.assert_allclose(maps[index], stored, atol=tolerance["maps_abs"], rtol=0)


def shots_of(case) -> dict:
    """References and views of a case as k_shot.json has them."""
    settings, references = case.facts["hyper_parameters"], case.facts["reference_images"]
    entry = {"k_shot": settings["k_shot"], "seed": settings["seed"], "references": references}
    if case.facts["augmentation_draws"]:
        entry["views"] = {
            name: [
                [
                    [[], *([step] for step in steps[number : number + settings["aug_count"]])]
                    for steps in passes.values()
                ]
                for number in range(0, settings["k_shot"] * settings["aug_count"], settings["aug_count"])
            ]
            for name, passes in case.facts["augmentation_draws"].items()
        }
    return entry


@pytest.mark.parametrize("name", ["mvtec_k1", "visa_k4", "mvtec_k2_saliency"])
def test_references_and_views_from_a_file(run, tmp_path, name):
    case = load_case(f"subspacead_{name}")
    shots = tmp_path / "shots.json"
    shots.write_text(json.dumps([shots_of(case)]))
    assert_run(*run(name, "--references", shots))


@pytest.mark.parametrize("name", ["mvtec_k1", "visa_k4", "mvtec_k2_saliency"])
def test_published_draw(run, name):
    case = load_case(f"subspacead_{name}")
    settings = case.facts["hyper_parameters"]
    flags = ["--reference_draw", "published", "--k_shot", settings["k_shot"], "--seed", settings["seed"]]
    case, results = run(name, *flags)
    assert_run(case, results)
    (entry,) = json.loads((results / "k_shot.json").read_text())
    wanted = shots_of(case)
    assert {key: entry[key] for key in ("k_shot", "seed", "references")} == {
        key: wanted[key] for key in ("k_shot", "seed", "references")
    }
    if "views" in wanted:
        assert entry["views"] == wanted["views"]


def test_a_set_together(run):
    case, results = run("visa_batched")
    assert_run(case, results)
    assert not (results / "k_shot.json").exists()
