"""CLIP-AD against the published program's outputs, and its parts against plain formulas."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import REFERENCE, assert_maps, load_case, reference_images
from engine import checkpoint
from engine.epoch import train_epoch
from model import build
from model.clip_ad import representative

SDP = ["sdp_mvtec_mean", "sdp_mvtec_dbscan", "sdp_mvtec_kde", "sdp_mvtec_pca", "sdp_tinyb_mvtec_mean"]
PLUS = "sdpplus_mvtec_to_visa"


def detector_of(case, request):
    weights = request.getfixturevalue("tiny_b" if "tinyb" in case.folder.name else "tiny_a")
    settings = {
        key: case.facts["hyper_parameters"][key] for key in ("image_size", "features_list", "rep_vec", "smoothing")
    }
    method = "sdp_plus" if case.folder.name == PLUS else "sdp"
    detector = build(method, **weights._asdict(), **settings)
    if method == "sdp_plus":
        detector.load_trainable_state(checkpoint.load(case.folder / "checkpoint.pth").state)
    return detector


@pytest.mark.parametrize("name", [*SDP, PLUS])
def test_against_the_published_program(name, request):
    case = load_case(name)
    detector, tolerance, names = detector_of(case, request), case.facts["tolerance"], case.facts["image_class"]
    texts = detector.sdp.texts if name == PLUS else detector.texts
    np.testing.assert_allclose(texts(case.facts["classes"]), case.arrays["text_features"], atol=tolerance["text_abs"])
    with torch.no_grad():
        tokens = detector.encode(reference_images(case, case.facts["images"])["image"])
        prediction = detector.zero_shot(tokens, names)
    assert_maps(prediction.maps, case)
    for key, term in (("text_prob", "text"), ("map_max", "map_max")):
        np.testing.assert_allclose(prediction.score_components[term], case.arrays[key], atol=tolerance["scores_abs"])
    for one in case.facts["classes"]:
        rows = [row for row, other in enumerate(names) if other == one]
        scores = detector.image_scores({key: term[rows] for key, term in prediction.score_components.items()})
        np.testing.assert_allclose(scores, case.arrays["image_scores"][rows], atol=tolerance["scores_abs"])


def test_training_against_the_published_program(request):
    """One epoch on the published program's batches: every loss, and the weights after it."""
    from accelerate import Accelerator

    case = load_case(PLUS)
    facts, detector = case.facts["hyper_parameters"], detector_of(case, request)
    with np.load(case.folder / "training.npz") as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def weights(prefix):
        return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}

    detector.load_trainable_state({"linear_layers": weights("init/")})
    optimizer = torch.optim.Adam(detector.parameter_groups(facts["learning_rate"]), betas=facts["adam_betas"])
    trained_on = case._replace(facts={**case.facts, "dataset_dir": "data/mini_mvtec"})
    batches = [reference_images(trained_on, paths, list(map(mask_of, paths))) for paths in facts["train_batches"]]
    steps, _ = train_epoch(detector, batches, optimizer, Accelerator(), 1)
    np.testing.assert_allclose([step.loss for step in steps], stored["loss"], rtol=1e-5)
    for key, value in weights("epoch1/").items():
        torch.testing.assert_close(detector.trainable_state()["linear_layers"][key], value, atol=1e-5, rtol=0)


def mask_of(path: str) -> str:
    return "" if "/good/" in path else path.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")


