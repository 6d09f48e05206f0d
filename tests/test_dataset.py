"""Pictures to tensors, the draw of references, mosaics, the order of training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import load_image, load_mask
from data.input_spec import SquareInput
from data.references import draw_shots, load_shots
from dataset import AnomalyDataset, EpochSampler, ReferenceViews, Sample, select

RNG = np.random.default_rng(0)


def sample(img_path="a.png", mask_path="", cls="nut", kind="good", anomaly=0) -> Sample:
    return Sample(img_path, mask_path, cls, kind, anomaly)


def grey(shape=(20, 30)) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def item(folder, one: Sample, size=16) -> dict:
    return AnomalyDataset(folder, [one], size)[0]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_image_is_stretched_without_crop(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (20, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    expected = Image.open(tmp_path / "a.png").resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(item(tmp_path, sample())["image"].permute(1, 2, 0), np.asarray(expected))


def test_grey_becomes_rgb_after_the_resize(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    resized = np.asarray(Image.open(tmp_path / "a.png").resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(item(tmp_path, sample())["image"], np.stack([resized] * 3))


def test_a_reference_that_cannot_be_turned_is_named(tmp_path):
    Image.new("L", (40_000, 2)).save(tmp_path / "line.png")
    views = [(tmp_path / "line.png", (("rotate_reflected", 45.0),))]
    with pytest.raises(ValueError, match=r"line\.png: 40000 x 2 pixels are too many to be turned"):
        ReferenceViews(views, SquareInput(16))[0]


def test_sixteen_bit_is_brought_to_eight(tmp_path):
    pixels = grey()
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels)
    Image.fromarray(pixels.astype(np.int32) * 257).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.tif")), pixels)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_other_modes_become_rgb_before_the_resize(mode, tmp_path):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    picture = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB" and image.size == (30, 20)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture.convert("RGB")))


def test_alpha_is_dropped_not_blended(tmp_path):
    pixels = np.dstack([np.full((8, 8, 3), 200, np.uint8), np.zeros((8, 8), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (item(tmp_path, sample())["image"] == 200).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "1", "I;16"])
def test_any_non_zero_value_of_a_mask_is_defect(mode, tmp_path):
    defect = np.zeros((20, 30), np.uint8)
    defect[5:9, 4:20] = 1
    if mode == "RGB":  # a blue of 1 of 255, which luminance would round away
        picture = Image.fromarray(np.dstack([0 * defect, 0 * defect, defect]))
    elif mode == "RGBA":
        picture = Image.fromarray(np.dstack([defect, defect, defect, 0 * defect + 255]))
    elif mode == "P":
        picture = Image.fromarray(defect)
        picture.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    elif mode == "I;16":
        picture = Image.fromarray(defect.astype(np.uint16))
    else:
        picture = Image.fromarray(defect * 255).convert(mode) if mode == "1" else Image.fromarray(defect)
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(np.asarray(load_mask(tmp_path / "m.png")), defect * 255)


def test_mask_is_resized_bilinear_and_halved(tmp_path):
    Image.fromarray(grey((40, 40))).save(tmp_path / "a.png")
    defect = np.zeros((40, 40), np.uint8)
    defect[7:22, 3:18] = 3
    Image.fromarray(defect).save(tmp_path / "m.png")
    mask = item(tmp_path, sample("a.png", "m.png", anomaly=1))["mask"]
    full = Image.fromarray((defect > 0).astype(np.uint8) * 255).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mask, np.asarray(full, np.float64) / 255 > 0.5)


def test_normal_image_has_an_empty_mask_whatever_its_path_says(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    assert item(tmp_path, sample(mask_path="nowhere.png"))["mask"].sum() == 0


def test_one_pixel_and_non_square(tmp_path):
    Image.fromarray(grey((1, 1))).save(tmp_path / "a.png")
    Image.fromarray(grey((3, 500))).save(tmp_path / "b.png")
    for name in "ab":
        assert item(tmp_path, sample(f"{name}.png"))["image"].shape == (3, 16, 16)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_mask_of_another_size_names_both_files(tmp_path):
    Image.fromarray(grey((20, 30))).save(tmp_path / "a.png")
    Image.fromarray(grey((20, 31))).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png is 31 x 20 pixels but its image a\.png is 30 x 20"):
        item(tmp_path, sample("a.png", "m.png", anomaly=1))


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_unreadable_image_is_named(content, tmp_path):
    Image.fromarray(grey((200, 200))).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2] if content == "truncated" else content)
    with pytest.raises(ValueError, match=r"a\.png: unreadable image") as error:
        item(tmp_path, sample())
    assert "\n" not in str(error.value)


def test_missing_image_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: no such file"):
        item(tmp_path, sample())


def test_float_image_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: floating-point"):
        load_image(tmp_path / "a.tif")


def test_unknown_class():
    with pytest.raises(ValueError, match="unknown class 'bolt'; the dataset has nut"):
        select([sample()], ["bolt"])


# --- mosaics and order ----------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(tmp_path):
    """A class of which each kind of image has one colour; defects cover the whole image."""
    samples = []
    for value, kind in enumerate(("good", "hole", "scratch"), start=1):
        for number in range(2):
            Image.new("RGB", (8, 6), (value * 60,) * 3).save(tmp_path / f"{kind}{number}.png")
            Image.new("L", (8, 6), 255).save(tmp_path / f"{kind}{number}_mask.png")
            mask = "" if kind == "good" else f"{kind}{number}_mask.png"
            samples.append(sample(f"{kind}{number}.png", mask, kind=kind, anomaly=int(kind != "good")))
    return tmp_path, samples


def test_mosaic_stitches_four_images_and_their_masks_alike(kinds):
    root, samples = kinds
    dataset = AnomalyDataset(root, samples, 32, mosaic_rate=1.0)
    seen = set()
    for index in range(len(samples)):
        one = dataset[index]
        for row in (4, 28):
            for column in (4, 28):
                value = int(one["image"][0, row, column])
                seen.add(value)
                assert bool(one["mask"][row, column]) == (value > 60)
    assert seen == {60, 120, 180}


def test_mosaics_depend_on_seed_epoch_and_index_alone(kinds):
    root, samples = kinds

    def images(seed, epoch):
        dataset = AnomalyDataset(root, samples, 16, mosaic_rate=0.5, seed=seed)
        dataset.epoch = epoch
        return np.stack([dataset[index]["image"] for index in reversed(range(len(samples)))])

    np.testing.assert_array_equal(images(1, 1), images(1, 1))
    assert (images(1, 1) != images(1, 2)).any() and (images(1, 1) != images(2, 1)).any()


def test_mosaic_rate_zero_is_none(kinds):
    root, samples = kinds
    plain, other = AnomalyDataset(root, samples, 16), AnomalyDataset(root, samples, 16, mosaic_rate=0.0, seed=5)
    for index in range(len(samples)):
        np.testing.assert_array_equal(plain[index]["image"], other[index]["image"])


def test_labels_are_those_of_the_samples_and_of_any_part_of_a_mosaic(kinds):
    root, samples = kinds
    plain = AnomalyDataset(root, samples, 16)
    assert [plain[index]["label"] for index in range(len(samples))] == [one.anomaly for one in samples]
    mosaics = AnomalyDataset(root, samples, 32, mosaic_rate=1.0)
    labels = set()
    for mosaics.epoch in range(20):
        one = mosaics[0]
        labels.add(one["label"])
        assert one["label"] == int((one["image"] > 100).any())  # of the anomalous ones
    assert labels == {0, 1}


def test_mosaics_of_anomalies_alone(kinds):
    root, samples = kinds
    dataset = AnomalyDataset(root, samples, 32, mosaic_rate=1.0, mosaic_of="anomalies")
    seen = {int(value) for index in range(len(samples)) for value in dataset[index]["image"].unique()}
    assert min(seen) > 100
    normal = [one for one in samples if not one.anomaly]
    assert int(AnomalyDataset(root, normal, 32, mosaic_rate=1.0, mosaic_of="anomalies")[0]["image"].unique()) == 60


def test_augmentation_turns_the_mask_with_the_image(tmp_path):
    """A bright square on black is where the mask says it is, however it was turned."""
    pixels = np.zeros((96, 96), dtype=np.uint8)
    pixels[30:50, 20:45] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = AnomalyDataset(tmp_path, [sample(mask_path="a.png", kind="hole", anomaly=1)], 96, augmented=True)
    places = set()
    for dataset.epoch in range(40):
        one = dataset[0]
        bright = one["image"].float().mean(0) > 110
        overlap = (bright & (one["mask"] == 1)).sum() / (bright | (one["mask"] == 1)).sum()
        assert overlap > 0.8 and one["image"].shape == (3, 96, 96) and one["image"].dtype == torch.uint8
        assert set(one["mask"].unique().tolist()) == {0, 1} and one["mask"].shape == (96, 96)
        places.add(tuple(one["mask"].nonzero().float().mean(0).round().tolist()))
    assert len(places) > 10


def test_augmentation_depends_on_seed_epoch_and_index_alone(kinds):
    root, samples = kinds

    def images(seed, epoch):
        dataset = AnomalyDataset(root, samples, 16, mosaic_rate=0.3, augmented=True, seed=seed)
        dataset.epoch = epoch
        return np.stack([dataset[index]["image"] for index in reversed(range(len(samples)))])

    np.testing.assert_array_equal(images(1, 1), images(1, 1))
    assert (images(1, 1) != images(1, 2)).any() and (images(1, 1) != images(2, 1)).any()


def test_order_of_an_epoch():
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    assert first == list(sampler) and sorted(first) == list(range(50)) and first != sorted(first)
    sampler.epoch = 1
    assert list(sampler) != first
    assert list(EpochSampler(5, 3, shuffle=False)) == [0, 1, 2, 3, 4]


# --- references -----------------------------------------------------------------------------------------------------

TRAIN = [sample(f"{cls}/{number:03}.png", cls=cls) for cls in ("nut", "bolt") for number in range(12)]


def drawn(k: int, seed: int, train=TRAIN, classes=("nut", "bolt"), dataset="mvtec"):
    return draw_shots(dataset, train, classes, k, seed).references


def test_draw_is_without_replacement_and_nested():
    for name in ("nut", "bolt"):
        paths = [drawn(k, 1)[name] for k in range(13)]
        assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(paths, paths[1:], strict=False))
        assert len(set(paths[12])) == 12


def test_draw_is_the_same_whatever_else_runs():
    alone = drawn(4, 7, classes=("bolt",))["bolt"]
    assert alone == drawn(4, 7)["bolt"] == drawn(4, 7, train=TRAIN[::-1])["bolt"]
    assert alone != drawn(4, 8)["bolt"] and alone != drawn(4, 7, dataset="visa")["bolt"]
    assert [path[-7:] for path in drawn(4, 7)["nut"]] != [path[-7:] for path in alone]


def test_draw_of_known_seeds_does_not_change_between_versions():
    assert drawn(3, 42)["nut"] == ["nut/005.png", "nut/001.png", "nut/009.png"]


def test_draw_takes_normal_images_alone():
    train = [*TRAIN[:2], sample("nut/bad.png", cls="nut", anomaly=1)]
    assert sorted(drawn(2, 0, train, ["nut"])["nut"]) == ["nut/000.png", "nut/001.png"]


def test_k_larger_than_the_references():
    with pytest.raises(ValueError, match="--k_shot 13: class 'nut' of mvtec has 12 normal training images"):
        drawn(13, 0)


def test_references_from_our_file(tmp_path):
    shots = [draw_shots("mvtec", TRAIN, ["nut", "bolt"], k, seed) for k in (1, 2) for seed in (5, 6)]
    path = tmp_path / "k_shot.json"
    path.write_text(json.dumps([shot.as_dict() for shot in shots]))
    assert load_shots(path, TRAIN, ["nut", "bolt"]) == shots
    assert load_shots(path, TRAIN, ["nut", "bolt"], [2], [6]) == [shots[3]]
    with pytest.raises(ValueError, match="holds no references for --k_shot 3"):
        load_shots(path, TRAIN, ["nut", "bolt"], [3])


def test_references_from_a_published_file(tmp_path):
    path = tmp_path / "k_shot.txt"
    path.write_text("nut/000.png\nnut\\000.png\nbolt/003.png\nbolt/001.png\n")
    (shot,) = load_shots(path, TRAIN, ["nut", "bolt"], [2], [42])
    assert shot[:3] == (2, 42, {"nut": ["nut/000.png"] * 2, "bolt": ["bolt/003.png", "bolt/001.png"]})
    assert load_shots(path, TRAIN, ["nut", "bolt"])[0].k_shot == 2
    with pytest.raises(ValueError, match="class 'nut' has 2 references where k_shot is 4"):
        load_shots(path, TRAIN, ["nut", "bolt"], [4])


def test_asked_settings_that_a_file_lacks_are_not_dropped(tmp_path):
    path = tmp_path / "k_shot.json"
    path.write_text(json.dumps([draw_shots("mvtec", TRAIN, ["nut"], k, 5).as_dict() for k in (1, 4)]))
    assert [shot.k_shot for shot in load_shots(path, TRAIN, ["nut"], [0, 4])] == [0, 4]
    with pytest.raises(ValueError, match="holds no references for --k_shot 2"):
        load_shots(path, TRAIN, ["nut"], [0, 2, 4])
    with pytest.raises(ValueError, match="holds no references for --seed 6"):
        load_shots(path, TRAIN, ["nut"], [4], [5, 6])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"k_shot": 1, "seed": "../../evil", "references": {"nut": ["nut/000.png"]}}]', "whole numbers"),
        ("a.json", '[{"k_shot": -1, "seed": 1, "references": {"nut": []}}]', "whole numbers"),
        ("a.json", '[{"k_shot": 1.7, "seed": 1, "references": {"nut": ["nut/000.png"]}}]', "whole numbers"),
        ("a.json", '[{"k_shot": 0, "seed": 1, "references": {}}, {"k_shot": 0, "seed": 1, "references": {}}]', "once"),
        ("a.json", "[]", "holds no references for any setting"),
        ("a.json", "{", "no valid JSON"),
        ("a.json", '[{"k_shot": 1}]', "must be"),
        (
            "a.json",
            '[{"k_shot": 1, "seed": 0, "references": {"nut": ["x.png"]}}]',
            "'x.png' is no image of class 'nut'",
        ),
        (
            "a.json",
            '[{"k_shot": 1, "seed": 0, "references": {"bolt": ["bolt/000.png"]}}]',
            "class 'nut' has 0 references",
        ),
        ("a.txt", "../secret.png\n", "'../secret.png' is no image of meta.json"),
        ("a.txt", "\n", "names no image"),
        ("a.txt", "bolt/000.png", "class 'nut' has 0 references"),
    ],
)
def test_broken_references_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_shots(tmp_path / name, TRAIN, ["nut"])
    assert "\n" not in str(error.value)


def test_missing_references_file(tmp_path):
    with pytest.raises(ValueError, match="not to be read"):
        load_shots(tmp_path / "none.json", TRAIN, ["nut"])
