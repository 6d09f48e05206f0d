"""Training with a second dataset beside it, and tests of data that is labelled in part."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
import train as train_script
from engine import validation
from forks import together
from model import METHODS, capabilities
from utils.files import write_json

FAST = ["--image_size", "96", "--num_workers", "0"]


def call(main, *argv) -> None:
    main([str(arg) for arg in argv])


def rows_of(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["april_gan", "sdp_plus", "vcp_clip", "anomaly_clip"])
def trained(request, tiny_a, mini_mvtec, mini_visa, tmp_path_factory):
    """(method, flags of the training, its folder): three epochs on one dataset, scored on the other after each."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--method", request.param, *tiny_a.flags, *FAST, "--dataset", "mvtec", "--train_data_path", mini_mvtec,
             "--val_dataset", "visa", "--val_data_path", mini_visa, "--learning_rate", 0.01, "--aug_rate", 0,
             "--batch_size", 16]  # fmt: skip
    call(train_script.main, *flags, "--epoch", 3, "--save_path", folder)
    return request.param, flags, folder


@pytest.fixture(scope="module")
def two_epochs(trained, tmp_path_factory):
    """The folder of such a training of two epochs, for copies that go on."""
    _, flags, _ = trained
    folder = tmp_path_factory.mktemp("two")
    call(train_script.main, *flags, "--epoch", 2, "--save_path", folder)
    return folder


def test_validation_equals_a_test_of_each_checkpoint(trained, tiny_a, mini_visa, tmp_path):
    method, _, folder = trained
    rows = rows_of(folder / "validation.csv")
    assert [(row["epoch"], row["dataset"]) for row in rows] == [("1", "visa"), ("2", "visa"), ("3", "visa")]
    for row in (rows[0], rows[-1]):
        out = tmp_path / row["epoch"]
        call(test_script.main, "--method", method, *tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa,
             "--checkpoint_path", folder / f"epoch_{row['epoch']}.pth", "--save_path", out, "--no_images",
             "--batch_size", 16)  # fmt: skip
        mean = json.loads((out / "metrics.json").read_text())["mean"]
        for key, value in mean.items():
            assert float(row[key]) == pytest.approx(value, abs=1e-6), key


def test_best_checkpoint(trained):
    _, _, folder = trained
    rows = rows_of(folder / "validation.csv")
    best = max(rows, key=lambda row: float(row["ap_px"]))["epoch"]
    assert (folder / "best.pth").read_bytes() == (folder / f"epoch_{best}.pth").read_bytes()
    assert f"epoch {rows[0]['epoch']} on visa: auroc_px" in (folder / "log.txt").read_text()


def test_interrupted_training_goes_on_with_its_validation(trained, two_epochs, tmp_path):
    """Killed after the second epoch was saved and before it was scored: the same files as without that."""
    _, flags, folder = trained
    again = tmp_path / "again"
    shutil.copytree(two_epochs, again)
    lines = (again / "validation.csv").read_text().splitlines()
    (again / "validation.csv").write_text("\n".join(lines[:2]) + "\n")
    call(train_script.main, *flags, "--epoch", 3, "--save_path", again, "--resume")
    assert (again / "validation.csv").read_text() == (folder / "validation.csv").read_text()
    whole, resumed = (torch.load(path / "best.pth", weights_only=True) for path in (folder, again))
    assert whole["meta"]["epoch"] == resumed["meta"]["epoch"]


