"""Every command in the README and the shell scripts parses, and published command lines run unchanged."""

import os
import re
import shlex
import subprocess

import pytest

import test as test_script
from conftest import REFERENCE, ROOT
from model import METHODS, build
from model.backbone import register_architecture
from utils import config


def resolve_predict(args):
    """As predict.py: with --onnx the file says what the detector is, here WinCLIP for screws."""
    said = {"method": "winclip", "class_name": "screw", "image_size": 240}
    return config.resolve_predict(args) if args.onnx is None else config.resolve_onnx(args, said)


PARSERS = {
    "predict.py": (config.predict_parser, resolve_predict),
    "export.py": (config.export_parser, config.resolve_export),
    "app.py": (config.app_parser, config.resolve_app),
    "train.py": (config.train_parser, config.resolve_train),
    "test.py": (config.test_parser, config.resolve_test),
}
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


def settings_of(script: str, flags: list[str]):
    parser, resolve = PARSERS[script]
    return resolve(parser(list(METHODS)).parse_args(flags))[0]


def printed(script: str, *flags: str, **environment: str) -> tuple[str, list[str]]:
    """(Python script, its flags) that a shell script runs."""
    done = subprocess.run(
        ["sh", ROOT / script, *flags],
        env={"PATH": os.environ["PATH"], "PYTHON": str(ROOT / "tests/print_arguments.sh"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    path, *words = done.stdout.splitlines()
    return path.rpartition("/")[2], words


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command(command):
    words = shlex.split(command)
    environment = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[0] == "sh":
        assert (ROOT / words[1]).is_file()
        text = (ROOT / words[1]).read_text() + (ROOT / "train.sh").read_text()
        assert all(f"${{{name}:-" in text for name in environment)
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).is_file()
    else:
        if words[:2] == ["torchrun", "--nproc_per_node"]:
            words[:3] = ["python"]
        assert words[0] == "python"
        if words[1] == "-m":
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file()
        elif words[1] in PARSERS:
            settings_of(words[1], words[2:])
        else:
            assert (ROOT / words[1]).is_file()


def test_readme_has_commands():
    assert len(COMMANDS) > 10


def test_shell_defaults_are_the_published_settings():
    script, flags = printed("train.sh")
    settings = settings_of(script, flags)
    assert script == "train.py" and settings.model == "ViT-L-14-336" and settings.pretrained == "openai"
    assert (settings.image_size, settings.batch_size, settings.learning_rate) == (518, 8, 1e-3)
    assert (settings.dataset, settings.epoch, settings.aug_rate, settings.betas) == ("mvtec", 3, 0.2, (0.5, 0.999))
    settings = settings_of(*printed("train.sh", DATASET="visa"))
    assert (settings.epoch, settings.aug_rate, settings.train_data_path) == (15, 0.0, "./data/visa")
    settings = settings_of(*printed("test_zero_shot.sh"))
    assert (settings.mode, settings.dataset, settings.checkpoint_path) == (
        "zero_shot",
        "visa",
        "./exps/april_gan/mvtec",
    )
    settings = settings_of(*printed("test_few_shot.sh"))
    assert (settings.mode, settings.k_shot, settings.seed) == ("few_shot", [4], [42])


@pytest.mark.parametrize(
    ("method", "dataset", "train", "test"),
    [
        ("sdp_plus", "mvtec", {"learning_rate": 1e-4, "betas": (0.9, 0.999), "epoch": 5, "batch_size": 8, "seed": 42,
                               "aug_rate": 0.0, "no_shuffle": True, "augment": False, "dbscan": [0.5, 15]},
         {"batch_size": 16, "dbscan": [0.5, 15], "smoothing": 8.0}),
        ("sdp_plus", "visa", {"dbscan": [1.5, 25]}, {"dbscan": [1.5, 25], "smoothing": 2.0}),
        ("sdp", "visa", None, {"batch_size": 16, "dbscan": [1.5, 25], "smoothing": None, "prompts": None}),
        ("vcp_clip", "mvtec", {"learning_rate": 2e-5, "betas": (0.5, 0.999), "epoch": 10, "batch_size": 32, "seed": 333,
                               "aug_rate": 0.2, "mosaic_of": "anomalies", "augment": True, "no_shuffle": False}, {}),
        ("vcp_clip", "visa", {"learning_rate": 4e-5, "aug_rate": 0.0}, {"smoothing": None}),
        ("april_gan", "isic", {"augment": False, "mosaic_of": "all"}, {"prompts": "isic"}),
    ],
)  # fmt: skip
def test_presets_are_the_published_settings(method, dataset, train, test):
    """Literal values: a slip of the keyboard in a preset would train or test something else."""
    backbones = {"vcp_clip": ("ViT-L-14-336", "openai", 518), "april_gan": ("ViT-L-14-336", "openai", 518)}
    for script, wanted in (("train.sh", train), ("test_zero_shot.sh", test)):
        if wanted is not None:
            settings = settings_of(*printed(script, METHOD=method, DATASET=dataset))
            backbone = backbones.get(method, ("ViT-B-16-plus-240", "laion400m_e31", 240))
            assert (settings.model, settings.pretrained, settings.image_size) == backbone
            assert {key: getattr(settings, key) for key in wanted} == wanted


def test_shell_settings_come_from_the_environment_and_flags_pass_through():
    settings = settings_of(
        *printed(
            "test_few_shot.sh", "--save_maps", "--class", "metal nut", "bolt", DATASET="mvtec", DATA="/a b/c",
            K_SHOT="1 2 4", SEED="1 2", FEATURES="3 6", FEW_SHOT_FEATURES="9", MODEL="ViT-B-16", PRETRAINED="openai",
            IMAGE_SIZE="240", BATCH_SIZE="3", CHECKPOINT="x.pth", SAVE="out",
        )
    )  # fmt: skip
    assert (settings.k_shot, settings.seed, settings.features_list) == ([1, 2, 4], [1, 2], [3, 6])
    assert (settings.few_shot_features, settings.data_path, settings.model) == ([9], "/a b/c", "ViT-B-16")
    assert settings.save_maps and settings.classes == ["metal nut", "bolt"] and settings.image_size == 240
    assert (settings.batch_size, settings.checkpoint_path, settings.save_path) == (3, "x.pth", "out")
    assert settings_of(*printed("test_zero_shot.sh", DATASET="mvtec")).checkpoint_path == "./exps/april_gan/visa"
    settings = settings_of(*printed("train.sh", EPOCH="2", AUG_RATE="0.1", CONFIG="a/own.json", PRETRAINED="own.pt"))
    assert (settings.epoch, settings.aug_rate, settings.model, settings.pretrained) == (2, 0.1, "own", "own.pt")
    assert settings.image_size is None


@pytest.mark.parametrize("script", ["quickstart.sh", "run_tests.sh", "train.sh", "test_zero_shot.sh",
                                    "test_few_shot.sh", "utils/venv.sh"])  # fmt: skip
def test_shell_syntax(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_published_config_path_means_the_shipped_architecture(monkeypatch, mini_visa):
    """The published command line builds that architecture, with its own weights and layers."""
    command = next(c for c in COMMANDS if c.startswith("python test.py --mode few_shot --dataset visa"))
    asked = {}

    def built(method, **settings):
        asked.update(settings, method=method)
        raise InterruptedError

    monkeypatch.setattr(test_script, "build", built)
    published = str(REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth")
    with pytest.raises(InterruptedError):
        test_script.main([*shlex.split(command)[2:], "--data_path", str(mini_visa), "--checkpoint_path", published])
    assert register_architecture(asked["config_path"]) == asked["model"] == "ViT-L-14-336"
    assert (asked["method"], asked["pretrained"], asked["image_size"]) == ("april_gan", "openai", 518)
    assert asked["features_list"] == asked["few_shot_features"] == [6, 12, 18, 24]


def test_readme_example_runs(tiny_a, mini_mvtec):
    """The Python block of the README, on small weights and data."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    block = block.replace('"./data/mvtec"', "root")
    block, count = re.subn(r'build\("winclip".*\)', "detector_of_test", block)
    assert count == 1
    detector = build("winclip", model=tiny_a.model, pretrained=tiny_a.pretrained, config_path=tiny_a.config_path,
                     image_size=224)  # fmt: skip
    names = {"root": str(mini_mvtec), "detector_of_test": detector}
    exec(compile(block, "README.md", "exec"), names)
    assert names["few_shot"].maps.shape == (4, 224, 224)


def test_every_flag_has_help():
    for parser, _ in PARSERS.values():
        for action in parser(list(METHODS))._actions:
            assert action.help or action.dest == "help"
