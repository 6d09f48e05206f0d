"""Checkpoints as other programs keep them, and what is none."""

import os
from types import SimpleNamespace

import pytest
import torch

from conftest import REFERENCE
from engine import checkpoint
from model import build
from model.adapters import load_part
from model.interface import OPENAI_NORMALIZATION

TRAINED = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"


@pytest.fixture
def detector(tiny_a):
    return build("april_gan", **tiny_a._asdict(), image_size=96)


def restore(path, detector) -> None:
    checkpoint.restore(checkpoint.load(path), detector, checkpoint.describe(detector, "april_gan", "mvtec"))


@pytest.mark.parametrize("wrapper", [None, "model", "model_state_dict", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_checkpoint_as_other_programs_keep_it(detector, wrapper, prefix, tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    (key,) = content.keys() - {"meta"}
    kept = {key: {prefix + name: value for name, value in content[key].items()}}
    torch.save({wrapper: kept} if wrapper else kept, tmp_path / "c.pth")
    restore(tmp_path / "c.pth", detector)
    own = detector.trainable_state()[key]
    assert all(torch.equal(own[name], value) for name, value in content[key].items())


def test_wrong_keys_of_a_checkpoint_are_a_short_line(detector, tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    (key,) = content.keys() - {"meta"}
    for wrong in (
        {f"backbone.blocks.{number}.attention.weight": torch.zeros(1) for number in range(500)},
        {key: {f"adapters.layer.{number}.weight": torch.zeros(1) for number in range(500)}},
    ):
        torch.save(wrong, tmp_path / "c.pth")
        with pytest.raises(ValueError, match=r"c\.pth") as error:
            restore(tmp_path / "c.pth", detector)
        assert len(str(error.value).replace(str(tmp_path), "")) <= 300


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = "/dev/zero" if kind == "device" else tmp_path / "c.pth"
    if kind == "FIFO":
        os.mkfifo(path)
    with pytest.raises(ValueError, match=f"checkpoint {path}: is a .*{kind}"):
        checkpoint.load(path)


def test_another_normalisation_than_in_training_is_refused(tiny_a, detector, tmp_path):
    restore(TRAINED, detector)
    saved = checkpoint.describe(detector, "april_gan", "mvtec")
    assert saved["normalization"] == [*OPENAI_NORMALIZATION.mean, *OPENAI_NORMALIZATION.std]
    checkpoint.save(tmp_path / "c.pth", detector.trainable_state(), saved)
    other = build("april_gan", **tiny_a._asdict(), image_size=96, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=r"trained with normalization 0\.48.* but this run has 0\.5 0\.5"):
        restore(tmp_path / "c.pth", other)


def test_another_position_rule_than_in_training_is_refused(tiny_a, detector, tmp_path):
    saved = checkpoint.describe(detector, "april_gan", "mvtec")
    assert saved["position_rule"] == "size_antialias"
    older = {key: value for key, value in saved.items() if key != "position_rule"}
    other = build("april_gan", **tiny_a._asdict(), image_size=96, position_rule="size")
    for header in (saved, older):
        checkpoint.save(tmp_path / "c.pth", detector.trainable_state(), header)
        restore(tmp_path / "c.pth", detector)
        with pytest.raises(ValueError, match=r"trained with position_rule size_antialias but this run has size"):
            restore(tmp_path / "c.pth", other)
    checkpoint.save(tmp_path / "c.pth", detector.trainable_state(), {**saved, "position_rule": "size"})
    with pytest.raises(ValueError, match=r"trained with position_rule size but this run has size_antialias"):
        restore(tmp_path / "c.pth", detector)


@pytest.mark.parametrize(
    ("pretrained", "normalization"),
    [("openai", [0.5] * 6), ("w.pt", [0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711])],
)
def test_what_earlier_versions_did_not_write_down(pretrained, normalization):
    """They normalised by the tag, which has not changed; and files of weights as OpenAI's."""
    made_with = checkpoint.complete({"pretrained": pretrained, "model": "a"}, {"normalization": [0.5] * 6})
    rule = "size_antialias"  # the one that they had
    told = {"bits": None, "tiles": "none", "normalization": normalization, "position_rule": rule}
    assert made_with == {**told, "pretrained": pretrained, "model": "a"}
    assert checkpoint.complete({"normalization": [1.0] * 6}, {"normalization": [0.5] * 6})["normalization"] == [1.0] * 6


def test_a_key_that_is_no_text_is_one_line(tmp_path):
    torch.save({1: torch.zeros(2), "meta": {}}, tmp_path / "odd.pth")
    detector = SimpleNamespace(
        OPTIONS=(),
        trainable_state=lambda: {"adapters": None},
        load_trainable_state=lambda state: load_part(torch.nn.Linear(1, 1), state, "adapters", "a method"),
    )
    with pytest.raises(ValueError, match=r"odd\.pth: no 'adapters' in it"):
        checkpoint.restore(checkpoint.load(tmp_path / "odd.pth"), detector, {})
