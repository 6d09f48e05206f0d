"""The quickstart's CLIP as it is shipped, on photographs that it was not trained on; its pictures, and its training.

The thresholds lie a little below what exps/quickstart/README.md reports; wrong prompts, layers or maps fall far below.
"""

import random
import subprocess
import sys
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import metrics
from conftest import ROOT
from dataset import AnomalyDataset, read
from metrics import evaluate
from metrics.image import IMAGE
from metrics.pixel import PIXEL
from model import anomaly_map, build_on
from model.april_gan import AprilGan
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from prompt_ensemble import APRIL_GAN
from tools.quickstart_clip import scenes
from tools.quickstart_clip import train as train_quickstart_clip
from tools.quickstart_clip.captions import KINDS, NORMAL, Captions
from tools.quickstart_clip.evaluate import joint_patches
from tools.quickstart_clip.pictures import Pictures

ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
WEIGHTS = ARCHITECTURE.with_suffix(".safetensors")
LEAST_IMAGE = {"demo_textures": 0.83, "demo_objects": 0.6}  # image AUROC, mean over classes
LEAST_PIXEL = {"demo_textures": 0.9, "demo_objects": 0.71}  # pixel AUROC of the last block's tokens, no adapter


class Set(NamedTuple):
    """One set of the sample data: a class's images (n, 3, S, S), masks and labels."""

    classes: dict[str, tuple[torch.Tensor, torch.Tensor, list[int]]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Set]:
    root = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, ROOT / "data/demo.py", "--root", root], check=True, capture_output=True)
    found = {}
    for name in LEAST_PIXEL:
        samples = read(root / name)["test"]
        classes = {}
        for cls_name in dict.fromkeys(sample.cls_name for sample in samples):
            own = [sample for sample in samples if sample.cls_name == cls_name]
            (batch,) = DataLoader(AnomalyDataset(root / name, own, 128), len(own))
            classes[cls_name] = batch["image"], batch["mask"], [sample.anomaly for sample in own]
        found[name] = Set(classes)
    return found


@pytest.fixture(scope="module")
def detector() -> AprilGan:
    return AprilGan(Backbone(register_architecture(str(ARCHITECTURE)), str(WEIGHTS)))


@torch.no_grad()
def aurocs(detector: AprilGan, one: Set, *, swapped: bool = False, flipped: bool = False) -> tuple[float, float]:
    """Image and pixel AUROC without references or adapters, mean over classes."""
    backbone, rows = detector.backbone, []
    for name, (images, masks, labels) in one.classes.items():
        text = detector.texts([name]).expand(len(images), -1, -1)
        text = text.flip(-1) if swapped else text
        tokens = backbone(images, {backbone.depth})
        scores = anomaly_map.state_logit(tokens.pooled[:, None], text, 100.0)[:, 0]
        logits = anomaly_map.state_logit(joint_patches(backbone, tokens.patches[backbone.depth]), text, 100.0)
        heat = anomaly_map.upsample(logits, (backbone.grid, backbone.grid), backbone.image_size, align_corners=False)
        heat = heat.flip(1) if flipped else heat
        rows.append(evaluate(heat.numpy(), masks.numpy(), labels, scores.tolist()))
    return tuple(float(np.mean([row[key] for row in rows])) for key in ("auroc_sp", "auroc_px"))


def test_shipped_files_are_small_and_half_precision():
    assert WEIGHTS.stat().st_size + ARCHITECTURE.stat().st_size <= 12e6
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}


@pytest.mark.parametrize("name", LEAST_PIXEL)
def test_defects_are_found_without_references(detector, sets, name):
    image, pixel = aurocs(detector, sets[name])
    assert image >= LEAST_IMAGE.get(name, 0) and pixel >= LEAST_PIXEL[name]


@pytest.mark.parametrize("name", LEAST_PIXEL)
def test_swapped_states_or_flipped_maps_would_show(detector, sets, name):
    image, pixel = aurocs(detector, sets[name], swapped=True)
    assert pixel < 0.5 and (name not in LEAST_IMAGE or image < 0.5)
    assert aurocs(detector, sets[name], flipped=True)[1] < LEAST_PIXEL[name] - 0.05


def test_a_dropped_layer_would_show(sets):
    detector = AprilGan(Backbone(register_architecture(str(ARCHITECTURE)), str(WEIGHTS)))
    del detector.backbone.clip.visual.transformer.resblocks[2]
    detector.backbone.taps.depth -= 1
    found = {name: aurocs(detector, one) for name, one in sets.items()}
    assert any(image < LEAST_IMAGE.get(name, 0) or pixel < LEAST_PIXEL[name] for name, (image, pixel) in found.items())


