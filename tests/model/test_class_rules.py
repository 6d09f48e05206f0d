"""The published lists of AnomalyDINO, what flags change about them, and what the log says of other classes."""

import pytest

from model.class_rules import PREPROCESSING, ClassRules

MVTEC = [
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
]  # fmt: skip
VISA = [
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
    "pipe_fryum",
]  # fmt: skip
FIVE = {"capsule", "hazelnut", "pill", "screw", "toothbrush"}


@pytest.mark.parametrize(
    ("preprocess", "masked", "rotated"),
    [
        ("agnostic", FIVE | {*VISA}, {*MVTEC, *VISA}),
        ("informed", FIVE | {*VISA}, {"hazelnut", "screw"}),
        ("masking_only", FIVE | {*VISA}, set()),
        ("agnostic_no_mask", set(), {*MVTEC, *VISA}),
        ("informed_no_mask", set(), {"hazelnut", "screw"}),
        ("force_mask_rotation", {*MVTEC, *VISA}, {*MVTEC, *VISA}),
        ("force_mask_no_rotation", {*MVTEC, *VISA}, set()),
        ("force_no_mask_rotation", set(), {*MVTEC, *VISA}),
        ("force_no_mask_no_rotation", set(), set()),
    ],
)
def test_published_lists(preprocess, masked, rotated, caplog):
    rules = ClassRules(preprocess, None, None)
    assert {name for name in MVTEC + VISA if rules.masks(name)} == masked
    assert {name for name in MVTEC + VISA if rules.rotates(name)} == rotated
    assert rules.masks_any == bool(masked)
    assert rules.masks("metal nut") == rules.masks("metal_nut")
    assert not caplog.records


@pytest.mark.parametrize(
    ("preprocess", "flags", "masks", "rotates", "said"),
    [
        ("agnostic", {}, False, True, True),
        ("informed", {}, False, False, True),
        ("masking_only", {}, False, False, True),
        ("agnostic_no_mask", {}, False, True, False),  # no list is asked
        ("informed_no_mask", {}, False, False, True),
        ("force_mask_rotation", {}, True, True, False),
        ("agnostic", {"masking": ["bolt", "nut"]}, True, True, False),
        ("informed", {"masking": ["all"], "rotation": ["none"]}, True, False, False),
        ("masking_only", {"rotation": ["bolt"]}, False, True, True),
    ],
)
def test_a_class_that_no_list_knows(preprocess, flags, masks, rotates, said, caplog):
    caplog.set_level("INFO")
    rules = ClassRules(preprocess, flags.get("masking"), flags.get("rotation"))
    for _ in range(2):
        assert (rules.masks("bolt"), rules.rotates("bolt")) == (masks, rotates)
    assert len(caplog.records) == said
    if said:
        assert all(word in caplog.text for word in ("'bolt'", f"--preprocess {preprocess}", "--masking", "--rotation"))


def test_flags_name_classes_or_all_or_none():
    with pytest.raises(ValueError, match="--masking bolt all: give class names, or all or none alone"):
        ClassRules("agnostic", ["bolt", "all"], None)


def test_a_name_that_the_run_does_not_have_is_logged(caplog):
    rules = ClassRules("agnostic", ["boltt", "metal nut"], ["all"])
    for _ in range(2):  # once each
        rules.check_names(["bolt", "metal_nut"])
    assert [record.getMessage() for record in caplog.records] == ["--masking boltt: this run has no such class"]


def test_the_names_are_the_published_ones():
    assert len(PREPROCESSING) == 9