def test_another_metric_on_resuming_chooses_anew(trained, tmp_path):
    _, flags, folder = trained
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    rows = rows_of(folder / "validation.csv")
    lowest = min(rows, key=lambda row: float(row["ap_px"]))
    for row in rows:  # so that the other metric has another favourite
        row["auroc_sp"] = "0.9" if row is lowest else "0.1"
    with (again / "validation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    call(train_script.main, *flags, "--epoch", 3, "--save_path", again, "--resume", "--val_metric", "auroc_sp")
    assert (again / "best.pth").read_bytes() == (again / f"epoch_{lowest['epoch']}.pth").read_bytes()


def test_a_metric_that_turns_out_not_to_be_computable(tiny_a, mini_mvtec, mini_visa, tmp_path):
    """Masks without a pixel: no best checkpoint, and no crash."""
    root = tmp_path / "visa"
    shutil.copytree(mini_visa, root)
    for mask in root.rglob("Masks/Anomaly/*.png"):
        with Image.open(mask) as image:
            Image.new("L", image.size).save(mask)
    flags = [*tiny_a.flags, *FAST, "--train_data_path", mini_mvtec, "--val_dataset", "visa", "--val_data_path", root]
    call(train_script.main, *flags, "--epoch", 2, "--save_path", tmp_path / "out")
    assert not (tmp_path / "out/best.pth").exists() and len(rows_of(tmp_path / "out/validation.csv")) == 2
    assert "epoch 2 on visa: ap_px cannot be computed" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.parametrize("extra", [[], ["--use_global", "False", "--total_d_layer_len", "0"]])
def test_two_processes_train_and_validate(extra, tiny_a, mini_mvtec, mini_visa, tmp_path):
    common = ["--method", "vcp_clip", *tiny_a.flags, *FAST, *extra]
    flags = [*common, "--train_data_path", mini_mvtec, "--val_dataset", "visa", "--val_data_path", mini_visa,
             "--class", "brick", "--epoch", 1, "--batch_size", 4, "--save_path", tmp_path]  # fmt: skip
    process = together("train.py", *flags)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.count("saved ") == 1
    (row,) = rows_of(tmp_path / "validation.csv")
    assert (tmp_path / "best.pth").is_file() and 0 < float(row["ap_px"]) < 1
    out = tmp_path / "test"
    call(test_script.main, *common, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path",
         tmp_path / "best.pth", "--save_path", out, "--no_images")  # fmt: skip
    assert json.loads((out / "metrics.json").read_text())["mean"]["ap_px"] == pytest.approx(
        float(row["ap_px"]), abs=1e-6
    )
    header = (out / "table.md").read_text().splitlines()[2]
    assert header.split("|")[-3:-1] == [" iou_px ", " threshold_px "]


def test_a_new_training_forgets_the_validation_of_an_earlier_one(trained, tmp_path):
    _, flags, folder = trained
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    position = flags.index("--val_dataset")
    call(train_script.main, *flags[:position], *flags[position + 4 :], "--epoch", 1, "--save_path", again)
    assert not (again / "validation.csv").exists() and not (again / "best.pth").exists()


def test_curves(trained, two_epochs, tmp_path):
    """Every step's losses and rates, every saved epoch's metrics and pictures; an interrupted training has no gap."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, flags, folder = trained
    again = tmp_path / "again"
    shutil.copytree(two_epochs, again)
    call(train_script.main, *flags, "--epoch", 3, "--save_path", again, "--resume")
    steps = rows_of(folder / "losses.csv")
    for curves in (folder, again):
        events = EventAccumulator(str(curves / "tensorboard"))
        events.Reload()
        for part in ("loss", "focal", "dice"):
            drawn = events.Scalars(f"loss/{part}")
            assert [event.step for event in drawn] == list(range(1, len(steps) + 1))
            np.testing.assert_allclose([e.value for e in drawn], [float(s[part]) for s in steps], rtol=1e-5)
        assert len(events.Scalars("learning_rate/group_0")) == len(steps)
        drawn = [event.value for event in events.Scalars("validation/ap_px")]
        np.testing.assert_allclose(
            drawn, [float(row["ap_px"]) for row in rows_of(folder / "validation.csv")], rtol=1e-5
        )
        assert len(events.Tags()["images"]) == 4 and len(events.Images(events.Tags()["images"][0])) == 3


def test_refuses_a_metric_that_the_labels_do_not_allow(fails, tiny_a, mini_mvtec, mini_visa, tmp_path):
    meta = json.loads((mini_visa / "meta.json").read_text())
    for samples in meta["test"].values():
        for sample in samples:
            sample["mask_path"] = ""
    write_json(tmp_path / "labels.json", meta)
    flags = [*tiny_a.flags, *FAST, "--train_data_path", mini_mvtec, "--val_dataset", "visa", "--val_data_path",
             mini_visa, "--val_meta_path", tmp_path / "labels.json", "--save_path", tmp_path / "out"]  # fmt: skip
    assert "--val_metric ap_px: no class of visa has the masks for it" in fails(train_script.main, *flags)
    assert not (tmp_path / "out").exists()
    line = fails(train_script.main, *tiny_a.flags, "--val_metric", "ap_px")
    assert "--val_metric ap_px: requires --val_dataset" in line


def test_broken_validation_file(tmp_path):
    (tmp_path / "validation.csv").write_text("epoch,dataset\nx,visa\n")
    with pytest.raises(ValueError, match="validation.csv: broken; remove it"):
        validation._read(tmp_path / "validation.csv")


# --- data that is labelled in part ---


def partly_labelled(mini_visa, folder, *, masks: bool, normal: bool):
    root = folder / "data"
    shutil.copytree(mini_visa, root)
    meta = json.loads((root / "meta.json").read_text())
    for name, samples in meta["test"].items():
        meta["test"][name] = [sample for sample in samples if normal or sample["anomaly"]]
        for sample in meta["test"][name] if not masks else ():
            sample["mask_path"] = ""
    meta["train"] = {}
    write_json(root / "meta.json", meta)
    return root


@pytest.mark.parametrize(("masks", "normal", "dataset"), [(False, True, "headct"), (True, False, "isic")])
def test_metrics_that_the_labels_allow(masks, normal, dataset, tiny_a, mini_visa, tmp_path):
    root = partly_labelled(mini_visa, tmp_path, masks=masks, normal=normal)
    out = tmp_path / "out"
    call(test_script.main, "--method", "sdp", *tiny_a.flags, *FAST, "--dataset", dataset, "--data_path", root,
         "--save_path", out, "--no_images")  # fmt: skip
    result = json.loads((out / "metrics.json").read_text())
    table = (out / "table.md").read_text().splitlines()
    assert [cell.strip() for cell in table[2].split("|")[2:-1]] == [
        "auroc_px", "f1_px", "ap_px", "aupro", "auroc_sp", "f1_sp", "ap_sp"]  # fmt: skip
    for row in [result["mean"], *result["classes"].values()]:
        for key, value in row.items():
            assert (value is None) == (not normal if key.endswith("_sp") else not masks), key
    cells = [cell.strip() for cell in table[-1].split("|")[2:-1]]
    assert [bool(cell) for cell in cells] == [masks] * 4 + [normal] * 3
    row = rows_of(out / "metrics.csv")[0]
    assert (row["ap_px"] == "") == (not masks) and (row["ap_sp"] == "") == (not normal)
    assert "cannot be computed" in (out / "log.txt").read_text()
    assert json.loads((out / "config.json").read_text())["settings"]["prompts"] == dataset


def test_own_prompts_change_the_scores(tiny_a, mini_visa, tmp_path):
    words = tmp_path / "words.json"
    words.write_text('{"normal": ["{}"], "abnormal": ["broken {}"], "templates": ["a photo of a {}."]}')
    scores = []
    for name, flags in (("own", ["--prompts", words]), ("published", [])):
        call(test_script.main, "--method", "winclip", *tiny_a.flags, *FAST, "--dataset", "visa", "--data_path",
             mini_visa, "--save_path", tmp_path / name, "--no_images", *flags)  # fmt: skip
        scores.append([row["text"] for row in rows_of(tmp_path / name / "predictions.csv")])
    assert scores[0] != scores[1]


def test_refusals(fails, tiny_a, mini_visa):
    flags = ["--method", "sdp", *tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa]
    line = fails(test_script.main, *flags, "--k_shot", 4)
    able = ", ".join(method for method in METHODS if capabilities(method).few_shot)
    assert line == f"error: sdp takes no references; these methods do: {able}"
    assert "--prompts words.json: no such file" in fails(test_script.main, *flags, "--prompts", "words.json")
    assert "sdp has nothing to train" in fails(train_script.main, "--method", "sdp", *tiny_a.flags)
    assert "sdp_plus requires --checkpoint_path" in fails(test_script.main, *flags, "--method", "sdp_plus")
    assert "--rep_vec median: unknown" in fails(test_script.main, *flags, "--rep_vec", "median")
