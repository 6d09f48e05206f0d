"""The feature cache: what is found again, by whom, and that it is never the wrong thing."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

import forks
import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from engine.feature_cache import FeatureCache, _checksum
from model import build, build_on
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from model.backbones.taps import ViTTaps
from utils.logs import LOG

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
FAST = ["--image_size", 96, "--num_workers", 0, "--no_images"]
SHOTS = ["--mode", "few_shot", "--save_maps"]


@pytest.fixture
def encoded(monkeypatch):
    """Images that go through the vision transformer, counted where they enter it."""
    counted = []
    embed = ViTTaps.embed

    def counting(taps, images):
        counted.append(len(images))
        return embed(taps, images)

    monkeypatch.setattr(ViTTaps, "embed", counting)

    def since_last_asked() -> int:
        count = sum(counted)
        counted.clear()
        return count

    return since_last_asked


@pytest.fixture
def run(tiny_a, mini_visa, tmp_path):
    """Run test.py with the cache; returns the folder of results."""

    def run(name: str, *flags, method="april_gan", cache="cache"):
        trained = ["--checkpoint_path", CHECKPOINT] if method == "april_gan" else []
        cached = ["--feature_cache", tmp_path / cache] if cache else []
        argv = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--method", method, *trained,
                *cached, "--save_path", tmp_path / name, *flags]  # fmt: skip
        test_script.main([str(flag) for flag in argv])
        return tmp_path / name

    return run


def difference(one, other) -> float:
    """The largest of any pixel of any map."""
    paths = [path.relative_to(one) for path in one.glob("maps/**/*.npy")]
    assert len(paths) > 10
    return max(np.abs(np.load(one / path) - np.load(other / path)).max() for path in paths)


def references(out) -> set[str]:
    (shots,) = json.loads((out / "k_shot.json").read_text())
    return {path for paths in shots["references"].values() for path in paths}


def files(folder) -> list:
    return sorted(folder.glob("??/*.safetensors"))


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- runs -------------------------------------------------------------------------------------------------------------


def test_another_k_and_seed_encode_nothing_and_change_nothing(run, encoded):
    plain = run("plain", *SHOTS, "--k_shot", 4, "--seed", 1, cache=None)
    images = encoded()
    first = run("first", *SHOTS, "--k_shot", 4, "--seed", 1)
    assert encoded() == images > 0
    second = run("second", *SHOTS, "--k_shot", 4, "--seed", 1)
    assert encoded() == 0
    assert f"{images} images found, 0 encoded" in (second / "log.txt").read_text()
    assert difference(first, second) == 0
    assert difference(plain, first) < 1e-6
    assert (first / "metrics.json").read_text() == (second / "metrics.json").read_text()
    run("fewer", *SHOTS, "--k_shot", 0, 1, 2, "--seed", 1)
    assert encoded() == 0
    other = run("other", *SHOTS, "--k_shot", 4, "--seed", 2)
    drawn, drawn_before = references(other), references(first)
    assert encoded() == len(drawn - drawn_before) > 0  # nothing but references that are new
    assert difference(first, other) > 1e-3


def test_a_batch_of_which_some_images_are_there(run, encoded, tmp_path):
    """Smaller batches go through the backbone than without a cache; nothing else changes."""
    run("few", "--class", "grass", "--save_maps")
    images = encoded()
    for path in random.Random(0).sample(files(tmp_path / "cache"), images):
        path.unlink()
    plain = run("plain", "--class", "grass", "--save_maps", cache=None)
    encoded()
    mixed = run("mixed", "--class", "grass", "--save_maps")
    assert 0 < encoded() < images
    assert difference(plain, mixed) < 1e-6


def test_winclip_and_clip_ad(run, encoded):
    for method in ("winclip", "sdp"):
        first = run(f"{method}1", "--save_maps", method=method)
        assert encoded() > 0
        second = run(f"{method}2", "--save_maps", method=method)
        assert encoded() == 0 and difference(first, second) == 0
        assert difference(run(f"{method}0", "--save_maps", method=method, cache=None), first) < 1e-6
        encoded()


def test_precisions_keep_apart(run, encoded):
    """Autocast around the run, since a process has one precision and accelerate would keep the first."""
    run("fp32")
    images = encoded()
    with torch.autocast("cpu", torch.bfloat16):
        half = run("bf16", "--save_maps")
        assert encoded() == images
        again = run("bf16-again", "--save_maps")
        assert encoded() == 0
    assert difference(half, again) == 0


def test_broken_and_foreign_files_are_replaced(run, encoded, tmp_path):
    first = run("first", "--save_maps")
    images, held = encoded(), files(tmp_path / "cache")
    for number, path in enumerate(held):
        content = bytearray(path.read_bytes())
        match number % 5:
            case 0:
                path.write_bytes(content[: len(content) // 2])
            case 1:
                content[-3] ^= 16  # one bit of the values
                path.write_bytes(content)
            case 2:
                shutil.copy(held[number - 2] if number > 1 else held[-1], path)
            case 3:
                path.write_bytes(b"")
            case 4:
                path.write_bytes(b"\xff" * 100)
    assert difference(first, run("again", "--save_maps")) == 0 and encoded() == images
    assert difference(first, run("third", "--save_maps")) == 0 and encoded() == 0


def test_training_and_its_validation(tiny_a, mini_mvtec, mini_visa, encoded, tmp_path):
    def train(name: str, *flags) -> str:
        argv = [*tiny_a.flags, "--image_size", 96, "--num_workers", 0, "--dataset", "mvtec", "--train_data_path",
                mini_mvtec, "--class", "brick", "--epoch", 2, "--aug_rate", 0, "--val_dataset", "visa",
                "--val_data_path", mini_visa, "--save_path", tmp_path / name, *flags]  # fmt: skip
        train_script.main([str(flag) for flag in argv])
        return (tmp_path / name / "losses.csv").read_text()

    plain = train("plain")
    images = encoded()
    kept = train("first", "--feature_cache", tmp_path / "cache")
    assert encoded() < 0.6 * images  # the second epoch encodes nothing
    assert train("second", "--feature_cache", tmp_path / "cache") == kept
    assert encoded() == 0
    rows = [[float(cell) for text in (plain, kept) for cell in text.splitlines()[line].split(",")] for line in (1, -1)]
    assert all(row[:5] == pytest.approx(row[5:], rel=1e-5) for row in rows)


def test_predict(tiny_a, encoded, tmp_path):
    photographs = REFERENCE / "data/mini_mvtec/brick"
    argv = [photographs / "test", "--class_name", "brick", "--method", "winclip", *tiny_a.flags, *FAST, "--references",
            photographs / "train", "--feature_cache", tmp_path / "cache"]  # fmt: skip
    scores = []
    for name in ("first", "second"):
        predict_script.main([str(flag) for flag in [*argv, "--save_path", tmp_path / name]])
        scores.append((tmp_path / name / "scores.csv").read_text())
        assert (encoded() == 0) == (name == "second")
    assert scores[0] == scores[1]


def test_refusals(fails, tiny_a, mini_visa, tmp_path):
    (tmp_path / "file").write_text("")
    flags = [*tiny_a.flags, *FAST, "--dataset", "visa", "--data_path", mini_visa, "--checkpoint_path", CHECKPOINT,
             "--save_path", tmp_path / "out"]  # fmt: skip
    line = fails(test_script.main, *flags, "--feature_cache", tmp_path / "file/cache")
    assert "--feature_cache" in line and "file/cache" in line
    line = fails(test_script.main, *flags, "--feature_cache_size", 3)
    assert "--feature_cache_size 3: requires --feature_cache" in line
    assert not (tmp_path / "out").exists()


# --- methods share ----------------------------------------------------------------------------------------------------


def test_methods_share_what_they_have_in_common(encoded, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(register_architecture(str(ROOT / "benchmarks/small_vit.json")))
    backbone.cache = FeatureCache(tmp_path, 1, Accelerator(cpu=True))
    images = some_images(3, 128)
    build_on(backbone, "april_gan").encode(images)
    assert encoded() == 3
    assert torch.equal(build_on(backbone, "vcp_clip").encode(images).pooled, backbone(images, [5]).pooled)
    build_on(backbone, "april_gan", features_list=[5]).encode(images)
    assert encoded() == 0
    build_on(backbone, "winclip").encode(images)  # windows are its own
    build_on(backbone, "april_gan", features_list=[5]).encode(images)
    assert encoded() == 3
    build_on(backbone, "winclip", scales=[3]).encode(images)
    assert encoded() == 0
    build_on(backbone, "sdp").encode(images)
    assert encoded() == 3
    build_on(backbone, "sdp_plus").encode(images)
    assert encoded() == 0
    for blocks, count in ((3, 3), (3, 0), (2, 3)):
        build_on(backbone, "anomaly_clip", dpam_blocks=blocks).encode(images)
        assert encoded() == count


def test_other_weights_sizes_and_layers_are_not_found(tiny_a, encoded, tmp_path):
    def encode(backbone: Backbone, layers=(1, 4)) -> int:
        backbone.cache = FeatureCache(tmp_path, 1, Accelerator(cpu=True))
        backbone(some_images(2, backbone.image_size), layers)
        return encoded()

    register_architecture(tiny_a.config_path)
    own = Backbone(tiny_a.model, tiny_a.pretrained)
    assert encode(own) == 2 and encode(own) == 0
    state = torch.load(tiny_a.pretrained)
    state["visual.transformer.resblocks.2.mlp.c_fc.weight"][5, 7] += 1e-3  # a fingerprint of samples would not see it
    torch.save(state, tmp_path / "changed.pt")
    changed = Backbone(tiny_a.model, str(tmp_path / "changed.pt"))
    assert changed.fingerprint == own.fingerprint and encode(changed) == 2
    assert encode(Backbone(tiny_a.model, tiny_a.pretrained, quick_gelu="on")) == 2
    assert encode(Backbone(tiny_a.model, tiny_a.pretrained, image_size=80)) == 2
    assert encode(Backbone(tiny_a.model, tiny_a.pretrained, image_size=80, position_rule="bilinear")) == 2
    assert encode(own, (1, 3)) == 2
    assert encode(own, (3, 4)) == 0  # each layer is kept by itself


def some_images(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_resnet(tmp_path):
    """Its stages have grids of their own."""
    detector = build("april_gan", model="RN50", image_size=64)
    detector.backbone.cache = FeatureCache(tmp_path, 1, Accelerator(cpu=True))
    first, second = (detector.encode(some_images(2, 64)) for _ in range(2))
    assert first.grids == second.grids == {1: (16, 16), 2: (8, 8), 3: (4, 4), 4: (2, 2)}
    assert all(torch.equal(first.patches[layer], second.patches[layer]) for layer in first.patches)
    assert len(files(tmp_path)) == 2 * 5


# --- the folder -------------------------------------------------------------------------------------------------------


THOUSANDS = {"thousands": (4000,)}


def thousands(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """(b, 3, 4, 4) -> 16 kB an image, all of it the first pixel's value."""
    return {"thousands": images[:, 0, 0, 0, None].float().expand(-1, 4000)}


