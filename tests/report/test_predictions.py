"""predictions.csv: what is written comes back, and a spreadsheet computes none of it."""

import csv

import pytest

from data.meta import Sample
from data.references import FewShotSetting
from engine.class_scores import ClassScores
from report.predictions import read_predictions, scored_images, write_predictions

NAMES = ['a,"b".png', "ö.png", "=1+1.png", "@x.png", "two\nlines.png", "\x1b[2J.png", "a|b.png", "-1.5", r"\x41.png"]
SAMPLES = [
    Sample(
        name,
        "",
        "Gehäuse",
        "",
        1,
    )
    for name in ("other.png", *NAMES)
]


def result(**components) -> ClassScores:
    indices = list(range(1, len(SAMPLES)))
    scores = [-0.1 * index for index in indices]
    return ClassScores(0, "Gehäuse", {}, indices, scores, components, {})


def test_names_come_back(tmp_path):
    images = scored_images(result(text=[0.5] * 9), FewShotSetting(0, None, {}), SAMPLES)
    images += scored_images(result(map_max=[1e-9] * 9), FewShotSetting(4, 7, {}), SAMPLES)
    write_predictions(tmp_path / "p.csv", images)
    assert read_predictions(tmp_path / "p.csv") == images
    assert [image.img_path for image in images] == NAMES * 2
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["img_path", "cls_name", "specie_name", "anomaly", "k_shot", "seed", "score", "text", "map_max"]
    assert rows[1][4:] == ["0", "", "-0.1", "0.5", ""] and rows[-1][4:7] == ["4", "7", "-0.9"]
    assert [row[0] for row in rows[3:7]] == ["'=1+1.png", "'@x.png", r"two\x0alines.png", r"\x1b[2J.png"]


def test_measures_of_images_come_back(tmp_path):
    """A column after the components; blank where an image has none."""
    scores = ClassScores(0, "c", {}, [1, 2], [0.1, 0.2], {"text": [0.5, 0.6]}, {}, {"aupimo": [None, 0.25]})
    images = scored_images(scores, FewShotSetting(0, None, {}), SAMPLES)
    write_predictions(tmp_path / "p.csv", images)
    assert read_predictions(tmp_path / "p.csv") == images and images[1].measures == {"aupimo": 0.25}
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert [row[6:] for row in csv.reader(file)] == [["score", "text", "aupimo"], ["0.1", "0.5", ""],
                                                         ["0.2", "0.6", "0.25"]]  # fmt: skip


def test_what_an_image_shows_has_a_word():
    kinds = [Sample("a", "", "c", kind, anomaly) for kind, anomaly in (("hole", 1), ("", 1), ("good", 0), ("", 0))]
    scores = ClassScores(0, "c", {}, [0, 1, 2, 3], [0.0] * 4, {}, {})
    assert [image.kind for image in scored_images(scores, FewShotSetting(0, None, {}), kinds)] == [
        "hole", "defect", "good", "good"
    ]  # fmt: skip


@pytest.mark.parametrize("row", ["a,c,,2,0,,0.5", "a,c,,1,x,,0.5", "a,c,,1,0,,much", "a,c,,1"])
def test_a_broken_file_is_named(tmp_path, row):
    (tmp_path / "p.csv").write_text(f"img_path,cls_name,specie_name,anomaly,k_shot,seed,score\n{row}\n")
    with pytest.raises(ValueError, match="p.csv: not what test.py writes"):
        read_predictions(tmp_path / "p.csv")
