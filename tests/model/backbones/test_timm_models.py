"""Names, files and weights of timm's models: what works, and the one line where something does not."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from model import build
from model.backbones import choose, timm_models, timm_weights
from model.backbones import weights as weights_module
from model.backbones.choose import build_backbone, register
from model.backbones.positions import resample
from model.backbones.timm import TimmBackbone
from utils import memory_check

SMALL = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}


def write(folder, name="small", timm_model="vit_small_patch14_dinov2", kwargs=None, **further):
    path = folder / f"{name}.json"
    kwargs = {**SMALL, "patch_size": 8} if kwargs is None else kwargs
    path.write_text(json.dumps({"timm_model": timm_model, "timm_kwargs": kwargs, **further}))
    return str(path)


@pytest.fixture
def small(tmp_path) -> str:
    """A registered ViT of 2 blocks, width 16, patch 8, made for 32 pixels; layer scale, class token."""
    return register(write(tmp_path))


def official(model: TimmBackbone) -> dict:
    """Its weights as DINOv2's program keeps them."""
    return {**model.taps.model.state_dict(), "mask_token": torch.zeros(1, 16)}


def images(height: int, width: int | None = None) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(256, (2, 3, height, width or height), dtype=torch.uint8)


# --- files of weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_gives_back_the_model(small, suffix, wrapper, tmp_path):
    own = TimmBackbone(small)
    state, path = own.taps.model.state_dict(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    again = TimmBackbone(small, str(path), image_size=64)
    assert again.fingerprint == own.fingerprint and again.image_size == 64
    assert torch.equal(again(images(32), [2]).patches[2], own(images(32), [2]).patches[2])


def test_half_precision_and_the_official_layout(small, tmp_path):
    own = TimmBackbone(small)
    state = {key: value.half() for key, value in official(own).items()}
    torch.save(state, tmp_path / "w.pt")
    found = TimmBackbone(small, str(tmp_path / "w.pt")).taps.model.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, state[key].float()) for key, value in found.items())


