"""A user's mistake ends with one clear line and a non-zero exit; odd but valid input works."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import test as test_script
import train as train_script
from conftest import REFERENCE, ROOT
from engine import checkpoint

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"


@pytest.fixture
def visa(mini_visa, tmp_path):
    root = tmp_path / "visa"
    shutil.copytree(mini_visa, root)
    return root


@pytest.fixture
def run(tiny_a, visa, tmp_path):
    """Flags of a few-shot test that works, and what is to be changed in them."""

    def flags(*changed, **replaced) -> list[str]:
        given = {
            "model": tiny_a.model,
            "config_path": tiny_a.config_path,
            "pretrained": tiny_a.pretrained,
            "image_size": "96",
            "dataset": "visa",
            "data_path": visa,
            "checkpoint_path": CHECKPOINT,
            "save_path": tmp_path / "out",
            "num_workers": "0",
            **replaced,
        }
        words = [(f"--{key}", str(value)) for key, value in given.items() if value is not None]
        return [*(word for pair in words for word in pair), "--no_images", *changed]

    return flags


def change_meta(root, change) -> None:
    meta = json.loads((root / "meta.json").read_text())
    change(meta)
    (root / "meta.json").write_text(json.dumps(meta))


def test_results_of_other_data_are_not_replaced_by_default(run, fails, visa, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = Path("results/april_gan/visa/few_shot")
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"settings": {"data_path": "elsewhere"}}))
    flags = run("--k_shot", "1", pretrained="missing.safetensors")
    line = fails(test_script.main, *[flag for flag in flags if flag not in ("--save_path", str(tmp_path / "out"))])
    assert line.endswith("few_shot holds the results of elsewhere; name another place with --save_path")
    (place / "config.json").write_text(json.dumps({"settings": {"data_path": str(visa)}}))
    line = fails(test_script.main, *[flag for flag in flags if flag not in ("--save_path", str(tmp_path / "out"))])
    assert "missing.safetensors" in line


def test_the_log_says_why_a_run_has_ended(run, fails, visa, tmp_path):
    image = next(visa.rglob("Anomaly/*.JPG"))
    image.write_bytes(b"no image")
    line = fails(test_script.main, *run())
    log = (tmp_path / "out/log.txt").read_text().splitlines()
    assert image.name in line and log[-1].endswith(f"ERROR {line.removeprefix('error: ')}")


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "ViT-X"}, "unknown model 'ViT-X'"),
        ({"dataset": "visaa"}, "invalid choice: 'visaa'"),
        ({"method": "april"}, "invalid choice: 'april'"),
        ({"image_size": "97"}, "--image_size 97"),
        ({"image_size": "0"}, "must be 1 or more"),
        ({"image_size": "big"}, "invalid positive value: 'big'"),
        ({"features_list": "9"}, "layer 9 does not exist, tiny-a has layers 1 to 4"),
        ({"few_shot_features": "0"}, "few_shot_features 0: layer 0 does not exist"),
        ({"k_shot": "9"}, "--k_shot 9: class 'grass' of visa has 8 normal training images"),
        ({"k_shot": "-1"}, "must be 0 or more"),
        ({"class": "gras"}, "unknown class 'gras'; the dataset has grass, tissue_slide"),
        ({"data_path": "/nowhere"}, "/nowhere"),
        ({"pretrained": "openai"}, "neither a file nor a tag of tiny-a"),
        ({"pretrained": "missing.pt"}, "missing.pt"),
        ({"config_path": "missing.json"}, "missing.json"),
        ({"checkpoint_path": "missing.pth"}, "missing.pth: no such file"),
        ({"references": "missing.json"}, "missing.json"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"device": "meta"}, "--device meta"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"batch_size": "automatic"}, "invalid batch_size value: 'automatic'"),
        ({"save_path": ""}, "results cannot go to ''"),
        ({"save_memory": f"{__file__}/m.safetensors", "k_shot": "1"}, "is no folder"),
        ({"save_memory": "m.safetensors"}, "zero-shot has no references to save"),
        ({"k_shots": "4"}, "did you mean --k_shot?"),
        ({"save_path": __file__}, "is no folder"),
        ({"references": ""}, "--references"),
        ({"seed": "-1"}, "must be 0 or more"),
        ({"no_such_flag": "1"}, "--no_such_flag"),
        ({"mode": "zero_shot", "k_shot": "4"}, "--mode zero_shot takes no --k_shot"),
    ],
)
def test_flags(run, fails, flags, said):
    if "features_list" in flags or "few_shot_features" in flags:
        flags = {**flags, "k_shot": "1"}
    assert said in fails(test_script.main, *run(**flags))


def test_own_model_without_weights(fails, tiny_a, visa):
    line = fails(test_script.main, "--config_path", tiny_a.config_path, "--data_path", visa, "--dataset", "visa")
    assert "--model tiny-a requires --pretrained" in line


def test_no_checkpoint(fails, tiny_a, visa):
    assert "requires --checkpoint_path" in fails(test_script.main, *tiny_a.flags, "--data_path", visa)


def test_real_process_ends_with_one_line_and_code_2(visa):
    (visa / "meta.json").unlink()
    done = subprocess.run(
        [sys.executable, ROOT / "test.py", "--dataset", "visa", "--data_path", visa], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "meta.json" in done.stderr


# --- meta.json and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"test": {"grass": [{}]}}', '{"test": {"grass": "a"}}', ""])
def test_malformed_meta(run, fails, visa, content):
    (visa / "meta.json").write_text(content)
    assert "meta.json" in fails(test_script.main, *run())


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
@pytest.mark.parametrize("key", ["img_path", "mask_path"])
def test_path_that_leaves_the_root(run, fails, visa, path, key):
    change_meta(visa, lambda meta: meta["test"]["grass"][-1].update({key: path}))
    assert path in fails(test_script.main, *run())


def test_linked_class_needs_a_flag(run, fails, visa, tmp_path):
    (visa / "grass").rename(tmp_path / "elsewhere")
    (visa / "grass").symlink_to(tmp_path / "elsewhere")
    line = fails(test_script.main, *run())
    assert "visa/grass is a link to" in line and "--follow_links" in line
    test_script.main(run("--follow_links"))
    assert (tmp_path / "out/metrics.csv").exists()


def test_truncated_image(run, fails, visa):
    image = visa / "grass/Data/Images/Anomaly/003.JPG"
    image.write_bytes(image.read_bytes()[:900])
    for workers in ("0", "2"):
        assert "Anomaly/003.JPG: unreadable image" in fails(test_script.main, *run(num_workers=workers))
    assert not list((visa.parent / "out").glob("metrics*"))


def test_missing_image(run, fails, visa):
    (visa / "grass/Data/Images/Anomaly/003.JPG").unlink()
    assert "Anomaly/003.JPG: no such file" in fails(test_script.main, *run(num_workers="1"))


def test_missing_mask(run, fails, visa):
    (visa / "grass/Data/Masks/Anomaly/003.png").unlink()
    assert "Masks/Anomaly/003.png: no such file" in fails(test_script.main, *run())


def test_mask_of_another_size(run, fails, visa):
    Image.new("L", (5, 5), 1).save(visa / "grass/Data/Masks/Anomaly/003.png")
    assert "Masks/Anomaly/003.png is 5 x 5 pixels" in fails(test_script.main, *run())


def test_training_without_masks(fails, tiny_a, visa, tmp_path):
    change_meta(visa, lambda meta: [sample.update(mask_path="") for sample in meta["test"]["grass"]])
    line = fails(train_script.main, *tiny_a.flags, "--train_data_path", visa, "--save_path", tmp_path / "out")
    assert "training needs masks" in line and "grass/Data/Images/Anomaly/000.JPG" in line


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_a, mini_mvtec, tmp_path):
    train_script.main(
        [*tiny_a.flags, "--image_size", "96", "--train_data_path", str(mini_mvtec), "--epoch", "1", "--num_workers",
         "0", "--class", "brick", "--features_list", "2", "4", "--save_path", str(tmp_path / "trained")]
    )  # fmt: skip
    return tmp_path / "trained/epoch_1.pth"


def test_checkpoint_that_contradicts_the_flags(run, fails, trained):
    assert "features_list 2 4 but this run has 1 2 3 4" in fails(test_script.main, *run(checkpoint_path=trained))
    line = fails(test_script.main, *run("--features_list", "2", "4", checkpoint_path=trained, quick_gelu="on"))
    assert "quick_gelu False but this run has True" in line


def test_a_training_that_has_saved_nothing_yet(run, fails, trained):
    losses = trained.with_name("losses.csv")
    losses.write_text(losses.read_text().splitlines()[0] + "\n")
    line = fails(test_script.main, *run(checkpoint_path=trained.parent))
    assert f"checkpoint {trained.parent}: the training there has saved no epoch yet; go on with" in line


@pytest.mark.parametrize("key", ["method", "model", "weights"])
def test_checkpoint_of_another_run(run, fails, trained, key):
    content = torch.load(trained, weights_only=True)
    content["meta"][key] = "another"
    torch.save(content, trained)
    line = fails(test_script.main, *run("--features_list", "2", "4", checkpoint_path=trained))
    assert f"was trained with {key} another but this run has" in line


def test_published_checkpoint_of_another_shape(run, fails, tmp_path):
    torch.save({"trainable_linearlayer": {"fc.0.weight": torch.zeros(3, 3)}}, tmp_path / "c.pth")
    assert "c.pth: 'fc." in fails(test_script.main, *run(checkpoint_path=tmp_path / "c.pth"))


def test_broken_and_malicious_checkpoints(run, fails, tmp_path, capsys):
    path = tmp_path / "c.pth"

    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    for content in (b"", b"hello", CHECKPOINT.read_bytes()[:500]):
        path.write_bytes(content)
        assert "c.pth" in fails(test_script.main, *run(checkpoint_path=path))
    for value in ([1], {"a": torch.zeros(1)}, Evil()):
        torch.save(value, path)
        assert "c.pth" in fails(test_script.main, *run(checkpoint_path=path))
    assert "code ran" not in capsys.readouterr().out


def test_nan_weights_are_named(run, fails, tmp_path):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["trainable_linearlayer"]["fc.0.bias"][:] = float("nan")
    torch.save(content, tmp_path / "c.pth")
    assert "c.pth: 'fc.0.bias' holds NaN or infinity" in fails(
        test_script.main, *run(checkpoint_path=tmp_path / "c.pth")
    )


def test_nan_pretrained_weights_are_named(run, fails, tiny_a, tmp_path):
    content = torch.load(tiny_a.pretrained, weights_only=True)
    content["visual.proj"][0, 0] = float("inf")
    torch.save(content, tmp_path / "w.pt")
    line = fails(test_script.main, *run(pretrained=tmp_path / "w.pt"))
    assert "w.pt: 'visual.proj' holds NaN or infinity" in line


def test_infinite_map_is_named(run, fails, tmp_path):
    """Finite weights whose products are not."""
    content = torch.load(CHECKPOINT, weights_only=True)
    content["trainable_linearlayer"]["fc.0.weight"][:] = 1e38
    torch.save(content, tmp_path / "c.pth")
    line = fails(test_script.main, *run(checkpoint_path=tmp_path / "c.pth"))
    assert "grass/Data/Images/Normal/0002.JPG holds NaN" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "log.txt"]


def test_a_loss_that_is_not_finite_stops_the_training(fails, tiny_a, mini_mvtec, tmp_path):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["trainable_linearlayer"]["fc.0.weight"][:] = 1e38
    torch.save(content, tmp_path / "c.pth")
    line = fails(train_script.main, *tiny_a.flags, "--image_size", 96, "--train_data_path", mini_mvtec, "--num_workers",
                 0, "--init_checkpoint", tmp_path / "c.pth", "--save_path", tmp_path / "out")  # fmt: skip
    assert "the loss is nan at epoch 1, step 1" in line and not list(tmp_path.glob("out/*.pth"))


def test_what_is_not_finite_reaches_no_checkpoint(tmp_path):
    path, good, bad = tmp_path / "c.pth", torch.ones(2), torch.tensor([1.0, float("inf")])
    checkpoint.save(path, {"part": {"fc.0.bias": good}}, {"epoch": 1})
    before = path.read_bytes()
    moments = {"optimizer": {"state": {0: {"exp_avg": bad}}}}
    for state, meta, name in (({"part": {"fc.0.bias": bad}}, {}, "part.fc.0.bias"),
                              ({"part": {"fc.0.bias": good}}, moments, "optimizer.state.0.exp_avg")):  # fmt: skip
        with pytest.raises(ValueError, match=f"c.pth is not written, since {name} holds NaN or infinity"):
            checkpoint.save(path, state, meta)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_resumed_training_must_be_the_same_run(fails, trained, tiny_a, mini_mvtec):
    flags = [*tiny_a.flags, "--train_data_path", mini_mvtec, "--epoch", 2, "--features_list", 2, 4, "--class", "brick",
             "--num_workers", 0, "--resume", "--save_path", trained.parent]  # fmt: skip
    assert "with seed 111 but this run has 7" in fails(train_script.main, *flags, "--image_size", 96, "--seed", 7)
    assert "with image_size 96 but this run has 80" in fails(train_script.main, *flags, "--image_size", 80)
    (trained.parent / "losses.csv").unlink()
    assert "losses.csv: missing or broken" in fails(train_script.main, *flags, "--image_size", 96)


@pytest.mark.parametrize("rate", ["nan", "inf", "-1", "0", "1e39"])
def test_learning_rate(fails, rate):
    assert "must be a number above 0, at most 1e6" in fails(train_script.main, "--learning_rate", rate)


def test_images_that_differ_in_the_suffix_alone(run, visa, tmp_path):
    image = visa / "grass/Data/Images/Anomaly/000.JPG"
    shutil.copy(image, image.with_suffix(".jpeg"))
    change_meta(visa, lambda meta: meta["test"]["grass"].append(
        {**meta["test"]["grass"][-1], "img_path": "grass/Data/Images/Anomaly/000.jpeg"}))  # fmt: skip
    test_script.main(run("--save_maps"))
    folder = tmp_path / "out/maps/grass/Data/Images/Anomaly"
    assert {"000_JPG.npy", "000_jpeg.npy", "001.npy"} <= {path.name for path in folder.iterdir()}


def test_a_failed_run_leaves_no_results_of_an_earlier_one(run, fails, visa, tmp_path):
    test_script.main(run("--k_shot", "1"))
    (visa / "grass/Data/Images/Anomaly/003.JPG").unlink()
    fails(test_script.main, *run())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "log.txt"]


# --- odd but valid --------------------------------------------------------------------------------------------------


def odd_dataset(root, folder="grass"):
    """Four test images of every kind that is readable, masks of every kind, one class without defects, one image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:25, 20:40] = 7
    grey = pixels[..., 0]
    pictures = {
        "grey.png": Image.fromarray(grey),
        "palette.png": Image.fromarray(pixels).convert("P"),
        "rgba.png": Image.fromarray(np.dstack([pixels, grey])),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "cmyk.tif": Image.fromarray(pixels).convert("CMYK"),
    }
    meta = {"train": {}, "test": {folder: [], "all normal": [], "one image": []}}
    (root / folder).mkdir(parents=True)
    for number, (name, picture) in enumerate(pictures.items()):
        picture.save(root / folder / name)
        mask_name = f"{folder}/{number}_mask.png"
        (Image.fromarray(mask) if number % 2 else Image.fromarray(np.dstack([mask] * 3))).save(root / mask_name)
        entry = {"img_path": f"{folder}/{name}", "specie_name": "hole", "anomaly": 1, "mask_path": mask_name}
        meta["test"][folder].append({**entry, "cls_name": folder})
        normal = {**entry, "specie_name": "good", "anomaly": 0, "mask_path": ""}
        meta["test"]["all normal"].append({**normal, "cls_name": "all normal"})
    Image.fromarray(255 - pixels).save(root / folder / "normal.png")
    meta["test"][folder].append({**normal, "img_path": f"{folder}/normal.png", "cls_name": folder})
    meta["test"]["one image"].append({**entry, "cls_name": "one image"})
    (root / "meta.json").write_text(json.dumps(meta))


