"""data/mvisa.py: VCP-CLIP's tree from the two small sets, and the published files for such a tree."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import meta, mvisa
from data.references import draw_shots
from dataset import AnomalyDataset
from dataset_scripts import PROJECT, accepted, refused, run, touch

MINI = PROJECT / "tests" / "reference" / "data"
SOURCES = {"mvtec": MINI / "mini_mvtec", "visa": MINI / "mini_visa"}
FLAGS = [str(word) for name, source in SOURCES.items() for word in (f"--{name}", source)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "mvisa"
    result = run("mvisa", root, *FLAGS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote") == 2 and not result.stderr
    return root


@pytest.fixture
def small(tmp_path):
    """MVTec AD's layout with one class, and where its tree is to be."""
    source = tmp_path / "small"
    for path, value in (("train/good/000", 9), ("test/good/000", 9), ("test/bent/000", 5), ("test/torn/000", 7)):
        put(source / f"nut/{path}.png", value)
    for kind in ("bent", "torn"):
        put(source / f"nut/ground_truth/{kind}/000_mask.png", 255)
    return source, tmp_path / "mvisa"


def put(path, value, mode="L", size=(6, 4)):
    """A picture whose first row has one value and the rest none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[0] = value
    Image.fromarray(pixels).convert(mode).save(path)


def tree(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def read(root, name):
    return meta.read(root, root / f"meta_{name}.json")


def sources_of(name, tmp_path):
    """The set's own samples, of which the script has seen the folders only."""
    return accepted(name, Path(shutil.copytree(SOURCES[name], tmp_path / name)))


# --- the tree ---


def test_the_tree_holds_what_its_files_list_and_nothing_else(made):
    listed = {"meta_mvtec.json", "meta_visa.json"}
    for name in SOURCES:
        samples = read(made, name)
        for split in meta.SPLITS:
            for sample in samples[split]:
                kind = "anomaly" if sample.anomaly else "good"
                folder, _, file = sample.img_path.rpartition("/")
                assert folder == f"{name}/{sample.cls_name}/{split}/{kind}" and file.endswith(".bmp")
                mask = f"{name}/{sample.cls_name}/ground_truth/anomaly/{file[:-4]}.png"
                assert sample.mask_path == (mask if sample.anomaly else "")
                listed |= {sample.img_path, *filter(None, [sample.mask_path])}
    assert tree(made) == listed and not any(path.name.startswith(".") for path in made.iterdir())


