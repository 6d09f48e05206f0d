"""The main job through the command line: trained on one dataset, tested on another, against the published program."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import forks
import test as test_script
import train as train_script
from conftest import REFERENCE, assert_maps, load_case
from dataset import AnomalyDataset, read
from engine import checkpoint
from model import build
from model.losses import dice, focal

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
FAST = ["--image_size", 96, "--num_workers", 0]


def call(main, *argv) -> None:
    main([str(arg) for arg in argv])


@pytest.fixture(scope="module")
def visa_flags(tiny_a, mini_visa) -> list:
    return [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", CHECKPOINT]


@pytest.fixture(scope="module")
def zero_shot(visa_flags, tmp_path_factory):
    out = tmp_path_factory.mktemp("zero_shot")
    call(test_script.main, *visa_flags, "--mode", "zero_shot", "--save_path", out, "--save_maps", "--batch_size", 5)
    return out


@pytest.fixture(scope="module")
def few_shot(visa_flags, tmp_path_factory):
    """The published case's references, by way of its own k_shot.txt."""
    out = tmp_path_factory.mktemp("few_shot")
    case = load_case("aprilgan_visa_k4_seed42").facts
    references = out / "k_shot.txt"
    references.write_text("".join(f"{p}\n" for paths in case["reference_images"].values() for p in paths))
    call(test_script.main, *visa_flags, "--mode", "few_shot", "--k_shot", 4, "--seed", 42, "--references", references,
         "--save_path", out, "--save_maps", "--no_images")  # fmt: skip
    return out


@pytest.mark.parametrize("name", ["zero_shot", "few_shot"])
def test_against_the_published_program(name, request):
    out = request.getfixturevalue(name)
    case = load_case({"zero_shot": "aprilgan_visa_zero_shot", "few_shot": "aprilgan_visa_k4_seed42"}[name])
    facts, tolerance = case.facts, case.facts["tolerance"]
    maps = np.stack([np.load(out / "maps" / path.replace(".JPG", ".npy")) for path in facts["images"]])
    assert maps.dtype == np.float32
    assert_maps(maps, case)
    rows = {row["img_path"]: row for row in predictions(out)}
    scores = [float(rows[path]["score"]) for path in facts["images"]]
    np.testing.assert_allclose(scores, case.arrays["image_scores"], atol=tolerance["scores_abs"])
    np.testing.assert_allclose(
        [float(rows[path]["text"]) for path in facts["images"]], case.arrays["text_prob"], atol=tolerance["scores_abs"]
    )
    result = json.loads((out / "metrics.json").read_text())
    for row, expected in [(result["classes"][name], facts["metrics"][name]) for name in facts["classes"]] + [
        (result["mean"], facts["metrics"]["mean"])
    ]:
        for key, value in expected.items():
            own, kind = (row["aupro_200"], "aupro") if key == "aupro" else (row[key], key[-2:])
            allowed = {"aupro": "metrics_aupro_abs", "px": "metrics_pixel_abs", "sp": "metrics_image_abs"}[kind]
            assert own == pytest.approx(value, abs=max(tolerance[allowed], 1e-6)), key


def predictions(out) -> list[dict]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_result_folder(zero_shot, few_shot, mini_visa):
    paths = [sample.img_path for sample in read(mini_visa)["test"]]
    for path in paths:
        with Image.open(zero_shot / "imgs" / path.replace(".JPG", ".png")) as picture:
            assert picture.width > 2.9 * picture.height * 80 / 110
    assert not (few_shot / "imgs").exists() and not (zero_shot / "k_shot.json").exists()
    config = json.loads((zero_shot / "config.json").read_text())
    assert config["settings"]["image_size"] == 96 and config["sources"]["image_size"] == "flag"
    assert config["sources"]["batch_size"] == "flag" and config["torch"] == torch.__version__.split("+")[0]
    log = (zero_shot / "log.txt").read_text()
    assert re.search(r"\| objects +\| auroc_px +\| f1_px +\| ap_px +\| aupro +\| auroc_sp +\| f1_sp +\| ap_sp +\|", log)
    (shots,) = json.loads((few_shot / "k_shot.json").read_text())
    assert (shots["k_shot"], shots["seed"]) == (4, 42) and len(shots["references"]["grass"]) == 4
    with (few_shot / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["objects"] for row in rows] == ["grass", "tissue_slide", "mean"]
    exact = json.loads((few_shot / "metrics.json").read_text())["classes"]["grass"]["ap_px"]
    assert float(rows[0]["ap_px"]) == exact
    leftovers = [p for folder in (zero_shot, few_shot) for p in folder.rglob(".*")]
    assert not leftovers


def pictures(out) -> int:
    return (out / "report.html").read_text(encoding="utf-8").count("data:image/webp;base64,")