def test_odd_images_and_classes(run, tmp_path):
    odd_dataset(tmp_path / "odd")
    test_script.main([part for part in run(data_path=tmp_path / "odd") if part != "--no_images"])
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert all(value is not None for value in result["classes"]["grass"].values())
    assert all(value is None for value in result["classes"]["all normal"].values())
    one = result["classes"]["one image"]
    assert one["auroc_sp"] is None and one["auroc_px"] is not None
    assert result["mean"]["auroc_sp"] == result["classes"]["grass"]["auroc_sp"]
    table = (tmp_path / "out/table.md").read_text()
    assert "| all normal |          |" in table
    assert (tmp_path / "out/log.txt").read_text().count("all normal: ") == 1
    assert len(list((tmp_path / "out/imgs").rglob("*.png"))) == 6


def test_labels_without_masks(run, visa, tmp_path):
    change_meta(visa, lambda meta: [sample.update(mask_path="") for sample in meta["test"]["grass"]])
    test_script.main(run())
    grass = json.loads((tmp_path / "out/metrics.json").read_text())["classes"]["grass"]
    assert grass["auroc_px"] is None and grass["aupro"] is None and grass["auroc_sp"] is not None


# --- memories -------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory_file(run, tmp_path):
    path = tmp_path / "memory.safetensors"
    test_script.main(run("--k_shot", "1", "2", "--seed", "5", "--save_memory", str(path)))
    return path


