"""timm's backbones against features that the published programs made with the same weights."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import REFERENCE
from model import build_on
from model.backbones.choose import build_backbone
from model.backbones.positions import resample
from model.backbones.timm_taps import StageTaps
from model.options import PositionRules

MODELS = REFERENCE / "models"
FACTS = json.loads((REFERENCE / "backbones/features.json").read_text())
with np.load(REFERENCE / "backbones/features.npz") as _arrays:
    ARRAYS = dict(_arrays)


def tiny(name: str, **kwargs):
    """A model of tests/reference, whose weights are in the layout of the official programs."""
    return build_backbone(name, str(MODELS / f"{name}.pt"), config_path=str(MODELS / f"{name}.json"), **kwargs)


def read(facts: dict, patch: int) -> torch.Tensor:
    """The image of a stored feature as its program read it, (1, 3, H, W) uint8."""
    picture = Image.open(REFERENCE / facts["image"]).convert("RGB")
    if "shorter_edge" in facts:
        scale = facts["shorter_edge"] / min(picture.size)
        picture = picture.resize([int(side * scale + 1e-9) for side in picture.size], Image.Resampling.BICUBIC)
        pixels = np.array(picture)
        return torch.from_numpy(pixels[: pixels.shape[0] // patch * patch, : pixels.shape[1] // patch * patch]).permute(
            2, 0, 1
        )[None]
    size = (facts["square"],) * 2
    if facts["resizer"] == "torchvision":
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[facts["resizer"]]
    return torch.from_numpy(np.array(picture.resize(size, kind))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", FACTS)
def test_features_of_published_programs(name, tiny_a):
    facts, expected = FACTS[name], ARRAYS[name]
    if facts["model"] == "tiny-a":
        own = build_backbone(
            tiny_a.model, tiny_a.pretrained, config_path=tiny_a.config_path, image_size=facts["square"],
            position_rule=facts["rule"],
        )  # fmt: skip
    else:
        own = tiny(facts["model"], position_rule=facts["rule"])
    images = read(facts, own.patch)
    if "saliency" in facts:
        found = own.saliency(images, facts["saliency"]).reshape(expected.shape)
    elif "pooled" in facts:
        found = own(images, []).pooled[0]
        found = F.normalize(found, dim=-1) if own.has_text else found
    else:
        layers = own.number_layers("--features_list", facts["layers"])
        patches = own(images, layers, normed=facts.get("normed", False), pooled=False).patches
        found = torch.stack([patches[layer][0] for layer in layers])  # (layers, N, W)
        found = found.mean(0) if expected.ndim == 2 else found
    np.testing.assert_allclose(found.numpy(), expected, atol=facts["tolerance"], rtol=0)


# --- by hand ----------------------------------------------------------------------------------------------------------


def images(own, rows: int = 3, columns: int | None = None, count: int = 2) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(256, (count, 3, own.patch * rows, own.patch * (columns or rows)), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["tiny-d", "tiny-r"])
def test_a_hand_written_forward_on_a_wide_image(name):
    """DINOv2 (arXiv 2304.07193) written out, with the table of another grid by the method's rule."""
    own = tiny(name, position_rule="offset")
    model, batch = own.taps.model, images(own, 3, 6)
    found = own(batch, range(own.depth + 1))
    with torch.no_grad():
        x = model.patch_embed.proj(own.normalize(batch)).flatten(2).transpose(1, 2)
        prefix = 0 if model.no_embed_class else 1
        table = resample(model.pos_embed[0], prefix, (3, 6), "offset")
        parts = [model.cls_token + (0 if model.no_embed_class else table[0])]
        parts += [] if model.reg_token is None else [model.reg_token]
        x = torch.cat([*(part.expand(2, -1, -1) for part in parts), x + table[prefix:]], dim=1)
        for layer, block in enumerate([None, *model.blocks]):
            x = x if block is None else block(x)
            assert torch.equal(found.patches[layer], x[:, own.prefix_tokens :])
            assert found.grids[layer] == (3, 6)
        assert torch.equal(found.pooled, model.norm(x)[:, 0])


