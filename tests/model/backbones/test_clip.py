"""The frozen CLIP: tokens, sizes, activation, weights files, and what it refuses."""

import json
import pickle
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from model.backbones import torchscript
from model.backbones import weights as module
from model.backbones.architectures import register_architecture
from model.backbones.choose import build_backbone
from model.backbones.clip import Backbone
from model.backbones.positions import resample
from model.backbones.weights import _LOG, Weights
from model.options import POSITION_RULES

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}


@pytest.fixture(scope="module")
def register(tmp_path_factory):
    def write(name: str, vision: dict, **extra) -> str:
        path = tmp_path_factory.mktemp("configs") / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **extra}))
        return register_architecture(str(path))

    return write


@pytest.fixture(scope="module")
def vit(register) -> str:
    return register("test-vit", VIT)


@pytest.fixture(scope="module")
def resnet(register) -> str:
    return register("test-resnet", RESNET)


def some_images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_vit_tokens_equal_open_clips(vit):
    own = Backbone(vit, image_size=48)
    tokens = own(some_images(48), (3, 1))
    theirs = own.clip.visual.forward_intermediates(
        own.normalize(some_images(48)), indices=[0, 2], output_fmt="NLC", normalize_intermediates=False
    )
    torch.testing.assert_close(tokens.pooled, theirs["image_features"])
    for layer, expected in zip((1, 3), theirs["image_intermediates"], strict=True):
        torch.testing.assert_close(tokens.patches[layer], expected)
        assert tokens.grids[layer] == (6, 6) and tokens.patches[layer].shape == (2, 36, 64)


@pytest.mark.parametrize("extra", [{}, {"pool_type": "avg"}, {"ls_init_value": 0.3}, {"scale_heads": True}])
def test_pool_equals_the_pooled_embedding_of_encode(register, extra):
    own = Backbone(register(f"test-pool-{'-'.join(extra)}", {**VIT, **extra}))
    tokens = own.embed(some_images(32))[:, :7]
    torch.testing.assert_close(own.pool(tokens), own.encode(tokens)[0], atol=1e-5, rtol=1e-5)


def test_resnet_tokens(resnet):
    own = Backbone(resnet, image_size=96)
    tokens = own(some_images(96), (1, 2, 3, 4))
    assert [tuple(tokens.patches[layer].shape) for layer in (1, 2, 3, 4)] == [
        (2, 576, 32), (2, 144, 64), (2, 36, 128), (2, 9, 256)]  # fmt: skip
    assert [own.width(layer) for layer in (1, 2, 3, 4)] == [32, 64, 128, 256]
    assert tokens.grids == {1: (24, 24), 2: (12, 12), 3: (6, 6), 4: (3, 3)} and tokens.pooled.shape == (2, 24)


