"""A folder of results belongs to one run at a time; training needs something to learn from."""

import functools
import shutil

import numpy as np
import pytest
from PIL import Image

import forks
import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE
from data.meta import Sample, write
from model import METHODS
from utils.errors import run_script
from utils.files import lock_folder

FAST = ["--image_size", 64, "--num_workers", 0, "--device", "cpu"]
BRICK = REFERENCE / "data/mini_mvtec/brick"


@pytest.fixture
def flags(tiny_a):
    return [*tiny_a.flags, *FAST]


def test_a_second_run_in_one_folder_is_refused(flags, mini_mvtec, fails, tmp_path):
    """Whichever script has the folder; what lies in it stays as it is."""
    data = ["--dataset", "mvtec", "--class", "brick", "--save_path", tmp_path]
    runs = (
        (test_script.main, [*flags, *data, "--method", "winclip", "--data_path", mini_mvtec]),
        (train_script.main, [*flags, *data, "--train_data_path", mini_mvtec]),
        (predict_script.main, [BRICK / "test/hole", *flags, "--method", "winclip", "--class_name", "brick",
                               "--save_path", tmp_path]),
    )  # fmt: skip
    with lock_folder(tmp_path):
        (tmp_path / "table.md").write_text("of the run that has the folder")
        before = sorted(path.name for path in tmp_path.iterdir())
        for main, argv in runs:
            line = fails(main, *argv)
            assert str(tmp_path) in line and "writes" in line and "process" in line, line
            assert sorted(path.name for path in tmp_path.iterdir()) == before
    test_script.main([str(word) for word in runs[0][1]])
    assert "brick" in (tmp_path / "table.md").read_text()


def test_results_of_two_scripts_are_not_mixed(flags, mini_mvtec, fails, tmp_path):
    """Both ways; what is there stays."""
    own = [*flags, "--method", "winclip", "--save_path", tmp_path / "out", "--no_images"]
    test = [*own, "--dataset", "mvtec", "--data_path", mini_mvtec, "--class", "brick"]
    predict = [BRICK / "test/hole", *own, "--class_name", "brick"]
    test_script.main([str(word) for word in test])
    assert "holds results of test.py (metrics.json)" in fails(predict_script.main, *predict)
    assert (tmp_path / "out/metrics.json").is_file()
    shutil.rmtree(tmp_path / "out")
    predict_script.main([str(word) for word in predict])
    assert "holds results of predict.py (scores.csv)" in fails(test_script.main, *test)
    assert (tmp_path / "out/scores.csv").is_file()


def test_what_is_passed_over_stands_in_the_log(flags, tmp_path, capsys):
    """Lines from before the folder of results is known are kept for it."""
    (tmp_path / "photos").mkdir()
    shutil.copy(BRICK / "test/hole/000.png", tmp_path / "photos")
    (tmp_path / "photos/notes.txt").write_text("no image")
    argv = [
        tmp_path / "photos",
        *flags,
        "--method",
        "winclip",
        "--class_name",
        "brick",
        "--save_path",
        tmp_path / "out",
    ]
    run_script(lambda: predict_script.main([str(word) for word in argv]))
    for text in ((tmp_path / "out/log.txt").read_text(), capsys.readouterr().out):
        assert text.count("passed over, not images: 1") == 1 and "notes.txt" in text


@pytest.fixture
def painted(tmp_path):
    """(mask size in pixels) -> root of a data set with one anomalous image, whose defect has that size."""

    def make(side: int):
        root = tmp_path / str(side)
        shutil.copytree(BRICK, root / "brick")
        picture = np.asarray(Image.open(BRICK / "test/hole/000.png").convert("RGB"))
        mask = np.zeros(picture.shape[:2], np.uint8)
        mask[:side, :side] = 255
        Image.fromarray(mask).save(root / "mask.png")
        samples = [Sample("brick/test/hole/000.png", "mask.png", "brick", "hole", 1)]
        samples += [Sample("brick/test/good/000.png", "", "brick", "good", 0)]
        write(root, {"train": [], "test": samples})
        return root

    return make


@pytest.mark.parametrize(("side", "reason"), [(0, "no defect pixel"), (1, "no defect pixel")])
def test_training_without_a_defect_pixel_is_refused(flags, fails, painted, tmp_path, side, reason):
    """An empty mask, and a defect that vanishes at 64 pixels."""
    root = painted(side)
    line = fails(train_script.main, *flags, "--train_data_path", root, "--save_path", tmp_path / "out")
    assert reason in line and str(root) in line
    assert not (tmp_path / "out").exists()


def test_training_without_an_anomalous_image_is_refused(flags, fails, painted, tmp_path):
    root = painted(8)
    write(root, {"train": [], "test": [Sample("brick/test/good/000.png", "", "brick", "good", 0)]})
    line = fails(train_script.main, *flags, "--train_data_path", root, "--save_path", tmp_path / "out")
    assert "0 anomalous images" in line and "no defect pixel" in line


def test_masks_that_vanish_are_counted(flags, painted, tmp_path):
    root = painted(40)
    Image.new("L", Image.open(BRICK / "test/hole/001.png").size).save(root / "empty.png")
    samples = [Sample("brick/test/hole/000.png", "mask.png", "brick", "hole", 1),
               Sample("brick/test/hole/001.png", "empty.png", "brick", "hole", 1)]  # fmt: skip
    write(root, {"train": [], "test": samples})
    argv = [*flags, "--train_data_path", root, "--save_path", tmp_path / "out", "--epoch", 1]
    run_script(lambda: train_script.main([str(word) for word in argv]))
    assert "1 masks hold no defect pixel at 64 x 64 pixels (1 are empty" in (tmp_path / "out/log.txt").read_text()


def test_what_a_method_can_do_is_told_to_shell_scripts():
    run = functools.partial(forks.run, "-m", "model")
    assert run("sdp").stdout.split() == ["trains=", "zero_shot=yes", "few_shot=", "batched="]
    assert run("april_gan").stdout.split() == ["trains=yes", "zero_shot=yes", "few_shot=yes", "batched="]
    wrong = run("sdq")
    assert wrong.returncode == 2 and wrong.stderr == (f"error: 'sdq' is no method; known: {', '.join(METHODS)}\n")


def test_trained_on_names_the_checkpoint(tiny_a, mini_visa, fails, tmp_path, monkeypatch):
    """Of a method that is trained; others take no checkpoint."""
    monkeypatch.chdir(tmp_path)
    argv = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--trained_on", "mvtec"]
    assert "exps/april_gan/mvtec" in fails(test_script.main, *argv)
