"""data/demo.py: the sample data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data import demo, demo_scenes, meta

SCRIPT = Path(__file__).parents[2] / "data" / "demo.py"
NO_NETWORK = """
import runpy, socket, sys
socket.socket = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(root):
    """The script in an interpreter that cannot open a socket."""
    command = [sys.executable, "-c", NO_NETWORK, str(SCRIPT), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    result = run(root)
    assert result.returncode == 0, result.stderr
    return root


def test_both_sets_are_whole(made):
    assert sorted(os.listdir(made)) == ["demo_objects", "demo_textures"]
    for name in ("demo_textures", "demo_objects"):
        samples = meta.read(made / name)
        assert len(samples["train"]) == 40 and len(samples["test"]) == 80
        assert len({sample.cls_name for sample in samples["test"]}) == 4
        assert all(bool(sample.mask_path) == bool(sample.anomaly) for sample in samples["test"])
        for sample in samples["test"]:
            with Image.open(made / name / sample.img_path) as image:
                assert image.mode in ("L", "RGB") and 150 <= min(image.size) <= max(image.size) <= 256
    assert sum(map(len, contents(made).values())) < 10e6


def test_the_layouts_are_those_that_the_scripts_read(made, tmp_path):
    for script, name in (("mvtec", "demo_textures"), ("visa", "demo_objects")):
        before = (made / name / "meta.json").read_bytes()
        command = [sys.executable, SCRIPT.with_name(f"{script}.py"), "--root", made / name]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        assert (made / name / "meta.json").read_bytes() == before


def test_a_second_run_leaves_the_sets_alone(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    result = run(made)
    assert result.returncode == 0 and result.stdout.count("already there") == 2
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_masks(made):
    for name, values in (("demo_textures", {0, 255}), ("demo_objects", {0, 1, 2, 3})):
        seen = set()
        for sample in meta.read(made / name)["test"]:
            if sample.anomaly:
                mask = np.asarray(Image.open(made / name / sample.mask_path))
                with Image.open(made / name / sample.img_path) as image:
                    assert mask.shape == image.size[::-1]
                found = set(np.unique(mask).tolist())
                assert found == {0, 255} or found == set(range(len(found)))
                assert 0.001 < (mask > 0).mean() < 0.4
                pieces = [ndimage.label(mask == value, np.ones((3, 3)))[1] for value in found - {0}]
                assert set(pieces) == {1}
                seen |= found
        assert seen == values


def test_the_same_bytes_again(made, tmp_path, monkeypatch):
    """One class of either set, made once more."""
    for name, sets, cls in (("demo_textures", "TEXTURES", "wood"), ("demo_objects", "OBJECTS", "coins")):
        monkeypatch.setattr(demo, sets, {cls: getattr(demo, sets)[cls]})
        demo.make(tmp_path, name, 1)
        again = contents(tmp_path / name / cls)
        assert again and again == contents(made / name / cls)


def test_more_test_images_hold_the_usual_ones(made, tmp_path, monkeypatch):
    for sets, cls in (("TEXTURES", "wood"), ("OBJECTS", "coins")):
        monkeypatch.setattr(demo, sets, {cls: getattr(demo, sets)[cls]})
    demo.main(["--root", str(tmp_path), "--times", "2"])
    for name, cls in (("demo_textures", "wood"), ("demo_objects", "coins")):
        usual, more = contents(made / name / cls), contents(tmp_path / name / cls)
        assert usual.items() < more.items()
        samples = meta.read(tmp_path / name)
        assert (len(samples["train"]), len(samples["test"])) == (10, 40)
        assert sum(sample.anomaly for sample in samples["test"]) == 24


@pytest.mark.parametrize("times", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_images_is_refused(tmp_path, times, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--root", str(tmp_path), f"--times={times}"])
    assert stopped.value.code == 2 and f"--times: {times}: must be" in capsys.readouterr().err


def test_nothing_differs_outside_the_mask():
    for sets in (demo.TEXTURES, demo.OBJECTS):
        for name, recipe in sets.items():
            for defect in recipe.defects:
                before = demo_scenes.normal_image(recipe, demo_scenes.generator(name, 1))
                after, mask = demo_scenes.defect_image(recipe, defect, 1, demo_scenes.generator(name, 1))
                difference = np.abs(after.astype(int) - before).max(-1)
                assert not difference[mask == 0].any()
                assert (difference[mask > 0] > demo_scenes.VISIBLE).mean() > 0.5


def test_no_image_is_there_twice(made):
    for name in ("demo_textures", "demo_objects"):
        images = [data for path, data in contents(made / name).items() if "/good/" in path or "Normal" in path]
        assert len(images) == len(set(images)) == 72


def test_a_set_with_a_file_gone_is_refused(made, tmp_path):
    root = tmp_path / "demo_textures"
    meta.write(Path(root.mkdir() or root), {"test": [meta.Sample("gone.png", "", "wood", "good", 0)]})
    for named in ("gone.png", "meta.json"):
        result = run(tmp_path)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert named in result.stderr and str(root) in result.stderr
        (root / "meta.json").unlink(missing_ok=True)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch, fails):
    monkeypatch.setitem(demo.TEXTURES, "brick", demo.TEXTURES["brick"]._replace(photo="none.png"))
    assert "none.png" in fails(demo.main, "--root", tmp_path)
    assert os.listdir(tmp_path) == []