def test_memory_gives_what_its_images_gave(run, memory_file, visa, tmp_path):
    before = json.loads((tmp_path / "out/metrics.json").read_text())["runs"]
    change_meta(visa, lambda meta: meta.update(train={}))
    test_script.main(run("--k_shot", "2", memory=memory_file))
    again = json.loads((tmp_path / "out/metrics.json").read_text())
    assert again["classes"] == before[1]["classes"] and again["settings"]["seed"] == 5


def test_memory_that_does_not_fit(run, fails, memory_file, tmp_path):
    assert "with image_size 96 but this run has 80" in fails(
        test_script.main, *run(memory=memory_file, image_size="80")
    )
    assert "holds no references for --k_shot 3" in fails(test_script.main, *run("--k_shot", "3", memory=memory_file))
    assert "few_shot_features 1 2 3 4 but this run has 2" in fails(
        test_script.main, *run("--few_shot_features", "2", memory=memory_file)
    )
    line = fails(test_script.main, *run("--references", "a.json", memory=memory_file))
    assert "--references and --memory both name" in line


def test_memory_without_a_class(run, fails, visa, tmp_path):
    path = tmp_path / "memory.safetensors"
    test_script.main(run("--k_shot", "1", "--save_memory", str(path), "--class", "grass"))
    assert "holds no references of class 'tissue_slide'" in fails(test_script.main, *run(memory=path))


