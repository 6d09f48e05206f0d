"""The examples of CONTRIBUTING.md: each is taken from the page, put where the page says, and used."""

import csv
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import config.flags
import config.resolve
import export as export_script
import predict as predict_script
import test as test_script
from commands import commands_of, settings_of
from conftest import REFERENCE, ROOT
from data.meta import read
from inference.service import InferenceService
from model import METHODS, capabilities

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BRICK = REFERENCE / "data/mini_mvtec/brick"


def blocks(heading: str) -> list[str]:
    """The Python blocks below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


# --- a method -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nearest(tmp_path, monkeypatch):
    """The method of the page, registered as the page says."""
    (code,) = blocks("Add a method")
    (tmp_path / "nearest.py").write_text(code)
    spec = importlib.util.spec_from_file_location("nearest", tmp_path / "nearest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "nearest", module.Nearest)
    return module.Nearest


@pytest.fixture
def flags(tiny_a):
    return [*tiny_a.flags, "--method", "nearest", "--image_size", "96", "--num_workers", "0"]


def words(*values) -> list[str]:
    return [str(value) for value in values]


def test_the_method_has_at_most_40_lines():
    (code,) = blocks("Add a method")
    assert len(code.splitlines()) <= 40


def test_the_scripts_know_the_method_and_its_flag(nearest):
    assert capabilities("nearest") == (False, False, True, False)
    assert "nearest: layer whose tokens are compared" in " ".join(config.flags.test_parser().format_help().split())


def test_the_method_scores_a_dataset(nearest, flags, mini_mvtec, tmp_path):
    """Several settings in one pass, with its own flag."""
    own = [*flags, "--data_path", mini_mvtec, "--class", "brick", "--save_maps"]
    test_script.main(words(*own, "--k_shot", 1, 2, "--seed", 5, "--layer", 2, "--save_path", tmp_path / "out"))
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [run["settings"]["k_shot"] for run in document["runs"]] == [1, 2]
    assert all(0 <= run["mean"][key] <= 1 for run in document["runs"] for key in ("auroc_px", "aupro", "auroc_sp"))
    written = json.loads((tmp_path / "out/config.json").read_text())
    log = (tmp_path / "out/log.txt").read_text()
    assert written["settings"]["layer"] == 2 and "layer                2 (flag)" in log
    maps = {k: np.stack([np.load(path) for path in sorted((tmp_path / f"out/maps/k{k}_seed5").rglob("*.npy"))])
            for k in (1, 2)}  # fmt: skip
    assert (maps[2] <= maps[1] + 1e-6).all() and maps[1].max() > 0  # one reference more brings none further away


def test_the_method_is_refused_by_name_where_it_would_score_without_references(nearest, flags, mini_mvtec, fails):
    own = [*flags, "--data_path", str(mini_mvtec)]
    for asked in (["--mode", "zero_shot"], []):
        assert "nearest requires references; give --k_shot" in fails(test_script.main, *own, *asked)
    line = fails(test_script.main, *own, "--k_shot", 0, 1)
    assert line == "error: nearest requires references, and one of the settings has none; leave 0 out of --k_shot"
    line = fails(predict_script.main, BRICK, *flags, "--class_name", "brick")
    assert line == "error: --method nearest requires --references: normal images of the object"
    assert "--layer 9: layer 9 does not exist" in fails(test_script.main, *own, "--k_shot", 1, "--layer", 9)
    others = [*flags, "--method", "winclip", "--layer", 2, "--data_path", mini_mvtec]
    assert "winclip has no such option" in fails(test_script.main, *others)


def test_stored_references_serve_the_method(nearest, flags, mini_mvtec, tmp_path, fails):
    own = [*flags, "--data_path", mini_mvtec, "--class", "brick", "--no_images"]
    memory = tmp_path / "memory.safetensors"
    test_script.main(words(*own, "--k_shot", 2, "--save_memory", memory, "--save_path", tmp_path / "first"))
    test_script.main(words(*own, "--memory", memory, "--save_path", tmp_path / "second"))
    first, second = ((tmp_path / name / "predictions.csv").read_text() for name in ("first", "second"))
    assert first == second
    line = fails(test_script.main, *own, "--memory", memory, "--layer", 1, "--save_path", tmp_path / "third")
    assert "with layer 4 but this run has 1" in line


def test_the_method_scores_own_images_and_is_exported(nearest, flags, tmp_path):
    """predict.py and the ONNX file, which export.py has compared with PyTorch, give the same scores and verdicts."""
    pytest.importorskip("onnxscript", reason="pip install -r requirements-export.txt")
    own = [*flags, "--class_name", "brick", "--references", BRICK / "train/good", "--layer", 3]
    images = [BRICK / "test", "--no_images", "--num_workers", 0]
    predict_script.main(words(*images, *own, "--save_path", tmp_path / "torch"))
    export_script.main(words(*own, "--save_path", tmp_path / "onnx"))
    predict_script.main(words(*images, "--onnx", tmp_path / "onnx", "--layer", 3, "--save_path", tmp_path / "run"))
    rows, exported = (
        list(csv.DictReader((tmp_path / name / "scores.csv").open(encoding="utf-8"))) for name in ("torch", "run")
    )
    assert list(rows[0]) == ["img_path", "cls_name", "score", "verdict", "map_max"] and len(rows) > 3
    for row, other in zip(rows, exported, strict=True):
        assert (row["img_path"], row["verdict"]) == (other["img_path"], other["verdict"])
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-3)
    card = json.loads((tmp_path / "onnx/detector.json").read_text())
    assert card["made_with"]["layer"] == 3 and max(card["difference"].values()) < 1e-3


def test_the_web_page_asks_for_normal_images(nearest, tiny_a):
    flags = [*tiny_a.flags, "--method", "nearest", "--image_size", "96", "--device", "cpu"]
    settings, _ = config.resolve.resolve_app(config.flags.app_parser().parse_args(flags))
    service = InferenceService(settings)
    image = str(next((BRICK / "test").rglob("*.png")))
    with pytest.raises(ValueError, match="this method requires reference images"):
        service.inspect("brick", image)
    answer = service.inspect("brick", image, [str(path) for path in sorted((BRICK / "train/good").iterdir())[:2]])
    assert answer.result.verdict in ("normal", "anomalous") and answer.result.map.shape == (96, 96)


# --- a dataset ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gears(tmp_path):
    """(the script of the page, a tree as it expects it)."""
    (code,) = blocks("Add a dataset")
    script = tmp_path / "checkout/data/gears.py"
    script.parent.mkdir(parents=True)
    script.write_text(code)
    root, rng = tmp_path / "gears", np.random.default_rng(0)
    for folder, count in (("fine", 4), ("broken", 2), ("masks", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            pixels = np.where(pixels > 128, 255, 0).astype(np.uint8) if folder == "masks" else pixels
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return script, root


def run_script(script, root):
    """As a user does; the checkout's own packages are found although the script lies elsewhere."""
    argv, path = [sys.executable, script, "--root", root], {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=path, capture_output=True, text=True)


