"""VCP-CLIP against the published program's outputs, and its batched text tower against open_clip's own."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import REFERENCE, load_case, reference_images
from engine import checkpoint
from model import build
from model.backbones.clip import Backbone
from model.backbones.text_tower import TextTower
from model.losses import dice, focal
from prompt_ensemble import Prompts

TRAINED = REFERENCE / "cases/vcp_four_steps_mvtec/after4.pth"


@pytest.fixture
def detector(tiny_a):
    detector = build("vcp_clip", **tiny_a._asdict(), image_size=96, prompt_dropout=0.0)
    detector.load_trainable_state(checkpoint.load(TRAINED).state)
    return detector


def test_against_the_published_program(detector):
    case = load_case("vcp_visa")
    tolerance, names = case.facts["tolerance"], case.facts["image_class"]
    tokens = detector.eval().encode(reference_images(case, case.facts["images"])["image"])
    with torch.no_grad():
        text = detector.text_features(tokens.pooled)
        raw, post = (torch.sigmoid(torch.stack(logits)).mean(0) for logits in detector._pixel_logits(tokens))
        prediction = detector.zero_shot(tokens, names)
    np.testing.assert_allclose(text, case.arrays["text_embeddings"], atol=tolerance["text_abs"])
    np.testing.assert_allclose(raw[:, ::4, ::4], case.arrays["raw_s4"], atol=tolerance["raw_abs"])
    np.testing.assert_allclose(post[:, ::4, ::4], case.arrays["new_s4"], atol=tolerance["raw_abs"])
    for one in case.facts["classes"]:
        rows = [row for row, other in enumerate(names) if other == one]
        maps = prediction.maps[rows]
        maps = (maps - maps.min()) / (maps.max() - maps.min())  # as stored; ours stay on their own scale
        np.testing.assert_allclose(maps[:, ::4, ::4], case.arrays["maps_s4"][rows], atol=tolerance["maps_abs"])
        scores = detector.image_scores({key: term[rows] for key, term in prediction.score_components.items()})
        np.testing.assert_allclose(scores, case.arrays["image_scores"][rows], atol=tolerance["scores_abs"])


def test_four_training_steps(detector):
    case = load_case("vcp_four_steps_mvtec")
    facts, tolerance = case.facts["hyper_parameters"], case.facts["tolerance"]
    detector.train().load_trainable_state(checkpoint.load(case.folder / "init.pth").state)
    optimizer = torch.optim.Adam(detector.parameter_groups(facts["learning_rate"]), betas=facts["adam_betas"])
    rates = sorted(group["lr"] for group in optimizer.param_groups)
    assert rates == [facts["learning_rate"], facts["temperature_learning_rate"]]
    for number, step in enumerate(case.facts["steps"]):
        batch = reference_images(case, step["images"], step["masks"])
        if number == 0:
            text = detector.text_features(detector.encode(batch["image"]).pooled).detach()
            np.testing.assert_allclose(text, case.arrays["text_step0"], atol=tolerance["text_abs"])
        maps = detector(batch["image"], batch["cls_name"])
        losses = [focal(p, batch["mask"]) + dice(p[:, 1], batch["mask"]) for p in maps]
        assert len(losses) == 8
        loss = torch.stack(losses).sum()
        for own, stored in ((loss, "loss"), (sum(losses[:4]), "loss_base"), (sum(losses[4:]), "loss_new")):
            np.testing.assert_allclose(own.item(), step[stored], rtol=tolerance["loss_rel"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own, stored = flat(detector.trainable_state()), flat(checkpoint.load(TRAINED).state)
    assert own.keys() == stored.keys()
    for key in own.keys() - set(tolerance["ignore_weights"]):
        torch.testing.assert_close(own[key], stored[key], atol=tolerance["weights_abs"], rtol=0, msg=key)


def flat(state: dict) -> dict:
    parts = {key: value for key, value in state.items() if isinstance(value, dict)}
    rest = {key: value for key, value in state.items() if key not in parts}
    return {**rest, **{f"{part}/{key}": value for part, values in parts.items() for key, value in values.items()}}


def test_only_what_the_paper_trains_is_trained(detector):
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"adapters", "pre_vcp", "post_vcp", "text_prompts"}
    assert "text_prompts.prompt_text_projection" not in trained
    grouped = [p for group in detector.parameter_groups(1e-3) for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == len(trained)


@pytest.mark.parametrize(("use_global", "deep"), [(True, None), (False, 0)])
def test_text_features_against_the_full_context(tiny_a, use_global, deep):
    """Image by image through all 77 tokens, with open_clip's own modules, the end token found by its id."""
    torch.manual_seed(0)
    detector = build("vcp_clip", **tiny_a._asdict(), image_size=96, prompt_len=3, deep_prompt_len=2,
                     total_d_layer_len=deep, use_global=use_global).eval()  # fmt: skip
    prompts, pre, clip = detector.text_prompts, detector.pre_vcp, detector.backbone.clip
    with torch.no_grad():
        pooled = torch.randn(3, detector.backbone.embed_dim)
        own = detector.text_features(pooled)
        for row, embedding in enumerate(pooled):
            for state, sentence in enumerate(["a photo of a good", "a photo of a damaged"]):
                context = pre.prompt_query[0]
                if use_global:
                    context = context + pre.prompt_linear1["fc"](embedding[None])
                ids = detector.backbone.text.tokenizer([sentence])[0]
                end = int(ids.argmax())
                words = clip.token_embedding(ids)
                x = torch.cat([words[:end], context, words[end:]])[:77] + clip.positional_embedding
                x, learned = x[None], 0
                if deep != 0:  # else the published program leaves all learned tokens out
                    x, learned = torch.cat([x[:, :1], prompts.prompt_proj(prompts.prompt_embeddings), x[:, 1:75]], 1), 2
                for index, block in enumerate(clip.transformer.resblocks):
                    if index > 0 and deep != 0:
                        own_tokens = prompts.prompt_proj(prompts.deep_prompt_embeddings[index - 1 : index])
                        x = torch.cat([x[:, :1], own_tokens, x[:, 3:]], dim=1)
                    x = block(x, attn_mask=clip.attn_mask)
                x = torch.cat([x[:, :1], x[:, 1 + learned :]], dim=1)
                x = clip.ln_final(prompts.prompt_norm(x) if deep != 0 else x)[0, end + 3]
                expected = F.normalize(x @ clip.text_projection, dim=0)
                torch.testing.assert_close(own[row, :, state], expected, atol=2e-6, rtol=0)


