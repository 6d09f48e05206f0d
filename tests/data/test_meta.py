"""data/meta.py: the format."""

import json
import logging
import os

import pytest

from data import meta, script
from data.defect_kinds import DefectKind
from data.meta import PixelSettings, Sample, UnlabelledImage

NORMAL = {"img_path": "a/0.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}
DEFECT = {"img_path": "a/1.png", "mask_path": "m/1.png", "cls_name": "nut", "specie_name": "bent", "anomaly": 1}


def put(root, document):
    text = document if isinstance(document, str) else json.dumps(document)
    (root / "meta.json").write_text(text, encoding="utf-8")


def with_sample(**changes):
    return {"train": {}, "test": {"nut": [NORMAL, {**DEFECT, **changes}]}}


def without(key):
    return {"test": {"nut": [{k: v for k, v in DEFECT.items() if k != key}]}}


def refusal(root, **arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        meta.read(root, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_written_samples_are_read_back(tmp_path):
    samples = {"train": [Sample(**NORMAL)], "validation": [], "test": [Sample(**DEFECT), Sample(**NORMAL)]}
    assert meta.write(tmp_path, samples) == tmp_path / "meta.json"
    assert meta.read(tmp_path) == samples
    assert os.listdir(tmp_path) == ["meta.json"]


def test_classes_are_grouped_in_order_of_appearance(tmp_path):
    bolt, nut = Sample("b.png", "", "bolt", "good", 0), Sample(**NORMAL)
    meta.write(tmp_path, {"train": [nut, bolt], "test": [bolt, nut, bolt]})
    assert meta.read(tmp_path)["test"] == [nut, bolt, bolt]


def test_every_class_of_test_is_a_key_of_train(tmp_path):
    """Published loaders look a test class up in train."""
    meta.write(tmp_path, {"test": [Sample(**DEFECT)]})
    document = json.loads((tmp_path / "meta.json").read_text())
    assert document == {"train": {"nut": []}, "test": {"nut": [DEFECT]}}


def test_further_parts_are_read_back(tmp_path):
    more = Sample("v/0.png", "", "nut", "good", 0)
    secret = {"private": [UnlabelledImage("p/0.png", "nut", "dark"), UnlabelledImage("p/0.png", "bolt", "")]}
    defects = {"nut": {255: DefectKind("bent", 255, 0.5, True)}}
    samples = {"train": [], "validation": [more], "test": [Sample(**DEFECT)]}
    meta.write(tmp_path, samples, unlabelled=secret, defects=defects)
    assert meta.read(tmp_path) == samples
    assert meta.read_unlabelled(tmp_path) == secret and meta.read_defects(tmp_path) == defects
    put(tmp_path, with_sample())
    assert meta.read(tmp_path)["validation"] == [] and not meta.read_unlabelled(tmp_path) | meta.read_defects(tmp_path)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"validation": {"nut": [DEFECT]}}, 'validation, class "nut", sample 0: validation holds normal images only'),
        ({"validation": [NORMAL]}, "validation must map"),
        ({"unlabelled": [NORMAL]}, "unlabelled must map names of parts to classes"),
        ({"unlabelled": {"../x": {"nut": [NORMAL]}}}, "unlabelled must map names of parts to classes"),
        ({"unlabelled": {"private": {"nut": [{"img_path": "../x.png", "cls_name": "nut"}]}}}, "not a path inside"),
        ({"unlabelled": {"private": {"nut": [{"img_path": "x.png"}]}}}, "cls_name is missing or empty"),
        ({"defects": {"nut": [{"defect_name": "x"}]}}, 'defects of "nut": entry 1: pixel_value must be a whole number'),
        ({"defects": {"nut": ["x"]}}, 'defects of "nut": entry 1: expected an object with defect_name'),
        ({"defects": []}, "defects must map classes to kinds of defect"),
    ],
)
def test_bad_parts_are_named_in_one_line(tmp_path, parts, named):
    put(tmp_path, {**with_sample(), **parts})
    assert named in refusal(tmp_path)


def test_validation_images_that_are_scored_are_said(tmp_path, caplog):
    put(tmp_path, {**with_sample(), "validation": {"nut": [NORMAL]}})
    with caplog.at_level(logging.WARNING, "vand"):
        meta.read(tmp_path)
    assert '1 image is in validation and in test, the first is "a/0.png"; thresholds have seen' in caplog.text


def test_what_an_image_shows():
    shown = [meta.shown_kind(*given) for given in (("", 0), ("good", 0), ("dark", 0), ("", 1), ("dark", 1))]
    assert shown == ["good", "good", "good, dark", "defect", "dark"]