@pytest.mark.parametrize("content", [b"", b"hello, no memory", "weights", "truncated"])
def test_broken_memory(run, fails, memory_file, tiny_a, content):
    if content == "weights":
        save_file({"a": torch.zeros(2)}, memory_file)
    else:
        memory_file.write_bytes(memory_file.read_bytes()[:-50] if content == "truncated" else content)
    assert "memory.safetensors: no file that --save_memory wrote" in fails(test_script.main, *run(memory=memory_file))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda bank: None, "bank '2' of class 'grass' is absent"),
        (
            lambda bank: bank[:, :5].contiguous(),
            r"is of shape (36, 5), torch.float32; must be (tokens, 64), torch.float32",
        ),
        (lambda bank: bank * float("nan"), "holds NaN or infinity"),
    ],
)
def test_memory_with_a_broken_bank(run, fails, memory_file, change, said):
    with safe_open(memory_file, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    bank = change(tensors.pop("0/0/2"))
    save_file(tensors if bank is None else {**tensors, "0/0/2": bank}, memory_file, header)
    assert said in fails(test_script.main, *run(memory=memory_file))


def test_nothing_to_train(fails, tiny_a, visa):
    assert "winclip has nothing to train" in fails(train_script.main, "--method", "winclip", *tiny_a.flags)
    line = fails(test_script.main, *tiny_a.flags, "--method", "winclip", "--data_path", visa, "--checkpoint_path", "a")
    assert "drop --checkpoint_path a" in line


def test_an_option_of_another_method(run, fails):
    assert "--scales 2: april_gan has no such option" in fails(test_script.main, *run(scales="2"))
    few = run(method="anomaly_dino", mode="few_shot", prompts="winclip", checkpoint_path=None)
    assert "--prompts: anomaly_dino compares images with images" in fails(test_script.main, *few)
