"""Running the dataset scripts as a user runs them, for the tests of tests/data."""

import subprocess
import sys
from pathlib import Path

from data import meta

PROJECT = Path(__file__).parents[1]


def run(script, root, *flags, cwd=None):
    command = [sys.executable, PROJECT / "data" / f"{script}.py", *(["--root", root] if root else []), *flags]
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60)


def accepted(script, root):
    result = run(script, root)
    assert result.returncode == 0, result.stderr
    return meta.read(root)


def refused(script, root, *flags):
    """The one line of a refusal; no meta.json is left behind."""
    result = run(script, root, *flags)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert not (Path(root) / "meta.json").exists()
    return result.stderr


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
