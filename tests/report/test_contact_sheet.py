"""The picture sheet: whatever was chosen can be drawn, and it finds the pictures of a test again."""

import pytest
from PIL import Image

from report.contact_sheet import Section, draw_sheet, main
from report.predictions import ScoredImage, write_predictions


def image(cls_name: str, anomaly: int, score: float, k_shot: int = 0, seed: int | None = None) -> ScoredImage:
    return ScoredImage(f"{cls_name}/test/{score}.png", cls_name, "", anomaly, k_shot, seed, score)


def colours(picture: Image.Image) -> set:
    return {colour for _, colour in picture.getcolors(1 << 20)}


def test_a_sheet_leaves_out_empty_sections():
    panels = [Image.new("RGB", (384, 200), colour) for colour in ("red", "green", "blue")]
    entry = (image("a class name that is far too long for its place on the sheet " * 2, 1, 0.5), panels)
    one = draw_sheet("title", "note", [Section("hits", [entry] * 3)])
    assert draw_sheet("title", "note", [Section("hits", [entry] * 3), Section("misses", [])]).size == one.size
    assert draw_sheet("title", "note", [Section("hits", [entry])]).height < one.height
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= colours(one)


@pytest.fixture
def results(tmp_path):
    """Two settings, each with pictures of a colour of its own; a class whose name a spreadsheet would compute."""
    images = []
    for k_shot, seed, colour in ((0, None, 90), (4, 7, 160)):
        images += [image("=1+1", anomaly, score, k_shot, seed) for anomaly, score in ((0, 0.1), (1, 0.5), (1, 0.9))]
        for one in images[-3:]:
            path = tmp_path / "imgs" / ("k4_seed7" if k_shot else "zero_shot") / one.img_path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (306, 122), (colour, 0, 0)).save(path)
    write_predictions(tmp_path / "predictions.csv", images)
    return tmp_path


@pytest.mark.parametrize(("flags", "colour"), [([], 160), (["--k_shot", "0"], 90), (["--seed", "7"], 160)])
def test_a_sheet_is_of_one_setting(results, flags, colour):
    main([str(results), *flags])
    with Image.open(results / "sheet.png") as sheet:
        found = colours(sheet)
    assert (colour, 0, 0) in found and (250 - colour, 0, 0) not in found


def test_images_that_differ_in_the_suffix_alone_have_their_own_pictures(tmp_path):
    images = [image("nut", 1, 0.9)._replace(img_path=f"nut/a.{suffix}") for suffix in ("jpg", "png")]
    write_predictions(tmp_path / "predictions.csv", images)
    for name, colour in (("a_jpg", (255, 0, 0)), ("a_png", (0, 0, 255))):
        (tmp_path / "imgs/nut").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (306, 122), colour).save(tmp_path / f"imgs/nut/{name}.png")
    main([str(tmp_path)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert {(255, 0, 0), (0, 0, 255)} <= colours(sheet)


def test_what_there_is_no_sheet_of(fails, results, tmp_path):
    assert "no --k_shot 2 --seed None in predictions.csv; it has (k_shot, seed) [(0, None), (4, 7)]" in fails(
        main, results, "--k_shot", 2
    )
    assert "none/predictions.csv: no such file; give the --save_path" in fails(main, tmp_path / "none")
    (results / "predictions.csv").write_text("img_path,cls_name\na,b\n")
    assert "predictions.csv: not what test.py writes (KeyError('anomaly'))" in fails(main, results)
    (results / "predictions.csv").write_text("")
    assert "predictions.csv: holds no images" in fails(main, results)
