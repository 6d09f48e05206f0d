"""WinCLIP and WinCLIP+ against the outputs of the public re-implementation, part by part."""

import json

import numpy as np
import pytest
import torch

import test as test_script
from conftest import REFERENCE, load_case
from dataset import AnomalyDataset, Sample
from model import build, winclip
from model.winclip import window_patches

SIZE = 240


def images(paths) -> torch.Tensor:
    samples = [Sample(path, "", "", "", 0) for path in paths]
    return torch.stack([item["image"] for item in AnomalyDataset(REFERENCE / "data/mini_mvtec", samples, SIZE)])


@pytest.fixture(scope="module")
def detector(tiny_c):
    return build("winclip", model=tiny_c.model, pretrained=tiny_c.pretrained, config_path=tiny_c.config_path)


@pytest.fixture(scope="module")
def tokens(detector):
    """Tokens of all images of the cases, in two batches."""
    paths = load_case("winclip_mvtec_zero_shot").facts["images"]
    batches = [detector.encode(images(part)) for part in (paths[:20], paths[20:])]
    windows = {scale: torch.cat([batch.windows[scale] for batch in batches]) for scale in (2, 3)}
    return winclip.WindowTokens(
        torch.cat([b.pooled for b in batches]), windows, torch.cat([b.patches for b in batches])
    )


@pytest.fixture(scope="module")
def zero_shot(detector, tokens):
    return detector.zero_shot(tokens, load_case("winclip_mvtec_zero_shot").facts["image_class"])


def unit(values) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)


@pytest.mark.parametrize(("scale", "name"), [(3, "large"), (2, "mid")])
def test_windows(scale, name):
    masks = load_case("winclip_mvtec_zero_shot").arrays[f"first_masks_{name}"]  # (scale * scale, n), from 1
    np.testing.assert_array_equal(window_patches(15, scale).T + 1, masks)


def test_tokens_of_the_first_image(tokens):
    case = load_case("winclip_mvtec_zero_shot")
    allowed = case.facts["tolerance"]["tokens_abs"]
    np.testing.assert_allclose(unit(tokens.windows[3][0]), case.arrays["first_tokens_large"], atol=allowed)
    np.testing.assert_allclose(unit(tokens.windows[2][0]), case.arrays["first_tokens_mid"], atol=allowed)
    np.testing.assert_allclose(tokens.patches[0], case.arrays["first_tokens_patch"], atol=allowed)
    np.testing.assert_allclose(unit(tokens.pooled[0]), case.arrays["first_token_class"], atol=allowed)


def test_text_features(detector):
    case = load_case("winclip_mvtec_zero_shot")
    own = detector.texts(case.facts["classes"])  # (C, D, 2)
    for state, name in enumerate(("text_normal", "text_abnormal")):
        np.testing.assert_allclose(own[..., state], unit(torch.from_numpy(case.arrays[name])), atol=5e-6)


def test_scores_of_windows_and_patches(detector, tokens):
    case = load_case("winclip_mvtec_zero_shot")
    text = detector.texts(case.facts["image_class"])
    for scale, name in ((3, "large"), (2, "mid")):
        scores = detector._abnormal(tokens.windows[scale], text)
        np.testing.assert_allclose(scores, case.arrays[f"{name}_prob"], atol=5e-6)
        np.testing.assert_allclose(
            detector._per_patch(scores, scale), case.arrays[f"{name}15"].reshape(-1, 225), atol=5e-6
        )


@pytest.mark.parametrize("name", ["winclip_mvtec_zero_shot", "winclip_mvtec_k1"])
def test_maps_and_scores(name, detector, tokens, zero_shot):
    case = load_case(name)
    names, allowed = case.facts["image_class"], case.facts["tolerance"]
    prediction = zero_shot
    if case.facts["reference_images"]:
        memories = {
            cls: detector.build_memory([detector.encode(images(paths))])
            for cls, paths in case.facts["reference_images"].items()
        }
        prediction = detector.few_shot(zero_shot, tokens, names, memories)
        few = detector._association(tokens, [0], memories[names[0]])
        np.testing.assert_allclose(few[0], case.arrays["few15"][0].ravel(), atol=allowed["map15_abs"])
    np.testing.assert_allclose(prediction.maps[:, ::8, ::8], case.arrays["maps_s8"], atol=allowed["maps_abs"])
    full = prediction.maps[case.arrays["maps_full_index"]]
    np.testing.assert_allclose(full, case.arrays["maps_full"], atol=allowed["maps_abs"])
    np.testing.assert_allclose(
        prediction.score_components["text"], case.arrays["text_prob"], atol=allowed["scores_abs"]
    )
    np.testing.assert_allclose(
        detector.image_scores(prediction.score_components), case.arrays["image_scores"], atol=allowed["scores_abs"]
    )


