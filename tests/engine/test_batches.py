"""Batches: read in parts by workers, pictures resized later, and the same whatever way they come."""

import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from data import input_spec
from data.input_spec import SquareInput
from dataset import AnomalyDataset, Sample
from engine.batches import batches

SIZES = [(60, 80), (60, 80), (50, 40), (60, 80), (90, 200), (50, 40), (33, 70)]


@pytest.fixture
def samples(tmp_path):
    rng, made = np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert("L" if number == 3 else "RGB").save(tmp_path / f"{number}.png")
        mask = f"{number}_mask.png" if number % 2 else ""
        if mask:
            Image.fromarray(np.where(pixels[..., 0] > 99, 255, 0).astype(np.uint8)).save(tmp_path / mask)
        made.append(Sample(f"{number}.png", mask, f"class {number // 4}", "", number % 2))
    return made


def read(root, samples, batch_size, workers, raw=False):
    dataset = AnomalyDataset(root, samples, SquareInput(48), raw=raw)
    return list(batches(dataset, batch_size, workers, Accelerator(cpu=True)))


def by_index(group):
    """index -> what a group holds of the image"""
    return {
        index: (group["image"][row], group["regions"][row], group["cls_name"][row], group["sizes"][row],
                int(group["label"][row]))
        for row, index in enumerate(group["index"].tolist())
    }  # fmt: skip


@pytest.mark.parametrize(("workers", "raw"), [(2, False), (0, True), (2, True)])
def test_workers_and_later_resizing_change_nothing(tmp_path, samples, workers, raw, monkeypatch):
    monkeypatch.setattr(input_spec, "MOST_RAW", 90 * 200 - 1)  # one picture is resized where it is read
    for batch_size in (1, 3, 5):
        plain, other = read(tmp_path, samples, batch_size, 0), read(tmp_path, samples, batch_size, workers, raw)
        assert len(plain) == len(other) == -(-len(samples) // batch_size)
        for (expected,), (group,) in zip(plain, other, strict=True):  # one group each: all inputs have one shape
            assert group.keys() == expected.keys() and group["map_size"] == expected["map_size"] == (48, 48)
            wanted, found = by_index(expected), by_index(group)
            assert wanted.keys() == found.keys()
            for index, values in wanted.items():
                for one, value in zip(found[index], values, strict=True):
                    assert torch.equal(one, value) if torch.is_tensor(value) else one == value


def test_all_workers_read_the_first_batch(tmp_path, samples):
    loader = batches(AnomalyDataset(tmp_path, samples, SquareInput(48)), 4, 2, Accelerator(cpu=True))
    assert [(number, len(part)) for number, part in loader._parts.sampler] == [(0, 2), (1, 2), (2, 2), (3, 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_raw_pictures_wait_in_memory_that_is_used_again(tmp_path, samples, batch_size):
    """Many more than there are slots; the readers are ahead of whoever takes the batches."""
    many = samples * 12
    loader = batches(AnomalyDataset(tmp_path, many, SquareInput(48), raw=True), batch_size, 2, Accelerator(cpu=True))
    plain = AnomalyDataset(tmp_path, many, SquareInput(48))
    expected = [plain[index]["image"] for index in range(len(samples))]
    seen = 0
    for groups in loader:
        for group in groups:
            for index, image in zip(group["index"].tolist(), group["image"], strict=True):
                assert torch.equal(image, expected[index % len(samples)])
                seen += 1
        if seen % 10 == 0:
            time.sleep(0.05)
    assert seen == len(many)
