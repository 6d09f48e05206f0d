"""AnomalyCLIP's published runs through the command line: tests with the published checkpoint, and the training."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import test as test_script
import train as train_script
from conftest import assert_maps, load_case
from engine import checkpoint

TRAINING = load_case("anomalyclip_train_mvtec")
TRAINED = TRAINING.folder / "checkpoint.pth"
METRICS = {  # published name -> ours, its tolerance
    "auroc_px": ("auroc_px", "metrics_pixel_abs"),
    "aupro": ("aupro_200", "metrics_aupro_abs"),
    "auroc_sp": ("auroc_sp", "metrics_image_abs"),
    "ap_sp": ("ap_sp", "metrics_image_abs"),
}


def call(main, *argv) -> None:
    main([str(arg) for arg in argv])


@pytest.fixture
def flags(tiny_aclip):
    return ["--method", "anomaly_clip", *tiny_aclip.flags, "--image_size", 98, "--num_workers", 0]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("anomalyclip_visa", []),  # the preset: the last layer alone
        ("anomalyclip_visa_four_layers", ["--features_list", 8, 2, 6, 4, "--feature_map_layer", 0, 1, 2, 3]),
        ("anomalyclip_mvtec_last_two", ["--features_list", 3, 6, 8, "--feature_map_layer", 1, "--sigma", 2,
                                        "--dpam_blocks", 6, "--n_ctx", 12, "--t_n_ctx", 4, "--depth", 4]),
    ],
)  # fmt: skip
def test_of_the_published_checkpoint(name, own, flags, mini_visa, mini_mvtec, tmp_path, caplog):
    caplog.set_level("INFO")
    case = load_case(name)
    dataset, root = ("visa", mini_visa) if "visa" in name else ("mvtec", mini_mvtec)
    call(test_script.main, *flags, *own, "--dataset", dataset, "--data_path", root, "--checkpoint_path", TRAINED,
         "--save_path", tmp_path, "--save_maps", "--no_images")  # fmt: skip
    maps = [np.load((tmp_path / "maps" / path).with_suffix(".npy")) for path in case.facts["images"]]
    assert_maps(maps, case)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        scores = {row["img_path"]: float(row["score"]) for row in csv.DictReader(file)}
    tolerance = case.facts["tolerance"]
    own_scores = [scores[path] for path in case.facts["images"]]
    np.testing.assert_allclose(own_scores, case.arrays["image_scores"], atol=tolerance["scores_abs"], rtol=0)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for name, stored in case.facts["metrics"].items():
        row = found["mean"] if name == "mean" else found["classes"][name]
        for key, (ours, allowed) in METRICS.items():
            assert row[ours] == pytest.approx(stored[key], abs=tolerance[allowed]), (name, key)
    log = (tmp_path / "log.txt").read_text()
    assert ("says n_ctx 12, depth 4, t_n_ctx 4" in caplog.text) == ("--n_ctx" not in own)
    assert all(f"{key:20} {value} (" in log for key, value in (("n_ctx", 12), ("t_n_ctx", 4), ("depth", 4)))


@pytest.fixture
def published_start(tmp_path):
    """init.pth as the published program wrote it."""
    state = checkpoint.load(TRAINED).state
    for key in state["prompt_learner"]:
        if f"init/{key}" in TRAINING.arrays:
            state["prompt_learner"][key] = torch.from_numpy(TRAINING.arrays[f"init/{key}"])
    torch.save(state, tmp_path / "init.pth")
    return tmp_path / "init.pth"


def test_published_training(flags, mini_mvtec, published_start, tmp_path):
    """Both epochs in the published order, as one: every loss, and the learned tokens of the last checkpoint."""
    root = tmp_path / "mvtec"
    shutil.copytree(mini_mvtec, root)
    samples = [
        {"img_path": image, "mask_path": mask, "cls_name": "any", "specie_name": "", "anomaly": label}
        for step in TRAINING.facts["steps"]
        for image, mask, label in zip(step["images"], step["masks"], step["labels"], strict=True)
    ]
    (root / "meta.json").write_text(json.dumps({"train": {}, "test": {"any": samples}}))
    out = tmp_path / "out"
    call(train_script.main, *flags, "--dataset", "mvtec", "--train_data_path", root, "--features_list", 2, 4, 6, 8,
         "--init_checkpoint", published_start, "--no_shuffle", "--epoch", 1, "--save_path", out)  # fmt: skip
    with (out / "losses.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    tolerance = TRAINING.facts["tolerance"]
    np.testing.assert_allclose(losses, TRAINING.arrays["loss"], rtol=tolerance["loss_rel"])
    own, stored = (checkpoint.load(path).state["prompt_learner"] for path in (out / "epoch_1.pth", TRAINED))
    assert own.keys() == stored.keys()
    for key, value in stored.items():
        assert own[key].dtype == value.dtype
        torch.testing.assert_close(own[key], value, atol=tolerance["epochs_abs"], rtol=0, msg=key)


def test_flags_that_contradict_the_checkpoint(flags, mini_visa, tmp_path, fails):
    own = [*flags, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", TRAINED, "--save_path", tmp_path]
    line = fails(test_script.main, *own, "--n_ctx", 8)
    assert line == f"error: checkpoint {TRAINED} was trained with n_ctx 12 but this run has 8"
    assert "was trained with depth 4 but this run has 9" in fails(test_script.main, *own, "--depth", 9)
    assert "--feature_map_layer 1: leaves no layer" in fails(test_script.main, *own, "--feature_map_layer", 1)


def test_the_checkpoint_of_another_backbone(flags, mini_visa, tmp_path, tiny_aclip, fails):
    state = torch.load(tiny_aclip.pretrained, weights_only=True)
    state["token_embedding.weight"] = state["token_embedding.weight"].flip(1)
    torch.save(state, tmp_path / "other.pt")
    line = fails(test_script.main, *flags, "--pretrained", tmp_path / "other.pt", "--dataset", "visa", "--data_path",
                 mini_visa, "--checkpoint_path", TRAINED, "--save_path", tmp_path / "out")  # fmt: skip
    assert line.startswith(f"error: checkpoint {TRAINED}: 'token_prefix_pos' in it is not the token embedding of")


def test_training_goes_on_with_the_sizes_of_its_checkpoint(flags, mini_mvtec, mini_visa, tmp_path):
    """Other sizes than the preset's: given once, then read from the checkpoint, also for the validation; interrupted
    and resumed, the weights are those of a training in one go. The last batch holds a single image."""
    (tmp_path / "data").mkdir()
    samples = json.loads((mini_mvtec / "meta.json").read_text())["test"]["brick"][4:9]
    document = {"train": {}, "test": {"brick": samples}}
    (tmp_path / "data/meta.json").write_text(json.dumps(document))
    common = [*flags, "--dataset", "mvtec", "--train_data_path", mini_mvtec, "--meta_path", tmp_path / "data/meta.json",
              "--batch_size", 4]  # fmt: skip
    sizes = ["--n_ctx", 3, "--t_n_ctx", 2, "--depth", 2]
    call(train_script.main, *common, *sizes, "--epoch", 2, "--save_path", tmp_path / "whole")
    call(train_script.main, *common, *sizes, "--epoch", 1, "--save_path", tmp_path / "parts")
    call(train_script.main, *common, "--epoch", 2, "--save_path", tmp_path / "parts", "--resume")
    whole, parts = (checkpoint.load(tmp_path / name / "epoch_2.pth") for name in ("whole", "parts"))
    for key, value in whole.state["prompt_learner"].items():
        assert torch.equal(value, parts.state["prompt_learner"][key]), key
    assert {key: parts.meta[key] for key in ("n_ctx", "t_n_ctx", "depth")} == {"n_ctx": 3, "t_n_ctx": 2, "depth": 2}
    call(train_script.main, *common, "--epoch", 1, "--init_checkpoint", tmp_path / "whole", "--save_path",
         tmp_path / "more", "--val_dataset", "visa", "--val_data_path", mini_visa)  # fmt: skip
    assert (tmp_path / "more/best.pth").is_file()