def test_a_classifier_in_the_file_is_left_out(tmp_path):
    whole = timm.create_model("resnet10t", num_classes=5)
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    own = TimmBackbone("resnet10t", str(tmp_path / "w.pt"))
    assert torch.equal(own.taps.model.state_dict()["conv1.0.weight"], whole.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize("registers", [0, 4])
def test_the_table_stays_as_it_is_stored(registers, tmp_path):
    """A file made for 48 pixels, where the architecture says 32: no size of images and no architecture changes it."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    large = TimmBackbone(register(write(tmp_path, "large", name, {**SMALL, "patch_size": 8, "img_size": 48})))
    state = large.taps.model.state_dict()
    if registers:  # as DINOv2's program keeps them: the class token's position in the table
        state = {**state, "register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 16)}
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 16), state["pos_embed"]], dim=1)
    torch.save(state, tmp_path / "w.pt")
    model = register(write(tmp_path, "small", name))
    own = TimmBackbone(model, str(tmp_path / "w.pt"), image_size=64, position_rule="offset")
    assert own.taps.table.grid == (6, 6) and own.prefix_tokens == 1 + registers
    assert torch.equal(own(images(48), [2]).patches[2], large(images(48), [2]).patches[2])
    assert own.fingerprint == large.fingerprint


def break_nan(state):
    state["blocks.1.norm1.weight"][3] = float("nan")


def break_shape(state):
    state["blocks.1.norm1.weight"] = torch.ones(17)


def break_integers(state):
    state["blocks.1.norm1.weight"] = torch.ones(16, dtype=torch.int64)


def break_missing(state):
    del state["norm.weight"]


def break_surplus(state):
    state["blocks.2.norm1.weight"] = torch.ones(16)


def break_patch(state):
    state["patch_embed.proj.weight"] = torch.zeros(16, 3, 4, 4)


def break_table(state):
    state["pos_embed"] = torch.zeros(1, 8, 16)


def break_expanded(state):
    state["norm.weight"] = torch.ones(1).expand(16)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (break_nan, r"'blocks.1.norm1.weight' holds NaN or infinity; get the file again"),
        (break_shape, r"do not fit the architecture: 'blocks.1.norm1.weight' is \(17,\) in the file but \(16,\)"),
        (break_integers, r"'blocks.1.norm1.weight' holds int64 numbers, not floating-point ones"),
        (break_missing, r"'norm.weight' is absent in the file"),
        (break_surplus, r"'blocks.2.norm1.weight' in it is absent in this model"),
        (break_patch, r"its patches are \(4, 4\) pixels, the model's \(8, 8\)"),
        (break_table, r"'pos_embed' is \(1, 8, 16\) in the file, which is no square grid of patches"),
        (break_expanded, r"'norm.weight' is larger than its data"),
    ],
)
@pytest.mark.parametrize("layout", ["ours", "official"])
def test_weights_that_do_not_fit(small, broken, said, layout, tmp_path):
    own = TimmBackbone(small)
    state = own.taps.model.state_dict() if layout == "ours" else official(own)
    broken(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=said) as error:
        TimmBackbone(small, str(tmp_path / "w.pt"))
    assert "\n" not in str(error.value) and "w.pt" in str(error.value)


def test_objects_are_never_loaded(small, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": TimmBackbone(small).taps.model}, path)
    with pytest.raises(ValueError, match=re.escape(f"--pretrained {path}: refused, since it is broken or holds")):
        TimmBackbone(small, str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"holds no state dict of model 'small'"):
        TimmBackbone(small, str(path))


# --- names, tags and files of architectures ---------------------------------------------------------------------------


def test_names_of_both_libraries():
    assert choose.is_timm("resnet18", text=False) and choose.is_timm("vit_small_patch14_dinov2.lvd142m", text=False)
    assert choose.is_timm("convnext_base", text=False)  # for texts, open_clip's of that name
    assert not choose.is_timm("convnext_base", text=True)
    assert not choose.is_timm("ViT-B-32", text=False)


def test_a_method_with_texts_needs_a_model_with_texts():
    with pytest.raises(ValueError, match=r"^winclip compares images with texts, and resnet18, a model of timm, has no"):
        build("winclip", model="resnet18")


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        ("vit_small_patch14_dinov", {}, r"unknown model .*did you mean .*vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2", {"pretrained": "lvd"}, r"nor? a tag of timm's .*\(its tags: lvd142m\)"),
        ("vit_small_patch14_dinov2.lvd", {}, r"--pretrained lvd: neither a file nor a tag"),
        ("resnet10t", {"quick_gelu": "on"}, r"--quick_gelu on: resnet10t of timm has an activation of its own"),
        ("resnet10t", {"mean": [0, 0, 0]}, r"--mean and --std belong together"),
        ("small", {"image_size": 4}, r"--image_size 4: a patch of small is 8 pixels wide"),
        ("small", {"position_rule": "cubic"}, r"--position_rule cubic: unknown; known: offset"),
    ],
)
def test_what_is_refused(small, model, flags, said):
    with pytest.raises(ValueError, match=said):
        build_backbone(model, **flags)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"pretrained": True}, "may not hold pretrained; weights are named by --pretrained"),
        ({"pretrained_cfg_overlay": {"file": "x"}}, "may not hold pretrained_cfg_overlay"),
        ({"checkpoint_path": "x.pt"}, "may not hold checkpoint_path"),
        ({"depth": 1001}, "depth of timm_kwargs is 1001, which is too large"),
        ({"depths": [2, 5000]}, "depths of timm_kwargs is 5000, which is too large"),
        ({"embed_dim": 1 << 40}, "embed_dim of timm_kwargs is .* too large"),
        ({"drop_rate": float("nan")}, "drop_rate of timm_kwargs is nan"),
        ({"act_layer": {"a": 1}}, "act_layer of timm_kwargs must be a number, a text or a list"),
        ({"img_size": [[32]]}, "nested too deeply"),
        ({"in_chans": 1}, "in_chans of timm_kwargs must be 3"),
        ([1], "timm_kwargs must be an object"),
    ],
)
def test_kwargs_that_a_file_may_not_have(kwargs, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        register(write(tmp_path, kwargs=kwargs))
    assert str(error.value).startswith(f"--config_path {tmp_path}")


@pytest.mark.parametrize("kwargs", [{"no_such": 1}, {"embed_layer": "os.system"}, {"num_heads": 7, "embed_dim": 16}])
def test_what_timm_cannot_build(kwargs, tmp_path):
    model = register(write(tmp_path, kwargs=kwargs))
    with pytest.raises(ValueError, match=r"model 'small' cannot be built by timm: ") as error:
        build_backbone(model)
    assert "\n" not in str(error.value)


def test_an_unknown_model_in_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"timm has no model 'resnet1' \(did you mean"):
        register(write(tmp_path, timm_model="resnet1"))
    with pytest.raises(ValueError, match=r"timm has no model 3"):
        register(write(tmp_path, timm_model=3))


def test_weights_that_memory_cannot_hold(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 10**9)
    model = register(write(tmp_path, kwargs={"embed_dim": 8192, "num_heads": 8}))
    with pytest.raises(ValueError, match=r"the weights of model 'small': at least .* GB of memory, and 1.0 GB are"):
        build_backbone(model)


def test_a_file_may_say_how_images_are_normalised(tmp_path):
    preprocess = {"mean": [0, 0.5, 1], "std": [1, 1, 0.5]}
    own = TimmBackbone(register(write(tmp_path, preprocess_cfg=preprocess, note="ignored")))
    assert own.normalization == ((0, 0.5, 1), (1, 1, 0.5))
    assert TimmBackbone(own.name, mean=[0, 0, 0], std=[1, 1, 1]).normalization == ((0, 0, 0), (1, 1, 1))


def test_how_images_are_normalised_where_tags_differ(caplog, monkeypatch, tmp_path):
    """vit_base_patch16_224 has tags normalised by 0.5 and others by ImageNet's values."""
    monkeypatch.setattr(timm_weights._LOG, "propagate", True)
    model = register(write(tmp_path, timm_model="vit_base_patch16_224"))
    torch.save(TimmBackbone(model).taps.model.state_dict(), tmp_path / "w.pt")
    with caplog.at_level("INFO"):
        own = TimmBackbone(model, str(tmp_path / "w.pt"))
    assert own.normalization.mean == (0.485, 0.456, 0.406)
    assert "(ImageNet's, since tags of vit_base_patch16_224 differ; --mean and --std set others)" in caplog.text


# --- downloads --------------------------------------------------------------------------------------------------------


def test_a_tag_is_downloaded_by_timm_and_its_licence_logged(caplog, monkeypatch):
    def load(architecture, tag):
        assert (architecture.timm_name, tag) == ("resnet10t", "c3_in1k")
        return timm.create_model("resnet10t")

    monkeypatch.setattr(timm_models, "load_tag", load)
    monkeypatch.setattr(timm_weights._LOG, "propagate", True)
    with caplog.at_level("INFO"):
        own = build_backbone("resnet10t.c3_in1k")
    assert (own.name, own.pretrained) == ("resnet10t", "c3_in1k")
    assert "weights resnet10t.c3_in1k: licence apache-2.0" in caplog.text
    assert own(images(64), [4]).patches[4].shape == (2, 4, 512)


def test_the_table_of_a_tag_is_not_resampled_by_timm(monkeypatch, tmp_path):
    """A file may say img_size: that is the size of the images, not of the table."""
    create = timm_models.timm.create_model
    monkeypatch.setattr(timm_models.timm, "create_model", lambda name, **kwargs: create(name, **stored(kwargs)))
    stored_table = torch.randn(1, 1 + 14 * 14, 32)

    def stored(kwargs):
        if kwargs.pop("pretrained", False):
            assert kwargs.pop("pretrained_cfg") == "augreg_in21k_ft_in1k" and "img_size" not in kwargs
        return kwargs

    def download(architecture, tag):
        model = load_tag(architecture, tag)
        model.pos_embed.data.copy_(stored_table)
        return model

    load_tag = timm_models.load_tag
    monkeypatch.setattr(timm_models, "load_tag", download)
    path = tmp_path / "small.json"
    kwargs = {"img_size": 96, "embed_dim": 32, "depth": 2, "num_heads": 2}
    path.write_text(json.dumps({"timm_model": "vit_tiny_patch16_224", "timm_kwargs": kwargs}))
    own = build_backbone("small", "augreg_in21k_ft_in1k", config_path=str(path), position_rule="offset")
    assert own.image_size == 96 and own.grid == 6
    assert torch.equal(own.taps.table.at((6, 6)), resample(stored_table[0], 1, (6, 6), "offset"))


def test_a_failed_download_says_what_was_tried(monkeypatch):
    def no_network(architecture, tag):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(timm_models, "load_tag", no_network)
    said = r"^weights resnet10t.c3_in1k could not be downloaded: .*--pretrained FILE; tried timm/resnet10t.c3_in1k"
    with pytest.raises(OSError, match=said) as error:
        build_backbone("resnet10t", "c3_in1k")
    assert "\n" not in str(error.value) and "no route to host" in str(error.value)


def test_a_download_that_waits_is_given_up(monkeypatch):
    import time

    monkeypatch.setattr(weights_module, "_LOG_AFTER", 0.05)
    monkeypatch.setattr(weights_module, "_NO_ANSWER", 0.2)
    monkeypatch.setattr(timm_models, "load_tag", lambda architecture, tag: time.sleep(5))
    with pytest.raises(OSError, match=r"nothing came for 0.2 s"):
        build_backbone("resnet10t", "c3_in1k")


def test_broken_weights_of_a_tag(monkeypatch):
    def load(architecture, tag):
        model = timm.create_model("resnet10t")
        model.bn1.weight.data[0] = float("inf")
        return model

    monkeypatch.setattr(timm_models, "load_tag", load)
    with pytest.raises(ValueError, match=r"resnet10t.c3_in1k: 'bn1.weight' holds NaN or infinity"):
        build_backbone("resnet10t", "c3_in1k")