def test_timms_own_forward_where_the_rule_is_its_own():
    own = tiny("tiny-r", position_rule="size_antialias")
    batch = images(own, 4, 5)
    with torch.no_grad():
        expected = own.taps.model.forward_features(own.normalize(batch))
    found = own(batch, [own.depth], normed=True)
    assert torch.equal(found.patches[own.depth], expected[:, 5:]) and torch.equal(found.pooled, expected[:, 0])


def test_a_rule_changes_features_only_off_the_stored_grid():
    each = [tiny("tiny-d", position_rule=rule) for rule in ("offset", "size", "size_antialias", "bilinear")]
    stored, other = ([own(images(own, side), [4]).patches[4] for own in each] for side in (5, 7))
    assert all(torch.equal(stored[0], one) for one in stored)
    assert all((other[0] - one).abs().max() > 0.1 for one in other[1:])


def test_each_method_has_its_rule():
    rules = PositionRules(plain="offset", registers="size")
    assert tiny("tiny-d", position_rules=rules).position_rule == "offset"
    assert tiny("tiny-r", position_rules=rules).position_rule == "size"
    assert tiny("tiny-r", position_rules=rules, position_rule="bilinear").description()["position_rule"] == "bilinear"


@pytest.mark.parametrize("model", ["resnet10t", "mixer_s32_224", "vit_small_patch16_dinov3"])
def test_a_rule_without_a_table_is_refused(model):
    said = f"^--position_rule offset: {model} has no position table that it could bring to another grid; drop it$"
    with pytest.raises(ValueError, match=said):
        build_backbone(model, position_rule="offset")


def test_layers_above_the_asked_ones_are_left_out():
    own = tiny("tiny-d")
    calls = []
    for block in own.taps.model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    batch = images(own)
    whole = own(batch, [1, 2])
    part = own(batch, [1, 2], pooled=False)
    assert len(calls) == 4 + 2 and part.pooled.shape == (2, 0)
    assert all(torch.equal(whole.patches[layer], part.patches[layer]) for layer in (1, 2))


def test_numbers_of_layers():
    own = tiny("tiny-r")  # 6 blocks
    assert own.number_layers("--features_list", [-1, -6, -7, 2]) == [6, 1, 0, 2]
    with pytest.raises(ValueError, match=r"^--features_list 2 -8: layer -8 does not exist, tiny-r has layers 0 to 6$"):
        own.number_layers("--features_list", [2, -8])
    with pytest.raises(ValueError, match=r"^--features_list 6 -1: list one or more layers, each once$"):
        own.number_layers("--features_list", [6, -1])


def test_saliency_is_the_attention_of_a_block():
    own = tiny("tiny-r")
    batch, attention = images(own, 3, 4), own.taps.model.blocks[2].attn
    probabilities = []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: probabilities.append(output))
    own(batch, [6])
    found = own.saliency(batch, 2)
    torch.testing.assert_close(found, probabilities[0][:, :, 1:5, 5:].mean((1, 2)))
    assert found.shape == (2, 12)


@pytest.mark.parametrize(
    ("model", "index", "said"),
    [
        ("resnet10t", 0, "needs a ViT of plain blocks with a class token; resnet10t is of another kind"),
        ("tiny-d", 4, "block 4 does not exist, tiny-d has blocks 0 to 3"),
    ],
)
def test_saliency_that_cannot_be_had(model, index, said):
    own = tiny(model) if model == "tiny-d" else build_backbone(model)
    with pytest.raises(ValueError, match=f"^--saliency_layer {index}: {said}$"):
        own.check_saliency(f"--saliency_layer {index}", index)


# --- other kinds of models --------------------------------------------------------------------------------------------


def small(tmp_path, timm_model: str, **kwargs):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"timm_model": timm_model, "timm_kwargs": kwargs}))
    return build_backbone("small", config_path=str(path))