def test_the_text_tower_runs_once_per_batch(detector, monkeypatch):
    calls = []
    run = TextTower.run
    monkeypatch.setattr(TextTower, "run", lambda self, *args: calls.append(args[0].shape) or run(self, *args))
    detector.text_features(torch.randn(5, 32))
    ((texts, length, _),) = calls
    assert texts == 10 and length < 15


def test_dropout_differs_between_images_in_training_alone(tiny_a):
    detector = build("vcp_clip", **tiny_a._asdict(), image_size=96, prompt_dropout=0.5)
    pooled = torch.randn(1, 32).expand(2, -1)
    with torch.no_grad():
        dropped = detector.train().text_features(pooled)
        whole = detector.eval().text_features(pooled)
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(whole[0], whole[1], atol=1e-6, rtol=0)


def test_weights_are_rounded_to_half_before_positions_are_resampled(tiny_a, tmp_path):
    state = torch.load(tiny_a.pretrained, weights_only=True)
    fine = {key: value.float() * 1.0001 if value.is_floating_point() else value for key, value in state.items()}
    coarse = {key: value.half().float() if value.is_floating_point() else value for key, value in fine.items()}
    for name, weights in (("fine", fine), ("coarse", coarse)):
        torch.save(weights, tmp_path / f"{name}.pt")
    build("vcp_clip", **tiny_a._asdict())  # registers the architecture
    expected = Backbone(tiny_a.model, str(tmp_path / "coarse.pt"), image_size=96).state_dict()
    own = build("vcp_clip", **{**tiny_a._asdict(), "pretrained": str(tmp_path / "fine.pt")}, image_size=96).backbone
    for key, value in own.state_dict().items():
        assert torch.equal(value, expected[key]), key
    plain = build("april_gan", **{**tiny_a._asdict(), "pretrained": str(tmp_path / "fine.pt")}, image_size=96).backbone
    assert not torch.equal(plain.clip.visual.proj, own.clip.visual.proj)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_len": 0}, "--prompt_len 0: must be 1 or more"),
        ({"deep_prompt_len": 0}, "--deep_prompt_len 0: must be 1 or more"),
        ({"total_d_layer_len": 2}, "--total_d_layer_len 2: must be 1, all later blocks .* or 0"),
        ({"prompt_len": 70}, "makes 78 tokens with the learned ones, and the text tower takes 77"),
        (
            {"prompts": Prompts(("a {}", "b {}"), ("c {}",), ("{}",))},
            "one sentence per state, and the prompts make 2 and 1",
        ),
    ],
)
def test_refuses(tiny_a, options, said):
    with pytest.raises(ValueError, match=said):
        build("vcp_clip", **tiny_a._asdict(), image_size=96, **options)


def test_needs_a_text_tower_as_wide_as_the_embedding(tmp_path):
    config = tmp_path / "narrow.json"
    towers = {
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    config.write_text(json.dumps({"embed_dim": 32, **towers}))
    with pytest.raises(
        ValueError, match="cannot use narrow: its text tower is 64 wide, its joint embedding 32"
    ) as error:
        build("vcp_clip", model="narrow", config_path=str(config))
    assert "\n" not in str(error.value)


def test_other_places_of_the_image_in_the_sentence(tiny_a):
    words = Prompts(("my {} is good",), ("my {} is very damaged",), ("{}",))
    detector = build("vcp_clip", **tiny_a._asdict(), image_size=96, prompts=words).eval()
    assert detector.sentences == [("my ", " is good"), ("my ", " is very damaged")]
    assert detector.text_features(torch.randn(2, 32)).shape == (2, 32, 2)


def test_refuses_another_methods_checkpoint(detector):
    state = detector.trainable_state()
    with pytest.raises(ValueError, match="no 'New_Lan_Embed' in it"):
        detector.load_trainable_state({"trainable_linearlayer": state["trainable_linearlayer"]})
    state.pop("prompt_norm.weight")
    with pytest.raises(ValueError, match="'prompt_norm.weight' is absent in the file"):
        detector.load_trainable_state(state)