@pytest.mark.parametrize("name", SOURCES)
def test_samples_and_pixels_are_those_of_the_source(made, tmp_path, name):
    """Whichever order: what is known of an image, its pixels and its mask, each as often as in the source."""

    def known(root, samples):
        for sample in samples:
            mask = np.asarray(Image.open(root / sample.mask_path)) if sample.mask_path else np.zeros(0)
            pixels = np.asarray(Image.open(root / sample.img_path).convert("RGB"))
            yield (*sample[2:], pixels.shape, pixels.tobytes(), (mask != 0).tobytes())

    old, new = sources_of(name, tmp_path), read(made, name)
    for split in meta.SPLITS:
        assert sorted(known(made, new[split])) == sorted(known(SOURCES[name], old[split]))
    for sample in (sample for sample in new["test"] if sample.anomaly):
        mask = Image.open(made / sample.mask_path)
        assert mask.mode == "L" and set(np.unique(mask)) == {0, 255}
    assert {Image.open(made / sample.img_path).mode for sample in new["test"]} == {"RGB"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_sees_the_same_references_and_images(made, tmp_path, name):
    """Names sort as in the source, so the same seed draws the same references."""
    old, new = sources_of(name, tmp_path), read(made, name)
    for cls_name in dict.fromkeys(sample.cls_name for sample in new["test"]):
        drawn = []
        for root, samples in ((SOURCES[name], old), (made, new)):
            (paths,) = draw_shots(name, samples["train"], [cls_name], 3, 42).references.values()
            items = AnomalyDataset(root, [meta.Sample(path, "", cls_name, "good", 0) for path in paths], 64)
            drawn.append([item["image"].numpy().tobytes() for item in items])
        assert drawn[0] == drawn[1]


def test_files_are_called_as_by_the_published_program(made):
    """One number through the set: class by class, train before test, then by folder and name or as VisA's list says."""
    names = [Path(s.img_path).name for s in read(made, "mvtec")["test"] if s.cls_name == "coins"]
    kinds = [*["good"] * 6, *["hole"] * 5, *["stain"] * 5]
    assert names == [f"mvtec_{kind}_{number:06d}.bmp" for number, kind in enumerate(kinds, start=24 + 8)]
    train = [Path(s.img_path).name for s in read(made, "mvtec")["train"]]
    assert train[:2] + train[8:9] == ["mvtec_000000.bmp", "mvtec_000001.bmp", "mvtec_000024.bmp"]
    rows = [row.split(",") for row in (SOURCES["visa"] / "split_csv/1cls.csv").read_text().splitlines()[1:]]
    stems = [Path(row[3]).stem for split in meta.SPLITS for row in rows if row[:2] == ["grass", split]]
    grass = [Path(s.img_path).name for split in meta.SPLITS for s in read(made, "visa")[split] if s.cls_name == "grass"]
    assert grass == [f"visa_{stem}_{number:06d}.bmp" for number, stem in enumerate(stems)]


def test_defects_that_share_a_name_stay_apart_and_good_is_numbered_in_its_place(small):
    source, root = small
    assert run("mvisa", root, "--mvtec", source).returncode == 0
    samples = read(root, "mvtec")
    assert [(Path(s.img_path).stem, s.specie_name) for s in samples["train"] + samples["test"]] == [
        ("mvtec_000000", "good"), ("mvtec_bent_000001", "bent"), ("mvtec_good_000002", "good"),
        ("mvtec_torn_000003", "torn"),
    ]  # fmt: skip
    tops = [np.asarray(Image.open(root / sample.img_path))[0, 0, 0] for sample in samples["test"]]
    assert tops == [5, 9, 7]


def test_samples_come_from_the_meta_json_where_there_is_one(small):
    source, root = small
    samples = accepted("mvtec", source)
    meta.write(source, samples | {"test": [s._replace(cls_name="nut 2") for s in samples["test"] if s.anomaly]})
    assert run("mvisa", root, "--mvtec", source).returncode == 0
    new = read(root, "mvtec")
    assert [s.img_path for s in new["test"]] == [
        "mvtec/nut 2/test/anomaly/mvtec_bent_000001.bmp",
        "mvtec/nut 2/test/anomaly/mvtec_torn_000002.bmp",
    ]
    assert [s.cls_name for s in new["train"]] == ["nut"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_colour_but_black_is_a_defect(small, mode, value):
    if mode == "1" and value < 255:
        return  # rounded to black before the script sees it
    source, root = small
    put(source / "mask.png", value, mode)
    old = meta.Sample("nut/test/bent/000.png", "mask.png", "nut", "bent", 1)
    mvisa.convert(source, old, root, old._replace(img_path="new.bmp", mask_path="new.png"))
    assert np.asarray(Image.open(root / "new.png"))[:, 0].tolist() == [255, 0, 0, 0]


# --- published files ---


def published(root, name):
    """meta_<name>.json as the published program writes it: from the folders, in no order, without kinds of defect."""
    document = {"train": {}, "test": {}}
    for split, classes in document.items():
        for path in sorted(root.glob(f"{name}/*/{split}/*/*.bmp"), reverse=True):
            cls_name, kind = path.parts[-4], path.parts[-2]
            sample = {
                "img_path": f"{name}/{cls_name}/{split}/{kind}/{path.name}",
                "mask_path": f"{name}/{cls_name}/ground_truth/{kind}/{path.stem}.png" if kind == "anomaly" else "",
                "cls_name": cls_name,
                "specie_name": kind,
                "dataset_name": name,
                "anomaly": int(kind == "anomaly"),
            }
            classes.setdefault(cls_name, []).append(sample)
    return document


@pytest.mark.parametrize("name", SOURCES)
def test_the_published_file_of_the_tree_is_read(made, tmp_path, name):
    (tmp_path / "published.json").write_text(json.dumps(published(made, name)))
    theirs, ours = meta.read(made, tmp_path / "published.json"), read(made, name)
    for split in meta.SPLITS:
        assert {s.specie_name for s in theirs["test"]} == {"good", "anomaly"}
        without_kind = [{s._replace(specie_name="") for s in samples[split]} for samples in (theirs, ours)]
        assert without_kind[0] == without_kind[1] and len(theirs[split]) == len(ours[split])
    assert not meta.missing(made, theirs)


def test_the_published_placeholder_of_an_empty_folder_is_passed_over(tmp_path):
    """Only in train, and only as that program writes it."""
    empty = dict.fromkeys(("img_path", "mask_path", "dataset_name"), "")
    empty |= {"cls_name": "nut", "specie_name": "anomaly", "anomaly": 1}
    whole = {"img_path": "a.bmp", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({"train": {"nut": [empty, whole]}, "test": {"nut": [whole]}}))
    assert meta.read(tmp_path)["train"] == [meta.Sample(**whole)]
    for split, sample in (("test", empty), ("train", {**whole, "img_path": ""})):
        file.write_text(json.dumps({"train": {}, "test": {"nut": [whole]}} | {split: {"nut": [sample]}}))
        with pytest.raises(ValueError, match="img_path is missing or empty"):
            meta.read(tmp_path)


# --- what is there already, and what goes wrong ---


def test_a_second_run_leaves_the_tree_alone_and_adds_the_other_set(tmp_path):
    root = tmp_path / "mvisa"
    assert run("mvisa", root, *FLAGS[:2]).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (root / "mvtec").rglob("*")}
    result = run("mvisa", root, *FLAGS)
    assert result.returncode == 0 and "mvtec: already there, 72 images; left alone" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (root / "mvtec").rglob("*")}
    assert sorted(os.listdir(root)) == ["meta_mvtec.json", "meta_visa.json", "mvtec", "visa"]