METHODS = ("musc", "anomaly_dino", "subspace_ad")
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("timm_model", "kwargs", "prefix", "rule"),
    [
        ("vit_small_patch16_dinov3", SIZES, 5, None),  # RoPE alone
        ("vit_pe_core_tiny_patch16_384", SIZES, 1, "size_antialias"),  # RoPE and a table
        ("vit_base_patch16_siglip_224", SIZES, 0, "size_antialias"),  # no class token, a pooling head
        ("vit_base_patch16_clip_224", SIZES, 1, "size_antialias"),  # norm_pre
        ("vit_base_patch16_224", SIZES, 1, "size_antialias"),
    ],
)
def test_vits_of_other_kinds(timm_model, kwargs, prefix, rule, tmp_path):
    own = small(tmp_path, timm_model, **kwargs)
    batch = images(own, 3, 5)
    found = own(batch, [0, 1, 3])
    assert own.prefix_tokens == prefix and own.position_rule == rule
    assert ("position_rule" in own.description()) == (rule is not None)
    model = own.taps.model
    with torch.no_grad():
        expected = model.forward_intermediates(
            own.normalize(batch), indices=[0, 2], output_fmt="NLC", intermediates_only=True
        )
        head = model.forward_features(own.normalize(batch))
    assert torch.equal(found.patches[1], expected[0]) and torch.equal(found.patches[3], expected[1])
    assert found.patches[0].shape == (2, 15, 32) and found.pooled.shape == (2, own.embed_dim)
    pooled = head[:, 0] if prefix else model.forward_head(head, pre_logits=True)
    torch.testing.assert_close(found.pooled, pooled)


@pytest.mark.parametrize(
    ("model", "first", "widths", "grids"),
    [
        ("resnet10t", 0, [64, 64, 128, 256, 512], [(49, 65), (25, 33), (13, 17), (7, 9), (4, 5)]),
        ("tf_efficientnet_lite0", 0, [16, 24, 40, 112, 320], [(49, 65), (25, 33), (13, 17), (7, 9), (4, 5)]),
        ("convnext_atto", 1, [40, 80, 160, 320], [(24, 32), (12, 16), (6, 8), (3, 4)]),
    ],
)
def test_stages_of_a_cnn(model, first, widths, grids):
    own = build_backbone(model)
    layers = range(first, 5)
    assert own.depth == 4 and own.patch == 32 and own.grid is None
    batch = torch.randint(256, (2, 3, 98, 130), dtype=torch.uint8)
    found = own(batch, layers)
    assert [own.width(layer) for layer in layers] == widths
    assert [found.grids[layer] for layer in layers] == grids
    assert [found.patches[layer].shape for layer in layers] == [
        (2, height * width, channels) for (height, width), channels in zip(grids, widths, strict=True)
    ]
    with torch.no_grad():
        expected = own.taps.model.forward_features(own.normalize(batch))
    if model == "resnet10t":  # whose last stage is what its classifier takes
        torch.testing.assert_close(found.patches[4], expected.flatten(2).transpose(1, 2))
        torch.testing.assert_close(found.pooled, expected.mean((2, 3)))
    with pytest.raises(ValueError, match=f"layer {first - 1} does not exist|layer 5 does not exist"):
        own.number_layers("--features_list", [5])


def test_windows_take_images_of_any_shape(tmp_path):
    own = small(
        tmp_path, "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=[1, 1],
        num_heads=[2, 2],
    )  # fmt: skip
    assert own.image_size == 32
    batch = torch.randint(256, (1, 3, 40, 64), dtype=torch.uint8)
    found = own(batch, [1, 2], normed=True)
    assert found.grids == {1: (10, 16), 2: (5, 8)}
    torch.testing.assert_close(found.patches[2].mean(-1), torch.zeros(1, 40), atol=1e-5, rtol=0)  # a layer norm


