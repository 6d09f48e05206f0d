"""The scripts of MPDD, BTAD, DAGM and KolektorSDD2, run as a user runs them, on small trees."""

import numpy as np
import pytest
from PIL import Image

from data import meta
from dataset_scripts import accepted, refused, run, touch

SCRIPTS = ("mpdd", "btad", "dagm", "ksdd2")


def brief(samples):
    """[(img_path, mask_path, cls_name, specie_name, anomaly)]"""
    return [tuple(sample) for sample in samples]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_default_root_and_one_that_is_not_there(script, tmp_path):
    for root, named in ((None, f"data/{script}"), (tmp_path / "nowhere", "nowhere")):
        result = run(script, root, cwd=tmp_path)
        assert result.returncode == 2 and named in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_root_with_something_else(script, tmp_path):
    touch(tmp_path, "notes/x.png", "x.png")
    assert str(tmp_path) in refused(script, tmp_path)


# --- mpdd ---


@pytest.fixture
def mpdd(tmp_path):
    touch(tmp_path, *(f"{name}/{split}/good/000.png" for name in ("tubes", "connector") for split in meta.SPLITS))
    touch(tmp_path, "tubes/test/anomalous/000.png", "tubes/ground_truth/anomalous/000_mask.png")
    return tmp_path


def test_mpdd_samples(mpdd):
    samples = accepted("mpdd", mpdd)
    assert brief(samples["train"]) == [
        ("connector/train/good/000.png", "", "connector", "good", 0),
        ("tubes/train/good/000.png", "", "tubes", "good", 0),
    ]
    mask = "tubes/ground_truth/anomalous/000_mask.png"
    assert brief(samples["test"]) == [
        ("connector/test/good/000.png", "", "connector", "good", 0),
        ("tubes/test/good/000.png", "", "tubes", "good", 0),
        ("tubes/test/anomalous/000.png", mask, "tubes", "anomalous", 1),
    ]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: touch(root, "tubes/test/anomalous/001.png"), "no mask for 001.png"),
        (lambda root: (root / "tubes/test/anomalous/000.png").unlink(), "no image for mask 000_mask.png"),
        (lambda root: touch(root, "tubes/ground_truth/rust/000_mask.png"), "rust"),
    ],
)
def test_mpdd_names_what_is_wrong(mpdd, spoil, named):
    spoil(mpdd)
    assert named in refused("mpdd", mpdd)


# --- btad ---


@pytest.fixture
def btad(tmp_path):
    touch(tmp_path, "01/train/ok/0000.bmp", "01/test/ok/0001.bmp", "01/test/ko/0002.bmp", "01/ground_truth/ko/0002.png")
    touch(tmp_path, "03/train/ok/0000.bmp", "03/test/ok/0001.bmp", "03/test/ko/0000.bmp", "03/ground_truth/ko/0000.bmp")
    touch(tmp_path, "02/train/ok/0000.png", "02/test/ko/0000.png", "02/test/ko/0001.png", "02/test/ko/.DS_Store")
    touch(tmp_path, "02/ground_truth/ko/0000.png", "02/ground_truth/ko/0001.png", "readme.txt")
    return tmp_path


def test_btad_samples(btad):
    samples = accepted("btad", btad)
    assert brief(samples["train"]) == [
        ("01/train/ok/0000.bmp", "", "01", "good", 0),
        ("02/train/ok/0000.png", "", "02", "good", 0),
        ("03/train/ok/0000.bmp", "", "03", "good", 0),
    ]
    assert brief(samples["test"]) == [
        ("01/test/ok/0001.bmp", "", "01", "good", 0),
        ("01/test/ko/0002.bmp", "01/ground_truth/ko/0002.png", "01", "ko", 1),
        ("02/test/ko/0000.png", "02/ground_truth/ko/0000.png", "02", "ko", 1),
        ("02/test/ko/0001.png", "02/ground_truth/ko/0001.png", "02", "ko", 1),
        ("03/test/ok/0001.bmp", "", "03", "good", 0),
        ("03/test/ko/0000.bmp", "03/ground_truth/ko/0000.bmp", "03", "ko", 1),
    ]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "01/ground_truth/ko/0002.png").unlink(), "no mask for 0002.bmp"),
        (lambda root: (root / "02/test/ko/0001.png").unlink(), "no image for mask 0001.png"),
        (lambda root: touch(root, "01/ground_truth/ko/0002.bmp"), "several masks for 0002.bmp"),
        (lambda root: touch(root, "02/test/ko/0000.bmp"), "several images for mask 0000.png"),
        (lambda root: touch(root, "01/test/0009.bmp"), "0009.bmp must lie in ok/"),
        (lambda root: (root / "03/train/ok").rename(root / "03/train/good"), "03/train/good: BTAD has images in ok/"),
        (lambda root: touch(root, "01/test/good/0009.bmp", "01/ground_truth/good/0009.bmp"), "01/test/good"),
    ],
)
def test_btad_names_what_is_wrong(btad, spoil, named):
    spoil(btad)
    assert named in refused("btad", btad)


