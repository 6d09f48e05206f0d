"""predict.py on a folder of unlabelled photographs that are scored together."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

import export as export_script
import predict as predict_script
from conftest import REFERENCE, load_case


@pytest.fixture
def photos(tmp_path):
    """The test images of a class in one folder, as someone takes photographs."""
    case, folder = load_case("musc_mvtec"), tmp_path / "photos"
    folder.mkdir()
    for path in case.facts["images"][:16]:
        shutil.copy(REFERENCE / "data/mini_mvtec" / path, folder / path.replace("/", "_"))
    return folder


def run(photos, tiny_a, out, *flags) -> int:
    argv = [photos, "--method", "musc", *tiny_a.flags, "--image_size", 96, "--num_workers", 0, "--save_path", out]
    return predict_script.main([str(word) for word in [*argv, *flags]])


def rows_of(out) -> list[dict]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_and_page_are_sorted_and_those_of_the_published_program(photos, tiny_a, tmp_path):
    case, out = load_case("musc_mvtec"), tmp_path / "out"
    assert run(photos, tiny_a, out, "--save_maps") == 0
    rows = rows_of(out)
    published = dict(zip(case.facts["images"], case.arrays["image_scores"].tolist(), strict=True))
    for row in rows:
        name = re.sub(r"^brick_test_(\w+)_(\d+.png)$", r"brick/test/\1/\2", row["img_path"])
        assert float(row["score"]) == pytest.approx(published[name], abs=1e-5)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len(scores) == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<span class="file">(.*?)</span>', page) == [row["img_path"] for row in rows]
    assert "musc, tiny-a at 96 pixels" in page
    assert len(list((out / "imgs").iterdir())) == 16
    first = np.load(out / "maps/brick_test_good_000.npy")
    np.testing.assert_allclose(first[::4, ::4], case.arrays["maps_s4"][0], atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["mode"] == "batched"
    assert "16 images are scored together" in (out / "log.txt").read_text()


def test_files_that_cannot_be_read_are_no_part_of_the_set(photos, tiny_a, tmp_path):
    assert run(photos, tiny_a, tmp_path / "out", "--no_images") == 0
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    assert run(photos, tiny_a, tmp_path / "other", "--no_images") == 3
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "other")
    assert "broken.png" in (tmp_path / "other/skipped.csv").read_text()


def test_what_is_refused(fails, photos, tiny_a, tmp_path):
    def line(*flags, folder=photos) -> str:
        return fails(predict_script.main, folder, *tiny_a.flags, "--image_size", 96, "--num_workers", 0,
                     "--save_path", tmp_path / "out", *flags)  # fmt: skip

    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:4]:
        shutil.copy(path, few)
    assert "musc scores images together and takes 5 or more; here are 4" in line("--method", "musc", folder=few)
    assert "lie in one folder" in line("--method", "musc", "--divide_num", 2)
    for flag in ("--references", "--calibrate", "--calibration"):
        assert f"{flag} {few}: images that are scored together take no normal images" in line(
            "--method", "musc", flag, few
        )
    assert "--mode batched: winclip scores images one by one" in line(
        "--method", "winclip", "--class_name", "nut", "--mode", "batched"
    )


def test_no_export(fails):
    line = fails(export_script.main, "--method", "musc")
    assert "--method musc scores a set of images together; an exported detector takes them one by one" in line