@pytest.mark.parametrize(
    ("timm_model", "size", "normed"),
    [
        ("beit_base_patch16_224", 64, True),
        ("beitv2_base_patch16_224", 64, True),
        ("deit_tiny_distilled_patch16_224", 64, True),
        ("samvit_base_patch16", 32, False),  # takes its own size alone, and has no norm
    ],
)
def test_blocks_of_a_class_of_their_own_share_one_grid(timm_model, size, normed, tmp_path):
    """Methods take them as ViTs: MuSc at all, the others at the layers of a ViT."""
    kwargs = {**SIZES, "depth": 12, "embed_dim": 8}
    own = small(tmp_path, timm_model, **kwargs)
    own = build_backbone("small", image_size=size)
    assert isinstance(own.taps, StageTaps) and own.depth == 12 and own.grid == size // 8
    layers = {method: build_on(own, method).options["features_list"] for method in METHODS}
    assert layers == {"musc": [3, 6, 9, 12], "anomaly_dino": [12], "subspace_ad": [9, 8]}
    found = own(images(own, size // 8), [1, 12], normed=True)
    assert found.grids == {1: (size // 8,) * 2, 12: (size // 8,) * 2} and found.pooled.shape == (2, 8)
    length = found.patches[12].square().mean()
    assert bool((length - 1).abs() < 0.1) == normed  # a layer norm


def test_a_model_of_fixed_size(tmp_path):
    own = small(tmp_path, "mixer_s32_224", img_size=32)
    assert own(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [1, 2]).grids == {1: (1, 1), 2: (1, 1)}
    with pytest.raises(ValueError, match=r"images of 64 x 32 pixels: this model takes 32 x 32 only; choose another"):
        own(torch.zeros(1, 3, 32, 64, dtype=torch.uint8), [2])
    with pytest.raises(ValueError, match=r"--image_size 64: small takes images of 32 x 32 pixels alone"):
        build_backbone("small", image_size=64)


# --- precision, compile, cache ----------------------------------------------------------------------------------------


def test_half_precision():
    own = tiny("tiny-d")
    batch = images(own, 4, 5)
    plain = own(batch, [4]).patches[4]
    with torch.autocast("cpu", torch.bfloat16):
        half = own(batch, [4]).patches[4]
    assert 0 < (half - plain).abs().max() < 0.3


def test_saliency_of_half_precision_tokens_is_computed_in_single():
    own = tiny("tiny-r")
    batch, attention, parts = images(own, 3, 4), own.taps.model.blocks[2].attn, []
    attention.qkv.register_forward_hook(lambda module, inputs, output: parts.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        found = own.saliency(batch, 2)
    assert parts[0].dtype == torch.bfloat16 and found.dtype == torch.float32
    queries, keys, _ = (one.float().unflatten(-1, (attention.num_heads, -1)).mT for one in parts[0].chunk(3, dim=-1))
    logits = torch.einsum("bqdh,bkdh->bhqk", queries[:, 1:5], keys) * attention.scale
    torch.testing.assert_close(found, logits.softmax(-1)[..., 5:].mean((1, 2)), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-d", "resnet10t"])
def test_a_compiled_encoder_gives_the_same(name):
    own = tiny(name) if name == "tiny-d" else build_backbone(name)
    batch = images(own, 3, 4)
    plain = own(batch, [2, 4])
    own.compile_encoder()
    compiled = own(batch, [2, 4])
    for layer in (2, 4):
        torch.testing.assert_close(compiled.patches[layer], plain.patches[layer], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny-r", "resnet10t"])
def test_a_batch_of_any_size_can_be_exported(name):
    """As inference/onnx_export.py traces a detector: nothing may depend on the number of images."""

    class Last(torch.nn.Module):
        def forward(self, batch):
            found = own(batch, [own.depth], normed=True)
            return found.pooled, found.patches[own.depth]

    own = tiny(name, image_size=112) if name == "tiny-r" else build_backbone(name, image_size=64)
    batch = torch.randint(256, (2, 3, own.image_size, own.image_size), dtype=torch.uint8)
    last = Last().eval()
    last(batch)  # tables that are kept must not be made for the first time in a trace
    graph = torch.export.export(last, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    three = torch.randint(256, (3, *batch.shape[1:]), dtype=torch.uint8)
    for found, expected in zip(graph.module()(three), last(three), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Recorder:
    """A cache that keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, images, identity, shapes, encode):
        found = encode(images)
        assert {name: tuple(found[name].shape[1:]) for name in shapes} == dict(shapes)
        self.asked.append((dict(identity), set(shapes)))
        return found

    def log(self):
        pass


def test_what_cached_features_are_known_by():
    each = [tiny("tiny-d", position_rule=rule) for rule in ("size", "size", "offset")]
    for own in each:
        own.cache = Recorder()
        own(images(own, 3, 4), [4], normed=True, pooled=False)
        own(images(own, 3, 4), [4])
        own.saliency(images(own), 1)
    (one, same, other) = (own.cache.asked for own in each)
    assert [names for _, names in one] == [{"normed patches 4"}, {"pooled", "patches 4"}, {"saliency 1"}]
    assert one == same and one[0][0] != other[0][0]