def test_resnet_at_its_own_size_equals_open_clip(resnet):
    own = Backbone(resnet)
    images = some_images(64)
    torch.testing.assert_close(own(images, (4,)).pooled, own.clip.visual(own.normalize(images)))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_position_table_is_resampled(name, request, tmp_path):
    """Bicubic, antialias, class entry kept; from fp16 files in full precision."""
    model = request.getfixturevalue(name)
    small = Backbone(model)
    key = "visual.positional_embedding" if name == "vit" else "visual.attnpool.positional_embedding"
    state = {k: v.half() if v.is_floating_point() else v for k, v in small.clip.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    large = Backbone(model, str(tmp_path / "w.safetensors"), image_size=small.image_size * 2)
    table, grid = state[key].float(), 8 if name == "vit" else 4
    side = grid // 2
    rest = table[1:].T.reshape(1, -1, side, side)
    rest = torch.nn.functional.interpolate(rest, size=(grid, grid), mode="bicubic", antialias=True)
    expected = torch.cat([table[:1], rest[0].flatten(1).T])
    torch.testing.assert_close(large.clip.state_dict()[key], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "sentences", [["a photo of a nut."], ["a", "a much longer sentence about a damaged nut"] * 150]
)
def test_text_equals_open_clips(vit, sentences):
    own = Backbone(vit)
    expected = own.clip.encode_text(own.text.tokenizer(sentences))
    torch.testing.assert_close(own.text.encode(sentences), expected, atol=1e-5, rtol=1e-5)


def test_normalize_is_that_of_the_published_transform(vit):
    images = some_images(32, 1)
    expected = (images.float() / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(3, 1, 1)
    torch.testing.assert_close(Backbone(vit).normalize(images), expected)


@pytest.mark.parametrize(
    ("in_file", "flag", "expected"),
    [(None, "auto", False), (True, "auto", True), (None, "on", True), (True, "off", False)],
)
def test_quick_gelu(register, in_file, flag, expected):
    model = register(f"test-gelu-{in_file}-{flag}", VIT, **({} if in_file is None else {"quick_gelu": in_file}))
    own = Backbone(model, quick_gelu=flag)
    kind = type(own.clip.visual.transformer.resblocks[0].mlp.gelu).__name__
    assert own.quick_gelu is expected and kind == ("QuickGELU" if expected else "GELU")
    assert type(own.clip.transformer.resblocks[0].mlp.gelu).__name__ == kind


def test_weights_in_every_format_are_the_same(vit, tmp_path):
    own = Backbone(vit)
    state = own.clip.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "training.pt")
    with warnings.catch_warnings():  # OpenAI's own files are such archives, deprecated or not
        warnings.simplefilter("ignore")
        torch.jit.trace(own.clip.visual, torch.zeros(1, 3, 32, 32)).save(tmp_path / "archive.pt")
    for name in ("w.safetensors", "w.pt", "training.pt"):
        assert Backbone(vit, str(tmp_path / name)).fingerprint == own.fingerprint
    read = torchscript.read(tmp_path / "archive.pt")
    torch.testing.assert_close(read["conv1.weight"], state["visual.conv1.weight"])


def test_fingerprint_tells_weights_apart_but_not_sizes(vit, tmp_path):
    own = Backbone(vit)
    torch.save(own.clip.state_dict(), tmp_path / "w.pt")
    assert Backbone(vit, str(tmp_path / "w.pt"), image_size=64).fingerprint == own.fingerprint
    assert Backbone(vit).fingerprint != own.fingerprint


def test_published_config_path_of_a_shipped_architecture():
    assert register_architecture("./open_clip/model_configs/ViT-L-14-336.json") == "ViT-L-14-336"


@pytest.mark.parametrize(("model", "layers"), [("vit", [1, 2, 3]), ("resnet", [1, 2, 3, 4])])
def test_quarter_layers(model, layers, request):
    assert Backbone(request.getfixturevalue(model)).default_layers() == layers


def test_quarter_layers_of_published_depths(vit, monkeypatch):
    own = Backbone(vit)
    for depth, layers in ((24, [6, 12, 18, 24]), (12, [3, 6, 9, 12]), (1, [1])):
        own.taps.depth = depth
        assert own.default_layers() == layers


def test_what_is_refused(vit, register, tmp_path):
    with pytest.raises(ValueError, match=r"unknown model 'ViT-L-14-33'.*ViT-L-14-336"):
        Backbone("ViT-L-14-33")
    with pytest.raises(ValueError, match=r"--image_size 50: .* 8 pixels wide; take 48 or 56"):
        Backbone(vit, image_size=50).check_square()
    with pytest.raises(ValueError, match=r"features_list 1 4: layer 4 does not exist.* 1 to 3"):
        Backbone(vit).check_layers("features_list", [1, 4])
    with pytest.raises(ValueError, match="neither a file nor a tag of test-vit"):
        Backbone(vit, "openai")
    with pytest.raises(ValueError, match="its tags: .*openai"):
        Backbone("ViT-B-32", "opena")
    with pytest.raises(ValueError, match="no such file, and open_clip ships no architecture 'nowhere'"):
        register_architecture("nowhere.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        register_architecture(str(tmp_path / "half.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="must be a .json file with embed_dim"):
        register_architecture(str(tmp_path / "list.json"))


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("content", ["truncated", "empty", "text", "pickle", "list", "other", "shape"])
def test_broken_weights_are_refused_by_name(vit, tmp_path, content, capsys):
    path = tmp_path / "w.pt"
    state = Backbone(vit).clip.state_dict()
    torch.save(state, path)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif content in ("empty", "text"):
        path.write_bytes(b"" if content == "empty" else b"hello, these are no weights")
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"a": _Evil()}))
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "other":
        torch.save({"a": torch.zeros(3)}, path)
    else:
        torch.save({**state, "text_projection": torch.zeros(32, 23)}, path)
    with pytest.raises(ValueError, match=r"w\.pt") as error:
        Backbone(vit, str(path))
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_failed_download_says_what_was_tried(monkeypatch):
    def no_network(tag, prefer_hf_hub=True, cache_dir=None):
        raise ConnectionError("no route\nmore detail")

    monkeypatch.setattr(module, "download_pretrained", no_network)
    with pytest.raises(OSError, match=r"ViT-B-32 openai .*--pretrained FILE; tried timm/.*no route.*https://") as error:
        Backbone("ViT-B-32", "openai")
    assert "\n" not in str(error.value)


