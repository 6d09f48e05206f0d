"""Sentences, and the user's own prompts."""

import json
import os

import pytest

from prompt_ensemble import APRIL_GAN, CLIP_AD, PROMPTS, WINCLIP, Prompts, load_prompts, sentences


@pytest.mark.parametrize(
    ("prompts", "normal", "abnormal", "templates"),
    [(APRIL_GAN, 7, 5, 35), (WINCLIP, 7, 4, 21), (CLIP_AD, 9, 10, 22)],
)
def test_published_counts(prompts, normal, abnormal, templates):
    both = sentences("metal_nut", prompts)
    assert [len(state) for state in both] == [normal * templates, abnormal * templates]
    assert all("metal_nut" in text and "{" not in text for state in both for text in state)


@pytest.mark.parametrize("name", PROMPTS)
def test_shipped_prompts_have_the_form_of_a_file(name, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(load_prompts(name)._asdict()))
    assert load_prompts(str(file)) == PROMPTS[name]


def test_own_prompts(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"normal": ["fresh {}"], "abnormal": ["rotten {}"], "templates": ["a {}.", "my {}."]}')
    prompts = load_prompts(str(file))
    assert prompts == Prompts(("fresh {}",), ("rotten {}",), ("a {}.", "my {}."))
    assert sentences("apple", prompts)[1] == ["a rotten apple.", "my rotten apple."]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no readable JSON"),
        ("[]", "expected .* found a list"),
        ("{}", "expected .* found nothing"),
        ('{"normal": ["{}"], "abnormal": ["bad {}"]}', "found normal, abnormal"),
        ('{"normal": [], "abnormal": ["bad {}"], "templates": ["{}"]}', '"normal" must be a list of one or more'),
        ('{"normal": "{}", "abnormal": ["bad {}"], "templates": ["{}"]}', '"normal" must be a list of one or more'),
        (
            '{"normal": ["{}"], "abnormal": ["bad"], "templates": ["{}"]}',
            '"abnormal" holds "bad": must be a text with one',
        ),
        ('{"normal": ["{}"], "abnormal": ["bad {}"], "templates": ["{} {}"]}', '"templates" holds "{} {}"'),
        ('{"normal": ["{}"], "abnormal": ["bad {0}"], "templates": ["{}"]}', '"abnormal" holds "bad {0}"'),
        ('{"normal": ["{}", 3], "abnormal": ["bad {}"], "templates": ["{}"]}', '"normal" holds 3'),
        ('{"normal": ["{} }{"], "abnormal": ["bad {}"], "templates": ["{}"]}', '"normal" holds "{} }{"'),
    ],
)
def test_refuses(content, said, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=said.replace("{", r"\{")) as error:
        load_prompts(str(file))
    assert f"--prompts {file}" in str(error.value) and "\n" not in str(error.value)


def test_refuses_a_missing_file():
    with pytest.raises(ValueError, match="no such file, and not the name of prompts that ship .april_gan, "):
        load_prompts("nowhere.json")


def test_a_byte_order_mark_is_accepted(tmp_path):
    content = {"normal": ["good {}"], "abnormal": ["bad {}"], "templates": ["{}"]}
    (tmp_path / "p.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_prompts(str(tmp_path / "p.json")).abnormal == ("bad {}",)


@pytest.mark.parametrize("kind", ["FIFO", "device", "endless"])
def test_prompts_of_no_file_or_without_end(kind, tmp_path):
    path = "/dev/zero" if kind == "device" else tmp_path / "p.json"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"--prompts {path}: is (a device, a pipe|larger than)"):
        load_prompts(str(path))
