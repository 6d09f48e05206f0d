import logging

import pytest
import torch

from model import build, text_features
from model.text_features import TextFeatures
from prompt_ensemble import Prompts, up_to_state


def test_a_name_is_encoded_once_while_it_is_among_the_latest(monkeypatch):
    monkeypatch.setattr(text_features, "_KEPT", 3)
    encoded = []

    def encode(name: str) -> torch.Tensor:
        encoded.append(name)
        return torch.full((2, 2), float(len(name)))

    texts = TextFeatures(encode)
    texts.encode(["a", "bb", "ccc", "dddd"])  # more than are kept, and all are needed
    assert texts(["dddd", "a", "a"])[:, 0, 0].tolist() == [4, 1, 1] and encoded == ["a", "bb", "ccc", "dddd"]
    assert texts(["eeeee", "a"])[:, 0, 0].tolist() == [5, 1]  # the oldest of the others go
    texts(["dddd"])
    assert encoded == ["a", "bb", "ccc", "dddd", "eeeee"]
    texts(["bb"])
    assert encoded[5:] == ["bb"]


WORDS = " ".join(["word"] * 70)


@pytest.mark.parametrize("method", ["winclip", "april_gan", "sdp"])
def test_texts_that_are_cut_are_counted_in_a_line(method, tiny_a, monkeypatch, caplog):
    """One of three templates is too long, after the words of the state."""
    monkeypatch.setattr(text_features._LOG, "propagate", True)
    caplog.set_level(logging.WARNING, logger="vand")
    prompts = Prompts(
        ("good {}", "{} without a crack"), ("{} with a crack",), ("{}", "a {}", f"a photo of a {{}} {WORDS} on")
    )
    detector = build(method, **tiny_a._asdict(), image_size=96, prompts=prompts)
    detector.encode_names(["steel nut"])
    (line,) = [line for line in caplog.messages if "longer" in line]
    assert "class 'steel nut': 3 of its 9 texts are longer than the 77 tokens" in line and "--prompts" in line


def test_a_state_that_is_cut_off_is_refused(tiny_a, caplog):
    prompts = Prompts(("{} without a crack",), ("{} with a crack",), ("a photo of a {}",))
    detector = build("winclip", **tiny_a._asdict(), image_size=96, prompts=prompts)
    with pytest.raises(
        ValueError, match=r"class 'word word.* \.\.\.': the text 'a photo of a word .*77 tokens"
    ) as error:
        detector.encode_names([f"{WORDS} word word"])
    assert len(str(error.value)) <= 300 and not caplog.messages


def test_a_long_name_behind_its_state_is_cut_and_not_refused(tiny_a):
    prompts = Prompts(("perfect {}",), ("broken {}",), ("a photo of a {}",))
    detector = build("winclip", **tiny_a._asdict(), image_size=96, prompts=prompts)
    detector.encode_names([f"{WORDS} word word"])
    normal, abnormal = detector.texts(["nut"])[0].T
    assert not torch.equal(normal, abnormal)


def test_how_far_the_words_of_a_state_reach():
    prompts = Prompts(("flawless {}",), ("{} with flaw",), ("a {} in the scene.",))
    assert up_to_state("nut", prompts) == (["a flawless "], ["a nut with flaw"])