@pytest.mark.parametrize("weights", ["tiny_a", "tiny_b"])
def test_both_paths_against_the_plain_formula(weights, request):
    """softmax(v v) v from the blocks' own projections; restarts; what the published program's shared storage gives."""
    backbone = build("sdp", **request.getfixturevalue(weights)._asdict()).backbone
    visual, depth = backbone.taps.visual, backbone.depth
    images = torch.randint(256, (2, 3, backbone.image_size, backbone.image_size), dtype=torch.uint8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    tokens = backbone.dual_path(images, range(1, depth + 1))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

    with torch.no_grad():
        x, inputs, residuals, outputs = visual.ln_pre(backbone.embed(images)), [], [], []
        for block in visual.transformer.resblocks:
            inputs.append(block.ln_1(x))
            residuals.append(block.attention(inputs[-1]))
            x = block(x)
            outputs.append(x)
        sums, segments = None, []
        for index, block in enumerate(visual.transformer.resblocks):
            heads, width = block.attn.num_heads, x.shape[-1]
            weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
            value = F.linear(inputs[index], weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            attention = (value @ value.transpose(-1, -2) / (width / heads) ** 0.5).softmax(-1)
            added = block.attn.out_proj((attention @ value).transpose(1, 2).flatten(2))
            restart = index == 0 or index % (depth / 4) == 0
            sums = added if restart else sums + added
            segments = [*segments, [sums]] if restart else [*segments[:-1], [*segments[-1], sums]]
        ends = [segment[-1] for segment in segments for _ in segment]
        for layer in range(1, depth + 1):
            ordinary = outputs[layer - 1] + (residuals[layer] if layer < depth else 0)
            torch.testing.assert_close(tokens.patches[layer], ordinary[:, 1:], atol=1e-5, rtol=1e-5)
            values = visual.ln_post(torch.cat([ordinary[:, :1], ends[layer - 1][:, 1:]], dim=1)) @ visual.proj
            torch.testing.assert_close(tokens.values[layer], values, atol=1e-5, rtol=1e-5)


def test_ordinary_tokens_of_the_last_layer_are_those_of_the_ordinary_forward(tiny_a):
    backbone = build("sdp", **tiny_a._asdict()).backbone
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    plain, dual = backbone(images, [4]), backbone.dual_path(images, [4])
    torch.testing.assert_close(plain.patches[4], dual.patches[4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.pooled, dual.values[4][:, 0], atol=1e-5, rtol=1e-5)


def unit(*vectors):
    return F.normalize(torch.tensor(vectors, dtype=torch.float32), dim=-1)


def test_representatives_lie_in_the_crowd():
    crowd, stray = [(1.0, 0.05 * step, 0.0) for step in range(-10, 11)], [(-1.0, 0.0, 1.0), (0.0, 1.0, -1.0)]
    embeddings = unit(*crowd, *stray)
    dense = embeddings[: len(crowd)].mean(0)
    torch.testing.assert_close(representative(embeddings, "dbscan", 0.5, 15), dense)
    torch.testing.assert_close(representative(embeddings, "mean", 0.5, 15), embeddings.mean(0))
    for rep_vec in ("kde", "mean_shift"):
        vector = F.normalize(representative(embeddings, rep_vec, 0.5, 15), dim=0)
        assert vector @ F.normalize(dense, dim=0) > 0.98, rep_vec
    weighted = F.normalize(representative(embeddings, "kde", 0.5, 15), dim=0)
    assert weighted @ F.normalize(dense, dim=0) > F.normalize(embeddings.mean(0), dim=0) @ F.normalize(dense, dim=0)


def test_no_cluster_falls_back_to_the_mean_and_says_so(tiny_a, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vand"), "propagate", True)
    lonely = build("sdp", **tiny_a._asdict(), rep_vec="dbscan", dbscan=(1e-4, 15))
    plain = build("sdp", **tiny_a._asdict(), rep_vec="mean")
    torch.testing.assert_close(lonely.texts(["brick"]), plain.texts(["brick"]), atol=0, rtol=0)
    assert "normal brick: dbscan finds no cluster in its texts; their mean is used" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rep_vec": "median"}, "--rep_vec median: unknown; known: mean, pca, kde, dbscan, mean_shift"),
        ({"dbscan": (0, 15)}, "--dbscan 0 15: must be a radius above 0"),
        ({"dbscan": (0.5, 1.5)}, "--dbscan 0.5 1.5: must be a radius above 0 and a whole number from 1"),
        ({"smoothing": -1}, "--smoothing -1: must be pixels from 0 to the image's side, 64"),
        ({"features_list": [5]}, "layer 5 does not exist"),
    ],
)
def test_refuses(tiny_a, options, said):
    with pytest.raises(ValueError, match=said):
        build("sdp", **tiny_a._asdict(), **options)


def test_needs_a_vit():
    with pytest.raises(ValueError, match="sdp needs a ViT of open_clip's own, .* RN50 is a ResNet"):
        build("sdp_plus", model="RN50", image_size=32)


def test_refuses_another_methods_checkpoint(tiny_a):
    published = checkpoint.load(REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth").state
    with pytest.raises(ValueError, match="no 'linear_layers' in it .* it is no checkpoint of sdp_plus"):
        build("sdp_plus", **tiny_a._asdict(), image_size=96).load_trainable_state(published)
