"""Imports run one way, and one file touches the CLIP library."""

import ast

import pytest

from conftest import ROOT

OWN = {"model", "utils", "data", "dataset", "prompt_ensemble", "train", "test", "predict", "app", "tools", "benchmarks"}
ALLOWED = {
    "model": {"model", "prompt_ensemble"},
    "utils": {"utils"},
    "dataset.py": {"data"},
    "prompt_ensemble.py": set(),
    "data": {"data"},
}
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
    place = path.relative_to(ROOT).parts[0]
    names = imports(path)
    own = {name.split(".")[0] for name in names} & OWN
    if place in ALLOWED:
        assert own <= ALLOWED[place]
    if path != ROOT / "model/backbone.py":
        assert not {name for name in names if name.split(".")[0] == "open_clip"}
    scripts = {p.stem for p in (ROOT / "data").glob("*.py")} - {"meta"}
    assert not {name for name in names if name in {f"data.{script}" for script in scripts}}
