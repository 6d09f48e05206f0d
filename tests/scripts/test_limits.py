"""What cannot fit into memory is refused before it is tried, with the setting to change."""

import psutil
import pytest
import torch
from PIL import Image

import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE
from model import build
from utils import memory_check

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
GOOD = REFERENCE / "data/mini_mvtec/brick/train/good"


@pytest.mark.parametrize(
    ("method", "options"),
    [("april_gan", {"few_shot_features": [2, 4]}), ("winclip", {"scales": [2, 3]}), ("winclip", {"scales": [1]})],
)
def test_the_size_of_a_bank_is_known_before_it_is_made(method, options, tiny_a):
    detector = build(method, **tiny_a._asdict(), image_size=96, **options)
    memory = detector.build_memory([detector.encode(torch.zeros(3, 3, 96, 96, dtype=torch.uint8))])
    expected = {key: (3 * rows, detector.bank_widths[key]) for key, rows in detector.bank_rows.items()}
    assert {key: tuple(bank.shape) for key, bank in memory.banks.items()} == expected


def test_the_size_of_a_bank_of_a_resnet():
    detector = build("april_gan", model="RN50", image_size=96)
    tokens = detector.encode(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    rows = {key: len(bank) for key, bank in detector.build_memory([tokens]).banks.items()}
    assert rows == detector.bank_rows


def test_free_memory():
    assert 0 < memory_check.free_bytes("cpu") <= psutil.virtual_memory().total


@pytest.fixture
def one_gigabyte(monkeypatch) -> int:
    """As if so much were free: what is really free changes while a test runs."""
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 10**9)
    return 10**9


def test_an_image_size_that_cannot_fit(fails, tiny_a, mini_mvtec, tmp_path, one_gigabyte):
    flags = [*tiny_a.flags, "--save_path", tmp_path / "out", "--image_size", 16 * 10**5]
    for main, own in ((test_script.main, ["--data_path", mini_mvtec, "--checkpoint_path", CHECKPOINT]),
                      (train_script.main, ["--train_data_path", mini_mvtec]),
                      (predict_script.main, [GOOD, "--class_name", "brick", "--method", "winclip"])):  # fmt: skip
        line = fails(main, *own, *flags)
        assert "--image_size 1600000: at least" in line and "GB are free; take a smaller one" in line
    assert not (tmp_path / "out").exists()


def test_a_batch_that_cannot_fit(fails, tiny_a, mini_mvtec, tmp_path, one_gigabyte):
    """Each image alone would fit, and 30 of them would not."""
    size = 16 * int((one_gigabyte / 25 / 4 / (3 * 16**2 + 6 * 64)) ** 0.5)
    line = fails(test_script.main, *tiny_a.flags, "--data_path", mini_mvtec, "--image_size", size, "--batch_size", 30,
                 "--checkpoint_path", CHECKPOINT, "--save_path", tmp_path / "out")  # fmt: skip
    assert "--batch_size 30: at least" in line and "lower it, or --image_size" in line


def test_references_that_cannot_fit(fails, tiny_a, mini_mvtec, tmp_path, one_gigabyte):
    """At 3,200 pixels a reference is 41 MB in the four layers, before any of them is read."""
    needed = one_gigabyte // (4 * 4 * 64 * 200**2) + 1
    flags = [*tiny_a.flags, "--image_size", 3200, "--checkpoint_path", CHECKPOINT, "--save_path", tmp_path / "out"]
    seeds = range(needed // 8 + 1)
    line = fails(
        test_script.main, *flags, "--data_path", mini_mvtec, "--batch_size", 1, "--k_shot", 8, "--seed", *seeds
    )
    assert f"the references of a class ({8 * len(seeds)} reference images): at least" in line
    assert "lower --k_shot or --image_size, or give fewer seeds" in line and not (tmp_path / "out").exists()
    for number in range(needed):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(tmp_path / f"good/{number}.png")
    line = fails(predict_script.main, GOOD, *flags, "--class_name", "brick", "--references", tmp_path / "good",
                 "--batch_size", 1)  # fmt: skip
    assert f"--references ({needed} reference images): at least" in line and "name fewer images" in line
    assert not (tmp_path / "out/scores.csv").exists()