@pytest.mark.parametrize("gone", ["meta_mvtec.json", "mvtec/nut/test/good/mvtec_good_000002.bmp"])
def test_a_tree_that_is_not_whole_is_refused(small, gone):
    source, root = small
    assert run("mvisa", root, "--mvtec", source).returncode == 0
    (root / gone).unlink()
    message = refused("mvisa", root, "--mvtec", source)
    assert f"{root / 'mvtec'} is not a whole set" in message and Path(gone).name in message


def test_a_file_without_its_tree_is_not_replaced(small):
    source, root = small
    touch(root, "meta_mvtec.json")
    assert "meta_mvtec.json: already there" in refused("mvisa", root, "--mvtec", source)
    assert tree(root) == {"meta_mvtec.json"}


def test_no_source_and_sources_that_are_none(tmp_path):
    assert "--mvtec DIR, --visa DIR or both" in refused("mvisa", tmp_path)
    assert "nowhere: no such folder" in (message := refused("mvisa", tmp_path, "--visa", tmp_path / "nowhere"))
    assert "--visa" in message
    assert f"{tmp_path}: no class" in refused("mvisa", tmp_path / "mvisa", "--mvtec", tmp_path)
    assert "1cls.csv: no such file" in refused("mvisa", tmp_path / "mvisa", *FLAGS[:2], "--visa", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda source: (source / "nut/ground_truth/torn/000_mask.png").unlink(), "no mask for 000.png"),
        (lambda source: (source / "nut/test/torn/000.png").write_bytes(b"\x89PNG"), "test/torn/000.png: unreadable"),
        (lambda source: put(source / "nut/ground_truth/torn/000_mask.png", 9, size=(5, 4)), "not of the same size"),
        (lambda source: put(source / "nut/test/torn/000.png", 9, "I;16"), "test/torn/000.png: more than 8 bit"),
        (lambda source: (source / "meta.json").write_text("{"), "meta.json: not valid JSON"),
        (lambda source: list_gone(source), "nut/test/torn/000.png: no such file"),
        (lambda source: rename(source, "../out"), "class '../out' of mvtec can be no folder"),
        (lambda source: rename(source, ".."), "class '..' of mvtec"),
    ],
)
def test_nothing_is_left_of_a_failure(small, spoil, named):
    source, root = small
    spoil(source)
    assert named in refused("mvisa", root, "--mvtec", source)
    assert not root.exists() or os.listdir(root) == []


def list_gone(source):
    accepted("mvtec", source)
    (source / "nut/test/torn/000.png").unlink()


def rename(source, cls_name):
    samples = accepted("mvtec", source)
    meta.write(source, {split: [s._replace(cls_name=cls_name) for s in part] for split, part in samples.items()})


def test_a_full_disk_is_named(small, monkeypatch, fails):
    source, root = small
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(mvisa.Image.Image, "save", lambda *_: (_ for _ in ()).throw(full))
    message = fails(mvisa.main, "--root", root, "--mvtec", source)
    assert "mvtec_000000.bmp: not to be written (No space left on device)" in message
    assert os.listdir(root) == []
