"""The engine with a method of a few lines: pictures of several sizes in a class, views, sets."""

import io
import json
import math
import shutil
import tempfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from data.input_spec import ShorterEdgeInput, SquareInput
from data.meta import PixelSettings, Sample
from data.references import FewShotSetting, draw_as_published, draw_shots, parse_shots
from data.views import PLAIN, apply_view, parse_views
from dataset import AnomalyDataset
from engine.batched import SetPasses, check_sets, in_file, score_sets
from engine.batches import batches, collate
from engine.encoding import Timer
from engine.evaluation import score
from engine.references import References, with_views
from model.interface import Memory, Prediction
from utils import memory_check
from utils.files import NotWrittenError

SIDE, PATCH = 32, 8
TURNED = (("rotate", 90.0),)


class Patches(NamedTuple):
    colours: Tensor  # (B, N, 3)
    grid: tuple[int, int]
    map_size: tuple[int, int]


class Colours(nn.Module):
    """The distance of a patch's mean colour to the nearest one of the references, or of the other images of a set."""

    SET_MINIMUM, SET_PASSES = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.input_spec = ShorterEdgeInput(SIDE, PATCH)
        self.encoded: list[int] = []  # images at a time

    def encode(self, images: Tensor, map_size: tuple[int, int]) -> Patches:
        self.encoded.append(len(images))
        means = F.avg_pool2d(images.float(), PATCH)
        return Patches(means.flatten(2).transpose(1, 2), (means.shape[2], means.shape[3]), map_size)

    def draw_views(self, references, dataset, seed):
        return {name: [(((),), ((), TURNED))] * len(paths) for name, paths in references.items()}

    def summarize(self, passes):
        first, second = passes
        assert len(first.colours) == 1 and len(second.colours) == 2
        return second.colours.flatten(0, 1)

    def build_memory(self, references) -> Memory:
        return Memory({"colours": torch.cat(list(references))})

    def few_shot(self, zero_shot, tokens, names, memories, found=None) -> Prediction:
        banks = [memories[name].banks["colours"] for name in names]
        distances = [torch.cdist(one, bank).amin(1) for one, bank in zip(tokens.colours, banks, strict=True)]
        return _prediction(torch.stack(distances), tokens)

    def score_set(self, tokens, name):
        every = [bundle.colours for bundle in tokens()]
        total = torch.cat([one.flatten(0, 1) for one in every]).mean(0)
        for bundle in tokens():
            yield _prediction((bundle.colours - total).norm(dim=-1), bundle)

    def image_scores(self, score_components, limits=None):
        return score_components["map_max"]


def _prediction(distances: Tensor, tokens: Patches) -> Prediction:
    maps = F.interpolate(distances.unflatten(1, (1, *tokens.grid)), tokens.map_size, mode="bilinear")[:, 0]
    return Prediction(maps, {"map_max": maps.amax((1, 2))}, distances.unflatten(1, tokens.grid) > 10)


