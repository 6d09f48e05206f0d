"""AnomalyCLIP against the published program's outputs, and its two towers against plain formulas."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from conftest import assert_maps, load_case, reference_images
from engine import checkpoint
from engine.epoch import train_epoch
from model import build, build_on
from model.anomaly_clip import AnomalyClip
from model.interface import LabeledBatch
from prompt_ensemble import Prompts

TRAINING = load_case("anomalyclip_train_mvtec")
TRAINED = TRAINING.folder / "checkpoint.pth"
SIZES = {"n_ctx": 12, "t_n_ctx": 4, "depth": 4}


def published_state(prefix: str = "") -> dict:
    """The published program's checkpoint; with a prefix ("init/"), its learned tokens as they were then."""
    learner = checkpoint.load(TRAINED).state["prompt_learner"]
    arrays = {key.removeprefix(prefix): value for key, value in TRAINING.arrays.items() if key.startswith(prefix)}
    return {"prompt_learner": {key: torch.as_tensor(arrays.get(key, value)) for key, value in learner.items()}}


@pytest.fixture(scope="module")
def backbone(tiny_aclip):
    return build("anomaly_clip", **tiny_aclip._asdict(), image_size=98).backbone


@pytest.fixture
def trained(backbone):
    """The detector after the published training, whose layers are those of the losses."""
    detector = build_on(backbone, "anomaly_clip", **SIZES, features_list=[2, 4, 6, 8])
    detector.load_trainable_state(published_state())
    return detector.eval()


@pytest.mark.parametrize("name", ["anomalyclip_visa", "anomalyclip_visa_four_layers", "anomalyclip_mvtec_last_two"])
def test_against_the_published_program(name, backbone):
    case = load_case(name)
    facts, tolerance = case.facts["hyper_parameters"], case.facts["tolerance"]
    settings = {key: facts[key] for key in ("dpam_blocks", "features_list", *SIZES)}
    settings |= {"feature_map_layer": [facts["feature_map_layer"]], "smoothing": facts["sigma"]}
    detector = build_on(backbone, "anomaly_clip", **settings).eval()
    detector.load_trainable_state(published_state())
    tokens = detector.encode(reference_images(case, case.facts["images"])["image"])
    prediction = detector.zero_shot(tokens, case.facts["image_class"])
    np.testing.assert_allclose(
        detector.text_features().detach(), case.arrays["text_features"], atol=tolerance["text_abs"]
    )
    pooled = F.normalize(tokens.pooled, dim=-1)
    np.testing.assert_allclose(pooled, case.arrays["image_features"], atol=tolerance["image_features_abs"])
    for layer, stored in zip(facts["features_list"], case.arrays["first_patches"], strict=True):
        np.testing.assert_allclose(tokens.patches[layer][0], stored[1:], atol=1e-5, rtol=0)
    assert_maps(prediction.maps, case)
    scores = detector.image_scores(prediction.score_components)
    np.testing.assert_allclose(scores, case.arrays["image_scores"], atol=tolerance["scores_abs"])


