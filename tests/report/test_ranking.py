"""The page of a set of images: order, pictures of the highest scores alone, names as text."""

import re

import numpy as np
from PIL import Image

from report.ranking import Ranking


def page_of(tmp_path, scores, pictures=100, name="photo"):
    ranking = Ranking(lambda path: Image.new("RGB", (64, 48), "gray"), pictures)
    for number, score in enumerate(scores):
        one = np.zeros((32, 32), np.float32)
        one[8:12, 8:12] = score
        ranking.add(tmp_path / f"{number}.png", f"{name} {number}", score, one)
    ranking.write(tmp_path / "report.html", "musc, tiny-a at 96 pixels")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_odd_ones_come_first(tmp_path):
    page = page_of(tmp_path, [0.1, 0.9, 0.4, 0.9])
    assert re.findall(r'<span class="file">(.*?)</span>', page) == ["photo 1", "photo 3", "photo 2", "photo 0"]
    assert re.findall(r'<th scope="row">(.*?)</th>', page) == ["photo 1", "photo 3", "photo 2", "photo 0"]
    assert page.count("data:image/webp") == 4 and "musc, tiny-a at 96 pixels" in page


def test_pictures_of_the_highest_scores_alone(tmp_path):
    page = page_of(tmp_path, [n % 7 for n in range(20)], pictures=3)
    assert re.findall(r'<span class="file">(.*?)</span>', page) == ["photo 6", "photo 13", "photo 5"]
    assert page.count('<th scope="row">') == 20 and "Pictures of the 3 highest scores" in page


def test_names_are_text(tmp_path):
    assert "<script>alert" not in page_of(tmp_path, [1, 2], name="<script>alert(1)</script>")
