"""reproduce.py on tiny data and models: interrupted, finished, its table beside made-up figures, and its mistakes."""

import contextlib
import csv
import io
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time

import pytest

import engine.class_scores
import reproduce
from conftest import REFERENCE
from model import METHODS, capabilities
from utils.errors import run_script
from utils.signals import Stopped, handle_signals, raise_stopped, restore_signals

FAST = ["--image_size", "64", "--num_workers", "0", "--device", "cpu"]


class Launcher:
    """In the place of `reproduce.launch`: the script runs in this process. `started`: script and folder of each run."""

    def __init__(self, monkeypatch):
        self.started, self.interrupted, self._monkeypatch = [], None, monkeypatch
        monkeypatch.setattr(reproduce, "launch", self)
        monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # tests in the background ignore it

    def __call__(self, words, log) -> int:
        self.started.append("/".join(log.with_suffix("").parts[-2:]))
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
            self._monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "argv", list(words))
            if self.started[-1] == self.interrupted:
                patch.setattr(engine.class_scores, "finish", self._stopping(engine.class_scores.finish))
            try:
                runpy.run_path(words[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code or 0
        if self.started[-1] == self.interrupted:  # Ctrl-C ends the loop too, once the run has ended
            assert code == 130
            raise Stopped(signal.SIGINT)
        return code

    @staticmethod
    def _stopping(finish):
        calls = []

        def counted(*args):
            calls.append(args)
            if len(calls) == 5:  # of the second class: there are four settings
                os.kill(os.getpid(), signal.SIGINT)
            return finish(*args)

        return counted


def call(*argv) -> int:
    """The exit code of reproduce.py."""
    with pytest.raises(SystemExit) as end:
        run_script(lambda: reproduce.main([str(word) for word in argv]) or sys.exit(0), reproduce.ADVICE)
    return end.value.code


def rows_of(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_interrupted_and_finished(tiny_a, tmp_path, monkeypatch, capsys):
    """A method that trains and takes references, and one that does neither; datasets without meta.json, one that is
    absent, and one that cannot be read."""
    data, save = tmp_path / "my data", tmp_path / "out/all runs"
    (data / "btad").mkdir(parents=True)
    shutil.copytree(REFERENCE / "data/mini_mvtec/brick", data / "mvtec/brick")
    shutil.copytree(REFERENCE / "data/mini_visa", data / "visa")
    flags = ["--data_path", data, "--save_path", save, "--datasets", "visa", "btad", "mpdd", "--k_shot", 1, 2,
             "--seed", 3, 4, "--published", tmp_path / "figures.json", *tiny_a.flags, *FAST]  # fmt: skip
    figures = [{"source": "x", "method": "april_gan", "dataset": "mpdd", "k_shot": 0, "mean": {"auroc_px": 50.0}}]
    (tmp_path / "figures.json").write_text(json.dumps({"figures": figures}))
    launcher = Launcher(monkeypatch)
    launcher.interrupted = "visa/few_shot"
    assert call(*flags, "--methods", "april_gan", "sdp") == 130
    assert launcher.started == ["all runs/mvtec", "all runs/visa", "all runs/btad", "april_gan/trained_on_mvtec",
                                "visa/zero_shot", "visa/few_shot"]  # fmt: skip
    captured = capsys.readouterr()
    assert captured.err == "interrupted: the same command goes on where it was\n"
    assert "not measured: sdp on visa: not run yet (zero-shot)" in captured.out.splitlines()
    statuses = {
        (line["method"], line["dataset"], line["mode"]): line["status"]
        for line in rows_of(tmp_path / "out/all runs.csv")
    }
    assert statuses["april_gan", "mpdd", "zero_shot"] == "dataset absent"
    assert statuses["april_gan", "btad", "zero_shot"].startswith(f"failed: {data}/btad: ")
    assert statuses["april_gan", "visa", "few_shot"] == "not run yet"
    whole = save / "april_gan/visa/zero_shot/metrics.json"
    made, mean = whole.stat().st_mtime_ns, json.loads(whole.read_text())["mean"]

    published = {"auroc_px": 100 * mean["auroc_px"] + 0.3, "aupro": 100 * mean["aupro_200"] - 3, "ap_sp": 99.0}
    figures += [
        {"source": "paper", "method": "april_gan", "dataset": "visa", "k_shot": k, "mean": published} for k in (0, 2)
    ]
    (tmp_path / "figures.json").write_text(json.dumps({"figures": figures, "classes": {"visa": 2}}))
    launcher.started, launcher.interrupted = [], None
    assert call(*flags, "--methods", "april_gan", "sdp") == reproduce.FAILED
    assert launcher.started == ["all runs/btad", "visa/few_shot", "visa/zero_shot"]  # the last one is of sdp
    assert "resumed: 1 of 2 classes are done" in (save / "april_gan/visa/few_shot/log.txt").read_text()
    assert whole.stat().st_mtime_ns == made
    lines = rows_of(tmp_path / "out/all runs.csv")
    zero = {line["metric"]: line for line in lines if line["mode"] == "zero_shot" and line["source"] == "paper"}
    assert [(zero[key]["difference"], zero[key]["status"]) for key in ("auroc_px", "aupro_200")] == [
        ("-0.3", "compared"), ("3", "compared")
    ]  # fmt: skip
    assert float(zero["ap_sp"]["difference"]) == pytest.approx(100 * mean["ap_sp"] - 99, abs=1e-3)
    few = json.loads((save / "april_gan/visa/few_shot/metrics.json").read_text())
    (line,) = (line for line in lines if line["k_shot"] == "2" and line["metric"] == "auroc_px" and line["source"])
    assert (line["seeds"], line["classes"]) == ("3 4", "2")
    for key, column in (("mean", "measured"), ("std", "std")):
        assert float(line[column]) == pytest.approx(100 * few[key]["2"]["auroc_px"], abs=1e-3)
    assert {line["status"] for line in lines if line["method"] == "sdp" and line["dataset"] == "visa"} == {
        "no published figure"
    }
    captured = capsys.readouterr()
    assert captured.err == "error: failed: btad; the same command tries again\n"
    close = sum(round(abs(float(line["difference"])), 1) <= 0.5 for line in lines if line["difference"])
    assert close >= 1 and f"april_gan: within 0.5 points: {close} of 6 (paper)" in captured.out
    page = (tmp_path / "out/all runs.html").read_text(encoding="utf-8")
    assert "dataset absent" in page and "<small>−0.3</small>" in page and "1-shot, seeds 3 4" in page

    launcher.started = []
    (data / "btad").rmdir()
    assert call(*flags, "--methods", "sdp") == 0
    assert launcher.started == []  # and what an earlier call has measured stays in the table
    assert {line["method"] for line in rows_of(tmp_path / "out/all runs.csv")} == {"sdp", "april_gan"}
    assert call(*flags, "--methods", "sdp", "--class", "grass") == 0
    assert launcher.started == ["visa/zero_shot"]  # other flags: another run


def test_a_run_of_its_own_and_its_end(tmp_path, monkeypatch):
    """Its words go to the log, its last line says why it failed, and Ctrl-C reaches it once."""
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # tests in the background ignore it
    log = tmp_path / "new/a.log"
    code = reproduce.launch(["-c", "print('hm'); raise SystemExit('error: no such thing')"], log)
    assert (code, reproduce.reason(code, log)) == (1, "no such thing")
    code = reproduce.launch(["-c", "import os; print('hm', flush=True); os.kill(os.getpid(), 9)"], log)
    assert reproduce.reason(code, log) == "ended by signal 9"
    code = "import signal, time; signal.signal(2, lambda *_: exit('kept')); print('up', flush=True); time.sleep(60)"

    def interrupt():
        while not log.is_file() or "up" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    log.unlink()
    before = handle_signals(raise_stopped)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(Stopped):
            reproduce.launch(["-c", code], log)
    finally:
        restore_signals(before)
    assert log.read_text() == "up\nkept\n"


def test_mistakes_are_named_before_anything_runs(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "launch", None)
    (tmp_path / "data/mvtec").mkdir(parents=True)
    flags = ["--data_path", tmp_path / "data", "--save_path", tmp_path / "out"]
    assert "DATA" in fails(reproduce.main, "--data_path", tmp_path / "none")
    assert "holds none of the folders visa" in fails(reproduce.main, *flags, "--datasets", "visa")
    assert "none.json: cannot be read" in fails(reproduce.main, *flags, "--published", tmp_path / "none.json")
    assert "requires --pretrained" in fails(reproduce.main, *flags, "--model", "ViT-B-16")
    for wrong in (["--methods", "winclop"], ["--datasets", "mvtek"], ["--k_shot", 0], ["--epoch", 1], ["--no_flag"]):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            reproduce.main([str(word) for word in [*flags, *wrong]])
        assert end.value.code == 2 and errors.getvalue().startswith("error: ") and errors.getvalue().count("\n") == 1
        assert str(wrong[-1]) in errors.getvalue()
    assert not (tmp_path / "out").exists()


def test_the_plan_holds_what_was_published(tmp_path):
    """Every method in each of its modes, trained on the other dataset, as the published runs were started."""
    args = reproduce.reproduce_parser().parse_args([])
    plan = list(reproduce.plan_of(args, ["mvtec", "visa"], tmp_path, tmp_path / "out", []))
    tests = {(run.method, run.dataset, run.mode): run for run in plan if run.mode}
    assert tests.keys() == {(method, dataset, mode) for method in METHODS for dataset in ("mvtec", "visa")
                            for mode in reproduce.MODES if getattr(capabilities(method), mode)}  # fmt: skip
    for (method, dataset, _), run in tests.items():
        trained = tmp_path / f"out/{method}/trained_on_{'visa' if dataset == 'mvtec' else 'mvtec'}"
        assert run.needs == (trained if capabilities(method).trains else None)
        before = [other.folder for other in plan[: plan.index(run)]]
        assert run.needs is None or (run.needs in before and run.settings.checkpoint_path == str(trained))
        assert (run.settings.model, run.settings.no_images) == (METHODS[method].PRESET.model, True)
    drawn = {run.method: (run.settings.k_shot, run.settings.seed, run.settings.reference_draw)
             for run in plan if run.mode == "few_shot"}  # fmt: skip
    assert drawn == {
        "april_gan": ([1, 2, 4], [42], "seeded"),
        "winclip": ([1, 2, 4], [1, 2, 3, 4, 5], "seeded"),
        "anomaly_dino": ([1, 2, 4], [0, 1, 2], "published"),
        "subspace_ad": ([1, 2, 4], [42], "published"),
    }
    settings = tests["anomaly_dino", "mvtec", "batched"].settings
    assert (settings.image_size, settings.options["preprocess"]) == (672, "masking_only")
