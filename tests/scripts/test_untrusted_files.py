"""Files from others: no code of theirs runs, and no path of theirs leads out of a root, in reading or in writing."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import export as export_script
import predict as predict_script
import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from engine import checkpoint
from model.backbones import torchscript

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
BRICK = REFERENCE / "data/mini_mvtec/brick"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path):
    """What a payload makes; it must not be there at the end, and the payload itself works."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    path.rmdir()
    yield path
    assert not path.exists()


def write_payload(kind: str, path, payload) -> None:
    content = {"trainable_linearlayer": {"fc.0.weight": torch.zeros(2)}, "meta": {"method": payload}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


# --- pickles --------------------------------------------------------------------------------------------------------

READERS = {
    "test.py --checkpoint_path": (test_script.main, "--checkpoint_path"),
    "train.py --init_checkpoint": (train_script.main, "--init_checkpoint"),
    "predict.py --checkpoint_path": (predict_script.main, "--checkpoint_path"),
    "export.py --checkpoint_path": (export_script.main, "--checkpoint_path"),
    "test.py --pretrained": (test_script.main, "--pretrained"),
    "test.py --memory": (test_script.main, "--memory"),
    "test.py --references": (test_script.main, "--references"),
    "test.py --prompts": (test_script.main, "--prompts"),
    "test.py --config_path": (test_script.main, "--config_path"),
    "predict.py --references": (predict_script.main, "--references"),
    "predict.py --calibration": (predict_script.main, "--calibration"),
    "predict.py --onnx": (predict_script.main, "--onnx"),
}


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_that_would_run_code(reader, kind, fails, tiny_a, mini_mvtec, canary, tmp_path):
    main, flag = READERS[reader]
    suffix = {"--config_path": ".json", "--references": ".safetensors", "--onnx": ".onnx"}.get(flag, ".pth")
    path = tmp_path / f"evil{suffix}"
    write_payload(kind, path, Payload(canary))
    (tmp_path / "evil.json").write_bytes(path.read_bytes())  # what stands beside an ONNX file
    own = {"--model": tiny_a.model, "--config_path": tiny_a.config_path, "--pretrained": tiny_a.pretrained,
           "--image_size": 96, "--save_path": tmp_path / "out"}  # fmt: skip
    if main is train_script.main:
        own |= {"--train_data_path": mini_mvtec, "--num_workers": 0}
    elif main is test_script.main:
        own |= {"--data_path": mini_mvtec, "--num_workers": 0, "--checkpoint_path": CHECKPOINT}
    elif flag == "--onnx":
        own = {"--save_path": tmp_path / "out"}
    else:
        own |= {"--class_name": "brick", "--num_workers": 0, "--checkpoint_path": CHECKPOINT}
    inputs = [BRICK / "test/good"] if main is predict_script.main else []
    line = fails(main, *inputs, *(word for pair in {**own, flag: path}.items() for word in pair))
    assert "evil" in line and not (tmp_path / "out").exists()
    if flag in ("--checkpoint_path", "--init_checkpoint"):
        assert "refused, since its loading" in line and "would run code" in line
        assert kind == "pickle" or "wants to call posix.mkdir" in line
    elif flag == "--pretrained":
        assert "refused, since it is broken or holds objects whose loading would run code" in line


def test_resume_reads_no_code_either(fails, tiny_a, mini_mvtec, canary, tmp_path):
    write_payload("zip", tmp_path / "epoch_1.pth", Payload(canary))
    line = fails(train_script.main, *tiny_a.flags, "--image_size", 96, "--train_data_path", mini_mvtec, "--resume",
                 "--save_path", tmp_path)  # fmt: skip
    assert "epoch_1.pth: refused, since its loading wants to call posix.mkdir" in line


def test_a_checkpoint_with_another_meta(fails, tiny_a, mini_mvtec, tmp_path):
    content = torch.load(CHECKPOINT, weights_only=True)
    flags = [*tiny_a.flags, "--data_path", mini_mvtec, "--checkpoint_path", tmp_path / "c.pth"]
    for meta in ({"method": torch.zeros(3)}, {"features_list": [torch.zeros(3)]}, [1], {"weights": {"a": 1}}):
        torch.save({**content, "meta": meta}, tmp_path / "c.pth")
        assert 'c.pth: its "meta" is not what train.py writes' in fails(test_script.main, *flags)
    torch.save({**content, "meta": {"method": "x" * 10**6}}, tmp_path / "c.pth")
    assert len(fails(test_script.main, *flags)) < 1000


@pytest.mark.parametrize("change", [{"optimizer": [1]}, {"optimizer": {}}, {"epoch": "1"}, {"epoch": 2}, "shape"])
def test_a_broken_optimiser_is_not_resumed(fails, tiny_a, mini_mvtec, tmp_path, change):
    flags = [*tiny_a.flags, "--image_size", 96, "--train_data_path", mini_mvtec, "--class", "brick", "--num_workers", 0,
             "--save_path", tmp_path]  # fmt: skip
    train_script.main([str(flag) for flag in [*flags, "--epoch", 1]])
    _, state, meta = checkpoint.load(tmp_path / "epoch_1.pth")
    if change == "shape":
        meta["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    checkpoint.save(tmp_path / "epoch_1.pth", state, {**meta, **({} if change == "shape" else change)})
    line = fails(train_script.main, *flags, "--epoch", 2, "--resume")
    assert "its optimiser or epoch is broken" in line and not (tmp_path / "epoch_2.pth").exists()


# --- TorchScript archives -------------------------------------------------------------------------------------------


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2).half()
        self.mask = torch.ones(2)  # neither a parameter nor a buffer
        self.register_buffer("positions", torch.arange(6).view(2, 3).T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mask.sum() + self.positions.sum()


class SetsItselfUp(torch.nn.Module):
    def __init__(self, path: str):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight, self.path, self.training = state
        torch.save(state[0], state[1])


@pytest.fixture
def quiet():
    with warnings.catch_warnings():  # OpenAI's own files are such archives, deprecated or not
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("make", [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(3))])
def test_an_archive_is_read_as_torchscript_reads_it(make, quiet, tmp_path):
    make(torch.nn.Sequential(Part(), Part())).save(tmp_path / "a.pt")
    expected, own = torch.jit.load(tmp_path / "a.pt").state_dict(), torchscript.read(tmp_path / "a.pt")
    assert own.keys() == expected.keys() and "0.mask" not in own
    for key, value in expected.items():
        assert torch.equal(own[key], value) and own[key].dtype == value.dtype


def test_code_of_an_archive_is_not_run(fails, quiet, tiny_a, mini_mvtec, canary, tmp_path):
    torch.jit.script(SetsItselfUp(str(canary))).save(tmp_path / "evil.pt")
    torch.jit.load(tmp_path / "evil.pt")
    assert canary.exists()  # which is why it is not read so
    canary.unlink()
    line = fails(
        test_script.main, *tiny_a.flags[:-1], tmp_path / "evil.pt", "--data_path", mini_mvtec, "--method", "sdp"
    )
    assert "evil.pt" in line and "would set itself up by running code" in line


def changed_archive(path, **entries: bytes) -> None:
    """An archive with other entries in the place of its own."""
    torch.jit.trace(Part(), torch.ones(3)).save(path)
    with zipfile.ZipFile(path) as archive:
        own = {name: archive.read(name) for name in archive.namelist()}
    (root,) = {name.partition("/")[0] for name in own}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (own | {f"{root}/{name}": content for name, content in entries.items()}).items():
            archive.writestr(name, content)


def own_pickle(storage=b"X\x01\x00\x00\x000", size=b"K\x02") -> bytes:
    """The pickle of a module `__torch__.Part` that holds one tensor."""
    number = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + storage + b"X\x03\x00\x00\x00cpuK\x02tQK\x00("
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + number + size + b"t(K\x01t\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02c__torch__\nPart\n)\x81}X\x06\x00\x00\x00weight" + tensor + b"sb."


SOUND = {
    "code/__torch__.py": b'class Part(Module):\n  __parameters__ = ["weight", ]\n  __buffers__ = []\n',
    "data.pkl": own_pickle(),
    "data/0": bytes(8),
}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"data.pkl": pickle.dumps({"a": Payload("canary")}, 2)}, "wants to call posix.mkdir"),
        ({"data.pkl": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."}, "wants to call builtins.eval"),
        ({"data.pkl": b"\x80\x02}."}, "holds no module"),
        ({"data.pkl": own_pickle(size=b"J\xff\xff\xff\x7f")}, "larger than its data"),
        ({"data.pkl": own_pickle(storage=b"X\x02\x00\x00\x00..")}, "no item named"),
        ({"data/0": bytes(1 << 25)}, "33554432 bytes, packed"),
        ({"data.pkl": b"\x80\x02c__torch__\nPart\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."}, "hold each other"),
        ({"data.pkl": b"\x80\x02c__torch__\nOther\n)\x81}b."}, "nothing says which tensors of Other"),
        ({"byteorder": b"big"}, "another kind of machine"),
    ],
)
def test_what_else_an_archive_may_hold(entries, said, quiet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed_archive(tmp_path / "a.pt", **SOUND | entries)
    with pytest.raises((ValueError, KeyError), match=said):
        torchscript.read(tmp_path / "a.pt")
    assert not (tmp_path / "canary").exists()


def test_a_tensor_cannot_grow_beyond_its_file(quiet, tmp_path):
    """By a state that sets another size, which an own, empty storage would follow."""
    sound = own_pickle(size=b"K\x00")
    place = sound.index(b"((X\x07\x00\x00\x00storage")
    storage = sound[place + 1 : sound.index(b"Q", place) + 1]
    grown = b"(" + storage + b"K\x00(J\x80\x96\x98\x00t(K\x01ttb"  # BUILD: ten million numbers
    changed_archive(tmp_path / "a.pt", **SOUND | {"data.pkl": sound[:-3] + grown + b"sb.", "data/0": b""})
    with pytest.raises(RuntimeError, match="resiz"):
        torchscript.read(tmp_path / "a.pt")


def test_the_changed_archive_itself_is_sound(quiet, tmp_path):
    changed_archive(tmp_path / "a.pt", **SOUND)
    assert torch.equal(torchscript.read(tmp_path / "a.pt")["weight"], torch.zeros(2))


# --- JSON and safetensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--config_path", "--references", "--prompts"])
def test_deeply_nested_json(flag, fails, tiny_a, mini_mvtec, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    line = fails(test_script.main, *tiny_a.flags, "--data_path", mini_mvtec, "--checkpoint_path", CHECKPOINT, flag,
                 tmp_path / "deep.json", "--save_path", tmp_path / "out")  # fmt: skip
    assert "deep.json" in line and len(line) < 1000


def test_an_architecture_that_wants_code_from_elsewhere(fails, tiny_a, mini_mvtec, tmp_path):
    config = json.loads(Path(tiny_a.config_path).read_text())
    config["text_cfg"] |= {"hf_tokenizer_name": "someone/something", "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "own.json").write_text(json.dumps(config))
    line = fails(test_script.main, "--config_path", tmp_path / "own.json", "--pretrained", tiny_a.pretrained,
                 "--data_path", mini_mvtec, "--method", "sdp")  # fmt: skip
    assert "own.json: refused, since trust_remote_code would run code" in line


@pytest.mark.parametrize(
    "shots", [[{"k_shot": 1, "seed": "../../../evil", "references": {}}], 3, [[]], [{"k_shot": 1}]]
)
def test_a_memory_names_no_folder(shots, fails, tiny_a, mini_mvtec, tmp_path):
    """Several settings have folders of their own, named after their seeds."""
    flags = [*tiny_a.flags, "--image_size", 96, "--data_path", mini_mvtec, "--checkpoint_path", CHECKPOINT, "--class",
             "brick", "--num_workers", 0, "--no_images", "--save_path", tmp_path / "out"]  # fmt: skip
    path = tmp_path / "m.safetensors"
    test_script.main([str(flag) for flag in [*flags, "--k_shot", 1, "--seed", 1, 2, "--save_memory", path]])
    with safe_open(path, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    header["header"] = json.dumps(json.loads(header["header"]) | {"shots": shots})
    save_file(tensors, path, header)
    line = fails(test_script.main, *flags, "--memory", path, "--save_maps")
    assert "m.safetensors: does not say which settings it holds" in line
    assert not list(tmp_path.rglob("*evil*"))


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["img_path", "mask_path"])
@pytest.mark.parametrize("path", ["link.png", "folder/0.png", "../outside/0.png", "/etc/hostname"])
def test_a_dataset_reads_nothing_outside_its_root(path, key, fails, tiny_a, mini_mvtec, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    shutil.copytree(mini_mvtec / "brick", root / "brick")
    Image.new("L", (96, 96)).save(outside / "0.png")
    (root / "link.png").symlink_to(outside / "0.png")
    (root / "folder").symlink_to(outside)
    meta = json.loads((mini_mvtec / "meta.json").read_text())
    meta["test"]["brick"][0][key] = path
    (root / "meta.json").write_text(json.dumps(meta))
    for main, flag in ((test_script.main, "--data_path"), (train_script.main, "--train_data_path")):
        line = fails(main, *tiny_a.flags, flag, root, "--save_path", tmp_path / "out")
        linked = path in ("link.png", "folder/0.png")
        said = "outside of the root" if linked else f'{key} "{path}" is not a path inside the root'
        assert said in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["../outside/0.png", "/etc/hostname", "link.png"])
def test_a_csv_names_nothing_outside_its_root(value, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "split_csv").mkdir(parents=True)
    outside.mkdir()
    Image.new("L", (9, 9)).save(outside / "0.png")
    (root / "link.png").symlink_to(outside / "0.png")
    text = f"object,split,label,image,mask\nnut,test,normal,{value},\n"
    (root / "split_csv/1cls.csv").write_text(text)
    done = subprocess.run([sys.executable, ROOT / "data/visa.py", "--root", root], capture_output=True, text=True)
    said = "outside of the root" if value == "link.png" else "inside the root"
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert not (root / "meta.json").exists()


@pytest.mark.parametrize("name", ["..", "../evil", "a/b", "/evil", ".hidden"])
def test_a_class_that_can_be_no_folder(name, tmp_path):
    """The one script that makes folders of class names."""
    source = tmp_path / "mvtec"
    shutil.copytree(BRICK, source / "brick")
    sample = {"img_path": "brick/test/good/000.png", "mask_path": "", "cls_name": name, "specie_name": "", "anomaly": 0}
    (source / "meta.json").write_text(json.dumps({"test": {"brick": [sample]}}))
    command = [sys.executable, ROOT / "data/mvisa.py", "--root", tmp_path / "tree", "--mvtec", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"class '{name}' of mvtec can be no folder" in done.stderr
    assert not (tmp_path / "tree").exists() and not (tmp_path / "evil").exists()
