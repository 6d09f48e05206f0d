"""The dataset scripts, run as a user runs them, on small trees."""

import shutil
from pathlib import Path

import pytest

from data import meta
from dataset_scripts import PROJECT, accepted, refused, run, touch

MINI = PROJECT / "tests" / "reference" / "data"


def brief(samples):
    """img_path -> (mask_path, specie_name, anomaly)"""
    return {sample.img_path: (sample.mask_path, sample.specie_name, sample.anomaly) for sample in samples}


@pytest.fixture
def mvtec(tmp_path):
    touch(tmp_path, "nut/train/good/000.png", "nut/test/good/000.PNG", "nut/test/bent/000.png", "nut/test/bent/001.jpg")
    touch(tmp_path, "nut/ground_truth/bent/000_mask.png", "nut/ground_truth/bent/001_mask.png")
    return tmp_path


@pytest.fixture
def visa(tmp_path):
    touch(tmp_path, "pcb/n0.JPG", "pcb/n1.JPG", "pcb/a0.JPG", "pcb/a0.png", "split_csv/1cls.csv")
    rows = ["object,split,label,image,mask", "pcb,train,normal,pcb/n1.JPG,", "pcb,test,normal,pcb/n0.JPG,"]
    put_table(tmp_path, [*rows, "pcb,test,anomaly,pcb/a0.JPG,pcb/a0.png"])
    return tmp_path


def put_table(root, rows):
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")


def table_rows(root):
    return (root / "split_csv" / "1cls.csv").read_text().splitlines()


# --- mvtec ---


def test_mvtec_mini_set_from_another_folder(tmp_path):
    root = Path(shutil.copytree(MINI / "mini_mvtec", tmp_path / "data" / "mvtec"))
    result = run("mvtec", None, cwd=tmp_path)  # the default root
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2].split() == ["all", "24", "18", "30", "30"]
    samples = meta.read(root)
    assert [sample.cls_name for sample in samples["train"]] == ["brick"] * 8 + ["coins"] * 8 + ["gravel"] * 8
    assert brief(samples["test"])["gravel/test/missing/003.png"] == (
        "gravel/ground_truth/missing/003_mask.png", "missing", 1
    )  # fmt: skip
    assert all((root / path).is_file() for s in samples["test"] for path in (s.img_path, s.mask_path) if path)


def test_mvtec_runs_twice_to_the_same_bytes(mvtec):
    accepted("mvtec", mvtec)
    first = (mvtec / "meta.json").read_bytes()
    accepted("mvtec", mvtec)
    assert (mvtec / "meta.json").read_bytes() == first


def test_mvtec_passes_over_other_files_and_folders(mvtec):
    expected = accepted("mvtec", mvtec)
    touch(
        mvtec, "license.txt", "nut/readme.txt", "nut/test/bent/.DS_Store", "nut/test/bent/Thumbs.db", ".git/train/x.png"
    )
    touch(mvtec, "docs/figure.png", "nut/train/other/9.png", "nut/test/bent/._000.png", "nut/ground_truth/bent/.x.png")
    assert accepted("mvtec", mvtec) == expected


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "nut/ground_truth/bent/001_mask.png").unlink(), ["no mask for 001.jpg"]),
        (lambda root: (root / "nut/test/bent/001.jpg").unlink(), ["no image for mask 001_mask.png"]),
        (lambda root: touch(root, "nut/test/bent/000.jpg"), ["several images for mask 000_mask.png"]),
        (lambda root: touch(root, "nut/ground_truth/bent/000.png"), ["several masks for 000.png"]),
        (
            lambda root: touch(root, *(f"nut/test/bent/1{i}.png" for i in range(5))),
            ["10.png, 11.png, 12.png and 2 more"],
        ),
        (lambda root: shutil.rmtree(root / "nut/ground_truth"), ["nut/ground_truth/bent", "masks of 2 images"]),
        (lambda root: touch(root, "nut/ground_truth/torn/000_mask.png"), ["torn", "no such folder of images"]),
        (lambda root: touch(root, "nut/train/000.png"), ["nut/train: 000.png must lie in good/"]),
        (lambda root: shutil.rmtree(root / "nut"), ["no class", "<class>/train/good"]),
        (lambda root: shutil.rmtree(root / "nut/test") or shutil.rmtree(root / "nut/ground_truth"), ["no sample"]),
        (
            lambda root: (root / "nut/test/good/1.png").symlink_to("/etc/hostname"),
            ["nut/test/good/1.png", "is a link to /etc/hostname, outside of the root"],
        ),
    ],
)
def test_mvtec_names_what_is_wrong(mvtec, spoil, named):
    spoil(mvtec)
    message = refused("mvtec", mvtec)
    assert all(part in message for part in [*named, str(mvtec)])