def test_settings_are_read_back(tmp_path):
    for settings in (PixelSettings(), PixelSettings(12), PixelSettings(exif=True), PixelSettings(10, True)):
        meta.write(tmp_path, {"test": [Sample(**DEFECT)]}, settings=settings)
        assert meta.read_settings(tmp_path) == settings and meta.read(tmp_path)["test"] == [Sample(**DEFECT)]
        document = json.loads((tmp_path / "meta.json").read_text())
        assert document.get("settings", {}) == {key: value for key, value in settings._asdict().items() if value}


def test_a_file_without_settings_has_none(tmp_path):
    put(tmp_path, with_sample())
    assert meta.read_settings(tmp_path) == PixelSettings(bits=None, exif=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([12], "settings must be an object such as {}, got [12]"),
        ({"bit": 12}, 'settings: unknown key "bit"; this version knows bits, exif'),
        ({"bits": 7}, "settings: bits must be a whole number from 8 to 16, got 7"),
        ({"bits": 12.0}, "got 12.0"),
        ({"bits": True}, "got True"),
        ({"bits": "12"}, 'got "12"'),
        ({"bits": None}, "got None"),
        ({"exif": 1}, "settings: exif must be true or false, got 1"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, settings, named):
    put(tmp_path, {**with_sample(), "settings": settings})
    assert named in refusal(tmp_path)
    with pytest.raises(ValueError, match="settings"):
        meta.read_settings(tmp_path)


def test_a_sample_listed_twice_is_said_and_kept(tmp_path, caplog):
    put(tmp_path, {"train": {"nut": [NORMAL]}, "test": {"nut": [DEFECT, NORMAL, DEFECT, DEFECT]}})
    with caplog.at_level(logging.WARNING, "vand"):
        assert len(meta.read(tmp_path)["test"]) == 4
    twice, both = (record.getMessage() for record in caplog.records)
    assert '1 image stands more than once in test, the first is "a/1.png"; each counts as often' in twice
    assert '1 image is in train and in test, the first is "a/0.png"' in both


def test_a_sample_listed_twice_with_two_labels_is_refused(tmp_path):
    put(tmp_path, {"test": {"nut": [DEFECT, {**DEFECT, "anomaly": 0}]}})
    message = refusal(tmp_path)
    assert 'test, class "nut": "a/1.png" is listed twice, as normal and as defect' in message
    put(tmp_path, {"test": {"nut": [DEFECT, {**DEFECT, "anomaly": 0, "cls_name": "bolt"}]}})
    assert len(meta.read(tmp_path)["test"]) == 2


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "meta.json")
    assert "meta.json: is a FIFO" in refusal(tmp_path)
    with pytest.raises(ValueError, match="is a FIFO"):
        meta.read_settings(tmp_path)


def test_a_path_longer_than_any_system_takes_is_refused(tmp_path):
    put(tmp_path, with_sample(img_path="a/" * 100_000 + "0.png"))
    assert "is not a path inside the root" in refusal(tmp_path)


def test_published_file_loads(tmp_path):
    """As the published scripts write it: one class, further keys, no specie for normal images, Windows' separators."""
    windows = {**DEFECT, "img_path": "a\\1.png", "mask_path": "m\\1.png", "extra": [1]}
    put(tmp_path, {"train": {"x": [{**NORMAL, "specie_name": ""}]}, "test": {"x": [windows, windows]}, "extra": 1})
    samples = meta.read(tmp_path)
    assert samples["train"] == [Sample("a/0.png", "", "nut", "", 0)]
    assert samples["test"] == [Sample(**DEFECT)] * 2