@torch.no_grad()
def test_bf16_moves_pixel_metrics_by_less_than_half_a_percent(detector, sets):
    """SDP, means over four classes. Image metrics move in steps: an AUROC by 1 / (8 * 12) where a normal and a
    defective image of a class change places, the mean by a quarter of that."""
    sdp = build_on(detector.backbone, "sdp")
    for one in sets.values():
        means = []
        for half in (False, True):
            rows = []
            for name, (images, masks, labels) in one.classes.items():
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    tokens = sdp.encode(images)
                found = sdp.zero_shot(tokens, [name] * len(images))
                scores = sdp.image_scores(found.score_components).tolist()
                rows.append(evaluate(found.maps.numpy(), masks.numpy(), labels, scores))
            means.append(metrics.mean(rows))
        moved = {key: abs(means[0][key] - means[1][key]) for key in means[0]}
        assert all(0 < moved[key] < 0.005 for key in PIXEL if key != "threshold_px")
        assert all(moved[key] < 2.1 / (8 * 12) / 4 for key in IMAGE)


# --- how it is made -------------------------------------------------------------------------------------------------


def some_pictures(count: int) -> list[scenes.Picture]:
    return [scenes.picture(64, np.random.default_rng((1, index))) for index in range(count)]


def test_pictures_depend_on_their_random_numbers_alone():
    first, second = some_pictures(12), some_pictures(12)
    assert all(
        np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask) for a, b in zip(first, second, strict=True)
    )
    assert len({one.image.tobytes() for one in first}) == 12


def test_a_mask_goes_with_a_defect():
    pictures = some_pictures(150)
    assert all(one.mask.any() == (one.defect is not None) for one in pictures)
    assert all(np.array_equal(one.image, one.flawless) == (one.defect is None) for one in pictures)
    assert np.mean([one.mask.any() for one in pictures]) > 0.7
    assert all(one.image.shape == (64, 64, 3) and one.image.dtype == np.uint8 and one.nouns for one in pictures)
    assert (
        max(one.mask.mean() for one in pictures) > 0.25
        and min(one.mask.mean() for one in pictures if one.defect) < 0.03
    )


def test_every_surface_and_defect_can_be_drawn():
    rng = np.random.default_rng(0)
    for kind in scenes._SURFACES:
        field = kind.draw(64, rng)
        assert field.shape == (64, 64) and np.isfinite(field).all() and -1e-3 <= field.min() <= field.max() <= 1.001
    for draw, _, _ in scenes._DEFECTS.values():
        for scene in [make(64, rng) for make in scenes._SCENES]:
            image, support = draw(scene, rng)
            assert image.shape == (64, 64, 3) and np.isfinite(image).all() and support.shape == (64, 64)


def test_the_generator_knows_no_photograph_and_nothing_of_the_sample_data():
    text = (ROOT / "tools/quickstart_clip/scenes.py").read_text() + (
        ROOT / "tools/quickstart_clip/train.py"
    ).read_text()
    assert "skimage" not in text and "data.demo" not in text and "import demo" not in text and "imread" not in text


def test_training_goes_through_and_its_weights_load(tmp_path):
    cv2.setNumThreads(1)
    made = [one for one in some_pictures(30) if one.defect]
    pictures = Pictures(
        np.stack([cv2.resize(one.flawless, (128, 128)) for one in made]),
        np.stack([cv2.resize(one.image, (128, 128)) for one in made]),
        np.stack([np.kron(one.mask, np.ones((2, 2), bool)) for one in made]),
        [one.nouns for one in made],
        [one.defect for one in made],
        [one.scene for one in made],
    )
    backbone = Backbone(register_architecture(str(ARCHITECTURE)))
    before = backbone.clip.visual.proj.clone()
    train_quickstart_clip.train(backbone, pictures, ((2, 64, 8), (1, 128, 4)), seed=0, device="cpu")
    train_quickstart_clip.save(backbone, tmp_path / "own.safetensors")
    loaded = Backbone(register_architecture(str(ARCHITECTURE)), str(tmp_path / "own.safetensors"))
    assert not torch.equal(loaded.clip.visual.proj, before) and not loaded.training


def test_captions_name_both_states(detector):
    captions = Captions(detector.backbone.text.tokenizer, random.Random(0))
    ids = captions.ids([["brick"], ["coin"]], ["stain", "scratch"])
    assert ids.shape[0] == 4 and all(phrase.count("{}") == 1 for kind in KINDS.values() for phrase in kind)
    assert set(KINDS) == set(scenes._DEFECTS)
    assert set(APRIL_GAN.normal) <= set(NORMAL)
