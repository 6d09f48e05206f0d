"""Train what trains, test every method on every dataset that is there, and compare with the published figures.

    DATA=/data METHODS="april_gan winclip" sh reproduce.sh     # its settings stand at its top

Fills --save_path with the folders of train.py and test.py (METHOD/trained_on_DATASET, METHOD/DATASET/MODE), with what
they say in a .log beside each, and writes the table --save_path.csv and the page --save_path.html. What is finished
under the same settings is not done again; what was interrupted goes on. A run that fails is named, the others go on.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import reproduce_parser

if __name__ == "__main__":
    reproduce_parser().parse_known_args()  # --help and wrong flags are answered before the imports below

# isort: split
import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from config.flags import DATASETS, PUBLISHED_DATASETS, test_parser, train_parser
from config.resolve import resolve_test, resolve_train
from config.settings import TestSettings, TrainSettings
from data import meta
from engine import checkpoint
from engine.resume import FOLDER
from model import METHODS, capabilities
from report.compare import PUBLISHED
from report.reproduce import Entry, Outcome, Published, entries_of, read_published, text, write
from utils.errors import MESSAGE_LIMIT, run_script
from utils.files import read_json, result_folder, write_json
from utils.provenance import provenance
from utils.text import escape_controls, shorten

ROOT = Path(__file__).resolve().parent
ADVICE = "the same command goes on where it was"
FAILED = 3  # exit code where a run has failed
MODES = ("zero_shot", "few_shot", "batched")
NOT_YET = "not run yet"
# What published tests were started with beside the method's preset.
PUBLISHED_FLAGS = {
    ("winclip", "few_shot"): ("--seed", "1", "2", "3", "4", "5"),
    ("anomaly_dino", "few_shot"): ("--seed", "0", "1", "2"),
    ("anomaly_dino", "batched"): ("--image_size", "672", "--preprocess", "masking_only"),
}


class Run(NamedTuple):
    """A training, or a test.

    mode: of a test; "" of a training.
    folder: of its results.
    needs: the folder of the training whose checkpoint it tests.
    """

    method: str
    dataset: str
    mode: str
    folder: Path
    words: list[str]
    settings: TestSettings | TrainSettings
    needs: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {f'on {self.dataset}, {self.mode}' if self.mode else f'trained on {self.dataset}'}"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def done(self) -> Path:
        """The flags of the run, written when it has ended well."""
        return self.folder.with_name(f"{self.folder.name}.json")


class Data(NamedTuple):
    """A dataset. state: why it cannot be used; "" where it can. references: whether every class has normal images."""

    state: str
    references: bool = False


def main(argv: list[str] | None = None) -> int:
    args, passed_on = reproduce_parser().parse_known_args(argv)
    data, save_path = Path(args.data_path).resolve(), result_folder(args.save_path).resolve()
    datasets = list(dict.fromkeys(args.datasets or PUBLISHED_DATASETS))
    published = read_published(Path(args.published) if args.published else PUBLISHED)
    if not data.is_dir():
        raise ValueError(f"DATA {args.data_path}: no such folder; name the one that holds the folder {datasets[0]}")
    if not any((data / name).is_dir() for name in datasets):
        raise ValueError(f"DATA {args.data_path}: holds none of the folders {', '.join(datasets)}")
    plan = list(plan_of(args, datasets, data, save_path, passed_on))  # wrong flags end it here
    states = {run.folder: NOT_YET for run in plan}
    print(f"what each run says: {escape_controls(save_path)}/METHOD/DATASET/MODE.log", flush=True)
    try:
        links = "--follow_links" in passed_on
        found = {name: prepare(data / name, save_path, links) for name in dict.fromkeys(run.dataset for run in plan)}
        states.update({run.folder: why for run in plan if (why := obstacle(run, found[run.dataset]))})
        for number, run in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {run.name}", end=": ", flush=True)
            states[run.folder], said = work(run, states, found)
            print(escape_controls(said), flush=True)
            if said.startswith("done in"):  # the page grows while the rest runs
                write(save_path, results(plan, states, save_path, published), published)
    finally:
        entries = results(plan, states, save_path, published)
        write(save_path, entries, published)
        print(f"\n{text(entries)}\n\nthe table: {save_path}.csv\nthe page: {save_path}.html", flush=True)
    broken = [name for name, one in found.items() if one.state.startswith("failed")]
    broken += [run.name for run in plan if states[run.folder].startswith("failed") and run.dataset not in broken]
    if broken:
        print(f"error: failed: {'; '.join(broken)}; the same command tries again", file=sys.stderr)
    return FAILED if broken else 0


def trained_on(dataset: str) -> str:
    """The dataset that published runs are trained on, to be tested on this one."""
    return "visa" if dataset == "mvtec" else "mvtec"


def plan_of(
    args: argparse.Namespace, datasets: Sequence[str], data: Path, save_path: Path, passed_on: Sequence[str]
) -> Iterator[Run]:
    """All runs in their order; ends as train.py and test.py do where their flags are wrong, before any of them runs."""
    for method in dict.fromkeys(args.methods or METHODS):
        can, trainings = capabilities(method), dict[str, Path]()
        if can.trains:
            for source in dict.fromkeys(map(trained_on, datasets)):
                folder = trainings[source] = save_path / method / f"trained_on_{source}"
                words = [str(ROOT / "train.py"), "--method", method, "--dataset", source, "--train_data_path",
                         str(data / source), "--save_path", str(folder), "--resume", *passed_on]  # fmt: skip
                yield Run(method, source, "", folder, words, resolve_train(train_parser().parse_args(words[1:]))[0])
        for dataset in datasets:
            for mode in (mode for mode in MODES if getattr(can, mode)):
                folder, needs = save_path / method / dataset / mode, trainings.get(trained_on(dataset))
                words = [str(ROOT / "test.py"), "--method", method, "--mode", mode, "--dataset", dataset, "--data_path",
                         str(data / dataset), "--save_path", str(folder), "--no_images", "--resume",
                         *(("--checkpoint_path", str(needs)) if needs else ()),
                         *PUBLISHED_FLAGS.get((method, mode), ()),
                         *(few_shot_flags(method, args) if mode == "few_shot" else ()), *passed_on]  # fmt: skip
                settings = resolve_test(test_parser().parse_args(words[1:]))[0]
                yield Run(method, dataset, mode, folder, words, settings, needs)


def few_shot_flags(method: str, args: argparse.Namespace) -> list[str]:
    draw = ["--reference_draw", "published"] if hasattr(METHODS[method], "draw_references") else []
    seeds = ["--seed", *map(str, args.seed)] if args.seed else []
    return ["--k_shot", *map(str, args.k_shot), *seeds, *draw]


def prepare(root: Path, save_path: Path, follow_links: bool) -> Data:
    """Look at a dataset, whose script is run where there is no meta.json."""
    if not root.is_dir():
        return Data("dataset absent")
    script, log = ROOT / "data" / f"{root.name}.py", save_path / f"{root.name}.log"
    if not (root / "meta.json").is_file() and script.is_file():
        print(f"python data/{script.name} --root {escape_controls(root)}", flush=True)
        if code := launch([str(script), "--root", str(root)], log):
            return Data(f"failed: {reason(code, log)}")
    try:
        samples = meta.read(root, follow_links=follow_links)
    except (OSError, ValueError) as error:
        return Data(f"failed: {error}")
    normal = {sample.cls_name for sample in samples["train"] if not sample.anomaly}
    return Data("", {sample.cls_name for sample in samples["test"]} <= normal)


def work(run: Run, states: Mapping[Path, str], found: Mapping[str, Data]) -> tuple[str, str]:
    """Have a run done, unless it is or cannot be. Returns why it has no results, "" where it has, and what to say."""
    why = obstacle(run, found[run.dataset])
    if not why and run.needs and states[run.needs]:
        why = f"not trained on {trained_on(run.dataset)}: {states[run.needs].removeprefix('failed: ')}"
    if why:
        return why, why
    if is_finished(run):
        return "", "done before"
    started = time.monotonic()
    code = launch(run.words, run.log)
    if not code:
        write_json(run.done, run.words[1:])
    why = f"failed: {reason(code, run.log)}" if code else ""
    return why, why or f"done in {timedelta(seconds=round(time.monotonic() - started))}"


def obstacle(run: Run, data: Data) -> str:
    """Why a run cannot be had from a dataset; "" where it can."""
    if not data.state and run.mode == "few_shot" and not data.references:
        return "a class has no normal images for references"
    return data.state


def is_finished(run: Run) -> bool:
    """Whether the results of this run are there, newer than what they are made of; what is not is left to --resume."""
    root = Path(run.settings.data_path if isinstance(run.settings, TestSettings) else run.settings.train_data_path)
    made_of = [root / "meta.json", *([checkpoint.latest(run.needs)] if run.needs else [])]
    try:
        config = read_json(run.folder / "config.json")
        versions = {key: value for key, value in provenance().items() if key not in ("git", "platform")}
        same = read_json(run.done) == run.words[1:] and all(config.get(key) == own for key, own in versions.items())
        if isinstance(run.settings, TrainSettings):
            result = checkpoint.to_resume(run.folder)
            whole = result is not None and result.name == f"epoch_{run.settings.epoch}.pth"
        else:
            result = run.folder / "metrics.json"
            whole = not (run.folder / FOLDER).exists()
        ended = result.stat().st_mtime if result else 0.0
        return same and whole and all(path is not None and path.stat().st_mtime <= ended for path in made_of)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return False


def launch(words: Sequence[str], log: Path) -> int:
    """Run a script to its end; what it says goes to a file. Returns its exit code.

    It gets no signal but ours: Ctrl-C is passed on once, so that it keeps what is done; a second one ends it at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait()
        except KeyboardInterrupt as error:
            process.send_signal(getattr(error, "number", signal.SIGINT))
            try:
                process.wait()
            except KeyboardInterrupt:
                process.kill()
            raise


def reason(code: int, log: Path) -> str:
    """Why a script has failed: the last line of what it said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return shorten(lines[-1].removeprefix("error: ") if lines and code > 0 else ended, MESSAGE_LIMIT)


def results(plan: Sequence[Run], states: Mapping[Path, str], save_path: Path, published: Published) -> list[Entry]:
    """What has become of the tests of this call, and the results of others that are in the folder."""
    found = [
        Outcome(run.method, run.dataset, run.mode, run.settings.k_shot or [0], run.folder, states[run.folder])
        for run in plan
        if isinstance(run.settings, TestSettings)
    ]
    for folder in (path.parent for path in sorted(save_path.glob("*/*/*/metrics.json"))):
        method, dataset, mode = folder.relative_to(save_path).parts
        known = method in METHODS and dataset in DATASETS and mode in MODES
        if known and folder not in states and not (folder / FOLDER).exists():
            found.append(Outcome(method, dataset, mode, [0], folder, ""))
    return entries_of(found, published)


if __name__ == "__main__":
    run_script(main, ADVICE)
