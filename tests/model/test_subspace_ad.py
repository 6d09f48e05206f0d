"""SubspaceAD: its draws, layers, maps and scores, against the published program's arrays."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from conftest import load_case
from model import anomaly_map
from model.interface import Tokens
from model.layer_features import aggregate, layer_groups
from model.subspace_ad import SubspaceAd, SubspaceTokens, smooth


class Tower(torch.nn.Module):
    """Gives every layer of a batch the same random tokens: a stand-in where the backbone plays no part."""

    name, image_size, patch, embed_dim, depth, grid = "tower", 42, 14, 8, 12, 3

    def check_square(self):
        pass

    def width(self, layer):
        return 8

    def number_layers(self, flag, layers):
        return [layer if layer >= 0 else self.depth + 1 + layer for layer in layers]

    def forward(self, images, layers, *, pooled=True):
        stream = torch.Generator().manual_seed(int(images.sum()))
        patches = {layer: torch.randn(len(images), 9, 8, generator=stream) + layer for layer in sorted(layers)}
        return Tokens(torch.zeros(len(images), 0), patches, dict.fromkeys(layers, (3, 3)))


@pytest.mark.parametrize("name", ["mvtec_k1", "mvtec_k2_saliency", "visa_k4"])
def test_published_references(name):
    case = load_case(f"subspacead_{name}")
    pattern = "{}/train/good/{:03d}.png" if "mvtec" in name else "{}/Data/Images/Normal/{:04d}.JPG"
    drawn = {path for paths in case.facts["reference_images"].values() for path in paths}
    numbers = range(8) if "mvtec" in name else (0, 1, 3, 4, 7, 8, 10, 12)
    train = {one: [pattern.format(one, number) for number in numbers] for one in case.facts["classes"]}
    assert drawn <= {path for paths in train.values() for path in paths}
    settings = case.facts["hyper_parameters"]
    found = SubspaceAd.draw_references(train, settings["k_shot"], settings["seed"])
    assert found == case.facts["reference_images"]


def test_a_class_with_too_few_images_is_taken_whole_and_drawn_nothing_for():
    train = {"a": ["1", "2", "3"], "b": [str(number) for number in range(9)]}
    found = SubspaceAd.draw_references(train, 4, 42)
    assert found["a"] == ["1", "2", "3"]
    assert found["b"] == SubspaceAd.draw_references({"b": train["b"]}, 4, 42)["b"]


@pytest.mark.parametrize("name", ["mvtec_k1", "visa_k4"])
def test_published_augmentations(name):
    case = load_case(f"subspacead_{name}")
    settings = case.facts["hyper_parameters"]
    detector = SubspaceAd(Tower(), augmentations=settings["aug_count"], augmentation_kinds=settings["aug_list"])
    views = detector.draw_views(case.facts["reference_images"], "mvtec", settings["seed"])
    for cls_name, stored in case.facts["augmentation_draws"].items():
        for turn, draws in enumerate(stored.values()):
            own = [view for image in views[cls_name] for view in image[turn]]
            assert own[:: settings["aug_count"] + 1] == [()] * settings["k_shot"]
            assert [view for view in own if view] == [(tuple(draw),) for draw in draws]


def test_transistor_of_mvtec_is_not_augmented():
    detector = SubspaceAd(Tower(), augmentations=2)
    references = {"transistor": ["a"], "screw": ["b"]}
    views = detector.draw_views(references, "mvtec", 1)
    assert views["transistor"] == [(((),),)]
    assert views["screw"] == detector.draw_views({"screw": ["b"]}, "mvtec", 1)["screw"]
    assert len(detector.draw_views(references, "other", 1)["transistor"][0][0]) == 3


def test_flips_are_drawn_in_the_order_given():
    detector = SubspaceAd(Tower(), augmentations=40, augmentation_kinds=["vflip", "rotate", "hflip"])
    (passes,) = detector.draw_views({"a": ["x"]}, "visa", 3)["a"]
    stream = torch.Generator().manual_seed(3)
    for view in (*passes[0][1:], *passes[1][1:]):
        flip = torch.rand(1, generator=stream).item() < 0.5
        angle = torch.empty(1).uniform_(0, 345, generator=stream).item()
        mirror = torch.rand(1, generator=stream).item() < 0.5
        assert view == (*[("vflip", 1.0)] * flip, ("rotate", angle), *[("hflip", 1.0)] * mirror)


@pytest.mark.parametrize("name", ["mvtec_k1", "mvtec_k2_saliency", "visa_k4", "visa_batched"])
def test_published_maps(name):
    case = load_case(f"subspacead_{name}")
    scores = torch.from_numpy(case.arrays.get("patch_scores_masked", case.arrays["patch_scores"]))
    size = case.facts["hyper_parameters"]["image_size"]
    maps = smooth(anomaly_map.upsample(scores.flatten(1), tuple(scores.shape[1:]), size, align_corners=False))
    tolerance = case.facts["tolerance"]["maps_abs"]
    np.testing.assert_allclose(maps[:, ::4, ::4], case.arrays["maps_s4"], atol=tolerance, rtol=0)
    chosen = maps[torch.from_numpy(case.arrays["maps_full_index"])]
    np.testing.assert_allclose(chosen, case.arrays["maps_full"], atol=tolerance, rtol=0)


def test_the_filter_reflects_borders_without_their_pixel():
    maps = torch.rand(2, 5, 7)
    weights = np.exp(-np.array([1, 0, 1]) / 32)
    filtered = correlate1d(maps.double().numpy(), weights / weights.sum(), axis=1, mode="mirror")
    filtered = correlate1d(filtered, weights / weights.sum(), axis=2, mode="mirror")
    np.testing.assert_allclose(smooth(maps), filtered, atol=1e-6)


def test_aggregations():
    tower = Tower()
    images = torch.zeros(2, 3, 42, 42, dtype=torch.uint8)
    patches = tower(images, {2, 5, 9}).patches

    def features(**options):
        detector = SubspaceAd(tower, **options)
        return detector.encode(images).features

    given = [9, 2, 5]
    torch.testing.assert_close(features(features_list=given), torch.stack([patches[i] for i in given]).mean(0))
    torch.testing.assert_close(
        features(features_list=given, aggregation="concat"), torch.cat([patches[i] for i in given], -1)
    )
    torch.testing.assert_close(
        features(aggregation="group", grouped_layers="9,-8:2"),
        torch.cat([(patches[9] + patches[5]) / 2, patches[2]], -1),
    )


def test_layers_with_other_grids_come_to_the_coarsest():
    patches = {1: torch.arange(32.0).view(1, 16, 2), 2: torch.ones(1, 4, 3)}
    features, grid = aggregate(Tokens(torch.zeros(1, 0), patches, {1: (4, 4), 2: (2, 2)}), [[1], [2]])
    assert grid == (2, 2) and features.shape == (1, 4, 5)
    blocks = patches[1].view(1, 2, 2, 2, 2, 2).mean((2, 4)).flatten(1, 2)  # (rows, of 2, columns, of 2, W)
    torch.testing.assert_close(features, torch.cat([blocks, patches[2]], -1))


@pytest.mark.parametrize(
    ("depth", "wanted"),
    [(12, [9, 8]), (24, [18, 17, 16, 15, 14]), (40, [29, 28, 27, 26, 25, 24, 23]), (6, [3, 4]), (4, [2, 3]), (1, [1])],
)
def test_default_layers(depth, wanted):
    tower = Tower()
    tower.depth = depth
    assert SubspaceAd(tower).options["features_list"] == wanted


def test_default_layer_of_a_cnn():
    tower = Tower()
    tower.depth, tower.grid = 4, None
    assert SubspaceAd(tower).options["features_list"] == [3]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"aggregation": "sum"}, "--aggregation sum: unknown; known: mean, concat, group"),
        ({"image_score": "mtop2"}, "--image_score mtop2: unknown; known: mtop1p, max, mean, p99, mtop5"),
        ({"background": "otsu"}, "--background otsu: unknown; known: none, dino_saliency, pca_normality"),
        ({"background_threshold": "none"}, "--background_threshold none: unknown; known: percentile, otsu"),
        ({"resizer": "cv2"}, "--resizer cv2: unknown; known: torchvision, pil"),
        ({"augmentation_kinds": ["rotate", "blur"]}, "--augmentation_kinds blur: unknown; known: rotate, hflip, vflip"),
        ({"components": 9}, "--components 9: the features have 8 dimensions; take fewer"),
        ({"grouped_layers": "1:2"}, "--grouped_layers 1:2: requires --aggregation group"),
        (
            {"aggregation": "group"},
            "--aggregation group: takes its layers from --grouped_layers, and no --features_list",
        ),
        (
            {"aggregation": "group", "grouped_layers": "1;2"},
            '--grouped_layers 1;2: must be groups of layers, as in --grouped_layers="-1,-2:-3,-4"',
        ),
    ],
)
def test_refusals(options, line):
    with pytest.raises(ValueError) as refused:
        SubspaceAd(Tower(), **options)
    assert str(refused.value) == line


def test_layers_of_other_widths_have_no_mean():
    tower = Tower()
    tower.width = lambda layer: 8 * layer
    with pytest.raises(ValueError, match="--features_list 1 2: these layers of tower have widths of 8, 16, and no"):
        layer_groups(tower, "mean", [1, 2], None, [1])
    assert layer_groups(tower, "concat", [1, 2], None, [1]) == [[1], [2]]


class Passes:
    """Images of a class, bundle by bundle."""

    def __init__(self, bundles):
        self.bundles, self.turns = bundles, 0

    def __call__(self):
        self.turns += 1
        return iter(self.bundles)


def test_a_set_is_scored_by_the_subspace_of_all_its_images():
    detector = SubspaceAd(Tower(), explained_variance=0.7)
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 42, 42)
    bundles = [detector.encode(part) for part in images.split(2)]
    passes = Passes(bundles)
    together = list(detector.score_set(passes, "a"))
    assert passes.turns == 2 and [len(one.maps) for one in together] == [2, 2, 1]
    memory = detector.build_memory([detector.summarize([bundle]) for bundle in bundles])
    for bundle, prediction in zip(bundles, together, strict=True):
        few_shot = detector.few_shot(None, bundle, ["a"] * len(bundle.features), {"a": memory})
        torch.testing.assert_close(prediction, few_shot)


def test_classes_of_one_batch_have_their_own_subspaces():
    detector = SubspaceAd(Tower(), components=3, image_score="max")
    tokens = detector.encode(torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 42, 42))
    one = [
        detector.summarize([SubspaceTokens(*(part[row : row + 1] for part in tokens[:2]), tokens.grid)])
        for row in (0, 1)
    ]
    memories = {"a": detector.build_memory(one[:1]), "b": detector.build_memory(one[1:])}
    mixed = detector.few_shot(None, tokens, ["a", "b", "a"], memories)
    for row, name in enumerate("aba"):
        alone = detector.few_shot(None, tokens, [name] * 3, memories)
        torch.testing.assert_close(mixed.maps[row], alone.maps[row])
    assert mixed.foreground is None and mixed.score_components.keys() == {"map_max"}
    torch.testing.assert_close(detector.image_scores(mixed.score_components), mixed.maps.amax((1, 2)))
    halved = detector.image_scores(mixed.score_components, {"map_max": (0.0, 2.0)})
    torch.testing.assert_close(halved, mixed.maps.amax((1, 2)) / 2)