def test_the_dataset_script_has_at_most_25_lines_and_writes_meta_json(gears):
    script, root = gears
    assert len(script.read_text().splitlines()) <= 25
    done = run_script(script, root)
    assert done.returncode == 0, done.stderr
    samples = read(root)
    assert [sample.img_path for sample in samples["train"]] == ["fine/0.png", "fine/2.png"]
    assert [sample.anomaly for sample in samples["test"]] == [0, 0, 1, 1]
    assert samples["test"][2] == ("broken/0.png", "masks/0.png", "gear", "broken", 1)


def test_the_dataset_is_scored(gears, nearest, flags, tmp_path):
    script, root = gears
    run_script(script, root)
    own = [*flags, "--dataset", "folder", "--data_path", root, "--no_images", "--save_path", tmp_path / "out"]
    test_script.main(words(*own, "--k_shot", 2))
    row = json.loads((tmp_path / "out/metrics.json").read_text())["classes"]["gear"]
    assert None not in row.values()


def test_mistakes_in_the_dataset_are_named(gears):
    script, root = gears
    (root / "masks/1.png").unlink()
    done = run_script(script, root)
    assert done.returncode == 2 and "no mask for 1.png" in done.stderr and len(done.stderr.splitlines()) == 1
    shutil.rmtree(root / "broken")
    done = run_script(script, root)
    assert done.returncode == 2 and "expected images in fine/ and broken/" in done.stderr


