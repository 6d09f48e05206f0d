"""The scripts of Head CT, Brain MRI, ISIC and CVC-ClinicDB, run as a user runs them, on small trees."""

import json

import pytest

from data import meta
from data.references import draw_shots
from dataset_scripts import accepted, refused, run, touch

DATA, TRUTH = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"
SCRIPTS = ("headct", "brainmri", "isic", "clinicdb")


def put_labels(root, *rows, header="id, hemorrhage"):
    (root / "labels.csv").write_text("\n".join((header, *rows)) + "\n")


@pytest.fixture
def headct(tmp_path):
    root = tmp_path / "headct"
    touch(root, *(f"head_ct/head_ct/{stem}.png" for stem in ("000", "001", "010")), "head_ct/head_ct/.DS_Store")
    put_labels(root, "0,1", "10, 0", "1,1")
    return root


@pytest.fixture
def brainmri(tmp_path):
    root = tmp_path / "brainmri"
    touch(root, *(f"brain_tumor_dataset/yes/{name}" for name in ("Y1.jpg", "Y2.JPG", "Thumbs.db")))
    touch(root, *(f"brain_tumor_dataset/no/{name}" for name in ("1 no.jpeg", "no 2.png")))
    touch(root, "yes/Y1.jpg", "no/1 no.jpeg")  # the archive's second copy
    return root


@pytest.fixture
def isic(tmp_path):
    root = tmp_path / "isic"
    touch(root, *(f"{DATA}/ISIC_{index}.jpg" for index in (3, 12)), f"{DATA}/attribution.txt")
    touch(root, *(f"{TRUTH}/ISIC_{index}_Segmentation.png" for index in (3, 12)))
    return root


@pytest.fixture
def clinicdb(tmp_path):
    root = tmp_path / "clinicdb"
    touch(root, *(f"{folder}/{stem}.tif" for folder in ("Original", "Ground Truth") for stem in (1, 2, 10)))
    return root


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_default_root_and_one_that_is_not_there(script, tmp_path):
    for root, named in ((None, f"data/{script}"), (tmp_path / "nowhere", "nowhere")):
        result = run(script, root, cwd=tmp_path)
        assert result.returncode == 2 and named in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_root_with_something_else(script, tmp_path):
    touch(tmp_path, "notes/x.png", "x.png")
    assert str(tmp_path) in refused(script, tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_images_are_for_testing_and_shots_are_refused_clearly(script, request):
    root = request.getfixturevalue(script)
    samples = accepted(script, root)
    (name,) = {sample.cls_name for sample in samples["test"]}
    assert json.loads((root / "meta.json").read_text())["train"] == {name: []}
    with pytest.raises(ValueError, match=f"no normal training images of class '{name}'.*zero-shot"):
        draw_shots(script, samples["train"], [name], 4, 42)


# --- headct ---


def test_headct_samples(headct):
    assert accepted("headct", headct)["test"] == [
        ("head_ct/head_ct/000.png", "", "head ct", "hemorrhage", 1),
        ("head_ct/head_ct/010.png", "", "head ct", "good", 0),
        ("head_ct/head_ct/001.png", "", "head ct", "hemorrhage", 1),
    ]


@pytest.mark.parametrize("header", ["id,hemorrhage", "hemorrhage ,id , note", "\ufeffid, hemorrhage"])
def test_headct_columns_in_any_order_and_with_spaces(headct, header):
    columns = [column.strip("\ufeff ") for column in header.split(",")]
    values = [{"id": str(index), "hemorrhage": str(index % 2)} for index in (0, 1, 10)]
    put_labels(headct, *(",".join(row.get(column, "x") for column in columns) for row in values), header=header)
    assert [sample.anomaly for sample in accepted("headct", headct)["test"]] == [0, 1, 0]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "labels.csv").unlink(), "labels.csv: no such file"),
        (lambda root: put_labels(root, "0,1", header="id,label"), "labels.csv: no column hemorrhage"),
        (lambda root: (root / "labels.csv").write_bytes(b"id,hemorrhage\n\xff,1\n"), "labels.csv: not a readable CSV"),
        (lambda root: put_labels(root, "0,1", "1,2"), "labels.csv:3: must be a number and 0 or 1, got '1' and '2'"),
        (lambda root: put_labels(root, "0,1", "one,0"), "labels.csv:3: must be a number and 0 or 1, got 'one' and '0'"),
        (lambda root: put_labels(root, "0,1", "1"), "labels.csv:3: must be a number and 0 or 1, got '1' and ''"),
        (lambda root: put_labels(root, "0,1", "0,1"), "labels.csv:3: id 0 is there twice"),
        (lambda root: (root / "head_ct/head_ct/010.png").unlink(), "labels.csv:3: id 10 has no"),
        (lambda root: touch(root, "head_ct/head_ct/011.png"), "head_ct/head_ct/011.png; add a line for each of 1"),
        (lambda root: (root / "head_ct/head_ct").rename(root / "head_ct/images"), "head_ct/head_ct/000.png"),
    ],
)
def test_headct_names_what_is_wrong(headct, spoil, named):
    spoil(headct)
    assert named in refused("headct", headct)


