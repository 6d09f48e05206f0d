"""The scripts of MVTec AD 2, MVTec LOCO AD, Real-IAD, BMAD and VisA's other tree, on small trees: what they have beside
train and test, and masks of several files."""

import json

import numpy as np
import pytest
from PIL import Image

from data import bmad, folder, meta, mvtec2, mvtec_loco, real_iad, script, visa
from data.defect_kinds import DefectKind
from data.meta import UnlabelledImage
from data.regions import read_mask, read_regions
from dataset_scripts import touch


@pytest.fixture
def accepted(capsys):
    """Run a script in this process -> (the samples that it wrote, what it printed)."""

    def run(module, root, *flags):
        capsys.readouterr()
        argv = ["--root", str(root), *flags]
        script.run(module.build, None, argv, own_flags=getattr(module, "FLAGS", None))
        return meta.read(root), capsys.readouterr().out

    return run


@pytest.fixture
def refused(fails):
    """The one line of a refusal; no meta.json is left behind."""

    def run(module, root, *flags):
        own = getattr(module, "FLAGS", None)
        line = fails(lambda argv: script.run(module.build, None, argv, own_flags=own), "--root", root, *flags)
        assert not (root / "meta.json").exists()
        return line

    return run


def brief(samples):
    """img_path -> (mask_path, cls_name, specie_name, anomaly)"""
    return {sample.img_path: tuple(sample[1:]) for sample in samples}


def put_mask(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.mark.parametrize("module", [mvtec2, mvtec_loco, real_iad, bmad])
def test_a_root_that_is_not_there_or_holds_something_else(module, refused, tmp_path):
    touch(tmp_path, "notes/x.png", "x.png")
    for root in (tmp_path, tmp_path / "nowhere"):
        assert str(root) in refused(module, root)


# --- mvtec2 ---


@pytest.fixture
def ad2(tmp_path):
    touch(tmp_path, *(f"can/{place}/good/000_regular.png" for place in ("train", "validation", "test_public")))
    touch(tmp_path, "can/test_public/bad/000_shift_1.PNG", "can/test_public/bad/001_overexposed.png", "can/license.txt")
    touch(
        tmp_path, *(f"can/test_public/ground_truth/bad/{name}_mask.png" for name in ("000_shift_1", "001_overexposed"))
    )
    touch(tmp_path, "can/test_private/000_regular.png", "can/test_private/001_regular.png", "can/test_private/._0.png")
    touch(tmp_path, "can/test_private_mixed/000_mixed.png")
    return tmp_path


def test_mvtec2_parts_and_lights(ad2, accepted):
    samples, printed = accepted(mvtec2, ad2)
    assert brief(samples["train"]) == {"can/train/good/000_regular.png": ("", "can", "regular", 0)}
    assert brief(samples["validation"]) == {"can/validation/good/000_regular.png": ("", "can", "regular", 0)}
    truth = "can/test_public/ground_truth/bad"
    assert brief(samples["test"]) == {
        "can/test_public/good/000_regular.png": ("", "can", "regular", 0),
        "can/test_public/bad/000_shift_1.PNG": (f"{truth}/000_shift_1_mask.png", "can", "shift_1", 1),
        "can/test_public/bad/001_overexposed.png": (f"{truth}/001_overexposed_mask.png", "can", "overexposed", 1),
    }
    assert meta.read_unlabelled(ad2) == {
        "test_private": [
            UnlabelledImage("can/test_private/000_regular.png", "can", "regular"),
            UnlabelledImage("can/test_private/001_regular.png", "can", "regular"),
        ],
        "test_private_mixed": [UnlabelledImage("can/test_private_mixed/000_mixed.png", "can", "mixed")],
    }
    assert "can: 2 images in test_private, the full set has 321\n" in printed
    assert "passed over 1 file: can/license.txt\n" in printed
    head, row = (line.split() for line in printed.splitlines()[:2])
    assert head[-2:] == ["test_private", "test_private_mixed"] and row == ["can", "1", "1", "1", "2", "2", "2", "1"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda root: (root / "can/test_public/bad/000_shift_1.PNG").unlink(),
            "no image for mask 000_shift_1_mask.png",
        ),
        (lambda root: touch(root, "can/test_public/bad/2_regular.png"), "no mask for 2_regular.png"),
        (lambda root: (root / "can/validation").rename(root / "can/val"), "can/validation/good: no images"),
        (
            lambda root: touch(root, "can/test_private/regular.png"),
            "can/test_private/regular.png: expected a name such",
        ),
    ],
)
def test_mvtec2_names_what_is_wrong(ad2, spoil, named, refused):
    spoil(ad2)
    assert named in refused(mvtec2, ad2)


