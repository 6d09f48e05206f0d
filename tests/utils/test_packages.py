"""Packages that are missing."""

import importlib.util

import pytest

import train as train_script
from utils.packages import require


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    require("app.py", ("torch",), "requirements-app.txt")
    with pytest.raises(ValueError, match="^app.py needs no_such_a, no_such_b: pip install -r requirements-app.txt$"):
        require("app.py", ("torch", "no_such_a", "no_such_b"), "requirements-app.txt")


def test_training_without_tensorboard_is_one_line(fails, monkeypatch, tmp_path):
    """Before anything is written."""
    find = importlib.util.find_spec
    monkeypatch.setattr("utils.packages.find_spec", lambda name: None if name == "tensorboard" else find(name))
    line = fails(train_script.main, "--save_path", tmp_path / "out")
    assert line == "error: train.py needs tensorboard: pip install -r requirements.txt"
    assert not (tmp_path / "out").exists()