def number(value: int) -> torch.Tensor:
    return torch.full((1, 3, 4, 4), value, dtype=torch.uint8)


def test_the_bound_holds_and_the_least_recently_used_go(tmp_path):
    cache = FeatureCache(tmp_path, 1e-3, Accelerator(cpu=True))  # 1 MB: some 50 images
    for value in range(120):
        os.utime(tmp_path)
        cache(number(value), {}, THOUSANDS, thousands)
        cache(number(0), {}, THOUSANDS, thousands)  # is used all the time
        for age, path in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, ns=(age, age * 10**9))  # clocks of file systems are coarse
        assert size(tmp_path) <= 1e6
    held = []

    def encode(images):
        held.append(int(images[0, 0, 0, 0]))
        return thousands(images)

    again = FeatureCache(tmp_path, 1e-3, Accelerator(cpu=True))
    again._keeping = False  # only looks
    for value in range(120):
        assert again(number(value), {}, {"thousands": (4000,)}, encode)["thousands"].unique().tolist() == [value]
    assert 30 < 120 - len(held) < 60 and 0 not in held and held == list(range(1, len(held) + 1))


HAMMER = """
import random, sys, torch
from accelerate import Accelerator
from engine.feature_cache import FeatureCache
folder, seed = sys.argv[1:]
cache, dice = FeatureCache(folder, 1e-3, Accelerator(cpu=True)), random.Random(seed)
encode = lambda images: {"thousands": images[:, 0, 0, 0, None].float().expand(-1, 4000)}
for _ in range(400):
    value = dice.randrange(100)
    image = torch.full((1, 3, 4, 4), value, dtype=torch.uint8)
    got = cache(image, {}, {"thousands": (4000,)}, encode)["thousands"]
    assert got.shape == (1, 4000) and (got == value).all(), value
print(cache._found, cache._encoded)
"""