# --- mvtec_loco, and regions of one's own ---

LEFT, RIGHT = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
LEFT[1:3, :3], RIGHT[2, 2:6] = 255, 254  # 6 and 4 pixels, one of them shared


@pytest.fixture
def loco(tmp_path):
    """Two regions in one image, one in another; 255 saturates at half its area, 254 at 3 pixels."""
    root = tmp_path / "loco"
    touch(root, "box/train/good/000.png", "box/validation/good/000.png", "box/test/good/000.png", "license.txt")
    touch(root, "box/test/logical_anomalies/000.PNG", "box/test/structural_anomalies/000.png")
    put_mask(root / "box/ground_truth/logical_anomalies/000/000.png", LEFT)
    put_mask(root / "box/ground_truth/logical_anomalies/000/001.png", RIGHT)
    put_mask(root / "box/ground_truth/structural_anomalies/000/000.png", RIGHT)
    put_config(root, 0.5, 3)
    return root


def put_config(root, share, pixels, value=254):
    rows = [("missing box", 255, share, True), ("dent", value, pixels, False)]
    keys = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    (root / "box/defects_config.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))


def test_loco_masks_are_folders_and_kinds_are_kept(loco, accepted):
    samples, printed = accepted(mvtec_loco, loco)
    assert [sample.img_path for sample in samples["validation"]] == ["box/validation/good/000.png"]
    truth = "box/ground_truth"
    assert brief(samples["test"]) == {
        "box/test/good/000.png": ("", "box", "good", 0),
        "box/test/logical_anomalies/000.PNG": (f"{truth}/logical_anomalies/000", "box", "logical_anomalies", 1),
        "box/test/structural_anomalies/000.png": (
            f"{truth}/structural_anomalies/000",
            "box",
            "structural_anomalies",
            1,
        ),
    }
    kinds = {255: DefectKind("missing box", 255, 0.5, True), 254: DefectKind("dent", 254, 3, False)}
    assert meta.read_defects(loco) == {"box": kinds}
    assert "passed over 1 file: license.txt\n" in printed


def test_regions_of_a_folder_and_their_union(loco, accepted):
    samples, kinds = accepted(mvtec_loco, loco)[0]["test"], meta.read_defects(loco)["box"]
    normal, logical, _ = samples
    np.testing.assert_array_equal(read_mask(loco / logical.mask_path), 255 * ((LEFT > 0) | (RIGHT > 0)))
    regions = read_regions(loco, logical, kinds)
    for region, pixels in zip(regions, (LEFT, RIGHT), strict=True):
        np.testing.assert_array_equal(region.mask, pixels > 0)
    assert [region.saturation for region in regions] == [3.0, 3.0]
    assert [region.saturation for region in read_regions(loco, logical)] == [6.0, 4.0]
    assert read_regions(loco, normal, kinds) == []
    put_config(loco, 1.0, 100)  # no more than the region itself can be found
    accepted(mvtec_loco, loco)
    kinds = meta.read_defects(loco)["box"]
    assert [region.saturation for region in read_regions(loco, logical, kinds)] == [6.0, 4.0]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: put_config(root, 0.5, 3, 99), "000/001.png: pixel value 254 is no kind of defect of this class"),
        (lambda root: put_config(root, 0.5, 3, 255), "entry 2: pixel_value 255 is listed twice"),
        (lambda root: put_config(root, 1.5, 3), "saturation_threshold must be a share above 0, at most 1, got 1.5"),
        (lambda root: put_config(root, 0.5, 0), "saturation_threshold must be a number of pixels above 0, got 0"),
        (lambda root: put_config(root, 0.5, 3, "x"), 'pixel_value must be a whole number from 1 to 65535, got "x"'),
        (lambda root: (root / "box/defects_config.json").write_text("{}"), "defects_config.json must be a list of"),
        (lambda root: (root / "box/defects_config.json").unlink(), "box/defects_config.json: no such file"),
        (
            lambda root: put_mask(root / "box/ground_truth/logical_anomalies/000/001.png", LEFT // 255 + RIGHT),
            "001.png: holds values [1, 254, 255]; expected grey, 0 and the one pixel_value",
        ),
        (
            lambda root: put_mask(root / "box/ground_truth/logical_anomalies/000/001.png", 0 * LEFT),
            "001.png: holds no pixel but black",
        ),
        (
            lambda root: put_mask(root / "box/ground_truth/logical_anomalies/000/001.png", LEFT[:2]),
            "001.png is 6 x 2 pixels but 000.png beside it 6 x 4",
        ),
        (lambda root: touch(root, "box/test/logical_anomalies/7.png"), "no mask for 7.png"),
        (lambda root: (root / "box/test/logical_anomalies/000.PNG").unlink(), "no image for mask 000"),
        (
            lambda root: (root / "box/ground_truth/logical_anomalies/000/002.png").symlink_to("/etc/hostname"),
            "002.png: unreadable",
        ),
    ],
)
def test_loco_names_what_is_wrong(loco, spoil, named, refused):
    spoil(loco)
    assert named in refused(mvtec_loco, loco)


