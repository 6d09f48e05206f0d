"""Weights and architectures from files: how they are normalised, what is wrapped around them, what is refused."""

import json
import logging
import os
import socket
import threading
import time
import urllib.request
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from model.backbones import torchscript
from model.backbones import weights as module
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from model.backbones.weights import Weights
from model.interface import OPENAI_NORMALIZATION
from utils import memory_check

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
CLIPA = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def write_architecture(folder, name: str, *, vision=None, text=None, **extra) -> str:
    path = folder / f"{name}.json"
    content = {"embed_dim": 24, "vision_cfg": {**VIT, **(vision or {})}, "text_cfg": {**TEXT, **(text or {})}, **extra}
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return register_architecture(write_architecture(tmp_path_factory.mktemp("configs"), "weights-vit"))


@pytest.fixture(scope="module")
def state(vit) -> dict[str, torch.Tensor]:
    return Backbone(vit).clip.state_dict()


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(module._LOG, "propagate", True)
    caplog.set_level(logging.INFO, logger="vand")
    return caplog


def refusal(model: str, path, content) -> str:
    """The one line on a file of this content."""
    if content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=path.name) as error:
        Backbone(model, str(path))
    line = str(error.value)
    assert "\n" not in line and len(line.replace(str(path.parent), "")) <= 300
    return line


# --- what a file does not say -----------------------------------------------------------------------------------------


def test_weights_by_file_are_normalised_as_all_tags_of_their_architecture(lines, tmp_path):
    (tmp_path / "w.pt").touch()
    weights = Weights.find("ViT-L-14-CLIPA", str(tmp_path / "w.pt"))
    assert weights.normalization == CLIPA and weights.quick_gelu is False
    weights.log("ViT-L-14-CLIPA", False, asked=False)
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (as all tags of ViT-L-14-CLIPA" in lines.messages[-1]


def test_weights_by_file_where_tags_differ_or_there_are_none(vit, lines, tmp_path):
    (tmp_path / "w.pt").touch()
    for model, why in (("ViT-L-14", "since tags of ViT-L-14 differ"), (vit, "since no tag of it is known")):
        weights = Weights.find(model, str(tmp_path / "w.pt"))
        weights.log(model, False, asked=True)
        assert weights.normalization == OPENAI_NORMALIZATION and why in lines.messages[-1]


def test_weights_by_file_warn_of_the_activation_as_a_tag_does(lines, tmp_path):
    path = tmp_path / "metaclip_400m.pt"
    path.touch()
    Weights.find("ViT-L-14-336", str(path)).log("ViT-L-14-336", False, asked=False)
    assert "was trained with QuickGELU and runs with exact GELU; --quick_gelu on changes it" in lines.messages[-1]
    Weights.find("ViT-B-16", str(path)).log("ViT-B-16", False, asked=False)
    assert "metaclip_400m" in lines.messages[-1] and "--quick_gelu on or off says which" in lines.messages[-1]
    count = len(lines.messages)
    Weights.find("ViT-B-16", str(path)).log("ViT-B-16", True, asked=True)
    assert len(lines.messages) == count + 1  # of the normalisation alone


def test_the_architecture_file_and_the_flags_say_how_images_are_normalised(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    model = register_architecture(write_architecture(tmp_path, "said-vit", preprocess_cfg=preprocess))
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert Backbone(model, str(tmp_path / "w.pt")).normalize(images).unique().tolist() == [2.0]
    flags = Backbone(model, str(tmp_path / "w.pt"), mean=[0, 0, 0], std=[1, 1, 1])
    assert flags.normalize(images).unique().tolist() == [1.0]
    assert flags.description()["normalization"] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"mean": [0.5] * 3}, "--mean and --std belong together"),
        ({"mean": [0.5] * 3, "std": [1, 1, 0]}, "each std must be above 0"),
        ({"mean": [0.5, 0.5, float("nan")], "std": [1, 1, 1]}, "mean must be three numbers"),
    ],
)
def test_a_normalisation_that_is_none(vit, flags, said):
    with pytest.raises(ValueError, match=said):
        Backbone(vit, **flags)


def test_a_byte_order_mark_and_the_form_of_a_hub(tmp_path):
    path = tmp_path / "bom-vit.json"
    content = {"model_cfg": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}, "preprocess_cfg": {"size": 32}}
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert Backbone(register_architecture(str(path))).image_size == 32


# --- what is wrapped around weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "model", "model_state_dict", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_weights_as_other_programs_keep_them(vit, state, wrapper, prefix, tmp_path):
    kept = {prefix + key: value for key, value in state.items()}
    torch.save({wrapper: kept, "epoch": 3} if wrapper else kept, tmp_path / "w.pt")
    own = Backbone(vit, str(tmp_path / "w.pt")).clip.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_weights_of_a_tower_that_was_compiled(vit, state, tmp_path):
    kept = {key.replace("visual.", "visual._orig_mod."): value for key, value in state.items()}
    torch.save(kept, tmp_path / "w.pt")
    assert torch.equal(Backbone(vit, str(tmp_path / "w.pt")).clip.state_dict()["visual.proj"], state["visual.proj"])


def test_wrong_keys_are_a_short_line(vit, state, tmp_path):
    path = tmp_path / "w.pt"
    line = refusal(vit, path, {f"encoder.{key}": value for key, value in state.items()})
    assert f"({len(state)} of {len(state)} tensors are)" in line and "begin with 'encoder.'" in line
    line = refusal(vit, path, {**state, "visual.proj": torch.zeros(32, 23)})
    assert "'visual.proj' is (32, 23) in the file but (32, 24) in this model" in line