def test_a_root_that_is_not_there(tmp_path):
    for script in ("mvtec", "visa", "mtd", "folder"):
        assert "nowhere" in refused(script, tmp_path / "nowhere")


def test_masks_are_paired_by_stem_not_by_place(mvtec):
    touch(
        mvtec,
        "nut/test/bent/10.png",
        "nut/test/bent/9.png",
        "nut/ground_truth/bent/10.png",
        "nut/ground_truth/bent/9.BMP",
    )
    pairs = brief(accepted("mvtec", mvtec)["test"])
    assert pairs["nut/test/bent/10.png"][0] == "nut/ground_truth/bent/10.png"
    assert pairs["nut/test/bent/9.png"][0] == "nut/ground_truth/bent/9.BMP"


# --- visa ---


def test_visa_mini_set(tmp_path):
    root = Path(shutil.copytree(MINI / "mini_visa", tmp_path / "visa"))
    samples = accepted("visa", root)
    assert (len(samples["train"]), len(samples["test"])) == (16, 32)
    listed = [row.split(",") for row in table_rows(root)[1:]]
    for split in ("train", "test"):
        assert [s.img_path for s in samples[split]] == [row[3] for row in listed if row[1] == split]
    assert {(s.specie_name, s.anomaly, bool(s.mask_path)) for s in samples["test"]} == {
        ("good", 0, False),
        ("", 1, True),
    }


def test_visa_samples(visa):
    samples = accepted("visa", visa)
    assert brief(samples["train"]) == {"pcb/n1.JPG": ("", "good", 0)}
    assert brief(samples["test"]) == {"pcb/n0.JPG": ("", "good", 0), "pcb/a0.JPG": ("pcb/a0.png", "", 1)}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("pcb,test,normal,pcb/n9.JPG,", ["pcb/n9.JPG", "image"]),
        ("pcb,test,anomaly,pcb/a0.JPG,pcb/a9.png", ["pcb/a9.png", "mask"]),
        ("pcb,test,anomaly,pcb/a0.JPG,", ["mask"]),
        ("pcb,test,anomaly,pcb/a0.JPG", ["mask"]),
        ("pcb,test,broken,pcb/a0.JPG,", ["broken", "normal or anomaly"]),
        ("pcb,val,normal,pcb/n0.JPG,", ["val", "train or test"]),
    ],
)
def test_visa_names_the_line(visa, row, named):
    put_table(visa, [*table_rows(visa), "", row])
    message = refused("visa", visa)
    assert all(part in message for part in [*named, "1cls.csv:6"])


def test_visa_table_that_is_none(visa):
    put_table(visa, [row.replace("split", "part") for row in table_rows(visa)])
    assert "no column split" in refused("visa", visa)
    (visa / "split_csv" / "1cls.csv").write_bytes(b"object,split,label,image,mask\n\xff\xfe,\n")
    assert "1cls.csv: not a readable CSV file" in refused("visa", visa)
    (visa / "split_csv" / "1cls.csv").unlink()
    assert "1cls.csv: no such file" in refused("visa", visa)


