"""AnomalyDINO against the outputs of the published program, part by part, and its own rules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import REFERENCE, load_case
from data.rotation import rotate_reflected
from model import anomaly_dino, build, capabilities, foreground, memory_bank
from model.anomaly_dino import AnomalyDino, PatchTokens
from model.interface import Memory
from utils.distributed import Processes

CASES = [
    "anomalydino_mvtec_k1",
    "anomalydino_mvtec_k4_mask_rotate",
    "anomalydino_visa_k2_mask",
    "anomalydino_mvtec_batched",
]
MODELS = REFERENCE / "models"


def make(image_size=224, **options):
    return build(
        "anomaly_dino",
        model="tiny-d",
        pretrained=str(MODELS / "tiny-d.pt"),
        config_path=str(MODELS / "tiny-d.json"),
        image_size=image_size,
        **options,
    )


def picture(case, path, view=()):
    with Image.open(REFERENCE / case.facts["dataset_dir"] / path) as file:
        image = file.convert("RGB")
    for operation, degrees in view:
        assert operation == "rotate_reflected"
        image = rotate_reflected(image, degrees)
    return image


def encode(detector, pictures):
    """Tokens of pictures of one size."""
    images = torch.stack([detector.input_spec.image(one) for one in pictures])
    return detector.encode(images, detector.input_spec.map_size(pictures[0].size))


class Passes:
    """Bundles as the engine hands them out."""

    processes = Processes()

    def __init__(self, bundles):
        self.bundles = bundles
        self.paths = [str(number) for number in range(sum(len(bundle.patches) for bundle in bundles))]

    def __call__(self):
        return iter(self.bundles)


def parts(tokens: PatchTokens, sizes):
    return [tokens._replace(patches=some) for some in tokens.patches.split(sizes)]


def class_images(case, name):
    facts = case.facts
    return [path for path, cls in zip(facts["images"], facts["image_class"], strict=True) if cls == name]


@pytest.fixture(scope="module", params=CASES)
def run(request):
    """A case: class -> (tokens, bank of references, prediction)."""
    case = load_case(request.param)
    settings = case.facts["hyper_parameters"]
    masking = [name for name, on in settings["masking"].items() if on] or ["none"]
    detector = make(settings["resolution"], preprocess=settings["preset"], masking=masking)
    results = {}
    for name in case.facts["classes"]:
        tokens = encode(detector, [picture(case, path) for path in class_images(case, name)])
        if settings["mode"] == "batched zero-shot":
            predictions = list(detector.score_set(Passes(parts(tokens, [3, 8, 5])), name))
            results[name] = tokens, None, join(predictions)
            continue
        paths = case.facts["reference_images"][name]
        views = detector.draw_views({name: paths}, "mvtec", settings["seed"])[name]
        references = [
            [encode(detector, [picture(case, path, view) for view in views]) for views in passes]
            for path, passes in zip(paths, views, strict=True)
        ]
        memory = detector.build_memory([detector.summarize(one) for one in references])
        prediction = detector.few_shot(None, tokens, [name] * len(tokens.patches), {name: memory})
        results[name] = tokens, references, prediction
    return case, detector, results


def join(predictions):
    """Several predictions as one."""
    first = predictions[0]
    masks = None if first.foreground is None else torch.cat([one.foreground for one in predictions])
    scores = {key: torch.cat([one.score_components[key] for one in predictions]) for key in first.score_components}
    return first._replace(maps=torch.cat([one.maps for one in predictions]), score_components=scores, foreground=masks)


def test_features(run):
    case, _, results = run
    allowed = case.facts["tolerance"]["features_abs"]
    for name, (tokens, references, _) in results.items():
        row = class_images(case, name).index(case.facts["features_first_image"][name])
        np.testing.assert_allclose(tokens.patches[row], case.arrays[f"features_first/{name}"], atol=allowed)
        assert list(tokens.grid) == case.facts["grids"][name]
        if references is not None:
            own = torch.cat([one.patches for passes in references for one in passes])  # (images x angles, N, W)
            np.testing.assert_allclose(own[0], case.arrays[f"ref_features_first/{name}"], atol=allowed)
            middle = own[:, own.shape[1] // 2]
            np.testing.assert_allclose(middle, case.arrays[f"ref_middle_rows/{name}"], atol=allowed)


def test_foreground(run):
    case, _, results = run
    for name, (tokens, _, prediction) in results.items():
        if case.facts["hyper_parameters"]["masking"][name]:
            allowed = case.facts["tolerance"]["first_pc_abs"]
            component = foreground.first_component(tokens.patches)
            np.testing.assert_allclose(component, case.arrays[f"first_pc/{name}"], atol=allowed)
            np.testing.assert_array_equal(prediction.foreground, case.arrays[f"foreground/{name}"])
        else:
            assert prediction.foreground is None


def test_maps_and_scores(run):
    """The one patch of the batched case that a chance tie turns over is exempt with the pixels around it."""
    case, detector, results = run
    allowed, scores = case.facts["tolerance"], []
    exempt = allowed.get("patches_exempt_fraction", 0)
    for name, (_, _, prediction) in results.items():
        maps = prediction.maps.numpy()
        differences = np.abs(maps[:, ::4, ::4] - case.arrays[f"maps_s4/{name}"])
        whole = np.abs(maps[case.arrays[f"maps_full_index/{name}"]] - case.arrays[f"maps_full/{name}"])
        if exempt:
            assert (differences > allowed["maps_abs"]).mean() < 0.01 and differences.max() < 0.01
        else:
            assert max(differences.max(), whole.max()) < allowed["maps_abs"]
        scores.append(detector.image_scores(prediction.score_components))
    np.testing.assert_allclose(torch.cat(scores), case.arrays["image_scores"], atol=allowed["scores_abs"])


# --- few-shot ---------------------------------------------------------------------------------------------------------

CASE = load_case("anomalydino_visa_k2_mask")


@pytest.fixture(scope="module")
def some():
    """Tokens of three images of a class, and of each of its two references, 96 pixels."""
    detector = make(96)
    paths = CASE.facts["reference_images"]["grass"]
    tokens = encode(detector, [picture(CASE, path) for path in class_images(CASE, "grass")[4:7]])
    return tokens, [encode(detector, [picture(CASE, path)]) for path in paths]


def predict(detector, some, name="grass"):
    tokens, references = some
    memory = detector.build_memory([detector.summarize([one]) for one in references])
    return detector.few_shot(None, tokens, [name] * 3, {name: memory})


def test_euclidean_distance_to_three_neighbours(some):
    tokens, references = some
    prediction = predict(make(96, metric="l2", neighbors=3, masking=["none"]), some)
    bank = torch.cat([one.patches for one in references]).flatten(0, 1).double()
    squares = torch.cdist(tokens.patches.double(), bank[None]).square().sort(2).values[..., :3]
    distances = squares.mean(2).sqrt()
    assert distances.max() > 3  # nothing is of unit length
    np.testing.assert_allclose(prediction.score_components["distance"], distances.amax(1), rtol=1e-5)


def test_masked_references_leave_out_their_background(some):
    tokens, references = some
    detector = make(96, mask_references=True, masking=["all"])
    prediction = predict(detector, some)
    masks = [foreground.foreground(one.patches, one.grid) for one in references]
    bank = torch.cat([one.patches[mask] for one, mask in zip(references, masks, strict=True)])
    assert 0 < len(bank) < sum(mask.numel() for mask in masks)
    similarity = F.normalize(tokens.patches, dim=-1) @ F.normalize(bank, dim=-1).T
    distances = (1 - similarity.amax(2)) * prediction.foreground.flatten(1)
    torch.testing.assert_close(prediction.score_components["distance"], distances.amax(1), atol=1e-6, rtol=0)
    unmasked = predict(make(96, mask_references=True, masking=["tissue_slide"]), some)  # of another class
    plain = predict(make(96, masking=["none"]), some)
    assert torch.equal(unmasked.maps, plain.maps) and unmasked.foreground is None


def test_references_without_foreground_are_refused(some, monkeypatch):
    detector = make(96, mask_references=True, masking=["all"])
    monkeypatch.setattr(anomaly_dino, "foreground", lambda features, grid: torch.zeros(features.shape[:2]) > 0)
    with pytest.raises(ValueError, match="--mask_references True: references of class 'grass' have 0 foreground"):
        predict(detector, some)


def test_references_of_a_class_that_is_not_masked_need_no_foreground(some, monkeypatch, caplog):
    detector = make(96, mask_references=True, masking=["other"])
    monkeypatch.setattr(anomaly_dino, "foreground", lambda features, grid: torch.zeros(features.shape[:2]) > 0)
    assert predict(detector, some).maps.any() and not caplog.records


def test_an_image_without_foreground_scores_zero_and_the_log_says_so_once(some, monkeypatch, caplog):
    detector = make(96, masking=["all"])
    monkeypatch.setattr(anomaly_dino, "foreground", lambda features, grid: torch.zeros(features.shape[:2]) > 0)
    for _ in range(2):
        prediction = predict(detector, some)
    assert not prediction.maps.any() and not prediction.score_components["distance"].any()
    assert [
        record.levelname
        for record in caplog.records
        if "image of class 'grass' has no foreground" in record.getMessage()
    ] == ["WARNING"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "euclid"}, "--metric euclid: unknown; known: cosine, l2"),
        ({"preprocess": "foo"}, "--preprocess foo: unknown; known: agnostic, informed, .*"),
        ({"neighbors": 0}, "--neighbors 0: must be 1 or more"),
        ({"neighbors": 1.5}, r"--neighbors 1\.5: is no number that it takes"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        make(96, **options)


def test_more_neighbours_than_patches_are_refused(some):
    with pytest.raises(ValueError, match=r"--neighbors 1000: the references have \d+ patches in all"):
        predict(make(96, neighbors=1000), some)


def test_classes_of_one_batch_have_their_own_memory_and_mask(some):
    """Also where only one of them is masked, and where references differ in size."""
    tokens, references = some
    detector = make(96, masking=["a"])
    summaries = [detector.summarize([one]) for one in references]
    cut = {"patch": summaries[0]["patch"][:7]}
    memories = {"a": detector.build_memory([summaries[0]]), "b": detector.build_memory([cut, summaries[1]])}
    both = detector.few_shot(None, tokens, ["b", "a", "b"], memories)
    for row, name in enumerate("bab"):
        one = tokens._replace(patches=tokens.patches[row : row + 1])
        alone = detector.few_shot(None, one, [name], memories)
        torch.testing.assert_close(alone.maps[0], both.maps[row], atol=1e-6, rtol=0)
        assert both.foreground[row].all() == (name == "b")


def test_settings_share_search_and_masks(some, monkeypatch):
    tokens, references = some
    detector = make(96, masking=["all"], neighbors=2)
    summaries = [detector.summarize([one]) for one in references]
    memories = {
        images: detector.build_memory([summaries[int(image)] for image in images])._replace(images=tuple(images))
        for images in ("0", "1", "01", "10")
    }
    asked = []
    search = memory_bank._cosine_distances
    monkeypatch.setattr(memory_bank, "_cosine_distances", lambda *given: asked.append(len(given[1])) or search(*given))
    masks = []
    monkeypatch.setattr(anomaly_dino, "foreground", lambda *given: masks.append(1) or foreground.foreground(*given))
    found = {}
    for memory in memories.values():
        shared = detector.few_shot(None, tokens, ["grass"] * 3, {"grass": memory}, found)
        alone = detector.few_shot(None, tokens, ["grass"] * 3, {"grass": memory._replace(images=())})
        torch.testing.assert_close(shared.maps, alone.maps, atol=1e-6, rtol=0)
    size = len(summaries[0]["patch"])
    assert sorted(asked) == [size] * 4 + [2 * size] * 2  # each image once, and every bank alone
    assert len(masks) == 1 + 4


def test_half_precision_tokens_are_compared_in_single(some):
    tokens, references = some
    halves = tokens._replace(patches=tokens.patches.bfloat16()), references
    detector = make(96, masking=["all"])
    prediction = predict(detector, halves)
    assert prediction.maps.dtype == torch.float32
    torch.testing.assert_close(prediction.maps, predict(detector, some).maps, atol=0.02, rtol=0)


def test_banks_are_what_the_detector_announces(some):
    _, references = some
    for options in ({}, {"mask_references": True}):
        detector = make(96, **options)
        memory = detector.build_memory([detector.summarize([one]) for one in references])
        assert {key: bank.shape[1] for key, bank in memory.banks.items()} == detector.bank_widths
        assert detector.bank_rows["patch"] == 36 and detector.bank_rows.keys() == detector.bank_widths.keys()
        memory_bank.check("m.safetensors", {(0, "grass"): memory}, detector.bank_widths)


# --- a set of images --------------------------------------------------------------------------------------------------


def test_a_set_of_images_of_several_shapes():
    """Against every pair at once."""
    detector = make(224, masking=["tall"])
    generator = torch.Generator().manual_seed(3)
    shapes = {3: (16, 20), 6: (20, 16), 2: (10, 40)}
    bundles = [
        PatchTokens(torch.randn(count, grid[0] * grid[1], 8, generator=generator), None, grid, (30, 40))
        for count, grid in shapes.items()
    ]
    predictions = list(detector.score_set(Passes(bundles), "wide"))
    assert [prediction.maps.shape for prediction in predictions] == [(3, 30, 40), (6, 30, 40), (2, 30, 40)]
    every = [F.normalize(one, dim=-1) for bundle in bundles for one in bundle.patches]
    own = torch.cat([prediction.score_components["distance"] for prediction in predictions])
    for row, image in enumerate(every):
        others = torch.cat(every[:row] + every[row + 1 :])
        distances = (1 - image @ others.T).sort(1).values[:, : int(0.001 * len(others)) - 1].mean(1)
        top = distances.sort(descending=True).values[: int(0.01 * len(image))].mean()
        torch.testing.assert_close(own[row], top, atol=1e-6, rtol=0)


def test_a_set_that_is_too_small():
    tokens = PatchTokens(torch.randn(5, 49, 8), None, (7, 7), (98, 98))
    with pytest.raises(ValueError, match=r"class 'nut': 5 images of 49 patches; .* must have 2000 patches or more"):
        list(make(98).score_set(Passes([tokens]), "nut"))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_what_it_can_do():
    able = capabilities("anomaly_dino")
    assert (able.trains, able.zero_shot, able.few_shot) == (False, False, True)
    preset = AnomalyDino.PRESET
    assert (preset.model, preset.pretrained, preset.image_size) == ("vit_small_patch14_dinov2", "lvd142m", 448)
    assert make().options == {
        "features_list": [4], "preprocess": "agnostic", "masking": None, "rotation": None, "mask_references": False,
        "metric": "cosine", "neighbors": 1,
    }  # fmt: skip


def test_several_layers_are_joined_with_unit_length(some):
    detector = make(96, features_list=[2, -1])
    assert detector.layers == [2, 4] and detector.bank_widths["patch"] == 128
    tokens = encode(detector, [picture(CASE, path) for path in class_images(CASE, "grass")[4:7]])
    lengths = tokens.patches.unflatten(2, (2, 64)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    torch.testing.assert_close(tokens.patches[..., 64:], F.normalize(some[0].patches, dim=-1))
    torch.testing.assert_close(tokens.last, some[0].patches)  # of which masks are made, in their units


def test_stages_of_a_cnn_meet_on_the_coarsest_grid():
    detector = build("anomaly_dino", model="resnet18", image_size=64, masking=["none"])
    assert detector.layers == [2, 3]
    tokens = detector.encode(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), (50, 70))
    assert tokens.grid == (4, 6) and tokens.patches.shape == (2, 24, 128 + 256)
    memory = detector.build_memory([detector.summarize([tokens._replace(patches=tokens.patches[:1])])])
    maps = detector.few_shot(None, tokens, ["a", "a"], {"a": memory}).maps
    assert maps.shape == (2, 50, 70) and maps[0].abs().max() < 1e-5 < maps[1].max()


def test_published_references():
    train = {"a": [f"a{number}" for number in range(7)], "b": ["b0", "b1", "b2"]}
    draw = AnomalyDino.draw_references
    assert draw(train, 2, 0) == {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    assert draw(train, 2, 1) == {"a": ["a2", "a3"], "b": ["b2"]}
    with pytest.raises(ValueError, match="--seed 2: class 'b' has 3 normal training images, .* begins at number 5"):
        draw(train, 2, 2)


def test_views_of_the_references():
    views = make(rotation=["a"]).draw_views({"a": ["x", "y"], "b": ["z"]}, "mvtec", None)
    assert [len(views["a"]), len(views["b"])] == [2, 1]
    assert views["b"] == [(((),),)]
    ((first, *others),) = views["a"][1]
    assert first == () and others == [(("rotate_reflected", 45.0 * number),) for number in range(1, 8)]


def test_memory_without_images_is_searched_whole(some):
    """As one from a file is."""
    tokens, references = some
    detector = make(96, masking=["none"])
    memory = detector.build_memory([detector.summarize([one]) for one in references])
    again = Memory({key: bank.clone() for key, bank in memory.banks.items()})
    found = {}
    detector.few_shot(None, tokens, ["grass"] * 3, {"grass": again}, found)
    assert found == {("grass", "patch"): {}}