# --- a metric -------------------------------------------------------------------------------------------------------


def brute_force(maps, masks, limit: float = 0.05) -> float:
    """Every threshold in turn, on all pixels."""
    normal, defect = maps[masks == 0], maps[masks != 0]
    fitting = [value for value in np.unique(maps) if (normal >= value).mean() <= limit]
    return max(((defect >= value).mean() for value in fitting), default=0.0)


def test_the_metric_agrees_with_a_second_computation_and_stands_in_all_tables(tmp_path):
    """The edits of the page on a copy of metrics/, which then comes before the checkout's own."""
    function, names, line = blocks("Add a metric")
    assert len(function.splitlines()) + len(names.splitlines()) + len(line.splitlines()) <= 20
    room = tmp_path / "metrics"
    shutil.copytree(ROOT / "metrics", room)
    with (room / "curves.py").open("a") as file:
        file.write(f"\n\n{function}")
    old = (room / "names.py").read_text()
    (room / "names.py").write_text(new := re.sub(r"PIXEL = \(.*?\)\n", lambda _: names, old, flags=re.DOTALL))
    pixel = (room / "pixel.py").read_text()
    pixel = pixel.replace("import (\n    Points,", "import (\n    recall_at_fpr,\n    Points,")
    pixel = pixel.replace("        row = {\n", f"        row = {{\n{line}")
    (room / "pixel.py").write_text(pixel)
    assert new != old and line in pixel and "    recall_at_fpr,\n" in pixel
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 24, 24)).astype(np.float32).round(1)  # ties among them
    masks = np.zeros((3, 24, 24), np.uint8)
    masks[:2, 4:12, 4:12] = 1
    maps += masks
    np.savez(tmp_path / "data.npz", maps=maps, masks=masks)
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import json, numpy as np, metrics\nfrom report.tables import METRICS\n"
        f"data = np.load({str(tmp_path / 'data.npz')!r})\n"
        "print(json.dumps([metrics.evaluate(data['maps'], data['masks']), METRICS]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    row, columns = json.loads(done.stdout)
    assert row["recall5_px"] == pytest.approx(brute_force(maps, masks), abs=1e-12)
    assert 0.05 < row["recall5_px"] < 0.9 and "recall5_px" in columns


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_page_are_understood(nearest, monkeypatch):
    """With the method and the dataset in their lists."""
    monkeypatch.setattr(config.flags, "DATASETS", (*config.flags.DATASETS, "gears"))
    commands = [shlex.split(command) for command in commands_of(PAGE)]
    own = [words for words in commands if words[:2] != ["python", "data/gears.py"]]
    for program, script, *flags in own:
        assert (ROOT / script).is_file()
        if program == "python":
            assert settings_of(script, flags).method in METHODS
    assert len(own) == len(commands) - 1 > 6


def test_the_page_is_a_page_and_its_files_are_there():
    assert len(PAGE.splitlines()) < 200
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md))?)`", PAGE)) - {"model/nearest.py", "data/gears.py"}
    assert len(named) > 8 and [name for name in sorted(named) if not (ROOT / name).exists()] == []
