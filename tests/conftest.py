"""Small real inputs: two tiny datasets, a tiny CLIP, and what the published program made of them."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from utils.errors import run_script
from utils.logs import LOG

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "reference"


# Folders and files of tests that run scripts from start to end, each in seconds; `-m "not slow"` leaves them out.
SLOW = {
    "scripts", "stress", "tools", "benchmarks", "test_contributing.py", "test_data_scripts.py", "test_demo.py",
    "test_feature_cache.py", "test_industrial_scripts.py", "test_map_files.py", "test_medical_scripts.py",
    "test_mvisa.py", "test_pages_in_a_browser.py", "test_validation.py",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW & set(item.path.relative_to(ROOT / "tests").parts):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch):
    """Scripts that ran in earlier tests have left their handlers in the log."""
    monkeypatch.setattr(LOG, "handlers", [])
    monkeypatch.setattr(LOG, "propagate", True)
    LOG.setLevel(logging.NOTSET)


class Weights(NamedTuple):
    model: str
    config_path: str
    pretrained: str

    @property
    def flags(self) -> list[str]:
        return ["--model", self.model, "--config_path", self.config_path, "--pretrained", self.pretrained]


class Case(NamedTuple):
    """A stored run of a published program."""

    facts: dict
    arrays: dict[str, np.ndarray]
    folder: Path


def load_case(name: str) -> Case:
    folder = REFERENCE / "cases" / name
    with np.load(folder / "outputs.npz") as arrays:
        return Case(json.loads((folder / "case.json").read_text()), dict(arrays), folder)


def assert_maps(maps, case: Case) -> None:
    """Maps (N, S, S) against the stored ones: every fourth pixel both ways of all images, and two whole images."""
    tolerance = case.facts["tolerance"]["maps_abs"]
    np.testing.assert_allclose(np.asarray(maps)[:, ::4, ::4], case.arrays["maps_s4"], atol=tolerance, rtol=0)
    np.testing.assert_allclose(np.asarray(maps)[:2], case.arrays["maps_first2"], atol=tolerance, rtol=0)


def reference_images(case: Case, paths: list[str], masks: list[str] | None = None, *, size: int | None = None) -> dict:
    """A batch of a case's dataset, as the engine takes it: image (N, 3, S, S), mask (N, S, S), label (N,), cls_name."""
    from dataset import AnomalyDataset, Sample

    masks = masks or [""] * len(paths)
    samples = [
        Sample(path, mask, path.split("/")[0], "", int(bool(mask))) for path, mask in zip(paths, masks, strict=True)
    ]
    root = REFERENCE / case.facts["dataset_dir"]
    items = list(AnomalyDataset(root, samples, size or case.facts["hyper_parameters"]["image_size"]))
    return {
        "image": torch.stack([item["image"] for item in items]),
        "mask": torch.stack([item["mask"] for item in items]),
        "label": torch.tensor([item["label"] for item in items]),
        "cls_name": [item["cls_name"] for item in items],
    }


def unpack_weights(name: str, folder: Path) -> Weights:
    """A tiny CLIP of tests/reference; token embeddings that no test uses are zero, which keeps the file small."""
    with np.load(REFERENCE / f"models/{name}.npz") as arrays:
        state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(state, folder / f"{name}.pt")
    return Weights(name, str(REFERENCE / f"models/{name}.json"), str(folder / f"{name}.pt"))


@pytest.fixture(scope="session")
def tiny_a(tmp_path_factory) -> Weights:
    """ViT of 4 blocks, width 64, patch 16, made for 64 pixels."""
    return unpack_weights("tiny-a", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_aclip(tmp_path_factory) -> Weights:
    """ViT of 8 blocks, width 64, patch 14, made for 56 pixels, QuickGELU; text tower of 5 blocks."""
    return unpack_weights("tiny-aclip", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_b(tmp_path_factory) -> Weights:
    """ViT of 6 blocks, width 96, patch 14, made for 70 pixels, QuickGELU."""
    return unpack_weights("tiny-b", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_c(tmp_path_factory) -> Weights:
    """As tiny_a, made for 240 pixels."""
    return unpack_weights("tiny-c", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def learned_prompts(tiny_a, tmp_path_factory) -> Path:
    """A checkpoint of AnomalyCLIP on tiny_a, as a training begins."""
    from engine import checkpoint
    from model import build

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("prompts") / "start.pth"
    checkpoint.save(path, build("anomaly_clip", **tiny_a._asdict()).trainable_state(), {})
    return path


def copy_dataset(name: str, script: str, folder: Path) -> Path:
    root = folder / name
    shutil.copytree(REFERENCE / "data" / name, root)
    subprocess.run([sys.executable, ROOT / "data" / script, "--root", root], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def mini_mvtec(tmp_path_factory) -> Path:
    return copy_dataset("mini_mvtec", "mvtec.py", tmp_path_factory.mktemp("mvtec"))


@pytest.fixture(scope="session")
def mini_visa(tmp_path_factory) -> Path:
    return copy_dataset("mini_visa", "visa.py", tmp_path_factory.mktemp("visa"))


@pytest.fixture
def fails(capsys):
    """Run a script's main on flags that must end with one clear line; returns that line."""

    def run(main, *argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_script(lambda: main([str(arg) for arg in argv]))
        captured = capsys.readouterr()
        assert end.value.code == 2
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        return lines[0]

    return run