def test_btad_tells_its_own_layout(tmp_path):
    touch(tmp_path, "01/ok/0000.bmp")
    assert "<class>/train/ok" in refused("btad", tmp_path)


# --- dagm ---


@pytest.fixture
def dagm(tmp_path):
    for name in ("Class10", "Class2"):
        touch(tmp_path, *(f"{name}/Train/{stem}.PNG" for stem in ("0003", "0004", "0005")))
        touch(tmp_path, *(f"{name}/Test/{stem}.PNG" for stem in ("0001", "0002")))
        touch(tmp_path, f"{name}/Train/Label/0004_label.PNG", f"{name}/Test/Label/0001_label.PNG")
    put_list(tmp_path, "0001_label.PNG")
    touch(tmp_path, "Class2/Test/Thumbs.db", "Classes/Test/0001.PNG")
    return tmp_path


def put_list(root, mask, image="0001.PNG"):
    """Labels.txt as the set has it: a line with the class, then number, defect or not, image, 0, mask or 0."""
    rows = [("1",), ("1", "1", image, "0", mask), ("2", "0", "0002.PNG", "0", "0")]
    (root / "Class2/Test/Label/Labels.txt").write_text("\ufeff" + "".join("\t".join(row) + "\r\n" for row in rows))


def test_dagm_samples(dagm):
    samples = accepted("dagm", dagm)
    assert brief(samples["train"]) == [
        (f"{name}/Train/{stem}.PNG", "", name, "good", 0) for name in ("Class2", "Class10") for stem in ("0003", "0005")
    ]
    assert brief(samples["test"]) == [
        ("Class2/Test/0001.PNG", "Class2/Test/Label/0001_label.PNG", "Class2", "", 1),
        ("Class2/Test/0002.PNG", "", "Class2", "good", 0),
        ("Class10/Test/0001.PNG", "Class10/Test/Label/0001_label.PNG", "Class10", "", 1),
        ("Class10/Test/0002.PNG", "", "Class10", "good", 0),
    ]


def test_dagm_suffixes_in_any_case_and_no_list(dagm):
    (dagm / "Class2/Test/Label/Labels.txt").unlink()
    (dagm / "Class2/Test/0001.PNG").rename(dagm / "Class2/Test/0001.png")
    (dagm / "Class10/Test/Label/0001_label.PNG").rename(dagm / "Class10/Test/Label/0001_label.png")
    masks = {sample.img_path: sample.mask_path for sample in accepted("dagm", dagm)["test"] if sample.anomaly}
    assert masks == {
        "Class2/Test/0001.png": "Class2/Test/Label/0001_label.PNG",
        "Class10/Test/0001.PNG": "Class10/Test/Label/0001_label.png",
    }