def test_two_processes_at_once(tmp_path):
    """On images that they share, in a folder that is too small for all of them."""
    both = [forks.start("-c", HAMMER, tmp_path, seed) for seed in "12"]
    for process in both:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        found, encoded = map(int, out.split())
        assert found > 50 and encoded > 50 and "not written" not in errors
    assert size(tmp_path) <= 1e6
    assert not list(tmp_path.rglob(".*"))


def test_what_a_killed_run_left_goes(tmp_path):
    left = [tmp_path / f"ab/.{number:032x}.safetensors" for number in (1, 2)]
    other = tmp_path / "ab/.editorconfig"
    left[0].parent.mkdir()
    for path in (*left, other):
        path.write_bytes(b"half")
    for path in (left[0], other):
        os.utime(path, (0, 0))
    FeatureCache(tmp_path, 1, Accelerator(cpu=True))(number(1), {}, THOUSANDS, thousands)
    assert not left[0].exists() and left[1].exists()  # the other may be of a run that goes on
    assert other.exists()


@pytest.mark.parametrize("problem", ["no place", "too small"])
def test_what_cannot_be_written_is_said_once_and_costs_nothing_else(problem, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(LOG, "handlers", [caplog.handler])
    monkeypatch.setattr(LOG, "propagate", False)
    cache = FeatureCache(tmp_path, 1e-4 if problem == "too small" else 1, Accelerator(cpu=True))
    if problem == "no place":
        for place in range(256):
            (tmp_path / f"{place:02x}").write_text("a file where a folder should be")
    for value in range(3):
        assert cache(number(value), {}, THOUSANDS, thousands)["thousands"].unique().tolist() == [value]
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in line and "not written any more" in line and not files(tmp_path)


# --- a folder that others can write into ------------------------------------------------------------------------------


def kept_file(folder):
    """Where the feature of one image lies."""
    FeatureCache(folder, 1, Accelerator(cpu=True))(number(1), {}, THOUSANDS, thousands)
    (path,) = files(folder)
    return path


@pytest.mark.parametrize("kind", ["FIFO", "link", "device", "folder", "endless", "shape", "type"])
def test_what_others_put_in_the_place_of_a_file_is_encoded_anew(kind, tmp_path):
    path = kept_file(tmp_path / "cache")
    content = path.read_bytes()
    label = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["label"]
    (tmp_path / "other").write_bytes(content)
    if kind == "endless":
        with path.open("r+b") as file:
            file.truncate(1 << 40)
    elif kind in ("shape", "type"):
        feature = torch.zeros(3999) if kind == "shape" else torch.zeros(4000, dtype=torch.int32)
        save_file({"feature": feature}, path, {"label": label, "checksum": _checksum(feature)})
    else:
        path.unlink()
        {"FIFO": os.mkfifo, "folder": os.mkdir, "link": lambda to: to.symlink_to(tmp_path / "other"),
         "device": lambda to: to.symlink_to("/dev/zero")}[kind](path)  # fmt: skip
    cache = FeatureCache(tmp_path / "cache", 1, Accelerator(cpu=True))
    got = cache(number(1), {}, THOUSANDS, thousands)["thousands"]
    assert got.unique().tolist() == [1] and (cache._found, cache._encoded) == (0, 1)
    assert (tmp_path / "other").read_bytes() == content


def test_a_folder_that_is_a_link_is_neither_read_nor_written_nor_emptied(tmp_path):
    path = kept_file(tmp_path / "cache")
    outside = tmp_path / "outside"
    shutil.move(path.parent, outside)
    path.parent.symlink_to(outside)
    held = {file: file.read_bytes() for file in outside.iterdir()}
    cache = FeatureCache(tmp_path / "cache", 1, Accelerator(cpu=True))
    cache(number(1), {}, THOUSANDS, thousands)
    assert (cache._found, cache._encoded) == (0, 1)
    small = FeatureCache(tmp_path / "cache", 1e-6, Accelerator(cpu=True))
    small._make_room()
    assert {file: file.read_bytes() for file in outside.iterdir()} == held
