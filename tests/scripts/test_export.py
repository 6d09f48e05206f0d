"""A detector as an ONNX file: the same numbers as PyTorch's, in batches of any size, and what is refused."""

import csv
import json
import os
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch

import export as export_script
import predict as predict_script
from conftest import REFERENCE, ROOT
from engine import checkpoint
from inference import onnx_export
from inference.onnx_detector import OnnxDetector
from inference.onnx_export import FixedClassDetector, save_onnx
from model import build
from utils import packages
from utils.files import lock_folder

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f"{package} is missing: pip install -r requirements-export.txt")

CASES = REFERENCE / "cases"
GOOD = REFERENCE / "data/mini_mvtec/brick/train/good"
TEST = REFERENCE / "data/mini_mvtec/brick/test"
FEW = ["--references", GOOD]
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
FLAGS = {
    "april_gan resnet": ["--features_list", 2, 4],
    "april_gan few": ["--checkpoint_path", CASES / "aprilgan_train_mvtec/checkpoint.pth", *FEW],
    "winclip": ["--scales", 2, "--calibrate", GOOD],
    "winclip few": ["--scales", 3, *FEW],
    "sdp": ["--features_list", 2, 4],
    "sdp_plus": ["--checkpoint_path", CASES / "sdpplus_mvtec_to_visa/checkpoint.pth"],
    "vcp_clip": ["--checkpoint_path", CASES / "vcp_four_steps_mvtec/after4.pth", "--calibrate", GOOD],
    "anomaly_clip": ["--features_list", 2, 3, 4, "--feature_map_layer", 1, "--sigma", 3, "--calibrate", GOOD],
}


@pytest.fixture(scope="module")
def flags(tiny_a, learned_prompts, tmp_path_factory):
    """Case -> its detector's flags."""

    def of(case: str) -> list[str]:
        own = [*tiny_a.flags, "--image_size", 96, *FLAGS[case]]
        if case == "anomaly_clip":
            own += ["--checkpoint_path", learned_prompts]
        if "resnet" in case:
            own = [*resnet(tmp_path_factory.mktemp("resnet"), tiny_a), *FLAGS[case]]
        own = [str(flag) for flag in ["--class_name", "brick", "--method", case.split()[0], "--num_workers", 0, *own]]
        return [*own, "--calibration", wide_calibration(tmp_path_factory.mktemp("wide"), own)] if case == "sdp" else own

    return of


def resnet(folder, tiny_a) -> list:
    """Flags of a ResNet with random weights and adapters that were not trained."""
    config = json.loads((ROOT / tiny_a.config_path).read_text())
    (folder / "tiny-resnet.json").write_text(json.dumps({**config, "vision_cfg": RESNET}))
    torch.manual_seed(0)
    detector = build("april_gan", model="tiny-resnet", config_path=folder / "tiny-resnet.json", features_list=[2, 4])
    torch.save(detector.backbone.clip.state_dict(), folder / "clip.pt")
    checkpoint.save(folder / "adapters.pth", detector.trainable_state(), {})
    return ["--config_path", folder / "tiny-resnet.json", "--pretrained", folder / "clip.pt", "--image_size", 96,
            "--checkpoint_path", folder / "adapters.pth"]  # fmt: skip


def wide_calibration(folder, own: list[str]) -> str:
    """calibration.json of an earlier run, its limits widened by hand so that none made anew is like it."""
    calibrate = ["--calibrate", str(GOOD), "--fpr", "0.2"]
    predict_script.main([str(GOOD), *own, *calibrate, "--no_images", "--save_path", str(folder)])
    content = json.loads((folder / "calibration.json").read_text())
    content["limits"]["map_max"] = [0.0, 100.0]
    (folder / "wide.json").write_text(json.dumps(content))
    return str(folder / "wide.json")


@pytest.fixture(scope="module")
def exported(flags, tmp_path_factory):
    """Case -> (its flags, the folder that export.py wrote), each case once."""
    done = {}

    def of(case: str):
        if case not in done:
            folder, own = tmp_path_factory.mktemp(case.replace(" ", "-")), flags(case)
            export_script.main([*own, "--save_path", str(folder)])
            done[case] = own, folder
        return done[case]

    return of


def predict(tmp_path, name, *argv):
    """Run predict.py; returns (rows of scores.csv, maps)."""
    out = tmp_path / name
    code = predict_script.main([str(arg) for arg in (*argv, "--save_path", out, "--save_maps", "--batch_size", 5)])
    assert code == 0
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, np.stack([np.load(out / "maps" / row["img_path"].replace(".png", ".npy")) for row in rows])