def test_masks_of_ones_own_in_folders(tmp_path, accepted, refused):
    """By the names of files, with or without _mask, below nested folders too; a folder of images keeps its meaning."""
    root = tmp_path / "own parts"
    touch(root, "validation/good/v.png")
    for place in ("a b", "cam 1/c", "1.5"):
        touch(root, f"test/bent/{place}.jpg")
    put_mask(root / "ground_truth/bent/a b/x.png", LEFT)
    put_mask(root / "ground_truth/bent/cam 1/c_mask/y.png", LEFT)
    put_mask(root / "ground_truth/bent/1.5/1.png", LEFT)
    put_mask(root / "ground_truth/bent/1.5/2.png", RIGHT)
    touch(root, "test/bent/cam 1.png", "ground_truth/bent/cam 1.png", "ground_truth/bent/1.5/note.txt")
    samples, printed = accepted(folder, root)
    assert {path: mask for path, (mask, *_) in brief(samples["test"]).items()} == {
        "test/bent/1.5.jpg": "ground_truth/bent/1.5",
        "test/bent/a b.jpg": "ground_truth/bent/a b",
        "test/bent/cam 1.png": "ground_truth/bent/cam 1.png",
        "test/bent/cam 1/c.jpg": "ground_truth/bent/cam 1/c_mask",
    }
    assert [sample.img_path for sample in samples["validation"]] == ["validation/good/v.png"]
    assert "passed over 1 file: ground_truth/bent/1.5/note.txt\n" in printed
    (root / "ground_truth/bent/a b/z.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link to /etc/hostname, outside"):
        meta.read(root)
    (root / "ground_truth/bent/a b/z.png").unlink()
    (root / "meta.json").unlink()
    touch(root, "ground_truth/bent/a b.png")
    assert "several masks for a b.jpg" in refused(folder, root)


# --- real_iad ---