def test_report_page(zero_shot, few_shot):
    """With --no_images too, it has a few small pictures."""
    assert pictures(zero_shot) == pictures(few_shot) > 2 * 5
    page = (few_shot / "report.html").read_text(encoding="utf-8")
    assert "4-shot, seed 42" in page and "april_gan on visa" in page and 'class="line pixel"' in page


def test_several_settings_in_one_pass_equal_single_runs(visa_flags, tmp_path):
    call(test_script.main, *visa_flags, "--k_shot", 0, 1, 2, "--seed", 5, 6, "--save_path", tmp_path / "all",
         "--save_maps", "--batch_size", 7, "--no_images")  # fmt: skip
    together = json.loads((tmp_path / "all/metrics.json").read_text())
    settings = [(run["settings"]["k_shot"], run["settings"]["seed"]) for run in together["runs"]]
    assert settings == [(0, None), (1, 5), (1, 6), (2, 5), (2, 6)]
    call(test_script.main, *visa_flags, "--k_shot", 2, "--seed", 6, "--save_path", tmp_path / "one", "--save_maps",
         "--no_images", "--batch_size", 32)  # fmt: skip
    alone = json.loads((tmp_path / "one/metrics.json").read_text())
    assert alone["mean"]["auroc_px"] == pytest.approx(together["runs"][4]["mean"]["auroc_px"], abs=1e-5)
    name = "grass/Data/Images/Normal/0002.npy"
    np.testing.assert_allclose(
        np.load(tmp_path / "all/maps/k2_seed6" / name), np.load(tmp_path / "one/maps" / name), atol=1e-5
    )
    values = [run["mean"]["ap_px"] for run in together["runs"][3:]]
    assert together["mean"]["2"]["ap_px"] == pytest.approx(np.mean(values))
    assert together["std"]["2"]["ap_px"] == pytest.approx(np.std(values))
    table = (tmp_path / "all/table.md").read_text()
    assert pictures(tmp_path / "all") == 3 * pictures(tmp_path / "one")
    assert "2-shot, seeds 5 6" in table and re.search(r"\| grass +\| \d+\.\d ± \d+\.\d", table)
    first, second = (shots["references"] for shots in json.loads((tmp_path / "all/k_shot.json").read_text())[::2])
    assert all(second[cls][:1] == paths for cls, paths in first.items())
    again = ["--references", tmp_path / "all/k_shot.json", "--k_shot", 2, "--seed", 6]
    call(test_script.main, *visa_flags, *again, "--save_path", tmp_path / "again", "--no_images")
    assert json.loads((tmp_path / "again/metrics.json").read_text())["classes"] == alone["classes"]


def test_workers_and_batch_size_change_nothing(visa_flags, zero_shot, tmp_path):
    call(test_script.main, *visa_flags, "--save_path", tmp_path, "--save_maps", "--no_images", "--num_workers", 2,
         "--batch_size", 32)  # fmt: skip
    for path in zero_shot.glob("maps/**/*.npy"):
        np.testing.assert_allclose(np.load(tmp_path / path.relative_to(zero_shot)), np.load(path), atol=1e-5)


def test_batch_size_and_precision_by_themselves(visa_flags, zero_shot, tmp_path):
    """On the CPU 16 and fp32, and the log says so; the log also says what the backbone takes."""
    call(test_script.main, *visa_flags, "--save_path", tmp_path, "--device", "cpu", "--batch_size", "auto")
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"batch_size +16 \(auto\)", log) and re.search(r"precision +fp32 \(default without a GPU", log)
    assert re.search(r"images in \d+\.\d s, \d+\.\d s of that in the backbone", log)
    own, alone = (json.loads((folder / "metrics.json").read_text())["classes"] for folder in (tmp_path, zero_shot))
    for name, row in alone.items():
        assert own[name] == pytest.approx(row, abs=1e-4)


def test_only_some_classes(visa_flags, zero_shot, tmp_path, monkeypatch):
    monkeypatch.setattr("report.pictures._load", None)  # overlays are drawn from what was read for scoring
    call(test_script.main, *visa_flags, "--save_path", tmp_path, "--class", "tissue_slide")
    own, whole = (json.loads((folder / "metrics.json").read_text())["classes"] for folder in (tmp_path, zero_shot))
    assert list(own) == ["tissue_slide"]
    assert own["tissue_slide"] == pytest.approx(whole["tissue_slide"], abs=1e-4)
    drawn = [path.relative_to(zero_shot) for path in zero_shot.glob("imgs/**/*.png") if "tissue_slide" in str(path)]
    assert drawn and all((tmp_path / path).read_bytes() == (zero_shot / path).read_bytes() for path in drawn)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train_flags(tiny_a, mini_mvtec) -> list:
    return [*tiny_a.flags, *FAST, "--dataset", "mvtec", "--train_data_path", mini_mvtec, "--aug_rate", 0]