@pytest.fixture
def folder(tmp_path):
    """Pictures of two sizes in one class: grey ones, the anomalous ones with a white corner."""
    samples = []
    for number, (width, height) in enumerate([(64, 48), (40, 40), (64, 48), (64, 48), (40, 60)]):
        pixels = np.full((height, width, 3), 100 + number, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        if number > 1:
            pixels[: height // 2, : width // 2], mask[: height // 2, : width // 2] = 255, 255
            Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        mask_path = f"{number}_mask.png" if number > 1 else ""
        samples.append(Sample(f"{number}.png", mask_path, "cup", "stain" if number > 1 else "good", int(number > 1)))
    return tmp_path, samples


def run(folder, settings, batch_size=4) -> tuple[Any, dict[int, np.ndarray], Colours]:
    root, samples = folder
    detector, accelerator, maps = Colours(), Accelerator(cpu=True), {}
    dataset = AnomalyDataset(root, samples, detector.input_spec)
    source = References(
        detector, settings, accelerator, root=root, batch_size=batch_size, num_workers=0, pixels=PixelSettings()
    )

    def keep(setting, index, one, foreground=None):
        maps[index] = one
        assert foreground.dtype == bool and foreground.ndim == 2

    loader = batches(dataset, batch_size, 0, accelerator)
    return list(score(detector, loader, samples, settings, source, accelerator, keep)), maps, detector


def test_images_of_several_sizes_in_one_class(folder):
    setting = FewShotSetting(1, 0, {"cup": ["0.png"]}, {"cup": [(((),), ((), TURNED))]})
    (result,), maps, detector = run(folder, [setting])
    assert {index: one.shape for index, one in maps.items()} == {
        0: (48, 64), 1: (40, 40), 2: (48, 64), 3: (48, 64), 4: (60, 40)
    }  # fmt: skip
    assert result.indices == [0, 1, 2, 3, 4] and result.metrics["auroc_px"] > 0.9 and result.metrics["auroc_sp"] == 1
    one_by_one, same, _ = run(folder, [setting], batch_size=1)
    assert one_by_one[0].scores == result.scores
    assert all(np.array_equal(same[index], maps[index]) for index in maps)


def test_views_are_read_once_for_all_settings(folder):
    views = {"cup": [(((),), ((), TURNED))]}
    settings = [FewShotSetting(1, seed, {"cup": ["0.png"]}, views) for seed in (1, 2)]
    results, _, detector = run(folder, settings)
    assert results[0].scores == results[1].scores
    assert sum(detector.encoded) == 5 + 3  # the images, and three views of the reference


def test_views_are_drawn_where_no_file_has_them_and_dropped_by_other_methods(folder, caplog):
    drawn = with_views(
        Colours(), "colours", [FewShotSetting(1, 3, {"cup": ["0.png"], "cap": ["1.png"]})], "own", ["cup"]
    )
    assert drawn[0].views == {"cup": [(((),), ((), TURNED))]} and drawn[0].references == {"cup": ["0.png"]}
    assert with_views(Colours(), "colours", drawn, "own", ["cup"]) == drawn and not caplog.messages
    again = parse_shots(json.loads(json.dumps([one.as_dict() for one in drawn])))
    assert again == [drawn[0]]
    assert with_views(nn.Identity(), "winclip", drawn, "own", ["cup"])[0] == FewShotSetting(1, 3, {"cup": ["0.png"]})
    assert "--references: the views of colours are not used; winclip sees references as they are" in caplog.text
    other = [drawn[0]._replace(views={"cup": [PLAIN]}, views_of="dots")]
    assert with_views(Colours(), "colours", other, "own", ["cup"]) == drawn
    assert "--references: the views of dots are not used; colours draws its own" in caplog.text


@pytest.mark.parametrize("views", [
    {"a": 1}, [], [[]], [[[]]], [[[[["spin", 1]]]]], [[[[["rotate", "x"]]]]], [[[[["rotate"]]]]],
    [[[[["rotate", math.inf]]]]],
])  # fmt: skip
def test_broken_views(views):
    with pytest.raises((ValueError, TypeError)):
        parse_views(views, 1)
    with pytest.raises(ValueError, match="must be"):
        parse_shots([{"k_shot": 1, "seed": 1, "references": {"nut": ["a.png"]}, "views": {"nut": views}}])


def test_views_of_some_classes_alone_are_refused():
    with pytest.raises(ValueError, match="every class, or for none"):
        parse_shots(
            [{"k_shot": 1, "seed": 1, "references": {"a": ["a.png"], "b": ["b.png"]}, "views": {"a": [[[[]]]]}}]
        )


def test_operations():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    pixels = np.asarray(picture)
    assert np.array_equal(apply_view(picture, ()), pixels)
    assert np.array_equal(apply_view(picture, (("hflip", 1.0),)), pixels[:, ::-1])
    assert np.array_equal(apply_view(picture, (("vflip", 1.0),)), pixels[::-1])
    assert np.array_equal(apply_view(picture, (("rotate", 180.0),)), pixels[::-1, ::-1])
    turned = np.asarray(apply_view(picture, (("rotate", 90.0),)))
    assert (
        turned.shape == (6, 8) and np.array_equal(turned[:, 1:7], np.rot90(pixels[:, 1:7])) and not turned[:, 0].any()
    )


def sets(folder, detector):
    root, samples = folder
    accelerator, maps = Accelerator(cpu=True), {}
    results = score_sets(
        detector, AnomalyDataset(root, samples, detector.input_spec), samples, accelerator,
        lambda setting, index, one, foreground=None: maps.__setitem__(index, one), batch_size=2, num_workers=0,
        timer=Timer(), folder=root,
    )  # fmt: skip
    return list(results), maps


def test_a_set_is_scored_together_and_encoded_once(folder):
    detector = Colours()
    (result,), maps = sets(folder, detector)
    assert sum(detector.encoded) == 5 and sorted(maps) == [0, 1, 2, 3, 4]
    assert maps[4].shape == (60, 40) and result.indices == [0, 1, 2, 3, 4] and result.metrics["auroc_px"] > 0.9


def test_a_set_that_memory_does_not_hold_is_kept_in_a_file(folder, monkeypatch, caplog):
    detector = Colours()
    (expected,), _ = sets(folder, Colours())
    before = sorted(folder[0].iterdir())
    monkeypatch.setattr(memory_check, "free_bytes", lambda _: 100)
    with caplog.at_level("INFO", logger="vand"):
        (result,), _ = sets(folder, detector)
    assert sum(detector.encoded) == 5 and sorted(folder[0].iterdir()) == before
    assert result.scores == pytest.approx(expected.scores, abs=1e-6) and result.indices == expected.indices
    assert result.metrics == pytest.approx(expected.metrics, abs=1e-6)
    assert f"take 0.0 GB, and 0.0 GB of memory are free: kept in a temporary file in {folder[0]}" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ValueError, match=r"0\.0 GB of the disk of .*; free some space, give fewer images"):
        sets(folder, detector)


def test_bundles_in_a_file(tmp_path, monkeypatch):
    """Of any type and shape; nothing is left where the disk is full."""
    torch.manual_seed(0)
    shapes = [((3, 5, 2), torch.float32), ((3, 1), torch.bfloat16), ((2, 0), torch.float16), ((2, 7), torch.bool)]
    bundles = [Patches({7: torch.randn(shape).to(kind)}, (1, 2), (3, 4)) for shape, kind in shapes]
    for bundle, own in zip(bundles, in_file(iter(bundles), tmp_path), strict=True):
        assert torch.equal(own.colours[7], bundle.colours[7]) and own.colours[7].dtype == bundle.colours[7].dtype
        assert own[1:] == bundle[1:]
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: io.FileIO("/dev/full", "w"))
    with pytest.raises(NotWrittenError, match="a temporary file is not written .*; free some space"):
        in_file(bundles, tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_a_set_are_not_seen_by_the_method(folder):
    root, samples = folder
    detector, accelerator = Colours(), Accelerator(cpu=True)
    dataset = AnomalyDataset(root, samples, detector.input_spec)
    passes = SetPasses(detector, dataset, [sample.img_path for sample in samples], accelerator, Timer(), batch_size=2,
                       num_workers=0, folder=None)  # fmt: skip
    assert list(passes.paths) == [sample.img_path for sample in samples]
    bundles = list(passes())
    assert all(set(bundle._fields) == {"colours", "grid", "map_size"} for bundle in bundles)
    assert [len(group.indices) for group in passes.groups] == [len(bundle.colours) for bundle in bundles]


def test_small_sets_are_refused():
    with pytest.raises(ValueError, match="colours scores the images of a class together and takes 3 or more; class "
                                         "'cup' has 2"):  # fmt: skip
        check_sets(Colours(), "colours", {"cap": 3, "cup": 2})


def test_published_draws(caplog):
    train = [Sample(f"{name}/{number}.png", "", name, "good", 0) for name in ("b", "a") for number in (2, 0, 1)]

    def slices(own, k_shot, seed):
        assert list(own) == ["b", "a"]
        return {name: paths[seed * k_shot : (seed + 1) * k_shot] for name, paths in own.items()}

    setting = draw_as_published(slices, "set", train, ["b", "a"], 1, 2)
    assert setting[:3] == (1, 2, {"b": ["b/2.png"], "a": ["a/2.png"]})
    assert draw_as_published(slices, "set", train, ["b", "a"], 2, 1)[2] == {"b": ["b/2.png"], "a": ["a/2.png"]}
    assert "--k_shot 2 --seed 1: the published draw takes 1 of the 3 normal training images of class 'b'" in caplog.text
    assert draw_shots("set", train, ["a"], 2, 1).views == {}


def test_inputs_of_a_square():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    for resizer, mode in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        expected = np.asarray(picture.resize((16, 16), mode)).transpose(2, 0, 1)
        assert np.array_equal(SquareInput(16, resizer).image(picture), expected)
    other = SquareInput(16, "torchvision").image(picture)
    assert other.dtype == torch.uint8 and 0 < (other.int() - SquareInput(16).image(picture).int()).abs().max() <= 2
    cropped = SquareInput(14, center_crop=True).image(picture)
    assert np.array_equal(cropped, SquareInput(16).image(picture)[:, 1:15, 1:15])
    assert SquareInput(14, center_crop=True).mask(Image.new("L", (50, 30), 255)).shape == (14, 14)


def test_inputs_by_their_shorter_edge():
    spec = ShorterEdgeInput(30, 8)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 77), dtype=np.uint8))
    whole = np.asarray(picture.convert("RGB").resize((30 * 77 // 41, 30), Image.Resampling.BICUBIC))
    assert np.array_equal(spec.image(picture), whole[:24, :56].transpose(2, 0, 1))
    assert spec.map_size(picture.size) == (41, 77) and spec.mask(Image.new("L", (77, 41), 255)).sum() == 41 * 77
    with pytest.raises(ValueError, match="3 x 30000000 pixels would become 30 x 300000000 at --image_size 30"):
        spec.image(Image.new("1", (3, 30_000_000)))


def test_a_batch_is_cut_by_shape():
    items = [{"image": torch.zeros(3, 8, width, dtype=torch.uint8), "map_size": size, "index": index, "cls_name": "a"}
             for index, (width, size) in enumerate([(8, (4, 4)), (16, (4, 4)), (8, (4, 4)), (8, (5, 4))])]  # fmt: skip
    groups = collate(items)
    assert [group["index"].tolist() for group in groups] == [[0, 2], [1], [3]]
    assert [group["map_size"] for group in groups] == [(4, 4), (4, 4), (5, 4)] and "regions" not in groups[0]
    assert PLAIN == (((),),)
