"""Files of references: what a user may not have meant is refused or said."""

import json
import logging
import os

import pytest

from data.meta import Sample
from data.references import FewShotSetting, load_shots

TRAIN = [Sample(f"{name}/{index}.png", "", name, "good", 0) for name in ("nut", "bolt") for index in range(3)]
TEST = [Sample("nut/9.png", "", "nut", "good", 0), Sample("nut/bad.png", "nut/m.png", "nut", "bent", 1)]


def load(path, said, *, classes=("nut",)):
    """The settings of a file, and the lines that were logged."""
    with said.at_level(logging.WARNING, "vand"):
        shots = load_shots(path, TRAIN + TEST, classes, scored=TEST)
    return shots, [record.getMessage() for record in said.records]


def put(path, *lines, encoding="utf-8"):
    path.write_text("\n".join(lines), encoding=encoding)
    return path


def test_plain_references_are_taken_without_a_word(tmp_path, caplog):
    shots, said = load(put(tmp_path / "k.txt", "nut/1.png", "nut/0.png"), caplog)
    assert shots == [FewShotSetting(2, None, {"nut": ["nut/1.png", "nut/0.png"]})] and said == []


def test_an_anomalous_reference_is_refused(tmp_path):
    path = put(tmp_path / "k.txt", "nut/0.png", "nut/bad.png")
    with pytest.raises(ValueError, match=r"k\.txt: 'nut/bad\.png' of class 'nut' is a defect in meta\.json"):
        load_shots(path, TRAIN + TEST, ["nut"])
    setting = {"k_shot": 1, "seed": 0, "references": {"nut": ["nut/bad.png"]}}
    path = put(tmp_path / "k.json", json.dumps([setting]))
    with pytest.raises(ValueError, match="is a defect"):
        load_shots(path, TRAIN + TEST, ["nut"])


def test_a_reference_that_is_scored_too_is_said_and_kept(tmp_path, caplog):
    shots, said = load(put(tmp_path / "k.txt", "nut/0.png", "nut/9.png"), caplog)
    assert shots[0].references == {"nut": ["nut/0.png", "nut/9.png"]}
    assert len(said) == 1 and "1 references are test images too, the first is nut/9.png" in said[0]


def test_repeats_count_as_listed_and_that_is_said(tmp_path, caplog):
    shots, said = load(put(tmp_path / "k.txt", "nut/0.png", "nut/0.png", "nut/1.png", "nut/0.png"), caplog)
    assert shots[0].references == {"nut": ["nut/0.png", "nut/0.png", "nut/1.png", "nut/0.png"]}
    assert len(said) == 1 and "2 references are repeats, the first of nut/0.png; each counts as often" in said[0]


def test_the_same_reference_under_two_seeds_is_no_repeat(tmp_path, caplog):
    settings = [{"k_shot": 1, "seed": seed, "references": {"nut": ["nut/0.png"]}} for seed in (1, 2)]
    assert load(put(tmp_path / "k.json", json.dumps(settings)), caplog)[1] == []


@pytest.mark.parametrize("name", ["k.txt", "k.json"])
def test_a_byte_order_mark_is_accepted(tmp_path, caplog, name):
    text = json.dumps([{"k_shot": 1, "seed": None, "references": {"nut": ["nut/2.png"]}}])
    path = put(tmp_path / name, text if name.endswith("json") else "nut/2.png", encoding="utf-8-sig")
    assert load(path, caplog)[0] == [FewShotSetting(1, None, {"nut": ["nut/2.png"]})]


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "k.txt")
    with pytest.raises(ValueError, match="--references .*k.txt: is a FIFO"):
        load_shots(tmp_path / "k.txt", TRAIN, ["nut"])