@pytest.fixture(scope="module")
def start_weights(tmp_path_factory):
    arrays = load_case("aprilgan_six_steps_mvtec").arrays
    state = {key[5:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("init/")}
    path = tmp_path_factory.mktemp("start") / "init.pth"
    torch.save({"trainable_linearlayer": state}, path)
    return path


def losses(out) -> list[float]:
    with (out / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_training_in_file_order_equals_a_plain_loop(train_flags, start_weights, tiny_a, mini_mvtec, tmp_path):
    """The plain loop is the one that tests/model/test_april_gan.py holds against the published program."""
    call(train_script.main, *train_flags, "--epoch", 1, "--batch_size", 7, "--no_shuffle", "--init_checkpoint",
         start_weights, "--save_path", tmp_path)  # fmt: skip
    detector = build("april_gan", model=tiny_a.model, pretrained=tiny_a.pretrained, image_size=96)
    detector.load_trainable_state(checkpoint.load(start_weights).state)
    optimizer = torch.optim.Adam(detector.adapters.parameters(), lr=1e-3, betas=(0.5, 0.999))
    samples, expected = read(mini_mvtec)["test"], []
    for start in range(0, len(samples), 7):
        items = list(AnomalyDataset(mini_mvtec, samples[start : start + 7], 96))
        masks = torch.stack([item["mask"] for item in items])
        maps = detector(torch.stack([item["image"] for item in items]), [item["cls_name"] for item in items])
        loss = sum(focal(p, masks) + dice(p[:, 1], masks) for p in maps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-5)
    _, state, meta = checkpoint.load(tmp_path / "epoch_1.pth")
    for key, value in detector.trainable_state()["trainable_linearlayer"].items():
        torch.testing.assert_close(state["trainable_linearlayer"][key], value, atol=1e-5, rtol=0)
    assert meta["method"] == "april_gan" and meta["features_list"] == [1, 2, 3, 4] and meta["dataset"] == "mvtec"


def test_resumed_training_equals_one_that_was_not_stopped(train_flags, tmp_path):
    flags = [*train_flags, "--class", "brick", "--aug_rate", 0.5]
    call(train_script.main, *flags, "--epoch", 3, "--save_path", tmp_path / "whole")
    call(train_script.main, *flags, "--epoch", 1, "--save_path", tmp_path / "parts")
    call(train_script.main, *flags, "--epoch", 3, "--save_path", tmp_path / "parts", "--resume")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (checkpoint.load(tmp_path / folder / "epoch_3.pth").state for folder in ("whole", "parts"))
    for key, value in whole["trainable_linearlayer"].items():
        assert torch.equal(value, parts["trainable_linearlayer"][key])


def test_trained_adapters_find_more_than_untrained_ones(train_flags, tiny_a, mini_mvtec, tmp_path):
    """On the training images themselves: the job does what it is for."""
    call(train_script.main, *train_flags, "--epoch", 8, "--save_freq", 4, "--save_path", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_4.pth", "epoch_8.pth"]
    curve = losses(tmp_path)
    assert np.mean(curve[-6:]) < 0.8 * np.mean(curve[:6])
    call(test_script.main, *tiny_a.flags, *FAST, "--dataset", "mvtec", "--data_path", mini_mvtec, "--checkpoint_path",
         tmp_path, "--save_path", tmp_path / "scores", "--no_images")  # fmt: skip
    mean = json.loads((tmp_path / "scores/metrics.json").read_text())["mean"]
    assert mean["auroc_px"] > 0.75


def test_published_checkpoint_keys(train_flags, tmp_path):
    call(train_script.main, *train_flags, "--class", "brick", "--epoch", 1, "--save_path", tmp_path)
    content = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert sorted(content) == ["meta", "trainable_linearlayer"]
    assert list(content["trainable_linearlayer"]) == [f"fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]


def test_bf16_is_close_to_fp32(visa_flags, zero_shot, tmp_path):
    """In a process of its own: a process has one precision."""
    flags = [*visa_flags, "--precision", "bf16", "--save_path", tmp_path, "--no_images", "--save_maps"]
    done = forks.run("test.py", *flags)
    assert done.returncode == 0, done.stderr
    differences = [
        np.abs(np.load(tmp_path / path.relative_to(zero_shot)) - np.load(path))
        for path in zero_shot.glob("maps/**/*.npy")
    ]
    assert 0 < np.mean(differences) < 0.05


def test_a_folder_means_its_last_training(train_flags, tmp_path):
    """Not the highest epoch, which may be of an earlier, longer one."""
    flags = [*train_flags, "--class", "brick", "--save_path", tmp_path]
    call(train_script.main, *flags, "--epoch", 2)
    call(train_script.main, *flags, "--epoch", 1, "--seed", 5)
    assert checkpoint.load(tmp_path).path.name == "epoch_1.pth" and checkpoint.load(tmp_path).meta["seed"] == 5


def test_layers_are_paired_in_block_order(tiny_a):
    detector = build("april_gan", model=tiny_a.model, pretrained=tiny_a.pretrained, features_list=[4, 1, 3])
    assert detector.features_list == detector.few_shot_features == (1, 3, 4)
