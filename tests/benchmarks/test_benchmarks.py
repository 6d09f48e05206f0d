"""The benchmarks' command works, and what its parts share measures what it says."""

import importlib

import pytest
from accelerate import Accelerator

from benchmarks import gpu
from benchmarks.__main__ import PARTS, main
from benchmarks.common import ROOT, scoring_pass
from data.references import ZERO_SHOT, draw_shots
from dataset import read
from model import build
from model.backbones.architectures import register_architecture


def test_the_smallest_part_through_the_command(capfd):
    assert main(["--quick", "--only", "winclip"]) == 0
    machine, _, head, _, *rows = capfd.readouterr().out.splitlines()
    assert "cores" in machine and "torch" in machine and head.count("|") == 6
    assert len(rows) > 4 and all(row.startswith("| winclip | ") and row.count("|") == 6 for row in rows)


def test_a_part_that_fails_is_told(capfd, monkeypatch):
    monkeypatch.setattr("sys.executable", "false")
    assert main(["--only", "gpu"]) == 1
    assert "gpu failed" in capfd.readouterr().err


def test_every_part_is_a_module_and_every_module_a_part():
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "__main__", "common"}
    assert files == set(PARTS)
    assert all(callable(importlib.import_module(f"benchmarks.{part}").measure) for part in PARTS)


@pytest.mark.parametrize("k_shot", [0, 2])
def test_a_clocked_pass(k_shot, tiny_a, mini_visa):
    meta = read(mini_visa)
    detector = build("april_gan", **tiny_a._asdict(), image_size=96)
    shots = draw_shots("visa", meta["train"], ["grass", "tissue_slide"], k_shot, 1) if k_shot else ZERO_SHOT
    encode, images = type(detector).encode, []
    detector.encode = lambda batch: images.append(len(batch)) or encode(detector, batch)
    one = scoring_pass(detector, mini_visa, meta["test"], [shots], 8)
    assert [row.name for row in one.rows] == ["grass", "tissue_slide"]
    assert sum(images) == len(meta["test"]) + 2 * k_shot
    assert 0 < one.encoding < one.seconds and 0 < one.outside < 1


def test_shares_of_a_device_on_the_cpu(tiny_a):
    register_architecture(tiny_a.config_path)
    rows = list(gpu.share_of_peak(Accelerator(cpu=True), tiny_a.model, 64, 2, 2, 64))
    assert len(rows) == 3 and rows[1].wanted == ">= 45%"
    assert 0 < float(rows[2].ratio.partition("%")[0]) < 100