def test_training_against_the_published_program(trained):
    """Both epochs on the published batches: losses and their parts, the first gradient, the tokens along the way."""
    facts, tolerance = TRAINING.facts["hyper_parameters"], TRAINING.facts["tolerance"]
    detector = trained.train()
    detector.load_trainable_state(published_state("init/"))
    learned = dict(detector.prompts.named_parameters())
    optimizer = torch.optim.Adam(detector.parameter_groups(facts["learning_rate"]), betas=facts["adam_betas"])
    text = detector.text_features().detach()[0]
    np.testing.assert_allclose(text, TRAINING.arrays["text_step0"], atol=tolerance["text_abs"])
    for number, step in enumerate(TRAINING.facts["steps"]):
        batch = reference_images(TRAINING, step["images"], step["masks"])
        assert batch["label"].tolist() == step["labels"] and int(batch["mask"].sum()) == step["mask_pixels"]
        if number == 0:
            maps = torch.stack(detector(batch["image"])[0]).detach()[:, :, 1, ::4, ::4]
            np.testing.assert_allclose(maps, TRAINING.arrays["maps_step0_s4"], atol=tolerance["maps_abs"])
        losses = detector.loss(LabeledBatch(batch["image"], batch["mask"], batch["label"], batch["cls_name"]))
        expected = {
            "focal": 4 * sum(step["focal"]), "dice": 4 * sum(step["dice_abnormal"]),
            "dice_normal": 4 * sum(step["dice_normal"]), "image": step["image_loss"],
        }  # fmt: skip
        assert list(losses) == list(detector.LOSSES)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value, rel=5 * tolerance["loss_rel"]), name
        loss = sum(losses.values())
        assert loss.item() == pytest.approx(step["loss"], rel=tolerance["loss_rel"])
        optimizer.zero_grad()
        loss.backward()
        if number == 0:
            without = {key for key, parameter in learned.items() if parameter.grad is None}
            assert without == set(TRAINING.facts["no_gradient"])
            for key in learned.keys() - without:
                stored = TRAINING.arrays[f"grad0/{key}"]
                difference = np.abs(learned[key].grad.numpy() - stored).max() / np.abs(stored).max()
                # The rounding of gradients to half precision shows: any other order is off by 2e-4.
                assert difference < 2e-5, key
        optimizer.step()
        for after, prefix, limit in ((1, "after1/", "after1_abs"), (6, "epoch1/", "epochs_abs"),
                                     (12, "epoch2/", "epochs_abs")):  # fmt: skip
            if number + 1 == after:
                for key in learned.keys() - set(TRAINING.facts["no_gradient"]):
                    stored = TRAINING.arrays[prefix + key]
                    np.testing.assert_allclose(learned[key].detach(), stored, atol=tolerance[limit], rtol=0)


