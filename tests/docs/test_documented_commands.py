"""README, docs/ and the files beside them: commands parse, links lead somewhere, facts are those of the code."""

import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import config.flags
import engine.build
import predict as predict_script
import test as test_script
import train as train_script
from commands import PARSERS, commands_of, settings_of
from conftest import REFERENCE, ROOT
from model import METHODS, build, capabilities
from model.backbones.architectures import register_architecture

README = ROOT / "README.md"
PAGES = {path: path.read_text(encoding="utf-8") for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
COMMANDS = list(dict.fromkeys(command for page in PAGES.values() for command in commands_of(page)))


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
def test_documented_command(command):
    words = shlex.split(command)
    environment = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[0] == "sh":
        assert (ROOT / words[1]).is_file()
        text = (ROOT / words[1]).read_text() + (ROOT / "train.sh").read_text()
        assert all(f"${{{name}:-" in text for name in environment)
    elif words[0] == ".":
        assert words == [".", ".venv/bin/activate"]
    elif words[0] == "tensorboard":
        assert words == ["tensorboard", "--logdir", "exps"]
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).is_file()
    elif "pip-audit" in words:  # a tool of others, which the tests do not install
        assert words in (["pip", "install", "pip-audit"], ["pip-audit", "--path", ".venv/lib/python3.*/site-packages"])
    else:
        if words[:2] == ["torchrun", "--nproc_per_node"]:
            words[:3] = ["python"]
        assert words[0] == "python"
        if words[1] == "-m":
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
        elif words[1] in PARSERS:
            settings_of(words[1], words[2:])
        else:
            assert (ROOT / words[1]).is_file()


def test_there_are_commands():
    assert len(commands_of(PAGES[README])) > 8 and len(COMMANDS) > 40


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
                               "aug_rate": 0.0, "no_shuffle": True, "augment": False, "dbscan": (0.5, 15)},
         {"batch_size": 16, "dbscan": (0.5, 15), "smoothing": 8.0}),
        ("sdp_plus", "visa", {"dbscan": (1.5, 25), "smoothing": 8.0}, {"dbscan": (1.5, 25), "smoothing": 2.0}),
        ("sdp", "visa", None, {"batch_size": 16, "dbscan": (1.5, 25), "smoothing": 8.0, "prompts": None}),
        ("vcp_clip", "mvtec", {"learning_rate": 2e-5, "betas": (0.5, 0.999), "epoch": 10, "batch_size": 32, "seed": 333,
                               "aug_rate": 0.2, "mosaic_of": "anomalies", "augment": True, "no_shuffle": False}, {}),
        ("vcp_clip", "visa", {"learning_rate": 4e-5, "aug_rate": 0.0}, {"smoothing": None}),
        ("anomaly_clip", "mvtec", {"learning_rate": 1e-3, "betas": (0.5, 0.999), "epoch": 15, "batch_size": 8,
                                   "seed": 111, "aug_rate": 0.0, "augment": False, "no_shuffle": False},
         {"batch_size": 8, "features_list": None, "n_ctx": None, "smoothing": 4.0, "prompts": None}),
        ("april_gan", "isic", {"augment": False, "mosaic_of": "all"}, {"prompts": "isic"}),
    ],
)  # fmt: skip
def test_presets_are_the_published_settings(method, dataset, train, test):
    """Literal values: a slip of the keyboard in a preset would train or test something else."""
    backbones = {"vcp_clip": ("ViT-L-14-336", "openai", 518), "april_gan": ("ViT-L-14-336", "openai", 518),
                 "anomaly_clip": ("ViT-L-14-336-quickgelu", "openai", 518)}  # fmt: skip
    for script, wanted in (("train.sh", train), ("test_zero_shot.sh", test)):
        if wanted is not None:
            settings = settings_of(*printed(script, METHOD=method, DATASET=dataset))
            backbone = backbones.get(method, ("ViT-B-16-plus-240", "laion400m_e31", 240))
            assert (settings.model, settings.pretrained, settings.image_size) == backbone
            values = settings.as_dict()
            assert {key: values.get(key) for key in wanted} == wanted