@pytest.fixture
def iad(tmp_path):
    """The lists of two views and of one, nested as the archive has them; one class' paths hold the class folder."""
    for name, prefix in (("mint", ""), ("toy brick", "toy brick/")):
        place = f"realiad_256/{name}"
        touch(tmp_path, *(f"{place}/OK/S0001/o_C{view}.jpg" for view in (1, 2, 3)))
        touch(tmp_path, f"{place}/NG/AK/S0002/n_C1.JPG", f"{place}/NG/AK/S0002/n_C1_mask.png")
        train = [{"image_path": f"{prefix}OK/S0001/o_C1.jpg", "mask_path": None, "anomaly_class": "OK"}]
        other = [{"image_path": f"{prefix}OK/S0001/o_C{view}.jpg", "anomaly_class": "OK"} for view in (2, 3)]
        paths = {"image_path": f"{prefix}NG/AK/S0002/n_C1.JPG", "mask_path": f"{prefix}NG/AK/S0002/n_C1_mask.png"}
        test = [*other, {**paths, "anomaly_class": "AK"}]
        put_list(tmp_path / f"realiad_jsons/realiad_jsons/{name}.json", train, test)
        put_list(tmp_path / f"realiad_jsons/realiad_jsons_sv/{name}.json", train, test[-1:])
    return tmp_path


def put_list(path, train, test):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": {"normal_class": "OK", "prefix": "x/"}, "train": train, "test": test}))


def test_real_iad_by_its_lists(iad, accepted):
    samples, printed = accepted(real_iad, iad, "--lists", "realiad_jsons")
    assert brief(samples["train"]) == {
        f"realiad_256/{name}/OK/S0001/o_C1.jpg": ("", name, "good", 0) for name in ("mint", "toy brick")
    }
    defect = "realiad_256/toy brick/NG/AK/S0002/n_C1"
    assert brief(samples["test"])[f"{defect}.JPG"] == (f"{defect}_mask.png", "toy brick", "AK", 1)
    assert len(samples["test"]) == 6
    assert "read realiad_jsons/realiad_jsons for the images in realiad_256\n" in printed
    samples, printed = accepted(real_iad, iad, "--lists", "realiad_jsons_sv")
    assert len(samples["test"]) == 2 and "passed over" in printed


def spoiled(root, **changes):
    """Another last entry of mint's list, for the message that it brings."""
    path = root / "realiad_jsons/realiad_jsons/mint.json"
    content = json.loads(path.read_text())
    content["test"][-1] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "flags", "named"),
    [
        (lambda root: None, [], "holds realiad_jsons, realiad_jsons_sv; choose one with --lists NAME"),
        (lambda root: None, ["--lists", "sv"], "--lists sv: no such folder"),
        (lambda root: touch(root, "realiad_512/x"), ["--lists", "realiad_jsons"], "choose one with --images NAME"),
        (lambda root: (root / "realiad_256").rename(root / "x"), ["--lists", "realiad_jsons"], "unpack the images"),
        (
            lambda root: spoiled(root, image_path="y.jpg"),
            ["--lists", "realiad_jsons"],
            'entry 3: image_path "y.jpg" is',
        ),
        (lambda root: spoiled(root, mask_path=None), ["--lists", "realiad_jsons"], "entry 3: mask_path must be a path"),
        (lambda root: spoiled(root, anomaly_class=1), ["--lists", "realiad_jsons"], "entry 3: expected an object with"),
        (
            lambda root: put_list(root / "realiad_jsons/a.json", [], {}),
            ["--lists", "realiad_jsons"],
            "a.json: expected {",
        ),
    ],
)
def test_real_iad_names_what_is_wrong(iad, spoil, flags, named, refused):
    spoil(iad)
    assert named in refused(real_iad, iad, *flags)


# --- visa's other tree ---


