"""A small part of what tests/stress/ does at length."""

import pytest

from stress import fuzz, metrics


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return fuzz.bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_broken_files(kind, bench):
    """Of each kind the sound file, and two broken ones."""
    assert fuzz.attempt(kind, None, bench) == "well"
    for seed in range(2):
        assert fuzz.attempt(kind, seed, bench) in ("well", "refused"), seed


def test_the_bench_sees_what_is_wrong(bench, monkeypatch):
    """A traceback, a second line, a result that is left: each would be reported."""
    kind = fuzz.KINDS["meta"]

    def end(main):
        return fuzz.run(kind._replace(main=main), bench)

    assert end(lambda _: 1 / 0).startswith("traceback: ")
    assert end(lambda _: None) == "results are not whole"

    def leaves_half_a_table(_):
        bench.out.mkdir(exist_ok=True)
        (bench.out / "metrics.csv").write_text("auroc_px")
        raise ValueError("stopped")

    assert end(leaves_half_a_table) == "left ['metrics.csv'] after error: stopped"
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert end(lambda _: [None for _ in iter(int, 1)]).startswith("traceback: ")
    (bench.out / "metrics.csv").unlink()


@pytest.mark.parametrize("start", [0, 50, 100])
def test_metrics_on_random_cases(start):
    for seed in range(start, start + 8):
        metrics.check(seed)
