"""One image, one verdict: test.py, predict.py, the service of app.py and an exported detector agree on its score, map,
thresholds and verdict, whatever the batches, the order of the images, and the cache."""

import csv
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export as export_script
import predict as predict_script
import test as test_script
from config.flags import app_parser
from config.resolve import resolve_app
from conftest import REFERENCE, Weights
from data.meta import Sample, write
from engine import checkpoint
from inference.service import InferenceService
from model import build

BRICK = REFERENCE / "data/mini_mvtec/brick"
IMAGES = ("test/good/000.png", "test/good/003.png", "test/hole/001.png", "test/scratch/002.png", "test/hole/004.png")
REFERENCES = ("000.png", "001.png", "002.png", "003.png", "004.png")
RULE = ["--threshold", "quantile", "--fpr", "0.4", "--threshold_factor", "1.1"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of a few images, its references in a folder of their own."""
    root = tmp_path_factory.mktemp("bricks")
    shutil.copytree(BRICK, root / "brick")
    for path in (root / "brick/train/good").iterdir():
        if path.name not in REFERENCES:
            path.unlink()
    train = [Sample(f"brick/train/good/{name}", "", "brick", "good", 0) for name in REFERENCES]
    test = []
    for path in IMAGES:
        kind, name = path.split("/")[1:]
        mask = "" if kind == "good" else f"brick/ground_truth/{kind}/{name.replace('.png', '_mask.png')}"
        test.append(Sample(f"brick/{path}", mask, "brick", kind, int(kind != "good")))
    write(root, {"train": train, "test": test})
    return root


@pytest.fixture(scope="module")
def flags(tiny_a, tmp_path_factory):
    """APRIL-GAN on the first block of tiny_a, since exporting a block takes seconds; its adapters are drawn."""
    folder = tmp_path_factory.mktemp("blocks")
    state, known = torch.load(tiny_a.pretrained), json.loads(Path(tiny_a.config_path).read_text())
    for tower in ("vision_cfg", "text_cfg"):
        known[tower]["layers"] = 1
    torch.save(
        {key: value for key, value in state.items() if not re.search(r"resblocks\.[1-9]", key)}, folder / "one.pt"
    )
    (folder / "one.json").write_text(json.dumps(known))
    small = Weights("one", str(folder / "one.json"), str(folder / "one.pt"))
    torch.manual_seed(0)
    adapters = build("april_gan", **small._asdict(), image_size=96, features_list=[1]).trainable_state()
    checkpoint.save(folder / "adapters.pth", adapters, {})
    own = ["--features_list", "1", "--image_size", "96", "--checkpoint_path", str(folder / "adapters.pth")]
    return ["--method", "april_gan", *small.flags, *own]


def rows_of(path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["img_path"].removeprefix("brick/").removeprefix("test/"): row for row in csv.DictReader(file)}


def of_test(root, flags, out, *more: str):
    """(thresholds, image -> (score, verdict, map)) of test.py."""
    argv = [*flags, *RULE, "--data_path", root, "--k_shot", len(REFERENCES), "--seed", 1, "--save_maps", "--no_images",
            "--num_workers", 0, "--save_path", out, *more]  # fmt: skip
    test_script.main([str(word) for word in argv])
    (thresholds,) = json.loads((out / "thresholds.json").read_text())
    rows = rows_of(out / "predictions.csv")
    maps = {name: np.load(out / "maps/brick/test" / name.replace(".png", ".npy")) for name in rows}
    return thresholds, {name: (float(row["judged_score"]), row["verdict"], maps[name]) for name, row in rows.items()}


def predicted(out, *argv):
    """The same of predict.py."""
    words = [*argv, "--save_maps", "--no_images", "--num_workers", 0, "--save_path", out]
    assert predict_script.main([str(word) for word in words]) == 0
    rows, maps = rows_of(out / "scores.csv"), {}
    for name in rows:
        found = out / "maps" / name.replace(".png", ".npy")
        maps[name] = np.load(found if found.is_file() else out / "maps/test" / name.replace(".png", ".npy"))
    known = json.loads((out / "calibration.json").read_text())
    return known, {name: (float(row["score"]), row["verdict"], maps[name]) for name, row in rows.items()}


def served(root, flags, references):
    """The same of the service."""
    service = InferenceService(resolve_app(app_parser().parse_args([*flags, *RULE]))[0])
    answers = {path: service.inspect("brick", str(root / "brick" / path), references) for path in IMAGES}
    known = next(iter(answers.values())).calibration.as_dict()
    results = {path.removeprefix("test/"): answer.result for path, answer in answers.items()}
    return known, {name: (one.score, one.verdict, one.map) for name, one in results.items()}


def exported(folder, own):
    export_script.main([str(word) for word in (*own, "--num_workers", 0, "--save_path", folder)])
    return folder


def test_one_verdict_everywhere(root, flags, tmp_path):
    references, test = root / "brick/train/good", root / "brick/test"
    files = [root / "brick" / path for path in reversed(IMAGES)]
    own = [*flags, *RULE, "--class_name", "brick", "--references", references]
    cached = ["--feature_cache", tmp_path / "cache"]
    thresholds, first = of_test(root, flags, tmp_path / "test", "--batch_size", "1")
    ways = {
        "predict.py, a folder": predicted(tmp_path / "folder", test, *own, "--batch_size", 4, *cached),
        "predict.py, cached, another order": predicted(tmp_path / "files", *files, *own, "--batch_size", 2, *cached),
        "service": served(root, flags, [str(references / name) for name in reversed(REFERENCES)]),
    }
    if all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        graph = exported(tmp_path / "export", own)
        ways["onnx"] = predicted(tmp_path / "onnx", test, "--onnx", graph, "--batch_size", 3)
    assert len(first) == len(IMAGES) and {verdict for _, verdict, _ in first.values()} == {"normal", "anomalous"}
    for way, (known, found) in ways.items():
        for key in ("threshold", "pixel_threshold", "fpr", "pixel_fpr"):
            assert known[key] == pytest.approx(thresholds[key], abs=CLOSE), (way, key)
        assert (known["rule"], known["normal_images"]) == ("quantile, 0.6 times 1.1", len(REFERENCES)), way
        by_name = {name.split("/")[-1]: one for name, one in found.items()} if "order" in way else found
        for name, (score, verdict, one) in first.items():
            score_here, verdict_here, map_here = by_name[name.split("/")[-1] if "order" in way else name]
            assert score_here == pytest.approx(score, abs=CLOSE), (way, name)
            assert verdict_here == verdict, (way, name)
            np.testing.assert_allclose(map_here, one, atol=CLOSE, rtol=0, err_msg=f"{way}, {name}")


def test_one_verdict_of_tiles(root, flags, tmp_path, fails):
    """The same in tiles, with maps of the pictures' own size; what was made with other tiles is refused."""
    references, test, tiles = root / "brick/train/good", root / "brick/test", ["--tiles", "2", "--tile_overlap", "0.3"]
    flags = [*flags, "--image_size", "64"]
    own = [*flags, *RULE, "--class_name", "brick", "--references", references]
    memory = tmp_path / "memory.safetensors"
    thresholds, first = of_test(root, flags, tmp_path / "test", *tiles, "--batch_size", "3", "--save_memory", memory)
    cached = ["--batch_size", 9, "--feature_cache", tmp_path / "cache"]
    ways = {
        "predict.py": predicted(tmp_path / "folder", test, *own, *tiles, *cached),
        "service": served(root, [*flags, *tiles], [str(references / name) for name in REFERENCES]),
    }
    for way, (known, found) in ways.items():
        for key in ("threshold", "pixel_threshold"):
            assert known[key] == pytest.approx(thresholds[key], abs=CLOSE), (way, key)
        for name, (score, verdict, one) in first.items():
            assert one.shape == Image.open(test / name).size[::-1] == (96, 96)
            assert found[name][0] == pytest.approx(score, abs=CLOSE) and found[name][1] == verdict, (way, name)
            np.testing.assert_allclose(found[name][2], one, atol=CLOSE, rtol=0, err_msg=f"{way}, {name}")
    about = json.loads((tmp_path / "test/config.json").read_text())
    assert (about["settings"]["tiles"], about["settings"]["tile_overlap"]) == (2, 0.3)
    assert about["description"]["tiles"] == "2 x 2, overlap 0.3"

    known = tmp_path / "folder/calibration.json"
    again = [test, *flags, "--class_name", "brick", "--references", references, "--calibration", known]
    for words, other in ([], "none"), (["--tiles", 2], "2 x 2, overlap 0.25"):
        line = fails(predict_script.main, *again, *words, "--save_path", tmp_path / "refused")
        assert f"calibration.json was made with tiles 2 x 2, overlap 0.3 but this run has {other}" in line
    of_file = [*flags, "--data_path", root, "--memory", memory, "--save_path", tmp_path / "refused"]
    assert "was made with tiles 2 x 2, overlap 0.3 but this run has none" in fails(test_script.main, *of_file)