@pytest.mark.parametrize(
    ("document", "sample"),
    [
        (without("mask_path"), Sample("a/1.png", "", "nut", "bent", 1)),
        (without("specie_name"), Sample("a/1.png", "m/1.png", "nut", "", 1)),
        ("\ufeff" + json.dumps({"test": {"other": [DEFECT]}, "train": {}}), Sample(**DEFECT)),
        ({"test": {"empty": [], "nut": [{**DEFECT, "anomaly": True}]}}, Sample(**DEFECT)),
        ({"test": {"nut": [{**DEFECT, "cls_name": "Schraube ü"}]}}, Sample(**{**DEFECT, "cls_name": "Schraube ü"})),
    ],
)
def test_lenient_where_nothing_is_lost(tmp_path, document, sample):
    put(tmp_path, document)
    assert meta.read(tmp_path) == {"train": [], "validation": [], "test": [sample]}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "[]"),
        ({"train": {}}, "test"),
        ({"test": {}}, "no sample"),
        ({"test": {"nut": []}, "train": {"nut": [NORMAL]}}, "no sample"),
        ({"test": [DEFECT]}, "test must map"),
        ({"train": None, "test": {"nut": [DEFECT]}}, "None"),
        ({"test": {"nut": DEFECT}}, '"nut" must be a list'),
        ({"test": {"nut": ["a.png"]}}, '"a.png"'),
        (without("img_path"), "img_path"),
        (without("cls_name"), "cls_name"),
        (without("anomaly"), "anomaly"),
        (with_sample(anomaly=2), "got 2"),
        (with_sample(anomaly=1.0), "got 1.0"),
        (with_sample(anomaly="1"), 'got "1"'),
        (with_sample(img_path=""), "img_path"),
        (with_sample(img_path=7), "got 7"),
        (with_sample(mask_path=None), "mask_path must be a string, got None"),
        (with_sample(specie_name=["bent"]), "specie_name"),
        (with_sample(cls_name=" "), "cls_name"),
        (with_sample(anomaly="\n" + 500 * "x"), "..."),
    ],
)
def test_bad_content_is_named_in_one_line(tmp_path, document, named):
    put(tmp_path, document)
    message = refusal(tmp_path)
    assert named in message and str(tmp_path / "meta.json") in message
    assert len(message) < 300 + len(str(tmp_path))


def test_the_bad_sample_is_located(tmp_path):
    put(tmp_path, with_sample(anomaly=2))
    assert 'test, class "nut", sample 1' in refusal(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "meta.json").write_bytes(b"\xff\xfe{")
    assert "not valid JSON" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["img_path", "mask_path"])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x.png",
        "a/../../x.png",
        "..\\x.png",
        "C:\\x.png",
        "c:x.png",
        "\\\\host\\x.png",
        "a\0.png",
        "\ud800",
    ],
)
def test_paths_that_leave_the_root_are_refused(tmp_path, key, path):
    put(tmp_path, with_sample(**{key: path}))
    message = refusal(tmp_path)
    assert (
        key in message and "is not a path inside the root" in message and json.dumps(path.replace("\\", "/")) in message
    )


def test_links_may_not_lead_out_of_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "root_outside"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True)
    (outside / "1.png").touch()
    (root / "a" / "1.png").symlink_to(outside / "1.png")
    (root / "out").symlink_to(outside)
    for path in ("a/1.png", "out/1.png"):
        put(root, with_sample(img_path=path))
        assert f"{root / path.removesuffix('/1.png' * path.startswith('out'))} is a link to {outside}" in refusal(root)


def test_links_inside_the_root_and_a_linked_root_are_fine(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "0.png").touch()
    (root / "a" / "1.png").symlink_to("0.png")
    (root / "b").symlink_to("a")
    (tmp_path / "link").symlink_to(root)
    put(root, with_sample(mask_path="b/1.png"))
    assert meta.read(tmp_path / "link")["test"][1].mask_path == "b/1.png"


def test_missing_file_tells_which_script_writes_it(tmp_path):
    assert "data/mvtec.py" in refusal(tmp_path) and "data/folder.py" in refusal(tmp_path)
    assert str(tmp_path / "none") in refusal(tmp_path / "none")
    assert "other.json" in refusal(tmp_path, meta_path=tmp_path / "other.json")


def test_another_file_for_the_same_root(tmp_path):
    put(tmp_path, with_sample(anomaly=2))
    (tmp_path / "other.json").write_text(json.dumps(with_sample()))
    assert meta.read(tmp_path, tmp_path / "other.json")["test"][1] == Sample(**DEFECT)


def test_a_refused_write_leaves_the_old_file(tmp_path):
    meta.write(tmp_path, {"test": [Sample(**DEFECT)]})
    before = (tmp_path / "meta.json").read_bytes()
    for bad in ([], [Sample(**{**DEFECT, "img_path": "../x.png"})], [Sample(**{**DEFECT, "anomaly": 3})]):
        with pytest.raises(ValueError, match=r"meta\.json"):
            meta.write(tmp_path, {"train": [], "test": bad})
    assert (tmp_path / "meta.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["meta.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    meta.write(tmp_path, {"test": [Sample(**DEFECT)]})
    monkeypatch.setattr(meta.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        meta.write(tmp_path, {"test": [Sample(**NORMAL)]})
    assert meta.read(tmp_path)["test"] == [Sample(**DEFECT)]
    assert os.listdir(tmp_path) == ["meta.json"]


def test_table_counts(tmp_path):
    samples = {"train": [Sample(**NORMAL)] * 3, "test": [Sample(**NORMAL)] * 2 + [Sample(**DEFECT)]}
    lines = [line.split() for line in script.table(samples).splitlines()]
    assert lines[1:] == [["nut", "3", "2", "1", "1"], ["all", "3", "2", "1", "1"]]