def test_shell_settings_come_from_the_environment_and_flags_pass_through():
    settings = settings_of(
        *printed(
            "test_few_shot.sh", "--save_maps", "--class", "metal nut", "bolt", DATASET="mvtec", DATA="/a b/c",
            K_SHOT="1 2 4", SEED="1 2", FEATURES="3 6", FEW_SHOT_FEATURES="9", MODEL="ViT-B-16", PRETRAINED="openai",
            IMAGE_SIZE="240", BATCH_SIZE="3", CHECKPOINT="x.pth", SAVE="out",
        )
    )  # fmt: skip
    assert (settings.k_shot, settings.seed, settings.data_path) == ([1, 2, 4], [1, 2], "/a b/c")
    assert settings.options == {"features_list": [3, 6], "few_shot_features": [9]} and settings.model == "ViT-B-16"
    assert settings.save_maps and settings.classes == ["metal nut", "bolt"] and settings.image_size == 240
    assert (settings.batch_size, settings.checkpoint_path, settings.save_path) == (3, "x.pth", "out")
    assert settings_of(*printed("test_zero_shot.sh", DATASET="mvtec")).checkpoint_path == "./exps/april_gan/visa"
    settings = settings_of(*printed("train.sh", EPOCH="2", AUG_RATE="0.1", CONFIG="a/own.json", PRETRAINED="own.pt"))
    assert (settings.epoch, settings.aug_rate, settings.model, settings.pretrained) == (2, 0.1, "own", "own.pt")
    assert settings.image_size is None
    script, flags = printed(
        "reproduce.sh", "--device", "cpu", DATA="/a b/c", METHODS="winclip musc", SAVE="o p", SEED="1 2"
    )
    args, passed_on = config.flags.reproduce_parser().parse_known_args(flags)
    assert (script, passed_on, args.datasets, args.published) == ("reproduce.py", ["--device", "cpu"], None, None)
    assert (args.data_path, args.save_path, args.methods) == ("/a b/c", "o p", ["winclip", "musc"])
    assert (args.k_shot, args.seed) == ([1, 2, 4], [1, 2])


@pytest.mark.parametrize("script", ["quickstart.sh", "run_tests.sh", "train.sh", "test_zero_shot.sh",
                                    "test_few_shot.sh", "reproduce.sh", "utils/venv.sh"])  # fmt: skip
def test_shell_syntax(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_published_config_path_means_the_shipped_architecture(monkeypatch, mini_visa):
    """The published command line builds that architecture, with its own weights and layers."""
    command = next(c for c in COMMANDS if c.startswith("python test.py --mode few_shot --dataset visa"))
    asked = {}

    def built(method, **settings):
        asked.update(settings, method=method)
        raise InterruptedError

    monkeypatch.setattr(engine.build, "build", built)
    published = str(REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth")
    with pytest.raises(InterruptedError):
        test_script.main([*shlex.split(command)[2:], "--data_path", str(mini_visa), "--checkpoint_path", published])
    assert register_architecture(asked["config_path"]) == asked["model"] == "ViT-L-14-336"
    assert (asked["method"], asked["pretrained"], asked["image_size"]) == ("april_gan", "openai", 518)
    assert asked["features_list"] == asked["few_shot_features"] == [6, 12, 18, 24]


def test_python_examples_run(tiny_a, mini_mvtec):
    """The Python blocks of docs/python.md, the first on small weights and data."""
    block, metrics_block = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "docs/python.md"], re.DOTALL)
    exec(compile(metrics_block, "docs/python.md", "exec"), names := {})
    assert names["row"]["auroc_px"] == names["row"]["auroc_sp"] == 1
    block = block.replace('"./data/mvtec"', "root")
    block, count = re.subn(r'build\("winclip".*\)', "detector_of_test", block)
    assert count == 1
    detector = build("winclip", model=tiny_a.model, pretrained=tiny_a.pretrained, config_path=tiny_a.config_path,
                     image_size=224)  # fmt: skip
    names = {"root": str(mini_mvtec), "detector_of_test": detector}
    exec(compile(block, "docs/python.md", "exec"), names)
    assert names["few_shot"].maps.shape == (4, 224, 224)