@pytest.mark.parametrize("below", ["", "visa_pytorch/1cls/"])
def test_visa_as_the_tree_of_its_one_class_split(below, tmp_path, accepted, refused):
    touch(tmp_path, f"{below}pcb1/train/good/0.JPG", f"{below}pcb1/test/good/1.JPG", f"{below}pcb1/test/bad/2.JPG")
    touch(tmp_path, f"{below}pcb1/ground_truth/bad/2.png")
    samples, printed = accepted(visa, tmp_path)
    assert brief(samples["train"]) == {f"{below}pcb1/train/good/0.JPG": ("", "pcb1", "good", 0)}
    assert brief(samples["test"]) == {
        f"{below}pcb1/test/good/1.JPG": ("", "pcb1", "good", 0),
        f"{below}pcb1/test/bad/2.JPG": (f"{below}pcb1/ground_truth/bad/2.png", "pcb1", "", 1),
    }
    assert "read as the tree of the one-class split" in printed
    (tmp_path / "meta.json").unlink()
    (tmp_path / f"{below}pcb1/ground_truth/bad/2.png").unlink()
    assert "no mask for 2.JPG" in refused(visa, tmp_path)


# --- bmad ---


@pytest.fixture
def medical(tmp_path):
    """A set as documented, one as its archive has it, one without masks."""
    touch(tmp_path, "Brain/train/good/0.png", "Brain/valid/good/img/1.png", "Brain/valid/Ungood/img/2.png")
    touch(
        tmp_path,
        *(f"Brain/test/{name}.png" for name in ("good/img/3", "good/label/3", "Ungood/img/4", "Ungood/label/4")),
    )
    place = "Retina_RESC_AD/RESC"
    touch(tmp_path, f"{place}/Train/train/good/0.bmp", f"{place}/Val/val/good/1.bmp", f"{place}/Test/test/good/2.bmp")
    touch(tmp_path, f"{place}/Test/test/Ungood/3 3.bmp", f"{place}/Test/test_label/Ungood/3 3.png")
    touch(
        tmp_path, "Chest/train/good/0.png", "Chest/val/good/1.png", "Chest/test/good/2.png", "Chest/test/Ungood/3.PNG"
    )
    return tmp_path


def test_bmad_in_its_shapes(medical, accepted):
    samples, _ = accepted(bmad, medical)
    assert {(sample.img_path, sample.cls_name) for sample in samples["validation"]} == {
        ("Brain/valid/good/img/1.png", "Brain"),
        ("Chest/val/good/1.png", "Chest"),
        ("Retina_RESC_AD/RESC/Val/val/good/1.bmp", "Retina_RESC"),
    }
    assert [sample.cls_name for sample in samples["train"]] == ["Brain", "Chest", "Retina_RESC"]
    place = "Retina_RESC_AD/RESC/Test"
    assert {path: row for path, row in brief(samples["test"]).items() if row[-1]} == {
        "Brain/test/Ungood/img/4.png": ("Brain/test/Ungood/label/4.png", "Brain", "", 1),
        "Chest/test/Ungood/3.PNG": ("", "Chest", "", 1),
        f"{place}/test/Ungood/3 3.bmp": (f"{place}/test_label/Ungood/3 3.png", "Retina_RESC", "", 1),
    }


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: touch(root, "Brain/test/Ungood/img/5.png"), "no mask for 5.png"),
        (lambda root: (root / "Brain/test/Ungood/img/4.png").unlink(), "no image for mask 4.png"),
        (
            lambda root: touch(root, "Brain/test/odd/5.png"),
            "Brain/test/odd/5.png: lies neither in good/ nor in Ungood/",
        ),
        (lambda root: touch(root, "Liver/test/readme"), "Liver/test: no images"),
        (
            lambda root: (root / "Brain/test/Ungood/label").rename(root / "Brain/valid/Ungood/label"),
            "Brain/test: no masks, though there are some of this set",
        ),
        (
            lambda root: touch(root, "Chest_AD/train/good/0.png", "Chest_AD/test/good/2.png"),
            "Chest and Chest_AD are the same set",
        ),
    ],
)
def test_bmad_names_what_is_wrong(medical, spoil, named, refused):
    spoil(medical)
    assert named in refused(bmad, medical)
