"""MuSc against runs of the published program: its parts, and the whole through test.py."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
from conftest import REFERENCE, Weights, load_case
from model import anomaly_map, build
from model.musc import MuSc, divide, rescore
from utils.distributed import Processes

CASES = ("musc_mvtec", "musc_mvtec_divide2", "musc_visa", "musc_dino_visa", "musc_dinov2_visa")
MODELS = REFERENCE / "models"


def weights_of(case, request) -> Weights:
    name = case.facts["model_config"].removeprefix("models/").removesuffix(".json")
    if name == "tiny-a":
        return request.getfixturevalue("tiny_a")
    return Weights(name, str(MODELS / f"{name}.json"), str(MODELS / f"{name}.pt"))


def rows_of(case, name: str) -> list[int]:
    return [row for row, other in enumerate(case.facts["image_class"]) if other == name]


class Passes:
    """Bundles in memory, as the engine hands them over."""

    processes = Processes()

    def __init__(self, paths, bundles=()):
        self.paths, self.bundles = list(paths), bundles

    def __call__(self):
        return iter(self.bundles)


@pytest.mark.parametrize("name", CASES)
def test_scores_rescored_by_neighbours(name):
    case = load_case(name)
    for cls in case.facts["classes"]:
        rows = rows_of(case, cls)
        largest, tokens = (torch.from_numpy(case.arrays[key][rows]).float() for key in ("map_max", "class_tokens"))
        own = rescore(largest, tokens, case.facts["hyper_parameters"]["k_list"])
        np.testing.assert_allclose(own, case.arrays["image_scores"][rows], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neighborhoods": [1, 2]}, "--neighborhoods 2: must be odd, 1 or more"),
        ({"neighborhoods": []}, "--neighborhoods: give one or more values"),
        ({"lowest": 0}, "--lowest 0: must be above 0, at most 1"),
        ({"rescoring": [0]}, "--rescoring 0: must be 1 or more"),
        ({"divide_num": 0}, "--divide_num 0: must be 1 or more"),
    ],
)
def test_options_out_of_range(tiny_a, options, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        musc(tiny_a, **options)


def test_equal_scores_stay_equal():
    assert rescore(torch.full((6,), 0.7), torch.eye(6), (1, 2)).tolist() == [0] * 6


@pytest.mark.parametrize("name", CASES)
def test_maps_are_the_mean_of_all_mutual_scores(name):
    case = load_case(name)
    grid = case.arrays["msm"].astype(np.float64).mean((0, 1))  # (n, N)
    side, size = int(grid.shape[1] ** 0.5), case.facts["hyper_parameters"]["image_size"]
    maps = anomaly_map.upsample(torch.from_numpy(grid), (side, side), size, align_corners=True)
    np.testing.assert_allclose(maps[:, ::4, ::4], case.arrays["maps_s4"], atol=1e-6)
    np.testing.assert_allclose(maps.amax((1, 2)), case.arrays["map_max"], atol=1e-6)


def test_published_division():
    """The order of its results is that of its parts; the files of a folder were sorted."""
    case = load_case("musc_mvtec_divide2")
    for cls in case.facts["classes"]:
        rows = rows_of(case, cls)
        theirs = [case.facts["images"][row] for row in rows]
        paths = sorted(theirs)
        parts = divide(paths, 2)
        assert [paths[index] for part in parts for index in part] == theirs
        assert [len(part) for part in parts] == np.bincount(case.arrays["subset"][rows]).tolist()


# --- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_test_py(name, request, tmp_path):
    """All images of a case in its own dataset: maps and scores within its tolerances, whatever the batch size."""
    case = load_case(name)
    facts, settings = case.facts, case.facts["hyper_parameters"]
    weights = weights_of(case, request)
    data = facts["dataset_dir"].rpartition("/")[2]
    root = request.getfixturevalue(data)
    argv = ["--method", "musc", "--dataset", data.removeprefix("mini_"), "--data_path", root, *weights.flags,
            "--image_size", settings["image_size"], "--features_list", *settings["layers"], "--neighborhoods",
            *settings["r_list"], "--divide_num", settings["divide_num"], "--batch_size", 5, "--num_workers", 0,
            "--no_images", "--save_maps", "--save_path", tmp_path]  # fmt: skip
    test_script.main([str(word) for word in argv])
    maps = np.stack([np.load((tmp_path / "maps" / path).with_suffix(".npy")) for path in facts["images"]])
    allowed = facts["tolerance"]
    np.testing.assert_allclose(maps[:, ::4, ::4], case.arrays["maps_s4"], atol=allowed["maps_abs"], rtol=0)
    np.testing.assert_allclose(maps[:2], case.arrays["maps_first2"], atol=allowed["maps_abs"], rtol=0)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = {row["img_path"]: row for row in csv.DictReader(file)}
    for key, array, limit in (("score", "image_scores", "scores_abs"), ("map_max", "map_max", "map_max_abs")):
        own = [float(rows[path][key]) for path in facts["images"]]
        np.testing.assert_allclose(own, case.arrays[array], atol=allowed[limit], rtol=0)


@pytest.mark.parametrize("name", ["musc_mvtec", "musc_dino_visa"])
def test_tokens_of_the_first_image(name, request):
    case = load_case(name)
    weights = weights_of(case, request)
    settings = case.facts["hyper_parameters"]
    detector = musc(weights, image_size=settings["image_size"], features_list=settings["layers"])
    image = picture(detector, REFERENCE / case.facts["dataset_dir"] / case.facts["images"][0])
    tokens = detector.encode(image)
    own = torch.cat([tokens.patches[layer] for layer in settings["layers"]])
    np.testing.assert_allclose(own, case.arrays["first_features"], atol=2e-5)
    np.testing.assert_allclose(tokens.pooled[0], case.arrays["class_tokens"][0], atol=2e-5)


def musc(weights, **options) -> MuSc:
    return build(
        "musc", model=weights.model, pretrained=weights.pretrained, config_path=weights.config_path, **options
    ).eval()


def picture(detector, path) -> torch.Tensor:
    return detector.input_spec.image(Image.open(path))[None]


# --- what cannot be scored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "paths", "line"),
    [
        ({}, [f"a/{n}.png" for n in range(4)], "'nut': musc compares 5 or more images with each other, and it has 4"),
        ({"lowest": 0.1}, [f"a/{n}.png" for n in range(10)], "musc compares 11 or more images with each other"),
        ({"divide_num": 3}, [f"{'ab'[n % 2]}/{n}.png" for n in range(14)],
         "musc compares 5 or more images with each other, and a part of --divide_num 3 has 4"),
        ({"divide_num": 2}, [f"photos/{n}.png" for n in range(20)],
         "--divide_num 2: deals the images of each folder to the parts, and all of 'nut' lie in one folder; drop it"),
        ({"rescoring": [1, 8, 9]}, [f"a/{n}.png" for n in range(8)],
         "--rescoring 1 8 9: 'nut' has 8 images; take numbers of neighbours up to that"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_scored(options, paths, line, tiny_a):
    detector = musc(tiny_a, **options)
    with pytest.raises(ValueError, match="^.*$") as error:
        next(iter(detector.score_set(Passes(paths), "nut")))
    assert line in str(error.value)


def test_the_division_is_said_in_the_log(tiny_a, caplog):
    detector = musc(tiny_a, divide_num=2)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    paths = [f"{'good' if n % 2 else 'bad'}/{n}.png" for n in range(12)]
    with caplog.at_level("INFO"):
        (prediction,) = detector.score_set(Passes(paths, [detector.encode(images)]), "nut")
    assert "divided by the names of their folders (bad, good)" in caplog.text and "uses labels" in caplog.text
    assert prediction.maps.shape == (12, 64, 64)


@pytest.mark.parametrize(("flag", "value"), [("neighborhoods", "2"), ("neighborhoods", "0"), ("lowest", "0"),
                                             ("lowest", "1.5"), ("divide_num", "0")])  # fmt: skip
def test_values_that_no_option_takes(flag, value, capsys):
    with pytest.raises(SystemExit):
        test_script.main(["--method", "musc", f"--{flag}", value])
    assert f"argument --{flag}: {value}: must be" in capsys.readouterr().err


def test_stages_with_grids_of_their_own_are_compared_on_the_coarsest():
    torch.manual_seed(0)
    detector = build("musc", model="RN50", image_size=64, rescoring=[1])
    assert detector.features_list == (2, 3)
    images = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    tokens = detector.encode(images)
    assert tokens.grids == {2: (4, 4), 3: (4, 4)}
    whole = detector.backbone(images, [2]).patches[2].unflatten(1, (8, 8))
    torch.testing.assert_close(tokens.patches[2][:, 0], whole[:, :2, :2].mean((1, 2)))
    (prediction,) = detector.score_set(Passes(map(str, range(5)), [tokens]), "nut")
    assert prediction.maps.shape == (5, 64, 64) and prediction.maps.isfinite().all()