def test_the_second_path_against_the_plain_formula(backbone):
    """softmax(v v / sqrt(width of a head)) v from the blocks' own projections, accumulated from block f on."""
    images = torch.randint(0, 256, (2, 3, 98, 98), dtype=torch.uint8)
    visual, replaced = backbone.clip.visual, 3
    blocks = visual.transformer.resblocks
    tokens = backbone.value_path(images, range(1, 9), replaced)
    x = y = visual.ln_pre(backbone.embed(images))
    for layer, block in enumerate(blocks, start=1):
        if layer >= 8 - replaced + 1:
            attention = block.attn
            _, _, weight = attention.in_proj_weight.chunk(3)
            _, _, bias = attention.in_proj_bias.chunk(3)
            values = (block.ln_1(x) @ weight.T + bias).unflatten(-1, (2, 32)).transpose(1, 2)  # (B, heads, 1 + N, 32)
            mixed = (values @ values.transpose(2, 3) / 32**0.5).softmax(-1) @ values
            y = y + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = block(x)
        if layer < 8 - replaced + 1:
            y = x
        torch.testing.assert_close(tokens.patches[layer], (visual.ln_post(y) @ visual.proj)[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.pooled, x[:, 0] @ visual.proj, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [{}, {"n_ctx": 3, "t_n_ctx": 6, "depth": 9}, {"n_ctx": 5, "t_n_ctx": 2, "depth": 1}])
def test_the_texts_against_the_full_context(sizes, backbone):
    """All 77 tokens through open_clip's own modules; sets of tokens beyond the last block have no place."""
    detector = build_on(backbone, "anomaly_clip", **sizes).eval()
    clip, learned = backbone.clip, dict(detector.prompts.named_parameters())
    for state, (key, words) in enumerate((("ctx_pos", "object."), ("ctx_neg", "damaged object."))):
        context = learned[key][0, 0]
        ids = backbone.text.tokenizer([" ".join(["X"] * len(context) + [words])])[0]
        embedded = clip.token_embedding(ids)
        x = torch.cat([embedded[:1], context, embedded[1 + len(context) :]]) + clip.positional_embedding
        x = x[None]
        for index, block in enumerate(clip.transformer.resblocks):
            if 1 <= index < detector.prompts.depth:
                own = learned[f"compound_prompts_text.{index - 1}"].half().float()
                x = torch.cat([x[:, :1], own[None], x[:, 1 + len(own) :]], dim=1)
            x = block(x, attn_mask=clip.attn_mask)
        expected = F.normalize(clip.ln_final(x)[0, ids.argmax()] @ clip.text_projection, dim=0)
        torch.testing.assert_close(detector.text_features()[0, :, state], expected, atol=2e-6, rtol=0)


def test_sets_of_tokens_without_a_block_are_not_trained(backbone):
    prompts = build_on(backbone, "anomaly_clip", depth=9).prompts
    assert [one.requires_grad for one in prompts.compound_prompts_text] == [True] * 4 + [False] * 4
    assert not any(one.requires_grad for one in prompts.compound_prompt_projections.parameters())


def test_what_is_saved_has_the_published_layout(trained):
    own, published = trained.trainable_state()["prompt_learner"], published_state()["prompt_learner"]
    assert {key: (value.shape, value.dtype) for key, value in own.items()} == {
        key: (value.shape, value.dtype) for key, value in published.items()
    }
    assert all(torch.equal(own[key], value) for key, value in published.items())


def test_sizes_are_read_off_a_checkpoint(backbone):
    assert AnomalyClip.options_of(published_state()) == SIZES
    wrapped = {"state_dict": {"module.prompt_learner": published_state()["prompt_learner"]}}
    assert AnomalyClip.options_of(wrapped) == SIZES
    shallow = build_on(backbone, "anomaly_clip", depth=1).trainable_state()
    assert AnomalyClip.options_of(shallow) == {"n_ctx": 12, "depth": 1}  # t_n_ctx has no meaning then
    for other in ({}, {"prompt_learner": 3}, {"prompt_learner": {"ctx_pos": torch.zeros(3)}}):
        assert AnomalyClip.options_of(other) == {}


def test_a_checkpoint_of_another_backbone_or_of_other_words_is_refused(trained):
    state = published_state()
    state["prompt_learner"]["token_suffix_neg"] = state["prompt_learner"]["token_suffix_neg"] * 1.01
    with pytest.raises(ValueError, match="'token_suffix_neg' in it is not the token embedding of tiny-aclip"):
        trained.load_trainable_state(state)
    state = published_state()
    state["prompt_learner"]["token_prefix_pos"] = state["prompt_learner"]["token_prefix_pos"].half() * 1.0005
    trained.load_trainable_state(state)  # the rounding of a file in half precision
    words = Prompts(("fresh {}",), ("rotten {}",), ("{}",))
    other = build_on(trained.backbone, "anomaly_clip", **SIZES, prompts=words)
    assert other.options["sentences"] == ["fresh object", "rotten object"]
    with pytest.raises(ValueError, match="'tokenized_prompts_pos' in it are the tokens of other words"):
        other.load_trainable_state(published_state())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda learner: learner.pop("ctx_neg"), "'ctx_neg' is absent in the file"),
        (lambda learner: learner.update(ctx_neg=learner["ctx_neg"] * float("nan")), "'ctx_neg' holds NaN or infinity"),
        (lambda learner: learner.update(ctx_neg=3), "'ctx_neg' is a int, not a dense tensor"),
        (
            lambda learner: learner.update(tokenized_prompts_neg=learner["tokenized_prompts_neg"].float()),
            "'tokenized_prompts_neg' holds float32 numbers, not whole ones",
        ),
        (lambda learner: learner.update(ctx_neg=learner["ctx_neg"].int()), "holds int32 numbers, not floating-point"),
    ],
)
def test_a_broken_checkpoint_is_refused(trained, change, said):
    state = published_state()
    change(state["prompt_learner"])
    with pytest.raises(ValueError, match=said):
        trained.load_trainable_state(state)
    with pytest.raises(ValueError, match="no 'prompt_learner' in it"):
        trained.load_trainable_state({"linear_layers": {}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features_list": [9]}, "--features_list 9: layer 9 does not exist"),
        ({"features_list": [4, 8], "feature_map_layer": [2, 3]}, "--feature_map_layer 2 3: leaves no layer of .* 4 8"),
        ({"dpam_blocks": 9}, "--dpam_blocks 9: must be from 1 to 8, the blocks of tiny-aclip"),
        ({"dpam_blocks": 0}, "--dpam_blocks 0: must be from 1"),
        ({"n_ctx": 73}, "--n_ctx 73: with 'damaged object.' behind it, the prompt is longer than the 77 tokens"),
        ({"n_ctx": 10**9}, "--n_ctx 1000000000: must be from 1 to 76"),
        ({"t_n_ctx": 77}, "--t_n_ctx 77: must be from 1 to 76"),
        ({"depth": 0}, "--depth 0: must be from 1 to 100"),
        ({"smoothing": -1.0}, "--smoothing -1: must be pixels from 0"),
        ({"prompts": Prompts(("a {}", "b {}"), ("c {}",), ("{}",))}, "one sentence per state, .* make 2 and 1"),
    ],
)
def test_refuses(backbone, options, said):
    with pytest.raises(ValueError, match=said) as error:
        build_on(backbone, "anomaly_clip", **options)
    assert "\n" not in str(error.value)


