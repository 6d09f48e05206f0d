"""Imports run one way, and one file touches the CLIP library."""

import ast

import pytest

from conftest import ROOT

# A room may import itself and what stands below it; what a room lists is all that it may import of the project.
SCRIPTS = {"train", "test", "predict", "export", "app"}
BASE = {"data", "prompt_ensemble", "utils"}
ALLOWED = {
    "utils": {"utils"},
    "prompt_ensemble": set(),
    "data": {"data", "utils"},
    "dataset": BASE,
    "metrics": {"metrics"},
    "model": {"model", *BASE},
    "engine": {"engine", "dataset", "model", "metrics", *BASE},
    "report": {"report", "dataset", "model", "metrics", *BASE},
    "inference": {"inference", "engine", "report", "dataset", "model", "metrics", *BASE},
    "config": {"config", "engine", "report", "dataset", "model", "metrics", *BASE},
}
OWN = {*ALLOWED, *SCRIPTS, "tools", "benchmarks"}
FILES = sorted(path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts))


def imports(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    place = path.relative_to(ROOT)
    names = imports(path)
    own = {name.split(".")[0] for name in names} & OWN
    assert own <= ALLOWED.get(place.parts[0].removesuffix(".py"), OWN - SCRIPTS)
    if place.parts[:2] != ("model", "backbones"):
        assert not {name for name in names if name.split(".")[0] == "open_clip"}
    scripts = {
        p.stem for p in (ROOT / "data").glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")
    }
    assert not {name for name in names if name in {f"data.{script}" for script in scripts}}
