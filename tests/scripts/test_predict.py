"""One's own images: scores, verdicts, pictures, and what cannot be read."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import forks
import predict as predict_script
import test as test_script
from conftest import REFERENCE, ROOT
from data.images import find_images
from dataset import AnomalyDataset, Sample
from engine import checkpoint
from model import build
from utils.errors import run_script
from utils.files import lock_folder
from utils.text import csv_value

CHECKPOINT = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
BRICK = REFERENCE / "data/mini_mvtec/brick"


@pytest.fixture
def call(tiny_a, tmp_path):
    """Run predict.py; returns (exit code, rows of scores.csv)."""

    def run(*argv, out="out", method="april_gan"):
        trained = ["--checkpoint_path", CHECKPOINT] if method == "april_gan" else []
        flags = ["--class_name", "brick", "--method", method, *trained, *tiny_a.flags, "--image_size", 96,
                 "--num_workers", 0, "--save_path", tmp_path / out, *argv]  # fmt: skip
        code = 0
        try:
            run_script(lambda: predict_script.main([str(flag) for flag in flags]))  # which holds the first log lines
        except SystemExit as end:
            code = end.code
        return code, rows_of(tmp_path / out / "scores.csv")

    return run


def rows_of(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def detector(tiny_a):
    detector = build("april_gan", **tiny_a._asdict(), image_size=96).eval()
    detector.load_trainable_state(checkpoint.load(CHECKPOINT).state)
    return detector


def encoded(detector, folder):
    paths = sorted(path.name for path in folder.glob("*.png"))
    dataset = AnomalyDataset(folder, [Sample(path, "", "", "", 0) for path in paths], 96)
    return detector.encode(torch.stack([item["image"] for item in dataset]))


def rows_of_tokens(tokens, rows):
    patches = {layer: values[rows] for layer, values in tokens.patches.items()}
    return tokens._replace(pooled=tokens.pooled[rows], patches=patches)


def test_zero_shot_without_normal_images(call, detector, tmp_path):
    code, rows = call(BRICK / "test", "--save_maps", "--batch_size", 3)
    assert code == 0 and [row["img_path"] for row in rows] == [
        path.relative_to(BRICK / "test").as_posix() for path in sorted((BRICK / "test").rglob("*.png"))
    ]
    assert "verdict" not in rows[0] and not (tmp_path / "out/calibration.json").exists()
    assert "there is no verdict" in (tmp_path / "out/log.txt").read_text()
    tokens = encoded(detector, BRICK / "test/good")
    with torch.no_grad():
        prediction = detector.zero_shot(tokens, ["brick"] * 6)
    good = [row for row in rows if row["img_path"].startswith("good/")]
    np.testing.assert_allclose([float(row["score"]) for row in good], prediction.score_components["text"], atol=1e-5)
    maps = np.stack([np.load(tmp_path / "out/maps" / row["img_path"].replace(".png", ".npy")) for row in good])
    np.testing.assert_allclose(maps, prediction.maps, atol=1e-4)
    with Image.open(tmp_path / "out/imgs" / rows[0]["img_path"]) as picture:
        assert picture.width > 1.9 * (picture.height - 30)


def test_references_fix_scale_and_threshold(call, detector, tmp_path):
    """Against the formulas: each reference is compared with the others, their terms are the limits."""
    code, rows = call(BRICK / "test", "--references", BRICK / "train/good", "--fpr", 0.2)
    assert code == 0
    references, names = encoded(detector, BRICK / "train/good"), ["brick"]
    maxima = []
    with torch.no_grad():
        for row in range(8):
            one, others = (
                rows_of_tokens(references, [row]),
                rows_of_tokens(references, [o for o in range(8) if o != row]),
            )
            few = detector.few_shot(
                detector.zero_shot(one, names), one, names, {"brick": detector.build_memory([others])}
            )
            maxima.append(few.score_components["map_max"].item())
        test = encoded(detector, BRICK / "test/good")
        names = names * 6
        few = detector.few_shot(
            detector.zero_shot(test, names), test, names, {"brick": detector.build_memory([references])}
        )
    low, high = min(maxima), max(maxima)
    expected = 0.5 * (few.score_components["text"] + (few.score_components["map_max"] - low) / (high - low))
    good = [row for row in rows if row["img_path"].startswith("good/")]
    np.testing.assert_allclose([float(row["score"]) for row in good], expected, atol=1e-3)
    calibration = json.loads((tmp_path / "out/calibration.json").read_text())
    np.testing.assert_allclose(calibration["limits"]["map_max"], [low, high], atol=1e-5)
    assert calibration["normal_images"] == 8 and calibration["fpr"] == 0.2
    for row in rows:
        assert row["verdict"] == ("anomalous" if float(row["score"]) > calibration["threshold"] else "normal")


def test_a_file_of_memories_gives_the_same_as_its_images(call, tiny_a, mini_mvtec, tmp_path):
    kept = tmp_path / "kept.safetensors"
    flags = [*tiny_a.flags, "--image_size", 96, "--num_workers", 0, "--checkpoint_path", CHECKPOINT, "--data_path",
              mini_mvtec, "--class", "brick", "--k_shot", 8, "--seed", 1, "--save_memory", kept,
             "--save_path", tmp_path / "test", "--no_images"]  # fmt: skip
    test_script.main([str(flag) for flag in flags])
    normal, others = BRICK / "train/good", BRICK / "test/good"
    _, from_file = call(BRICK / "test/good", "--references", kept, "--calibrate", others, out="file")
    _, from_images = call(BRICK / "test/good", "--references", normal, "--calibrate", others, out="images")
    for one, other in zip(from_file, from_images, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), abs=1e-3)
        assert float(one["map_max"]) == pytest.approx(float(other["map_max"]), abs=1e-5)


def test_a_calibration_is_used_again_by_the_same_detector_alone(call, fails, tiny_a, tmp_path):
    _, first = call(BRICK / "test/good", "--calibrate", BRICK / "train/good", method="sdp", out="first")
    file = tmp_path / "first/calibration.json"
    _, again = call(BRICK / "test/good", "--calibration", file, method="sdp", out="again")
    assert first == again and "verdict" in first[0]
    _, spaced = call(BRICK / "test/good", "--calibration", file, "--class_name", " brick ", method="sdp", out="spaced")
    assert spaced == first
    flags = [BRICK / "test/good", *tiny_a.flags, "--image_size", 96, "--calibration", file]
    line = fails(predict_script.main, *flags, "--method", "sdp", "--class_name", "stone")
    assert "was made with class_name brick but this run has stone" in line
    assert "was made with" in fails(predict_script.main, *flags, "--method", "winclip", "--class_name", "brick")


@pytest.mark.parametrize("method", ["winclip", "sdp"])
def test_a_single_image(call, method):
    code, (row,) = call(BRICK / "test/hole/000.png", method=method)
    assert code == 0 and row["img_path"] == "000.png" and np.isfinite(float(row["score"]))


def test_photographs_are_turned_upright(call, tmp_path):
    with Image.open(BRICK / "test/hole/000.png") as image:
        image.save(tmp_path / "a.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held sideways
        image.rotate(90, expand=True).save(tmp_path / "b.png", exif=exif)
    _, (upright, turned) = call(tmp_path / "a.png", tmp_path / "b.png")
    assert float(upright["score"]) == pytest.approx(float(turned["score"]), abs=1e-6)


def test_what_cannot_be_read_is_skipped_and_listed(call, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(BRICK / "test/good", folder / "deep/er")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    whole = (BRICK / "test/good/000.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not looked at")
    code, rows = call(folder, "--batch_size", 4)
    assert code == 3 and len(rows) == 6
    skipped = rows_of(tmp_path / "out/skipped.csv")
    assert sorted(row["img_path"] for row in skipped) == ["empty.png", "half.png", "text.jpg"]
    assert "3 of 9 files were left out" in (tmp_path / "out/log.txt").read_text()


def test_images_of_one_name_keep_apart(call, fails, tiny_a, tmp_path):
    for camera, number in (("left", "000"), ("right", "001")):
        (tmp_path / camera).mkdir()
        shutil.copy(BRICK / f"test/good/{number}.png", tmp_path / camera / "a.png")
    _, rows = call(tmp_path / "left", tmp_path / "right", tmp_path / "left/a.png")
    assert [row["img_path"] for row in rows] == ["left/a.png", "right/a.png"]
    assert rows[0]["score"] != rows[1]["score"] and (tmp_path / "out/imgs/right/a.png").is_file()


def test_photographs_in_the_folder_of_results_are_safe(call, fails, tiny_a, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(BRICK / "test/good", work / "imgs")
    before = {path: path.read_bytes() for path in work.rglob("*.png")}
    flags = ["--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--method", "winclip", "--save_path", work]
    assert "holds the images themselves" in fails(predict_script.main, work / "imgs", *flags)
    line = fails(predict_script.main, BRICK / "test", *flags, "--references", work / "imgs")
    assert "--references" in line and "lies in --save_path" in line
    assert before == {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    shutil.copytree(BRICK / "test/good", tmp_path / "photos")
    killed = tmp_path / f"photos/out/.{32 * '0'}.csv"
    for _ in range(2):
        killed.parent.mkdir(exist_ok=True)
        killed.touch()
        code, rows = call(tmp_path / "photos", method="winclip", out="photos/out")
        assert code == 0 and len(rows) == 6 and not killed.exists()


def test_a_name_that_is_no_utf8(call, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        shutil.copy(BRICK / "test/good/000.png", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    code, (row,) = call(folder)
    assert code == 0 and row["img_path"] == "caf\\udce9.png"


def test_a_broken_exif_block_is_skipped(call, tmp_path):
    with Image.open(BRICK / "test/good/000.png") as image:
        image.save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
        image.save(tmp_path / "b.png")
    code, rows = call(tmp_path / "a.png", tmp_path / "b.png")
    assert code == 3 and [row["img_path"] for row in rows] == ["b.png"]


def test_references_are_no_images_to_calibrate_on(fails, tiny_a, tmp_path):
    flags = ["--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--method", "winclip", "--save_path", tmp_path]
    normal = ["--references", BRICK / "train/good", "--calibrate", BRICK / "train/good"]
    assert "8 of its images are references" in fails(predict_script.main, BRICK / "test", *flags, *normal)


def as_bmp(folder, images) -> None:
    """The same pictures in another format."""
    folder.mkdir(exist_ok=True)
    for path in images:
        Image.open(path).save(folder / f"{path.parent.name}_{path.stem}.bmp")


@pytest.fixture
def normal(tmp_path):
    """A folder of four normal images."""
    (tmp_path / "normal").mkdir()
    for path in sorted((BRICK / "train/good").glob("*.png"))[:4]:
        shutil.copy(path, tmp_path / "normal")
    return tmp_path / "normal"


@pytest.mark.parametrize("flag", ["--references", "--calibrate"])
def test_copies_among_normal_images_count_once(flag, call, normal, tmp_path):
    """As bytes and as pixels in another format: the same scores, scale, threshold, rate and count as without them."""
    _, expected = call(BRICK / "test", flag, normal, method="winclip", out="plain")
    shutil.copytree(normal, normal / "again")
    as_bmp(normal, sorted(normal.glob("*.png")))
    _, rows = call(BRICK / "test", flag, normal, method="winclip", out="copies")
    assert rows == expected and {row["verdict"] for row in rows}
    plain, copies = (json.loads((tmp_path / out / "calibration.json").read_text()) for out in ("plain", "copies"))
    assert plain == copies and copies["normal_images"] == 4 and copies["fpr"] == 0.2
    log = (tmp_path / "copies/log.txt").read_text()
    assert f"{flag} {normal}: 8 of 12 images are copies of others and left out (again/000.png is one of 000.png)" in log
    assert "nearly copies" not in log and "are copies" not in (tmp_path / "plain/log.txt").read_text()


def test_an_image_that_is_a_reference_and_calibrated_on_is_refused_by_its_pixels(fails, normal, tiny_a, tmp_path):
    as_bmp(tmp_path / "others", [sorted(normal.iterdir())[0], *sorted((BRICK / "test/good").glob("*.png"))])
    line = fails(
        predict_script.main, BRICK / "test", "--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--method",
        "winclip", "--save_path", tmp_path / "out", "--references", normal, "--calibrate", tmp_path / "others",
    )  # fmt: skip
    assert "1 of its images are references, and find themselves among them" in line and not (tmp_path / "out").exists()


def near_copy(path, to) -> None:
    Image.open(path).save(to, quality=95)


@pytest.mark.parametrize("method", ["winclip", "april_gan"])
def test_near_copies_among_references_are_named(method, call, normal, tmp_path):
    """The same picture as JPEG; also where every picture is there twice, and where there are only two."""
    pictures = sorted(normal.iterdir())
    call(BRICK / "test/good", "--references", normal, "--no_images", method=method, out="none")
    assert "nearly copies" not in (tmp_path / "none/log.txt").read_text()
    near_copy(pictures[0], normal / "near.jpg")
    call(BRICK / "test/good", "--references", normal, "--no_images", method=method, out="one")
    log = (tmp_path / "one/log.txt").read_text()
    assert f"2 of 5 references are nearly copies of others ({pictures[0]} is one)" in log
    for path in pictures[1:]:
        near_copy(path, path.with_suffix(".jpg"))
    call(BRICK / "test/good", "--references", normal, "--no_images", method=method, out="all")
    assert "8 of 8 references are nearly copies of others" in (tmp_path / "all/log.txt").read_text()


def test_a_reference_that_is_scored_too_is_said(call, normal, tmp_path):
    call(BRICK / "test/good", normal, "--references", normal, method="winclip")
    line = "4 of the images to score are normal images of --references, so that their scores are too low: 000.png"
    assert line.partition(":")[0] in (tmp_path / "out/log.txt").read_text()
    call(BRICK / "test/good", "--references", normal, method="winclip", out="apart")
    assert "images to score are normal" not in (tmp_path / "apart/log.txt").read_text()


def test_what_is_passed_over_is_named_once(call, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(BRICK / "test/good", folder)
    for name in ("._000.png", "Thumbs.db", "notes.txt", "table.csv"):
        (folder / name).write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "000.png", folder / ".ipynb_checkpoints")
    code, rows = call(folder, method="winclip")
    assert code == 0 and len(rows) == 6
    log = (tmp_path / "out/log.txt").read_text()
    assert log.count("passed over, not images: 2 (") == 1 and "notes.txt" in log and "Thumbs" not in log


def test_images_that_differ_in_the_suffix_alone_keep_both_results(call, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(BRICK / "test/hole/000.png").save(folder / "a.png")
    Image.open(BRICK / "test/good/000.png").save(folder / "a.bmp")
    shutil.copy(BRICK / "test/good/001.png", folder / "b.png")
    code, rows = call(folder, "--save_maps", method="winclip")
    assert code == 0 and [row["img_path"] for row in rows] == ["a.bmp", "a.png", "b.png"]
    for folder, suffix in (("imgs", ".png"), ("maps", ".npy")):
        names = {path.name for path in (tmp_path / "out" / folder).iterdir()}
        assert names == {f"{stem}{suffix}" for stem in ("a_bmp", "a_png", "b")}
    maps = [np.load(tmp_path / f"out/maps/{stem}.npy") for stem in ("a_bmp", "a_png")]
    assert not np.allclose(*maps)


def twelve_bits(folder, images):
    """Grey pictures with values of 12 bits in files of 16, and the same with 8, the brightest pixel white."""
    for name in ("8", "12"):
        (folder / name).mkdir(parents=True)
    for path in images:
        pixels = np.array(Image.open(path).convert("L")).astype(np.uint32)
        pixels[0, 0] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "8" / path.name)
        Image.fromarray(((pixels * 4095 + 127) // 255).astype(np.uint16)).save(folder / "12" / path.name)
    return folder / "8", folder / "12"


def test_integers_of_few_bits_are_named_and_read(call, normal, tmp_path):
    eight, twelve = twelve_bits(tmp_path / "own", sorted((BRICK / "test").rglob("hole/*.png")))
    good8, good12 = twelve_bits(tmp_path / "good", sorted(normal.iterdir()))
    _, expected = call(eight, "--references", good8, method="winclip", out="eight")
    _, dark = call(twelve, "--references", good12, method="winclip", out="dark")
    assert "--bits 12 reads them rightly" in (tmp_path / "dark/log.txt").read_text()
    _, rows = call(twelve, "--references", good12, "--bits", 12, method="winclip", out="twelve")
    assert rows == expected != dark and "reads them rightly" not in (tmp_path / "twelve/log.txt").read_text()
    file = tmp_path / "twelve/calibration.json"
    _, again = call(twelve, "--references", good12, "--calibration", file, "--bits", 12, method="winclip", out="again")
    assert again == rows


def test_two_runs_in_one_folder_at_once(fails, call, tiny_a, tmp_path):
    """The second is refused, says who writes there, and leaves what the first has written."""
    call(BRICK / "test/good", method="winclip")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    flags = ["--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--method", "winclip", "--num_workers", 0]
    with lock_folder(tmp_path / "out"):
        line = fails(predict_script.main, BRICK / "test/good", *flags, "--save_path", tmp_path / "out")
    assert f"another run writes there (process {os.getpid()}" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_tables_hold_no_formulas_and_no_control_characters(call, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["=1+1.png", "@sum.png", "-x\tb.png", "a\x1b[31m.png", "b\nc.png"]
    for name in names:
        shutil.copy(BRICK / "test/good/000.png", folder / name)
    (folder / "=broken\n.png").write_text("x")
    code, rows = call(folder, "--class_name", "+brick", "--no_images", method="winclip")
    assert code == 3 and (tmp_path / "out/scores.csv").read_text().count("\n") == 6
    assert sorted(csv_value(row["img_path"]) for row in rows) == sorted(names)
    assert {row["cls_name"] for row in rows} == {"'+brick"}
    assert not any(row["img_path"].startswith(("=", "+", "-", "@")) for row in rows)
    (skipped,) = rows_of(tmp_path / "out/skipped.csv")
    assert skipped["img_path"] == "'=broken\\x0a.png" and "\n" not in skipped["reason"]


def test_a_byte_order_mark_in_a_calibration_is_accepted(call, normal, tmp_path):
    _, rows = call(BRICK / "test/good", "--calibrate", normal, method="sdp", out="first")
    file = tmp_path / "first/calibration.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    _, again = call(BRICK / "test/good", "--calibration", file, method="sdp", out="again")
    assert again == rows


def test_a_calibration_of_an_earlier_version_is_taken(call, normal, tmp_path):
    """It does not say how many bits its images had."""
    _, rows = call(BRICK / "test/good", "--calibrate", normal, method="sdp", out="first")
    file = tmp_path / "first/calibration.json"
    content = json.loads(file.read_text())
    content["made_with"].pop("bits")
    file.write_text(json.dumps(content))
    _, again = call(BRICK / "test/good", "--calibration", file, method="sdp", out="again")
    assert again == rows


def test_formats(call, tmp_path):
    pixels = np.asarray(Image.open(BRICK / "test/good/000.png").convert("RGB"))
    for suffix in ("png", "bmp", "tif", "webp", "gif", "ppm"):
        Image.fromarray(pixels).save(
            tmp_path / f"{suffix}.{suffix}", **({"lossless": True} if suffix == "webp" else {})
        )
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.TIFF")
    found = [name for _, name in find_images([str(tmp_path)]).images]
    assert found == sorted(found) and len(found) == 7
    code, rows = call(tmp_path, "--no_images")
    assert (
        code == 0 and len({row["score"] for row in rows if row["img_path"] in ("png.png", "bmp.bmp", "tif.tif")}) == 1
    )


def test_refusals(fails, tiny_a, tmp_path):
    flags = ["--class_name", "brick", *tiny_a.flags, "--image_size", 96, "--save_path", tmp_path / "out"]
    winclip = [*flags, "--method", "winclip"]
    assert "nowhere: no such file or folder" in fails(predict_script.main, "nowhere", *winclip)
    (tmp_path / "none").mkdir()
    assert "none: no images there" in fails(predict_script.main, tmp_path / "none", *winclip)
    line = fails(predict_script.main, BRICK, *flags, "--method", "sdp", "--references", BRICK)
    assert "sdp is zero-shot and takes none" in line
    assert "april_gan requires --checkpoint_path" in fails(predict_script.main, BRICK, *flags)
    line = fails(predict_script.main, BRICK, *winclip, "--calibrate", BRICK, "--calibration", "a.json")
    assert "--calibrate and --calibration both" in line
    line = fails(predict_script.main, BRICK, *winclip, "--fpr", 0.1, "--calibration", "a.json")
    assert "--fpr 0.1: the threshold of --calibration a.json has its own" in line
    assert "--fpr 1" in fails(predict_script.main, BRICK, *winclip, "--fpr", 1)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    line = fails(predict_script.main, BRICK, *winclip, "--references", tmp_path / "a.safetensors")
    assert "no file that --save_memory wrote" in line
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_text("x")
    line = fails(predict_script.main, BRICK, *winclip, "--references", tmp_path / "broken")
    assert "a.png: unreadable image" in line and not (tmp_path / "out/scores.csv").exists()


def test_from_the_shell(tiny_a, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", BRICK / "test/good", "--class_name", "brick", "--method", "winclip",
         *tiny_a.flags, "--image_size", "96", "--save_path", tmp_path / "out", tmp_path / "missing.png"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    (tmp_path / "missing.png").write_text("x")
    done = forks.run("predict.py", *done.args[2:])
    assert done.returncode == 3, done.stderr
    assert len(rows_of(tmp_path / "out/scores.csv")) == 6
