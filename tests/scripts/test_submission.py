"""test.py on MVTec AD 2's private parts: their scores, the folder and the archive for the server, and its check."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import test as test_script
from data import mvtec2, mvtec2_server, script
from forks import together
from report import submission
from report.submission import MAPS, MASKS, to_half

SIZES = {"can": (44, 36), "rice": (40, 40)}  # (W, H)
COUNTS = {"can": 3, "rice": 2}
RULE = ["--threshold", "mean_std", "--submission"]


@pytest.fixture(scope="module", autouse=True)
def small_server():
    """It knows two classes of a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mvtec2_server, "COUNTS", COUNTS)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of pictures of noise, those of "bad" with a dark patch, and one in each private part."""
    root, rng = tmp_path_factory.mktemp("ad2"), np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        places = {"train/good": 2, "validation/good": 4, "test_public/good": 2, "test_public/bad": 2}
        for place, count in {**places, **dict.fromkeys(mvtec2_server.PARTS, COUNTS[name])}.items():
            (root / name / place).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(130, 250, (height, width, 3), np.uint8)
                mask = np.zeros((height, width), np.uint8)
                mask[8:20, 8:24] = 255 * (place.endswith("bad") or (place in mvtec2_server.PARTS and number == 1))
                pixels[mask > 0] = 5
                light = mvtec2_server.PARTS.get(place, "regular")
                Image.fromarray(pixels).save(root / name / place / f"{number:03}_{light}.png")
                if place.endswith("bad"):
                    truth = root / name / "test_public/ground_truth/bad"
                    truth.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(truth / f"{number:03}_{light}_mask.png")
    script.run(mvtec2.build, None, ["--root", str(root)])
    return root


@pytest.fixture(scope="module")
def flags(tiny_a, root):
    return [str(word) for word in ("--method", "winclip", *tiny_a.flags, "--image_size", 96, "--dataset", "mvtec2",
            "--data_path", root, "--num_workers", 0, "--no_images", "--device", "cpu")]  # fmt: skip


@pytest.fixture(scope="module")
def written(root, flags, tmp_path_factory) -> tuple[Path, Path]:
    """(results, submission) of a run with one reference."""
    out = tmp_path_factory.mktemp("out")
    test_script.main([*flags, "--k_shot", "1", "--seed", "1", "--save_path", str(out / "run"), *RULE, str(out / "sub")])
    return out / "run", out / "sub"


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_the_server_takes(root, written, capsys):
    run, folder = written
    assert submission.main([str(folder), "--data_path", str(root)]) == 0
    assert "10 images, nothing to complain about" in capsys.readouterr().out
    (can, rice) = json.loads((run / "thresholds.json").read_text())
    assert (can["objects"], can["source"], can["normal_images"]) == ("can", "validation of the dataset", 4)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert len(files) == 20 and "anomaly_images/can/test_private_mixed/002_mixed.tiff" in files
    for name, known in (("can", can), ("rice", rice)):
        one = tifffile.imread(folder / f"anomaly_images/{name}/test_private/001_regular.tiff")
        mask = np.asarray(Image.open(folder / f"anomaly_images_thresholded/{name}/test_private/001_regular.png"))
        assert one.dtype == np.float16 and one.shape == mask.shape == SIZES[name][::-1] and len(np.unique(one)) > 500
        np.testing.assert_array_equal(mask == 255, one > 0)
        assert known["pixel_fpr"] and known["test"]["pixel_fpr"] is not None
    with tarfile.open(f"{folder}.tar.gz") as packed:
        names = packed.getnames()
        assert names == [f"sub/{name}" for name in files]
        assert {(one.mtime, one.uid, one.mode) for one in packed.getmembers()} == {(0, 0, 0o644)}
        assert packed.extractfile(names[3]).read() == (folder / files[3]).read_bytes()

    rows = rows_of(run / "unlabelled.csv")
    assert [row["part"] for row in rows] == [part for name in COUNTS for part in mvtec2_server.PARTS
                                             for _ in range(COUNTS[name])]  # fmt: skip
    assert {(row["k_shot"], row["seed"], row["specie_name"]) for row in rows} == {
        ("1", "1", "regular"),
        ("1", "1", "mixed"),
    }
    thresholds = {"can": can["threshold"], "rice": rice["threshold"]}
    for row in rows:
        above = float(row["judged_score"]) > thresholds[row["cls_name"]]
        assert row["verdict"] == ("anomalous" if above else "normal")
    metrics = json.loads((run / "metrics.json").read_text())["classes"]
    shares = [float(row["above_px"]) for row in rows_of(run / "predictions.csv") if row["cls_name"] == "can"
              and row["anomaly"] == "0"]  # fmt: skip
    assert metrics["can"]["fpr_px_given"] == pytest.approx(np.mean(shares)) == can["test"]["pixel_fpr"]
    assert metrics["can"]["threshold_px_given"] == can["pixel_threshold"]
    assert metrics["can"]["threshold_sp_given"] == can["threshold"] and metrics["can"]["f1_sp_given"] is not None


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(flags, written, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    argv = [*flags, "--k_shot", "1", "--seed", "1", "--save_path", str(tmp_path / "run"), *RULE, str(tmp_path / "sub")]
    with monkeypatch.context() as patch:
        patch.setattr(submission.Submission, "pack", stop)
        with pytest.raises(KeyboardInterrupt):
            test_script.main(argv)
    archive = tmp_path / "sub.tar.gz"
    (tmp_path / f"sub/{MAPS}/can/.{'0' * 32}.tiff").write_text("half written")
    assert not archive.exists() and (tmp_path / "run/finished/unlabelled/3.json").is_file()
    (tmp_path / "run/finished/unlabelled/3.json").write_text("{}")  # broken, so it is scored anew
    added, add = [], submission.Submission.add
    monkeypatch.setattr(submission.Submission, "add", lambda *args: (added.append(args[1:4]), add(*args)))
    test_script.main([*argv, "--resume"])
    mixed = "test_private_mixed"
    assert added == [(mixed, "rice", f"rice/{mixed}/{number:03}_mixed.png") for number in range(2)]
    assert archive.read_bytes() == Path(f"{written[1]}.tar.gz").read_bytes()
    assert (tmp_path / "run/unlabelled.csv").read_bytes() == (written[0] / "unlabelled.csv").read_bytes()
    assert not (tmp_path / "run/finished").exists()
    changed = archive.stat().st_mtime_ns
    test_script.main([*argv, "--resume"])  # there is nothing to do
    assert archive.stat().st_mtime_ns == changed
    (tmp_path / "run/thresholds.json").unlink()
    test_script.main([*argv, "--resume"])  # what is not whole is made whole
    assert (tmp_path / "run/thresholds.json").is_file() and archive.is_file()


def test_two_processes_fix_the_same_thresholds_and_write_the_same(flags, written, tmp_path):
    run, folder = written
    argv = [*flags, "--k_shot", 1, "--seed", 1, "--save_path", tmp_path / "run", *RULE, tmp_path / "sub"]
    process = together("test.py", *argv)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for name in ("predictions.csv", "unlabelled.csv"):
        rows, others = rows_of(run / name), rows_of(tmp_path / "run" / name)
        assert [row["verdict"] for row in rows] == [row["verdict"] for row in others]
        for row, other in zip(rows, others, strict=True):
            assert row["img_path"] == other["img_path"]
            for key in ("score", "judged_score"):
                assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-5)
    one, two = (json.loads((path / "thresholds.json").read_text()) for path in (run, tmp_path / "run"))
    for row, other in zip(one, two, strict=True):
        for key in ("threshold", "pixel_threshold", "fpr", "pixel_fpr", "source"):
            assert row[key] == (other[key] if key == "source" else pytest.approx(other[key], abs=1e-5))
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*.tiff")):
        np.testing.assert_allclose(tifffile.imread(tmp_path / "sub" / path), tifffile.imread(folder / path), atol=5e-3)
        mask = Path(MASKS) / path.relative_to(MAPS).with_suffix(".png")
        assert (tmp_path / "sub" / mask).read_bytes() == (folder / mask).read_bytes()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--submission", "s"], "--submission s: needs a threshold of pixels; add --threshold"),
        ([*RULE, "s", "--class", "can"], "the server takes all classes at once; drop --class"),
        ([*RULE, "s", "--dataset", "visa"], "which takes no visa"),
        ([*RULE, "s", "--k_shot", "0", "1", "--seed", "1"], "holds one setting, and there are 2"),
        (["--method", "musc", "--unlabelled"], "takes each part by predict.py --mode batched"),
        ([*RULE, "s", "--method", "musc"], "images that are scored together have no threshold"),
        ([*RULE, "results"], "results: holds --save_path results/run; the server takes no other files"),
        ([*RULE, "full"], "full: there is something in it, or in full.tar.gz beside it; name an empty folder"),
    ],
)
def test_refusals(more, said, flags, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/kept.txt").touch()
    assert said in fails(test_script.main, *flags, "--save_path", "results/run", *more)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "kept.txt"]


def test_a_dataset_without_private_parts(root, flags, fails, tmp_path):
    meta = {key: part for key, part in json.loads((root / "meta.json").read_text()).items() if key != "unlabelled"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    argv = [*flags, "--meta_path", tmp_path / "meta.json", "--save_path", tmp_path / "run"]
    assert "meta.json names no images without labels; drop" in fails(test_script.main, *argv, "--unlabelled")


# --- the check --------------------------------------------------------------------------------------------------------


def put(path: Path, pixels) -> None:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


PLACE = "can/test_private/000_regular"
SPOILT = {
    "a folder too much": (lambda root: (root / "notes").mkdir(), "1 too much of 2 that are due: notes"),
    "a class is missing": (lambda root: shutil.rmtree(root / MASKS / "rice"), f"{MASKS}: 1 missing of 2 that"),
    "a part is missing": (lambda root: shutil.rmtree(root / MAPS / "can/test_private_mixed"), "test_private_mixed"),
    "images are missing": (
        lambda root: [path.unlink() for path in (root / MAPS / "can/test_private").iterdir()],
        f"{MAPS}/can/test_private: 3 missing of 3 that are due: 000_regular.tiff, 001_regular.tiff, 002_regular.tiff",
    ),
    "another name": (
        lambda root: (root / MAPS / f"{PLACE}.tiff").rename(root / MAPS / f"{PLACE}.tif"), "1 too much of 3 that are"
    ),
    "float32": (
        lambda root: tifffile.imwrite(root / MAPS / f"{PLACE}.tiff", np.zeros((36, 44), np.float32)), "of type float32"
    ),
    "infinity": (
        lambda root: tifffile.imwrite(root / MAPS / f"{PLACE}.tiff", np.full((36, 44), np.inf, np.float16)), "NaN or"
    ),
    "no TIFF": (lambda root: (root / MAPS / f"{PLACE}.tiff").write_text("x"), f"{MAPS}/{PLACE}.tiff: cannot be read"),
    "colours": (lambda root: put(root / MASKS / f"{PLACE}.png", np.zeros((36, 44, 3))), "not of one channel"),
    "1 for 255": (lambda root: put(root / MASKS / f"{PLACE}.png", np.eye(36, 44)), "other values than 0 and 255"),
    "another size": (lambda root: put(root / MASKS / f"{PLACE}.png", np.zeros((4, 9))), "in size, 44 x 36 and 9 x 4"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_the_check_names_each_problem(spoil, written, root, tmp_path, capsys):
    folder = tmp_path / "sub"
    shutil.copytree(written[1], folder)
    change, said = SPOILT[spoil]
    change(folder)
    assert submission.main([str(folder), "--data_path", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(said in line for line in lines) and 1 <= len(lines) <= 3, lines


def test_a_check_of_nothing(fails, tmp_path):
    assert "no such folder" in fails(submission.main, tmp_path / "none")
    assert len(list(submission.problems(tmp_path))) == 1


def test_float16_keeps_order_and_threshold():
    rng = np.random.default_rng(0)
    for shift, scale in ((0, 1), (1e4, 1e-2), (-3e-7, 1e-8), (5e30, 1e25)):
        one = (shift + scale * rng.normal(size=(50, 60))).astype(np.float32)
        threshold, spread = float(np.quantile(one, 0.9)), float(np.std(one.astype(np.float64)))
        half = to_half(one, threshold, spread).ravel()
        order = one.ravel().argsort(kind="stable")
        assert (np.diff(half[order].astype(np.float64)) >= 0).all() and ((half > 0) == (one.ravel() > threshold)).all()
        assert len(np.unique(half)) > 0.7 * len(np.unique(one))  # little collapses
    with pytest.raises(ValueError, match="float16 ends at 65504"):
        to_half(np.array([[1e6]], np.float32), 0.0, 1.0)
