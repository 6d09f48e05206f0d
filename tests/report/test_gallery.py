"""Which images are shown, and how the pictures of a class are kept for an interrupted test."""

import json

import pytest

from pages import picture
from report.gallery import MAX_PICTURES, Gallery, choose, pictures_per_list, settings_with_pictures
from report.predictions import ScoredImage


def image(score: float, anomaly: int = 1, name: str = "a") -> ScoredImage:
    return ScoredImage(f"{name}/{score}.png", name, "", anomaly, 0, None, score, {"text": score})


@pytest.mark.parametrize("galleries", [1, 15, 30, 60, 61, 120, 121, 10_000])
def test_pictures_of_a_page_are_bounded(galleries):
    count = pictures_per_list(galleries)
    chosen = choose([image(number, number % 2) for number in range(40)], count, count, count)
    assert sum(map(len, chosen)) == 3 * count <= MAX_PICTURES / galleries and (count > 0 or galleries > 120)


def test_pictures_are_of_the_first_setting_of_each_k():
    assert settings_with_pictures([0, 1, 1, 4, 4]) == [0, 1, 3]


def test_no_image_is_a_hit_and_a_miss():
    chosen = choose([*map(image, (0.2, 0.9, 0.5)), image(0.7, 0)])
    assert [[one.score for one in images] for images in chosen] == [[0.9, 0.5], [0.2], [0.7]]


def test_chosen_images_come_from_several_classes():
    images = [image(number / 10, 1, name) for number in range(8) for name in "ab"]
    hits = choose(images, hits=3, per_class=2).hits
    assert [(one.cls_name, one.score) for one in hits] == [("a", 0.7), ("b", 0.7), ("a", 0.6)]
    assert len(choose(images, hits=6, misses=9, per_class=2).missed) == 4


def gallery() -> Gallery:
    images = [image(0.2), image(0.9), image(0.7, 0)]
    return Gallery(choose(images), {one.img_path: picture() for one in images})


def test_a_gallery_comes_back_from_json():
    assert Gallery.from_json(json.loads(json.dumps(gallery().to_json()))) == gallery()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("hits"),
        lambda value: value["hits"][0].pop("score"),
        lambda value: value["hits"][0].update(score="0.9"),
        lambda value: value["hits"][0].update(anomaly=2),
        lambda value: value["hits"][0].update(img_path=None),
        lambda value: value["thumbnails"].popitem(),
        lambda value: value["thumbnails"].update({"a/0.9.png": "no base64!"}),
        lambda value: value["thumbnails"].update({"a/0.9.png": "AAAA"}),  # no picture
    ],
)
def test_a_gallery_that_is_broken_is_refused(change):
    value = json.loads(json.dumps(gallery().to_json()))
    change(value)
    with pytest.raises(ValueError, match="not the pictures of a class"):
        Gallery.from_json(value)


@pytest.mark.parametrize("value", [None, [], "x", [[], [], []]])
def test_what_an_older_version_has_kept_is_refused(value):
    with pytest.raises(ValueError, match="not the pictures of a class"):
        Gallery.from_json(value)