@pytest.mark.slow
def test_readme_command_for_photographs_runs(tmp_path, monkeypatch):
    """The one on the small model that ships, which needs no download."""
    command = next(line for line in commands_of(PAGES[README]) if "predict.py photos/ --references" in line)
    bricks = REFERENCE / "data/mini_mvtec/brick"
    folders = {"photos": bricks / "test", "good_screws": bricks / "train/good", "exps": ROOT / "exps"}
    for name, source in folders.items():
        (tmp_path / name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    assert predict_script.main([*shlex.split(command)[2:], "--num_workers", "0"]) in (0, None)
    assert {"scores.csv", "imgs", "calibration.json"} <= {path.name for path in Path("results/screws").iterdir()}


def test_every_flag_has_help():
    for parser, _ in PARSERS.values():
        for action in parser()._actions:
            assert action.help or action.dest == "help"


# --- flags, files, versions -----------------------------------------------------------------------------------------


def test_every_flag_that_the_docs_name_is_there():
    """In code and in prose; those of other tools stand in `others`."""
    rooms = ("data", "tools", "report", "benchmarks", "tests/stress")
    scripts = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    declared = {flag for path in scripts for flag in re.findall(r'"(--[a-z_]+)"', path.read_text(encoding="utf-8"))}
    declared |= {f"--{name}" for name in ("mvtec", "visa", "help")}  # data/mvisa.py makes its flags in a loop
    for parser, _ in PARSERS.values():
        declared |= {flag for action in parser()._actions for flag in action.option_strings}
    others = {"--logdir", "--nproc_per_node", "--path"}
    named = {flag for page in PAGES.values() for flag in re.findall(r"(?<![\w-])--[a-z_]+", page)}
    assert named - declared - others == set()


def files_of_table(heading: str) -> set[str]:
    """The names in the first column of the table of files after some words of docs/results.md."""
    page = PAGES[ROOT / "docs/results.md"]
    table = page[page.index(heading) :].split("| file | what it holds |")[1].split("\n\n")[0]
    rows = table.splitlines()[2:]
    return {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.mark.slow
def test_the_files_of_a_run_are_those_that_the_docs_list(tiny_a, mini_mvtec, tmp_path):
    argv = [*tiny_a.flags, "--data_path", mini_mvtec, "--class", "brick", "--method", "winclip", "--image_size", 96,
            "--num_workers", 0, "--k_shot", 1, "--threshold", "conformal", "--save_maps",
            "--save_path", tmp_path]  # fmt: skip
    test_script.main([str(word) for word in argv])
    assert {path.name for path in tmp_path.iterdir()} == files_of_table("`test.py` fills `--save_path`")


@pytest.mark.slow
def test_the_files_of_training_and_prediction_are_those_that_are_named(tiny_a, mini_mvtec, tmp_path):
    own = [*tiny_a.flags, "--image_size", 96, "--num_workers", 0]
    argv = [*own, "--train_data_path", mini_mvtec, "--class", "brick", "--epoch", 1, "--val_dataset", "mvtec",
            "--val_data_path", mini_mvtec, "--save_path", tmp_path / "train"]  # fmt: skip
    train_script.main([str(word) for word in argv])
    written = {path.name.replace("epoch_1", "epoch_N") for path in (tmp_path / "train").iterdir()}
    written.add("last.pth")  # of an interrupted training
    assert written == set(re.findall(r"[\w]+\.(?:pth|csv|json|txt)|tensorboard", train_script.__doc__))
    (tmp_path / "broken.png").write_text("x")
    good = REFERENCE / "data/mini_mvtec/brick/train/good"
    argv = [good, tmp_path / "broken.png", *own, "--class_name", "brick", "--method", "winclip", "--references", good,
            "--save_maps", "--save_path", tmp_path / "predict"]  # fmt: skip
    assert predict_script.main([str(word) for word in argv]) == 3
    written = {path.name for path in (tmp_path / "predict").iterdir()}
    named = re.findall(
        r"(?:scores|skipped)\.csv|(?:config|calibration)\.json|log\.txt|imgs|maps", predict_script.__doc__
    )
    assert written == set(named)


def test_constraints_pin_what_the_tests_install():
    """run_tests.sh installs three files of requirements under constraints.txt: each package in them has one version."""
    assert (
        "-c constraints.txt" in (ROOT / "utils/venv.sh").read_text()
        and '. "$here/utils/venv.sh"' in (ROOT / "run_tests.sh").read_text()
    )
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+);", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for file in re.findall(r"requirements[\w-]*\.txt", (ROOT / "run_tests.sh").read_text()):
        for name in re.findall(r"^([\w-]+)", (ROOT / file).read_text(), re.MULTILINE):
            assert name in pinned, f"{name} of {file}"
            if sys.version_info >= (3, 11):
                assert metadata.version(name).partition("+")[0] == pinned[name], name


# --- pages ----------------------------------------------------------------------------------------------------------


def slugs(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[tuple[str, str]]:
    """(target, anchor) of every relative link and picture of a page."""
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target.partition("#")[::2] for target in targets if not re.match(r"[a-z]+:", target)]


def test_slugs_are_those_of_github():
    assert slugs("# CLIP-AD: SDP and SDP+\n```sh\n# none\n```\n## After `x`, y") == {"clip-ad-sdp-and-sdp", "after-x-y"}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for target, anchor in links(path):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in slugs(file.read_text(encoding="utf-8")), f"{path.name}: {target}#{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_of_the_checkout_that_are_named_are_there(path):
    named = set(re.findall(r"`((?:data|model|report|tests|exps)/[\w/-]+\.(?:py|json))`", PAGES[path]))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_readme_is_a_page_that_leads_to_every_other():
    assert len(PAGES[README].splitlines()) <= 200
    linked = {(ROOT / target).resolve() for target, _ in links(README)}
    assert {path.resolve() for path in PAGES} - {README.resolve()} <= linked


def test_readme_table_says_what_each_method_can_do():
    rows = {}
    for line in PAGES[README].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[1].strip("`") in METHODS:
            rows[cells[1].strip("`")] = cells
    assert list(rows) == list(METHODS)
    for method, (_, _, _, few_shot, trains, backbone, _, _) in rows.items():
        able, default = capabilities(method), METHODS[method].PRESET.model
        assert (few_shot != "no", trains != "no") == (able.few_shot, able.trains), method
        assert f"({default})" in backbone, method


def version() -> str:
    """VERSION, which one file of utils/ declares."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "utils").glob("*.py"))
    (number,) = re.findall(r'^VERSION = "([\d.]+)"', text, re.MULTILINE)
    return number


def test_citation_names_version_licence_and_the_papers_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"], citation["type"]) == (version(), "MIT", "software")
    for entry in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= entry.keys() and entry["authors"], entry
    cited = {entry["url"] for entry in citation["references"]}
    assert set(re.findall(r"https://arxiv.org/abs/[\d.]+", PAGES[README])) <= cited


def test_licence_is_mit():
    lines = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "MIT License" and lines[2] == "Copyright (c) 2026 The VAND Kit authors"
    assert "WITHOUT WARRANTY OF ANY KIND" in "".join(lines)


def test_changelog_has_the_current_version_below_unreleased():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version()]