@pytest.mark.slow
def test_metrics_through_the_command_line(tiny_c, mini_mvtec, tmp_path):
    case = load_case("winclip_mvtec_k1").facts
    references = tmp_path / "k_shot.txt"
    references.write_text("".join(f"{path}\n" for paths in case["reference_images"].values() for path in paths))
    flags = [*tiny_c.flags, "--method", "winclip", "--data_path", mini_mvtec, "--num_workers", 0, "--no_images"]
    run(
        *flags, "--references", references, "--save_path", tmp_path / "out", "--save_memory", tmp_path / "m.safetensors"
    )
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    kinds = {"px": "metrics_pixel_abs", "sp": "metrics_image_abs", "ro": "metrics_aupro_abs"}
    for name in case["classes"]:
        for key, value in case["metrics"][name].items():
            own = result["classes"][name]["aupro_200" if key == "aupro" else key]
            assert own == pytest.approx(value, abs=max(case["tolerance"][kinds[key[-2:]]], 2e-5)), (name, key)
    run(*flags, "--memory", tmp_path / "m.safetensors", "--save_path", tmp_path / "again")
    assert json.loads((tmp_path / "again/metrics.json").read_text())["classes"] == result["classes"]
    assert (tmp_path / "again/k_shot.json").read_text() == (tmp_path / "out/k_shot.json").read_text()


def run(*flags) -> None:
    test_script.main([str(flag) for flag in flags])


@pytest.mark.parametrize(
    ("model", "size", "scales"), [("tiny_a", 96, (2,)), ("tiny_a", 80, (1, 3, 5)), ("tiny_c", 112, (4, 2))]
)
def test_any_size_and_scales(model, size, scales, request):
    """Against a loop over windows, patches and classes."""
    weights = request.getfixturevalue(model)
    own = build("winclip", model=weights.model, pretrained=weights.pretrained, config_path=weights.config_path,
                image_size=size, scales=scales)  # fmt: skip
    batch = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = own.encode(batch)
    grid = size // 16
    embedded = own.backbone.embed(batch)
    text = own.texts(["brick", "coins"])
    image = torch.softmax(torch.einsum("bd,bdc->bc", unit(tokens.pooled), text) / 0.07, -1)[:, 1].double()
    inverse = 1 / image[:, None, None].expand(2, grid, grid)
    for scale in scales:
        total, count = torch.zeros(2, grid, grid, dtype=torch.float64), torch.zeros(grid, grid)
        for number, (top, left) in enumerate(np.ndindex(grid - scale + 1, grid - scale + 1)):
            rows = slice(top, top + scale), slice(left, left + scale)
            chosen = torch.arange(grid * grid).view(grid, grid)[rows].flatten() + 1
            alone, _ = own.backbone.encode(embedded[:, [0, *chosen.tolist()]])
            torch.testing.assert_close(unit(tokens.windows[scale][:, number]), unit(alone), atol=2e-5, rtol=0)
            score = torch.softmax(torch.einsum("bd,bdc->bc", unit(alone), text) / 0.07, -1)[:, 1].double()
            total[:, rows[0], rows[1]] += 1 / score[:, None, None]
            count[rows] += 1
        inverse = inverse + total / count
    expected = torch.nn.functional.interpolate(
        ((len(scales) + 1) / inverse)[:, None], (size, size), mode="bilinear", align_corners=False
    )[:, 0]
    prediction = own.zero_shot(tokens, ["brick", "coins"])
    torch.testing.assert_close(prediction.maps.double(), expected, atol=1e-5, rtol=0)


def test_windows_in_small_portions_are_the_same(detector, tokens, monkeypatch):
    monkeypatch.setattr(winclip, "_TOKENS_AT_ONCE", 100)
    again = detector.encode(images(load_case("winclip_mvtec_zero_shot").facts["images"][:2]))
    for scale in (2, 3):
        torch.testing.assert_close(again.windows[scale], tokens.windows[scale][:2], atol=1e-5, rtol=1e-5)


def test_a_reference_is_at_no_distance_from_itself(detector, tokens):
    few = detector._association(tokens, [0, 1], detector.build_memory([tokens]))
    assert few.isfinite().all() and few.abs().max() < 1e-6


def test_zero_scores_and_distances_give_zero(detector):
    assert detector._per_patch(torch.zeros(1, 196), 2).max() < 1e-300


def test_what_is_refused(tiny_c):
    made = {"model": tiny_c.model, "pretrained": tiny_c.pretrained, "config_path": tiny_c.config_path}
    with pytest.raises(ValueError, match="--scales 2 16: must be different window sides from 1 to 15"):
        build("winclip", **made, scales=[2, 16])
    with pytest.raises(ValueError, match="--scales 2 2"):
        build("winclip", **made, scales=[2, 2])
    with pytest.raises(ValueError, match="--features_list 1 2: winclip has no such option"):
        build("winclip", **made, features_list=[1, 2])
    with pytest.raises(ValueError, match="winclip needs a ViT of open_clip's own, .* RN50 is a ResNet"):
        build("winclip", model="RN50")