def test_warns_where_the_tag_was_trained_with_another_activation(monkeypatch, caplog):
    monkeypatch.setattr(module, "_download", lambda tag, label: None)
    monkeypatch.setattr(_LOG, "propagate", True)
    monkeypatch.setattr(_LOG, "handlers", [])  # of tests before this one
    weights = Weights.find("ViT-B-32", "openai")
    weights.log("ViT-B-32", True, asked=True)
    assert not caplog.messages
    weights.log("ViT-B-32", False, asked=False)
    assert caplog.messages == [
        "ViT-B-32 openai was trained with QuickGELU and runs with exact GELU; --quick_gelu on changes it"
    ]


@pytest.mark.slow
def test_compiled_and_not(tiny_a):
    """Two batches of different size, and the dual path of CLIP-AD."""
    register_architecture(tiny_a.config_path)
    backbone = Backbone(tiny_a.model, tiny_a.pretrained, image_size=96)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = [backbone(images[:1], {2, 4}), backbone(images, {2, 4}), backbone.dual_path(images, {2, 4})]
    backbone.compile_encoder()
    compiled = [backbone(images[:1], {2, 4}), backbone(images, {2, 4}), backbone.dual_path(images, {2, 4})]
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


# --- position tables --------------------------------------------------------------------------------------------------


def test_every_rule_and_grid_is_served_from_the_stored_table(tiny_a):
    """tiny-a was made for 4 x 4 patches; today's methods get the table that open_clip resamples at loading."""
    stored = torch.load(tiny_a.pretrained, weights_only=True)["visual.positional_embedding"].float()
    batch = torch.randint(256, (1, 3, 96, 128), dtype=torch.uint8)
    for rule in POSITION_RULES:
        own = build_backbone(
            tiny_a.model, tiny_a.pretrained, config_path=tiny_a.config_path, image_size=96, position_rule=rule
        )
        wide, square = own.embed(batch), own.embed(batch[..., :96])
        with torch.no_grad():
            patches = own.clip.visual.conv1(own.normalize(batch)).flatten(2).transpose(1, 2)
            class_token = own.clip.visual.class_embedding[None, None]
        expected = torch.cat([class_token, patches], dim=1) + resample(stored, 1, (6, 8), rule)
        torch.testing.assert_close(wide, expected, atol=1e-6, rtol=0)
        table = square[0, 0] - own.clip.visual.class_embedding
        torch.testing.assert_close(table, stored[0], atol=1e-6, rtol=0)
        if rule == "size_antialias":
            assert torch.equal(square, own.embed(batch[..., :96]))
            assert torch.equal(own.taps._positions((6, 6)), own.clip.visual.positional_embedding)
        else:
            assert torch.equal(own.taps._positions((6, 6)), resample(stored, 1, (6, 6), rule))
        assert own.fingerprint == Backbone(tiny_a.model, tiny_a.pretrained).fingerprint
        assert own.description()["position_rule"] == rule


def test_wide_images_of_a_vit_and_a_resnet(vit, resnet):
    for model, layers in ((vit, [0, 1, 2]), (resnet, [1, 2, 3, 4])):
        own = Backbone(model)
        height, width = own.patch * 2, own.patch * 3
        found = own(torch.randint(256, (2, 3, height, width), dtype=torch.uint8), layers)
        assert found.pooled.shape == (2, own.embed_dim)
        for layer in layers:
            rows, columns = found.grids[layer]
            assert rows * 3 == columns * 2 and found.patches[layer].shape == (2, rows * columns, own.width(layer or 1))


def test_final_norm_of_every_layer_and_layers_left_out(vit):
    own = Backbone(vit)
    batch = torch.randint(256, (2, 3, own.image_size, own.image_size), dtype=torch.uint8)
    raw, normed = own(batch, [0, 1]), own(batch, [0, 1], normed=True, pooled=False)
    assert normed.pooled.shape == (2, 0)
    for layer in (0, 1):
        torch.testing.assert_close(normed.patches[layer], own.clip.visual.ln_post(raw.patches[layer]))
    assert own.number_layers("--features_list", [-1, 0]) == [own.depth, 0]
    with pytest.raises(
        ValueError, match=r"^--background dino_saliency: needs a ViT of timm, .* is a CLIP of open_clip"
    ):
        own.check_saliency("--background dino_saliency", 0)


def test_a_rule_is_part_of_what_cached_features_are_known_by(tiny_a):
    def known(rule, height):
        own = Backbone(tiny_a.model, tiny_a.pretrained, image_size=96, position_rule=rule)
        return own.identity(torch.device("cpu")) | own._positions((height, 96))

    assert "positions" not in known("size_antialias", 96)  # as older versions wrote them
    assert "positions" in known("size_antialias", 112)
    assert known("size", 96) != known("offset", 96) != known("size_antialias", 96)


def test_a_position_rule_is_refused_for_a_resnet(resnet):
    with pytest.raises(ValueError, match=r"^--position_rule size: test-resnet has no position table .*; drop it$"):
        Backbone(resnet, position_rule="size")