@pytest.mark.parametrize("case", FLAGS)
def test_the_same_as_pytorch(case, exported, tmp_path):
    """predict.py with and without --onnx, in batches of 5 and of what is left."""
    own, folder = exported(case)
    rows, maps = predict(tmp_path, "torch", TEST, *own)
    onnx_rows, onnx_maps = predict(tmp_path, "onnx", TEST, "--onnx", folder / "detector.onnx", "--num_workers", 0)
    np.testing.assert_allclose(onnx_maps, maps, atol=1e-3, rtol=0)
    threshold = None
    if "verdict" in rows[0]:
        calibrations = [json.loads((tmp_path / out / "calibration.json").read_text()) for out in ("torch", "onnx")]
        threshold = calibrations[0]["threshold"]
        assert calibrations[1]["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert len(rows) > 5 and list(rows[0]) == list(onnx_rows[0])
    for row, other in zip(rows, onnx_rows, strict=True):
        assert (row["img_path"], row["cls_name"]) == (other["img_path"], other["cls_name"])
        for key in row.keys() - {"img_path", "cls_name", "verdict"}:
            assert float(other[key]) == pytest.approx(float(row[key]), abs=1e-3), key
        if threshold is not None and abs(float(row["score"]) - threshold) > 1e-3:
            assert row["verdict"] == other["verdict"]
    files = [{path.relative_to(tmp_path / out) for path in (tmp_path / out).rglob("*")} for out in ("torch", "onnx")]
    assert files[0] == files[1]


@pytest.mark.parametrize("case", FLAGS)
def test_batches_of_any_size(case, exported):
    detector = OnnxDetector(exported(case)[1] / "detector.onnx")
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    five = detector.run(images)
    assert five["map"].shape == (5, 96, 96) and five["map"].dtype == np.float32 and five["score"].shape == (5,)
    for count in (1, 2):
        for key, values in detector.run(images[:count]).items():
            np.testing.assert_allclose(values, five[key][:count], atol=1e-4, rtol=0)


def test_what_is_written(exported):
    own, folder = exported("april_gan few")
    assert {path.name for path in folder.iterdir()} == {"detector.onnx", "detector.json", "log.txt"}
    card = json.loads((folder / "detector.json").read_text())
    assert (card["method"], card["class_name"], card["image_size"]) == ("april_gan", "brick", 96)
    assert list(card["outputs"]) == ["map", "score", "text", "map_max"] == list(card["difference"])
    assert max(card["difference"].values()) < 1e-4
    assert card["calibration"]["normal_images"] == 8 and card["made_with"]["features_list"] == [1, 2, 3, 4]
    assert card["sha256"] == {"detector.onnx": sha256((folder / "detector.onnx").read_bytes()).hexdigest()}
    assert card["input_spec"] == {"kind": "square", "side": 96, "resizer": "bicubic", "center_crop": False}
    assert card["input_shape"] == card["map_size"] == [96, 96] and "bicubic" in card["preprocessing"]
    assert torch.__version__.startswith(card["versions"]["torch"])


def test_an_export_of_an_earlier_version_runs(exported, tmp_path):
    shutil.copytree(exported("winclip")[1], tmp_path / "old")
    card = json.loads((tmp_path / "old/detector.json").read_text())
    card.pop("sha256")
    card["made_with"].pop("bits")
    (tmp_path / "old/detector.json").write_text(json.dumps(card))
    rows, _ = predict(tmp_path, "out", TEST / "good", "--onnx", tmp_path / "old")
    again, _ = predict(tmp_path, "again", TEST / "good", "--onnx", exported("winclip")[1])
    assert rows == again and rows[0]["verdict"]


def test_two_exports_into_one_folder_at_once(flags, fails, tmp_path):
    with lock_folder(tmp_path):
        line = fails(export_script.main, *flags("winclip"), "--save_path", tmp_path)
    assert f"{tmp_path}: another run writes there (process {os.getpid()}" in line
    assert not list(tmp_path.iterdir())


def test_a_calibration_of_predict_is_baked_in(exported):
    detector = OnnxDetector(exported("sdp")[1] / "detector.onnx")
    low, high = detector.calibration.limits["text"]
    outputs = detector.run(np.zeros((1, 3, 96, 96), np.uint8))
    expected = (outputs["text"] - low) / (high - low) + outputs["map_max"] / 100
    np.testing.assert_allclose(outputs["score"], expected, atol=1e-4)


def test_zero_scores_stay_zero(tiny_a, tmp_path):
    """WinCLIP's bound on inverses is above the range of single precision, in which the exporter writes numbers."""
    import onnxruntime

    detector = build("winclip", **tiny_a._asdict(), image_size=96, scales=[2])

    class PerPatch(torch.nn.Module):
        def forward(self, scores):
            return detector._per_patch(scores, 2)

    scores = torch.rand(2, 25)
    scores[0, :7] = 0
    program = torch.onnx.export(torch.export.export(PerPatch(), (scores,)), input_names=["scores"], verbose=False)
    program.save(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (found,) = session.run(None, {"scores": scores.numpy()})
    np.testing.assert_allclose(found, detector._per_patch(scores, 2), atol=1e-12)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_flags_that_contradict_the_file(exported, fails, tmp_path):
    file = exported("winclip")[1] / "detector.onnx"
    common = [TEST, "--onnx", file, "--save_path", tmp_path / "out"]
    line = fails(predict_script.main, *common, "--class_name", "screw")
    assert f"--class_name screw: {file} is fixed to brick; drop --class_name" in line
    assert "--method sdp:" in fails(predict_script.main, *common, "--method", "sdp")
    assert "--scales 2 3:" in fails(predict_script.main, *common, "--scales", 2, 3)
    assert "--image_size 64:" in fails(predict_script.main, *common, "--image_size", 64)
    assert "--device cuda:" in fails(predict_script.main, *common, "--device", "cuda")
    for flag in ("--references", "--calibrate", "--calibration", "--checkpoint_path", "--fpr"):
        line = fails(predict_script.main, *common, flag, "0.5")
        assert f"{flag} 0.5: {file} has its own" in line
    assert not (tmp_path / "out").exists()


def test_the_same_flags_are_welcome(exported, tmp_path):
    own = ["--class_name", "brick", "--method", "winclip", "--scales", 2, "--image_size", 96, "--device", "cpu"]
    predict(tmp_path, "out", TEST / "good", "--onnx", exported("winclip")[1] / "detector.onnx", *own)


def test_broken_files(exported, fails, tmp_path):
    shutil.copytree(exported("winclip")[1], tmp_path / "copy")
    file, card = tmp_path / "copy/detector.onnx", tmp_path / "copy/detector.json"
    run = lambda: fails(predict_script.main, TEST, "--onnx", file, "--save_path", tmp_path / "out")  # noqa: E731
    fields = json.loads(card.read_text())
    for change, said in (
        ({"method": "magic"}, "made by unknown method 'magic'"),
        ({"image_size": 64}, "names other outputs or another image size"),
        ({"outputs": {"score": ""}}, "names other outputs or another image size"),
        ({"image_size": float("inf")}, "not written by export.py"),
    ):
        card.write_text(json.dumps({**fields, **change}))
        assert said in run()
    card.write_text(json.dumps(fields))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{file}: damaged or of another export" in run()
    earlier = {key: value for key, value in fields.items() if key != "sha256"}  # of a version that wrote none
    card.write_text(json.dumps(earlier))
    assert f"{file}: onnxruntime cannot use it" in run()
    shutil.copy(exported("sdp")[1] / "detector.onnx", file)
    assert "come from different exports" in run()
    for wrong in ("{", "[]", "{}", json.dumps({**json.loads(card.read_text()), "format": 99})):
        card.write_text(wrong)
        assert "not written by export.py" in run()
    card.unlink()
    assert f"there is no {card}" in run()
    file.unlink()
    assert f"there is no {file}" in run()
    assert not (tmp_path / "out").exists()


def test_missing_packages(flags, exported, fails, monkeypatch, tmp_path):
    file = exported("winclip")[1] / "detector.onnx"
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    line = fails(predict_script.main, TEST, "--onnx", file, "--save_path", tmp_path)
    assert line == "error: --onnx needs onnxruntime: pip install -r requirements-export.txt"
    line = fails(export_script.main, *flags("winclip"), "--save_path", tmp_path)
    assert line.endswith("export.py needs onnx, onnxruntime, onnxscript: pip install -r requirements-export.txt")


def test_what_differs_is_not_written(exported, flags, fails, monkeypatch, tmp_path):
    """A graph of another class in the place of the right one: refused, and what an earlier export wrote stays."""
    (tmp_path / "detector.onnx").write_text("of an earlier export")
    (tmp_path / ".export").mkdir()
    (tmp_path / ".export/detector.onnx").write_text("of an export that was killed")
    graph = exported("winclip few")[1] / "detector.onnx"
    monkeypatch.setattr(onnx_export, "save_onnx", lambda one, path, metadata: [shutil.copy(graph, path)])
    line = fails(export_script.main, *flags("winclip"), "--save_path", tmp_path)
    assert "nothing is written: in a batch of 1 the exported map differs from PyTorch's by" in line
    assert {path.name for path in tmp_path.iterdir()} == {"detector.onnx", "log.txt"}
    assert (tmp_path / "detector.onnx").read_text() == "of an earlier export"


def test_what_cannot_be_traced(tiny_a, tmp_path, monkeypatch):
    detector = build("sdp", **tiny_a._asdict(), image_size=96, features_list=[1])
    one = FixedClassDetector(detector, "brick")
    encode = detector.encode
    monkeypatch.setattr(detector, "encode", lambda images: encode(torch.stack([image for image in images])))
    with pytest.raises(ValueError, match="tiny-a cannot be exported with this PyTorch: "):
        save_onnx(one, tmp_path / "a.onnx", {})
    assert not list(tmp_path.iterdir())


def test_export_flags(flags, fails, tmp_path):
    own = [flag for flag in flags("winclip") if flag not in ("--class_name", "brick")]
    assert "--class_name is missing: say what" in fails(export_script.main, *own, "--save_path", tmp_path)
    line = fails(export_script.main, *flags("sdp"), "--references", GOOD, "--save_path", tmp_path)
    assert "sdp is zero-shot and takes none" in line
    assert not list(tmp_path.iterdir())
