"""Large pictures in tiles: how they are cut and put together, by any method, and what it is good for."""

import itertools
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

import predict as predict_script
from data.input_spec import ShorterEdgeInput, SquareInput
from data.meta import Sample
from data.references import FewShotSetting
from data.tiles import TiledInput, Tiling
from dataset import AnomalyDataset
from engine.batches import batches
from engine.encoding import encode_each
from engine.evaluation import infer, score
from engine.ground_truth import resized
from engine.references import References, with_views
from engine.tiling import blend, tiled
from model import build, capabilities
from model.interface import Prediction
from model.tokens import split_tokens

TWO = Tiling(2, 0.25)
WIDTH, HEIGHT = 101, 77  # odd, so that nothing divides it


def noise(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_tiles_cover_a_picture_and_their_weights_sum_to_one():
    for side, overlap, length in itertools.product((1, 2, 3, 5), (0.0, 0.25, 0.5), (1, 7, 64, 101, 1000)):
        tiling = Tiling(side, overlap)
        spans, total = tiling.spans(length), torch.zeros(length)
        size = spans[0][1] - spans[0][0]
        assert spans[0][0] == 0 and spans[-1][1] == length and {end - start for start, end in spans} == {size}
        shared = [end - start for (_, end), (start, _) in itertools.pairwise(spans)]
        assert all(one >= math.floor(overlap * size) for one in shared), (side, overlap, length)
        weights = tiling.weights(length)
        assert weights.shape == (side, size) and (weights >= 0).all()
        for (start, end), one in zip(spans, weights, strict=True):
            total[start:end] += one
        assert (total - 1).abs().max() < 1e-6
    assert (np.diff(Tiling(3, 0.25).weights(400)[1].numpy()) < 0.05).all()  # smooth: no seam


def test_a_picture_in_tiles():
    picture = noise()
    spec = TiledInput(SquareInput(16), TWO)
    rows, columns = TWO.spans(HEIGHT), TWO.spans(WIDTH)
    tiles = spec.image(picture)
    corner = picture.crop((columns[1][0], rows[0][0], columns[1][1], rows[0][1]))
    assert tiles.shape == (4, 3, 16, 16) and torch.equal(tiles[1], SquareInput(16).image(corner))
    assert spec.map_size(picture.size) == (HEIGHT, WIDTH) and spec.keeps_shape and spec.blank().shape == tiles.shape
    assert spec.mask(Image.new("L", picture.size, 255)).sum() == WIDTH * HEIGHT
    constant = blend(torch.full((1, 4, 16, 16), 0.3), TWO, (HEIGHT, WIDTH))
    assert constant.shape == (1, HEIGHT, WIDTH) and (constant - 0.3).abs().max() < 1e-6


def _grey(weights):
    """Keyword arguments of `build` that serve every method: a tiny CLIP."""
    return {**weights._asdict(), "image_size": 64}


MADE = {"anomaly_dino": {"masking": ["none"], "rotation": ["none"]}, "subspace_ad": {"augmentations": 2}}
METHODS = ["april_gan", "winclip", "sdp", "sdp_plus", "vcp_clip", "anomaly_clip", "anomaly_dino", "subspace_ad"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_single_images(method, tiny_a, tmp_path):
    """Maps and components are those of the tiles, each scored as an image of its own; so are the references."""
    torch.manual_seed(0)
    inner = build(method, **_grey(tiny_a), **MADE.get(method, {})).eval()
    whole, accelerator = tiled(inner, TWO, 3), Accelerator(cpu=True)
    if inner.needs_text:
        inner.encode_names(["screw"])
    few = capabilities(method).few_shot
    pictures, names, spec = [noise(0), noise(1)], ["r0.png", "r1.png"], TiledInput(inner.input_spec, TWO)
    for seed, name in enumerate(names):
        noise(seed + 5).save(tmp_path / name)
    memory = None
    if few:
        shots = with_views(whole, method, [FewShotSetting(2, 1, {"screw": names})], "mvtec", ["screw"])
        references = References(whole, shots, accelerator, root=tmp_path, batch_size=9, num_workers=0)
        (memory,) = references("screw")
    images = torch.stack([spec.image(one) for one in pictures])  # (2, 4, 3, h, w)
    found = infer(whole, images, "screw", memory, accelerator, (HEIGHT, WIDTH))
    assert found.maps.shape == (2, HEIGHT, WIDTH)
    rows, columns = TWO.spans(HEIGHT), TWO.spans(WIDTH)
    size = (rows[0][1] - rows[0][0], columns[0][1] - columns[0][0])
    one_by_one = [infer(inner, tile[None], "screw", memory, accelerator, size) for tile in images[1]]
    for key, term in found.score_components.items():
        largest = max(float(one.score_components[key]) for one in one_by_one)
        assert float(term[1]) == pytest.approx(largest, rel=1e-4, abs=1e-5), key
    expected = np.zeros((HEIGHT, WIDTH))
    for number, one in enumerate(one_by_one):
        (top, bottom), (left, right) = rows[number // 2], columns[number % 2]
        weights = np.outer(TWO.weights(HEIGHT)[number // 2], TWO.weights(WIDTH)[number % 2])
        expected[top:bottom, left:right] += weights * resized(one.maps[0], size).numpy()
    np.testing.assert_allclose(found.maps[1], expected, atol=1e-5, rtol=1e-4)


def test_every_tile_of_a_reference_goes_into_the_bank(tiny_a, tmp_path):
    inner = build("winclip", **_grey(tiny_a)).eval()
    whole, accelerator = tiled(inner, TWO, 3), Accelerator(cpu=True)
    noise(5).save(tmp_path / "r.png")
    shots = [FewShotSetting(1, 1, {"screw": ["r.png"]})]
    (memory,) = References(whole, shots, accelerator, root=tmp_path, batch_size=1, num_workers=0)("screw")
    tiles = TiledInput(inner.input_spec, TWO).image(noise(5))
    by_hand = inner.build_memory(split_tokens(inner.encode(tiles), 4))
    assert memory.banks.keys() == by_hand.banks.keys() == whole.bank_rows.keys()
    for key, bank in by_hand.banks.items():
        assert len(bank) == whole.bank_rows[key] == 4 * inner.bank_rows[key]
        torch.testing.assert_close(memory.banks[key], bank)


class _Brightness(torch.nn.Module):
    """A map of the brightness, without a score of its own; notes how many images come at once."""

    input_spec = ShorterEdgeInput(16, 1)

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def encode(self, images, map_size):
        self.seen.append(len(images))
        return images.float().mean(1)

    def zero_shot(self, tokens, names):
        assert len(names) == len(tokens)
        return Prediction(tokens, {"largest": tokens.amax((1, 2))})

    def image_scores(self, score_components, limits=None):
        return score_components["largest"]


def test_tiles_come_in_bounded_numbers_through_the_scoring_pass(tmp_path):
    """And whole pictures: of one size and another, all in their own size, and measured there."""
    samples = []
    for number, size in enumerate([(40, 30), (40, 30), (61, 33), (40, 30)]):
        image, mask = Image.new("L", size, 60), Image.new("L", size)
        if number > 1:
            for one, grey in ((image, 255), (mask, 255)):
                ImageDraw.Draw(one).rectangle((10, 10, 14, 14), fill=grey)
        image.save(tmp_path / f"{number}.png")
        mask.save(tmp_path / f"m{number}.png")
        samples.append(Sample(f"{number}.png", f"m{number}.png" if number > 1 else "", "a", "spot", int(number > 1)))
    inner, maps, accelerator = _Brightness(), {}, Accelerator(cpu=True)
    detector = tiled(inner, TWO, 3)
    loader = batches(AnomalyDataset(tmp_path, samples, detector.input_spec), 8, 0, accelerator)
    assert [len(group["image"]) for batch in loader for group in batch] == [2, 1, 1]
    keep = lambda setting, index, one, foreground=None: maps.update({index: one})  # noqa: E731
    (result,) = score(detector, loader, samples, [FewShotSetting(0, None, {})], lambda _: [None], accelerator, keep)
    assert max(inner.seen) == 3 and sum(inner.seen) == 16
    assert {index: one.shape for index, one in maps.items()} == {0: (30, 40), 1: (30, 40), 2: (33, 61), 3: (30, 40)}
    assert np.ptp(maps[0]) < 1e-4 and result.metrics["auroc_sp"] == 1 and result.metrics["auroc_px"] > 0.98
    pages = list(encode_each(detector, loader, accelerator))
    assert [one.map_size for one in pages] == [(30, 40), (30, 40), (33, 61), (30, 40)]
    assert tiled(inner, Tiling(), 3) is inner


def _surface(rng, file, *, defect=None, size=(1200, 900)):
    """A rough surface; defect: the place of a dark spot of 8 pixels."""
    width, height = size
    blocks = Image.fromarray(rng.normal(128, 6, (height // 6, width // 6)).clip(0, 255).astype(np.uint8))
    image = blocks.resize(size, Image.Resampling.BICUBIC)
    if defect:
        ImageDraw.Draw(image).ellipse((*defect, defect[0] + 7, defect[1] + 7), fill=30)
    image.save(file)


def test_a_small_defect_in_a_large_picture(tmp_path):
    """The model that ships, compared with two references: whole, the defect is not seen; in tiles, it is."""
    rng, found = np.random.default_rng(3), {}
    for folder in ("references", "photos"):
        (tmp_path / folder).mkdir()
        for number in range(2 if folder == "references" else 1):
            _surface(rng, tmp_path / folder / f"{number}.png")
    _surface(rng, tmp_path / "photos/bad.png", defect=(700, 300))
    words = [tmp_path / "photos", "--references", tmp_path / "references", "--image_size", 128, "--rotation", "none",
             "--no_images", "--save_maps", "--num_workers", 0]  # fmt: skip
    for tiles in (1, 4):
        out = tmp_path / f"of{tiles}"
        assert predict_script.main([str(word) for word in (*words, "--tiles", tiles, "--save_path", out)]) == 0
        rows = (out / "scores.csv").read_text().splitlines()[1:]
        found[tiles] = {row.split(",")[0]: row.split(",")[3] for row in rows}
    one = np.load(tmp_path / "of4/maps/bad.npy")
    assert one.shape == (900, 1200)
    top, left = np.unravel_index(one.argmax(), one.shape)
    assert found == {1: {"0.png": "normal", "bad.png": "normal"}, 4: {"0.png": "normal", "bad.png": "anomalous"}}
    assert abs(top - 304) < 25 and abs(left - 704) < 25