# --- brainmri ---


def test_brainmri_samples(brainmri):
    assert accepted("brainmri", brainmri)["test"] == [
        ("brain_tumor_dataset/no/1 no.jpeg", "", "brain ct", "good", 0),
        ("brain_tumor_dataset/no/no 2.png", "", "brain ct", "good", 0),
        ("brain_tumor_dataset/yes/Y1.jpg", "", "brain ct", "tumor", 1),
        ("brain_tumor_dataset/yes/Y2.JPG", "", "brain ct", "tumor", 1),
    ]


@pytest.mark.parametrize("kind", ["yes", "no"])
def test_brainmri_without_one_of_its_folders(brainmri, kind):
    folder = brainmri / "brain_tumor_dataset" / kind
    folder.rename(brainmri / "elsewhere")
    assert f"{folder}: no images" in refused("brainmri", brainmri)


def test_brainmri_with_an_image_beside_its_folders(brainmri):
    touch(brainmri, "brain_tumor_dataset/Y3.jpg")
    assert "brain_tumor_dataset/Y3.jpg: must lie in" in refused("brainmri", brainmri)


# --- isic ---


def test_isic_samples(isic):
    assert accepted("isic", isic)["test"] == [
        (f"{DATA}/ISIC_{index}.jpg", f"{TRUTH}/ISIC_{index}_Segmentation.png", "skin", "lesion", 1) for index in (12, 3)
    ]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / TRUTH / "ISIC_3_Segmentation.png").unlink(), "no mask for ISIC_3.jpg"),
        (lambda root: (root / DATA / "ISIC_3.jpg").unlink(), "no image for mask ISIC_3_Segmentation.png"),
        (lambda root: touch(root, f"{TRUTH}/ISIC_3.png"), "no image for mask ISIC_3.png"),
        (lambda root: touch(root, f"{DATA}/ISIC_3.jpeg"), "several images for mask ISIC_3_Segmentation.png"),
        (lambda root: (root / TRUTH).rename(root / "masks"), "no mask for ISIC_12.jpg, ISIC_3.jpg"),
        (lambda root: (root / DATA).rename(root / "images"), f"{DATA}: no images"),
    ],
)
def test_isic_names_what_is_wrong(isic, spoil, named):
    spoil(isic)
    assert named in refused("isic", isic)


# --- clinicdb ---


@pytest.mark.parametrize(("place", "suffix"), [("", "tif"), ("TIF/", "tif"), ("PNG/", "png")])
def test_clinicdb_samples(tmp_path, place, suffix):
    names = [f"{stem}.{suffix}" for stem in (1, 10, 2)]
    touch(tmp_path, *(f"{place}{folder}/{name}" for folder in ("Original", "Ground Truth") for name in names))
    assert accepted("clinicdb", tmp_path)["test"] == [
        (f"{place}Original/{name}", f"{place}Ground Truth/{name}", "colon", "polyp", 1) for name in names
    ]


def test_clinicdb_archive_with_both(tmp_path):
    touch(
        tmp_path, *(f"{kind}/{folder}/1.{kind}" for kind in ("PNG", "TIF") for folder in ("Original", "Ground Truth"))
    )
    assert [sample.img_path for sample in accepted("clinicdb", tmp_path)["test"]] == ["TIF/Original/1.TIF"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "Ground Truth/10.tif").unlink(), "no mask for 10.tif"),
        (lambda root: (root / "Original/2.tif").unlink(), "no image for mask 2.tif"),
        (lambda root: touch(root, "Ground Truth/1.png"), "several masks for 1.tif"),
        (lambda root: (root / "Ground Truth").rename(root / "masks"), "no mask for 1.tif, 10.tif, 2.tif"),
        (lambda root: (root / "Original").rename(root / "images"), "Original: no images"),
    ],
)
def test_clinicdb_names_what_is_wrong(clinicdb, spoil, named):
    spoil(clinicdb)
    assert named in refused("clinicdb", clinicdb)


def test_tables_tell_what_there_is(headct, isic):
    assert run("headct", headct).stdout.splitlines()[1].split() == ["head", "ct", "0", "1", "2", "0"]
    assert run("isic", isic).stdout.splitlines()[1].split() == ["skin", "0", "0", "2", "2"]
    assert not meta.read(headct)["train"]