def test_dagm_class_without_defects(dagm):
    touch(dagm, "Class3/Train/0001.PNG", "Class3/Test/0002.PNG")
    assert ("Class3/Test/0002.PNG", "", "Class3", "good", 0) in brief(accepted("dagm", dagm)["test"])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "Class10/Test/0001.PNG").unlink(), "Class10/Test/Label: no image for mask 0001_label"),
        (lambda root: (root / "Class2/Train/0004.PNG").unlink(), "no image for mask 0004_label.PNG"),
        (lambda root: touch(root, "Class2/Test/Label/0002.PNG"), "no image for mask 0002.PNG"),
        (lambda root: touch(root, "Class2/Test/Label/0001_label.bmp"), "several masks for 0001.PNG"),
        (lambda root: touch(root, "Class2/Test/0001.bmp"), "several images for mask 0001_label.PNG"),
        (lambda root: (root / "Class2/Test/Label/0001_label.PNG").unlink(), "Labels.txt: lists 0001_label.PNG"),
        (lambda root: (root / "Class2/Test/0002.PNG").unlink(), "Labels.txt: lists 0002.PNG"),
        (lambda root: (root / "Class10/Train").rename(root / "Class10/training"), "Class10/Train: no images"),
    ],
)
def test_dagm_names_what_is_wrong(dagm, spoil, named):
    spoil(dagm)
    assert named in refused("dagm", dagm)


def test_dagm_list_in_another_case(dagm):
    put_list(dagm, "0001_LABEL.png", "0001.png")
    assert len(accepted("dagm", dagm)["test"]) == 4


# --- ksdd2 ---


@pytest.fixture
def ksdd2(tmp_path):
    touch(tmp_path, "train/10000.png", "train/10001.png", "test/20000.png", "test/20001.png", "split_weakly_0.pyb")
    for path, value in (("train/10000", 0), ("train/10001", 255), ("test/20000", 1), ("test/20001", 0)):
        put_mask(tmp_path / f"{path}_GT.png", value)
    return tmp_path


def put_mask(path, value, mode="L"):
    """A black mask with one pixel of a value in its last corner."""
    pixels = np.zeros((6, 4), np.uint8)
    pixels[-1, -1] = value
    picture = Image.fromarray(255 - pixels if mode == "P" else pixels)
    if mode == "P":  # black is the last colour of this palette
        picture.putpalette([255 - index // 3 for index in range(768)])
    picture.convert(mode).save(path)


def test_ksdd2_samples(ksdd2):
    samples = accepted("ksdd2", ksdd2)
    assert brief(samples["train"]) == [("train/10000.png", "", "metal surface", "good", 0)]
    assert brief(samples["test"]) == [
        ("test/20000.png", "test/20000_GT.png", "metal surface", "", 1),
        ("test/20001.png", "", "metal surface", "good", 0),
    ]


def test_ksdd2_passes_over_the_copies_of_the_archive(ksdd2):
    expected = accepted("ksdd2", ksdd2)
    touch(ksdd2, "train/10301 (copy).png", "train/10301_GT (copy).png")
    assert accepted("ksdd2", ksdd2) == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_ksdd2_any_pixel_that_is_not_black_is_a_defect(ksdd2, mode):
    """Whatever the mode; alpha and the numbers of a palette are no colour."""
    put_mask(ksdd2 / "test/20000_GT.png", 255, mode)
    put_mask(ksdd2 / "test/20001_GT.png", 0, mode)
    assert [sample.anomaly for sample in accepted("ksdd2", ksdd2)["test"]] == [1, 0]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "test/20001_GT.png").unlink(), "test: no mask for 20001.png"),
        (lambda root: (root / "test/20001.png").unlink(), "no image for mask 20001_GT.png"),
        (lambda root: (root / "train/10001.png").unlink(), "no image for mask 10001_GT.png"),
        (lambda root: touch(root, "test/20001_GT.bmp"), "several masks for 20001.png"),
        (lambda root: touch(root, "test/20001.bmp"), "several images for mask 20001_GT.png"),
        (lambda root: touch(root, "test/10301 (copy).png"), "no mask for 10301 (copy).png"),
        (lambda root: (root / "test/20000_GT.png").write_bytes(b"\x89PNG"), "test/20000_GT.png: unreadable mask"),
        (lambda root: cut(root / "train/10000_GT.png"), "train/10000_GT.png: unreadable mask"),
        (lambda root: (root / "train").rename(root / "training"), "train: no images"),
        (lambda root: (root / "test").rename(root / "testing"), "test: no images"),
    ],
)
def test_ksdd2_names_what_is_wrong(ksdd2, spoil, named):
    spoil(ksdd2)
    assert named in refused("ksdd2", ksdd2)


def cut(path):
    """Leave half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