# --- mtd ---


@pytest.fixture
def mtd(tmp_path):
    for name in ("MT_Free/Imgs/exp1", "MT_Crack/Imgs/exp2"):
        touch(tmp_path, *(f"{name}_{index}{suffix}" for index in range(7) for suffix in (".jpg", ".png")))
    touch(tmp_path, "README.md", "MT_Free/Imgs/.DS_Store", "notes/x.jpg")
    return tmp_path


def test_mtd_split_and_masks(mtd):
    samples = accepted("mtd", mtd)
    assert {sample.cls_name for split in samples.values() for sample in split} == {"magnetic tile"}
    assert brief(samples["train"]) == {f"MT_Free/Imgs/exp1_{index}.jpg": ("", "good", 0) for index in (1, 2, 3, 4, 6)}
    cracks = {f"MT_Crack/Imgs/exp2_{index}": index for index in range(7)}
    normal = {f"MT_Free/Imgs/exp1_{index}.jpg": ("", "good", 0) for index in (0, 5)}
    assert brief(samples["test"]) == normal | {f"{name}.jpg": (f"{name}.png", "crack", 1) for name in cracks}


def test_mtd_names_what_is_wrong(mtd):
    (mtd / "MT_Crack/Imgs/exp2_3.png").unlink()
    (mtd / "MT_Crack/Imgs/exp2_5.jpg").unlink()
    message = refused("mtd", mtd)
    assert "no mask for exp2_3.jpg" in message and "no image for mask exp2_5.png" in message
    assert "MT_Free/Imgs" in refused("mtd", mtd / "notes")


# --- folder ---


def test_folder_needs_a_root():
    result = run("folder", None)
    assert result.returncode == 2 and "--root" in result.stderr


@pytest.mark.parametrize("level", ["", "nut/"])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_folder_variants(tmp_path, level, masks, train):
    root = tmp_path / "parts"
    touch(root, *(f"{level}test/{name}" for name in ("good/a.webp", "torn/b.tiff", "bent/c.JPEG")))
    if masks:
        touch(root, f"{level}ground_truth/torn/b.png", f"{level}ground_truth/bent/c_mask.png")
    if train:
        touch(root, f"{level}train/good/z.bmp")
    samples = accepted("folder", root)
    assert {sample.cls_name for split in samples.values() for sample in split} == {"nut" if level else "parts"}
    assert brief(samples["train"]) == ({f"{level}train/good/z.bmp": ("", "good", 0)} if train else {})
    assert brief(samples["test"]) == {
        f"{level}test/good/a.webp": ("", "good", 0),
        f"{level}test/bent/c.JPEG": (f"{level}ground_truth/bent/c_mask.png" if masks else "", "bent", 1),
        f"{level}test/torn/b.tiff": (f"{level}ground_truth/torn/b.png" if masks else "", "torn", 1),
    }


def test_folder_without_normal_test_images(tmp_path):
    touch(tmp_path, "test/bent/0.png")
    assert brief(accepted("folder", tmp_path)["test"]) == {"test/bent/0.png": ("", "bent", 1)}


def test_folder_named_by_a_relative_root(tmp_path):
    touch(tmp_path, "nuts/test/bent/0.png")
    assert run("folder", ".", cwd=tmp_path / "nuts").returncode == 0
    assert meta.read(tmp_path / "nuts")["test"][0].cls_name == "nuts"


def test_folder_with_masks_for_some_kinds_only(tmp_path):
    touch(tmp_path, "test/bent/0.png", "test/torn/0.png", "ground_truth/bent/0.png")
    assert str(tmp_path / "ground_truth" / "torn") in refused("folder", tmp_path)


def test_folder_with_images_beside_the_folders(tmp_path):
    touch(tmp_path, "test/0.png", "test/good/1.png")
    assert "0.png must lie in good/" in refused("folder", tmp_path)