def test_the_published_share_of_blocks_has_a_second_path(backbone, tiny_a):
    assert build_on(backbone, "anomaly_clip").options["dpam_blocks"] == 6
    assert build("anomaly_clip", **tiny_a._asdict()).options["dpam_blocks"] == 3


def test_a_batch_of_one_image(trained):
    """The published program breaks on it: the mean of such losses is the loss of the batch."""
    step = TRAINING.facts["steps"][0]
    whole = reference_images(TRAINING, step["images"][:2], step["masks"][:2])
    keys = ("image", "mask", "label")
    with torch.no_grad():
        each = [trained.loss(LabeledBatch(*(whole[key][row : row + 1] for key in keys), ["coins"])) for row in (0, 1)]
        both = trained.loss(LabeledBatch(*(whole[key] for key in keys), ["coins", "brick"]))
    for name, value in both.items():
        assert value.item() == pytest.approx((each[0][name] + each[1][name]).item() / 2, rel=1e-5), name


def test_a_defect_too_small_for_the_mask_counts_in_the_loss_of_the_image(trained):
    batch = reference_images(TRAINING, TRAINING.facts["steps"][0]["images"][:1])
    one = LabeledBatch(batch["image"], batch["mask"], torch.tensor([1]), ["coins"])
    with torch.no_grad():
        anomalous, normal = trained.loss(one)["image"], trained.loss(one._replace(labels=torch.tensor([0])))["image"]
    assert (-anomalous).exp() + (-normal).exp() == pytest.approx(1, abs=1e-6)


def test_the_text_tower_runs_once_until_the_tokens_change(trained, monkeypatch):
    calls = []
    run = type(trained.backbone.text).run
    monkeypatch.setattr(
        type(trained.backbone.text), "run", lambda self, *args: calls.append(args[0].shape) or run(self, *args)
    )
    tokens = trained.encode(torch.zeros(1, 3, 98, 98, dtype=torch.uint8))
    first = trained.zero_shot(tokens, ["brick"]).maps
    assert torch.equal(first, trained.zero_shot(tokens, ["coins"]).maps) and calls == [(2, 17, 32)]
    trained.load_trainable_state(published_state("init/"))
    assert not torch.equal(first, trained.zero_shot(tokens, ["brick"]).maps) and len(calls) == 2
    trained.train()
    optimizer = torch.optim.Adam(trained.parameter_groups(0.1))
    batch = reference_images(TRAINING, TRAINING.facts["steps"][0]["images"][:1])
    before = trained.zero_shot(tokens, ["brick"]).maps
    train_epoch(trained, [batch], optimizer, Accelerator(), 1)
    assert not torch.equal(before, trained.eval().zero_shot(tokens, ["brick"]).maps)


def test_needs_a_vit_with_clips_own_text_tower(tmp_path):
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
    }
    (tmp_path / "net.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="anomaly_clip needs a ViT of open_clip's own, .* net is a ResNet"):
        build("anomaly_clip", model="net", config_path=str(tmp_path / "net.json"))