# --- strange tensors --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda value: value.to("meta"), "a meta tensor"),
        (lambda value: value.to_sparse(), "a sparse tensor"),
        (lambda value: value.to_sparse_csr(), "a sparse tensor (sparse_csr)"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantised"),
        (lambda value: value.to(torch.complex64), "complex"),
        (lambda value: value > 0, "bool numbers"),
        (lambda value: value.long(), "int64 numbers"),
        (lambda value: torch.zeros(1, dtype=torch.half).expand(1 << 20, 1 << 12), "larger than its data"),
        (lambda value: value.fill_(float("nan")), "holds NaN"),
        (lambda value: [1.0], "is a list"),
    ],
)
def test_a_strange_tensor_in_weights(vit, state, make, said, tmp_path):
    line = refusal(vit, tmp_path / "w.pt", {**state, "visual.proj": make(state["visual.proj"].clone())})
    assert "'visual.proj'" in line and said in line


# --- what costs more than it says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("wide", {"vision": {"width": 20480}}, "at least .* GB of memory"),
        ("wide-text", {"text": {"width": 20480}}, "at least .* GB of memory"),
        ("context", {"text": {"context_length": 60000}}, "at least .* GB of memory"),
        ("vocabulary", {"text": {"vocab_size": 10**10}}, "at least .* GB of memory"),
        ("deep", {"vision": {"layers": 10**6}}, "layers must be whole numbers from 1 to 1000, not 1000000"),
        ("deep-text", {"text": {"layers": 10**6}}, "layers must be whole numbers from 1 to 1000, not 1000000"),
        ("stages", {"vision": {"layers": [1, 1, 10**6, 1]}}, "layers must be whole numbers"),
    ],
)
def test_an_architecture_that_memory_cannot_hold(monkeypatch, name, changes, said, tmp_path):
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 10**9)
    model = register_architecture(write_architecture(tmp_path, f"bomb-{name}", **changes))
    with pytest.raises(ValueError, match=said):
        Backbone(model)


def test_an_architecture_file_without_end(tmp_path):
    path = tmp_path / "endless.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"endless\.json: is larger than 1 MiB"):
        register_architecture(str(path))


def test_a_torchscript_archive_whose_memo_asks_for_gigabytes(tmp_path):
    with warnings.catch_warnings():  # OpenAI's own files are such archives, deprecated or not
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(3)).save(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        own = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        for name, content in own.items():
            archive.writestr(name, b"\x80\x02}r\xff\xff\xff\x7f." if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match="keeps something under the number 2147483647"):
        torchscript.read(tmp_path / "bomb.pt")


def test_packed_weights_are_not_unpacked(vit, state, tmp_path):
    torch.save({**state, "more": torch.zeros(1 << 23)}, tmp_path / "own.pt")
    with (
        zipfile.ZipFile(tmp_path / "own.pt") as archive,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert "33554432 bytes, packed" in refusal(vit, tmp_path / "w.pt", None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_sparse_gigabytes_of_weights_are_never_read(vit, monkeypatch, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    with path.open("wb") as file:
        file.truncate(2 * 10**11)
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 10**9)
    assert "at least 200.0 GB of memory" in refusal(vit, path, None)


# --- no files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
def test_what_is_no_file_is_refused_and_not_waited_for(vit, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    path = "/dev/zero" if kind == "device" else "thing.json"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    with pytest.raises(ValueError, match=f"--pretrained {path}: is a .*{kind}"):
        Backbone(vit, path)
    with pytest.raises(ValueError, match=f"--config_path {path}: is a .*{kind}"):
        register_architecture(path)


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_server(monkeypatch):
    """A server that takes connections and never answers; what is downloaded is asked of it."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pt"
    monkeypatch.setattr(module, "download_pretrained", lambda tag, prefer_hf_hub: urllib.request.urlopen(address))
    yield address
    server.close()


def test_a_download_that_waits_says_so_and_is_given_up(silent_server, lines, monkeypatch):
    monkeypatch.setattr(module, "_LOG_AFTER", 0.1)
    monkeypatch.setattr(module, "_NO_ANSWER", 0.5)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"could not be downloaded.*nothing came for 0\.5 s"):
        module._download({"url": silent_server}, "ViT-B-32 openai")
    assert time.monotonic() - start < 5
    assert lines.messages == [
        f"weights ViT-B-32 openai: downloading from {silent_server}; given up after 0.5 s without an answer or 300 s "
        "without a byte"
    ]


def test_a_download_that_comes_slowly_is_waited_for(lines, monkeypatch, tmp_path):
    def download(tag, prefer_hf_hub):
        with (tmp_path / "w.pt").open("wb", buffering=0) as file:
            for _ in range(8):
                time.sleep(0.1)
                file.write(b"x")
        return str(tmp_path / "w.pt")

    monkeypatch.setattr(module, "download_pretrained", download)
    for name, seconds in (("_LOG_AFTER", 0.05), ("_NO_ANSWER", 0.5), ("_NO_BYTE", 0.5)):
        monkeypatch.setattr(module, name, seconds)
    assert module._download({"url": "somewhere"}, "some") == tmp_path / "w.pt"
    assert len(lines.messages) == 1 and threading.active_count() < 50


def test_a_file_of_safetensors_in_half_precision(vit, state, tmp_path):
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "w.safetensors")
    own = Backbone(vit, str(tmp_path / "w.safetensors")).clip.state_dict()
    assert all(own[key].dtype == torch.float32 and torch.equal(own[key], state[key].half().float()) for key in state)
