"""The maps of a test: one file each, from which every picture is drawn; nothing stays behind."""

import io
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from data.input_spec import SquareInput
from data.meta import PixelSettings, Sample
from data.references import FewShotSetting
from dataset import AnomalyDataset
from engine.class_scores import ClassScores
from report import map_files, pictures
from report.map_files import MapFiles

SETTINGS = [FewShotSetting(0, None, {}), FewShotSetting(1, 5, {}), FewShotSetting(1, 6, {})]
SIDE = 200  # larger than the panel of a thumbnail


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes of three images: a normal one, one with a mask, one without."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for sample in SAMPLES:
        path = folder / sample.img_path
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        if sample.mask_path:
            Image.fromarray(np.pad(np.full((10, 20), 255, np.uint8), ((10, 20), (20, 20)))).save(
                folder / sample.mask_path
            )
    return folder


def samples_of(name: str) -> list[Sample]:
    return [
        Sample(f"{name}/0.png", "", name, "good", 0),
        Sample(f"{name}/1.png", f"{name}/1_mask.png", name, "Riß", 1),
        Sample(f"{name}/2.png", "", name, "", 1),
    ]


SAMPLES = [*samples_of("nut"), *samples_of("bolt")]


def map_of(setting: int, index: int) -> np.ndarray:
    return np.random.default_rng((setting, index)).normal(index, 1, (SIDE, SIDE)).astype(np.float32)


def result_of(setting: int, name: str) -> ClassScores:
    indices = [index for index, sample in enumerate(SAMPLES) if sample.cls_name == name]
    return ClassScores(setting, name, {}, indices, [float(index) for index in indices], {}, {})


def score(files: MapFiles, ranks: int = 1, rank: int = 0) -> None:
    """As one process of several, which has every map of its turn."""
    for number, sample in enumerate(SAMPLES):
        if number % ranks == rank:
            for setting in range(len(SETTINGS)):
                files.keep(setting, number, map_of(setting, number))
        if number == len(SAMPLES) - 1 or SAMPLES[number + 1].cls_name != sample.cls_name:
            for setting in range(len(SETTINGS)):
                files.finish(result_of(setting, sample.cls_name))


def drawn(folder, root, **wanted) -> tuple[dict[str, bytes], dict]:
    """(the files that are left, the galleries)."""
    with MapFiles(folder, root, SAMPLES, SETTINGS, **wanted) as files:
        score(files)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}, (
        files.galleries
    )


def test_every_picture_is_drawn_from_the_one_file_of_a_map(tmp_path, root):
    folders = [tmp_path / name for name in ("pictures", "both", "maps")]
    for folder in folders:
        folder.mkdir()
    pictures, galleries = drawn(folders[0], root)
    both, same = drawn(folders[1], root, maps=True)
    maps, of_maps = drawn(folders[2], root, overlays=False, maps=True)
    names = [f"{folder}/{sample.img_path}" for folder in ("zero_shot", "k1_seed5", "k1_seed6") for sample in SAMPLES]
    assert sorted(pictures) == sorted(f"imgs/{name}" for name in names)
    assert sorted(maps) == sorted(f"maps/{name[:-4]}.npy" for name in names)
    assert both == pictures | maps and galleries == same == of_maps
    for number, name in enumerate(names):
        kept = np.load(io.BytesIO(maps[f"maps/{name[:-4]}.npy"]))
        assert kept.dtype == np.float32 and (kept == map_of(*divmod(number, len(SAMPLES)))).all()


@pytest.mark.parametrize("wanted", [{}, {"maps": True}, {"overlays": False}])
def test_pictures_that_are_drawn_beside_the_pass_are_the_same(tmp_path, root, monkeypatch, wanted):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    alone.mkdir(), beside.mkdir()
    expected = drawn(alone, root, **wanted)
    monkeypatch.setattr(map_files, "MIN_PICTURES", 1)
    assert drawn(beside, root, **wanted) == expected


def test_a_class_is_settled_when_its_pictures_are_there(tmp_path, root, monkeypatch):
    monkeypatch.setattr(map_files, "MIN_PICTURES", 1)
    files = MapFiles(tmp_path, root, SAMPLES, SETTINGS)
    assert files.beside
    with files:
        score(files)
        assert files.galleries == {}
        files.settle("nut")
        assert files.is_drawn("nut", 0) and {name for _, name in files.galleries} == {"nut"}
        assert all(path.is_file() for path in files.expected_files()["nut"])
        files.settle("nut")  # again: there is nothing to do


@pytest.mark.parametrize("least", [1, 1000])
def test_an_image_that_cannot_be_drawn_is_named(tmp_path, root, monkeypatch, least):
    monkeypatch.setattr(map_files, "MIN_PICTURES", least)
    broken = [SAMPLES[0], SAMPLES[1]._replace(mask_path="nut/gone.png"), *SAMPLES[2:]]
    with (
        pytest.raises(ValueError, match="nut/gone.png: no such file"),
        MapFiles(tmp_path, root, broken, SETTINGS) as files,
    ):
        score(files)
    assert not list(tmp_path.rglob(".*")) and not list(tmp_path.rglob("*.npy"))


def test_an_error_of_drawing_stops_the_pass(tmp_path, root, monkeypatch):
    monkeypatch.setattr(map_files, "MIN_PICTURES", 1)
    broken = [SAMPLES[0]._replace(img_path="nut/gone.png"), *SAMPLES[1:]]
    with MapFiles(tmp_path, root, broken, SETTINGS[:1]) as files:
        for index in range(3):
            files.keep(0, index, map_of(0, index))
        files.finish(result_of(0, "nut"))
        with pytest.raises(ValueError, match="nut/gone.png: no such file"):
            for _ in range(1000):
                files.keep(0, 3, map_of(0, 3))
                time.sleep(0.05)
        with pytest.raises(ValueError, match="nut/gone.png: no such file"):
            files.settle("nut")
    assert not list(tmp_path.rglob(".*"))


def test_expected_files_are_those_that_are_written(tmp_path, root):
    files = MapFiles(tmp_path, root, SAMPLES, SETTINGS, maps=True)
    expected = files.expected_files()
    with files:
        score(files)
    assert list(expected) == ["nut", "bolt"]
    assert sorted(expected["nut"] + expected["bolt"]) == sorted(
        path for path in tmp_path.rglob("*.*") if path.is_file()
    )


def test_without_overlays_maps_of_the_page_alone_wait(tmp_path, root):
    files = MapFiles(tmp_path, root, SAMPLES, SETTINGS, overlays=False)
    with files:
        for setting in range(3):
            files.keep(setting, 0, map_of(setting, 0))
        files.written()
        waiting = [np.load(path) for path in tmp_path.rglob("*.npy")]
        assert [(one.shape, one.dtype) for one in waiting] == [((SIDE, SIDE), np.float32)] * 2  # of the first of each k
    assert list(tmp_path.iterdir()) == []


def test_a_class_leaves_no_waiting_maps(tmp_path, root):
    with MapFiles(tmp_path, root, SAMPLES, SETTINGS, overlays=False) as files:
        score(files)
        assert not list(tmp_path.rglob("*.npy"))
    assert {key: list(gallery.selected.hits) != [] for key, gallery in files.galleries.items()} == dict.fromkeys(
        [(0, "nut"), (1, "nut"), (0, "bolt"), (1, "bolt")], True
    )


def test_an_interruption_leaves_nothing(tmp_path, root):
    with pytest.raises(KeyboardInterrupt), MapFiles(tmp_path, root, SAMPLES, SETTINGS) as files:
        files.keep(0, 0, map_of(0, 0))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["imgs"]


def test_an_interruption_leaves_whole_pictures_alone(tmp_path, root, monkeypatch):
    monkeypatch.setattr(map_files, "MIN_PICTURES", 1)
    with pytest.raises(KeyboardInterrupt), MapFiles(tmp_path, root, SAMPLES, SETTINGS) as files:
        score(files)
        raise KeyboardInterrupt
    assert not list(tmp_path.rglob(".*")) and not list(tmp_path.rglob("*.npy"))
    for path in tmp_path.rglob("*.png"):
        Image.open(path).load()


def test_an_image_is_read_once_for_all_its_pictures(tmp_path, root, monkeypatch):
    read, load = [], pictures.load_image

    def counted(path, **keywords):
        read.append(path)
        return load(path, **keywords)

    monkeypatch.setattr(pictures, "load_image", counted)
    with MapFiles(tmp_path, root, SAMPLES, SETTINGS[:1]) as files:
        for index in range(3):
            files.keep(0, index, map_of(0, index))
        files.finish(result_of(0, "nut"))
    assert sorted(read) == [root / sample.img_path for sample in SAMPLES[:3]]
    assert len(files.galleries[0, "nut"].thumbnails) == 3


def test_a_resumed_test_has_the_pictures_of_the_first(tmp_path, root):
    with MapFiles(tmp_path, root, SAMPLES, SETTINGS) as files:
        score(files)
    resumed = MapFiles(tmp_path, root, SAMPLES, SETTINGS)
    for name in ("nut", "bolt"):
        resumed.restore(name, files.page_values(name))
    assert resumed.galleries == files.galleries


@pytest.mark.parametrize(("maps", "least"), [(False, 1000), (True, 1000), (True, 1)])
def test_two_processes_draw_what_one_draws(tmp_path, root, monkeypatch, maps, least):
    """Each has every other map; with --save_maps each sees the other's files too."""
    monkeypatch.setattr(map_files, "MIN_PICTURES", least)
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    files, galleries = drawn(alone, root, maps=maps)
    barrier, parts, found = threading.Barrier(2, timeout=60), {}, {}

    def process(rank: int) -> None:
        def gather(own: list) -> list:
            parts[rank] = own
            barrier.wait()
            everything = parts[0] + parts[1]
            barrier.wait()
            return everything

        with MapFiles(together, root, SAMPLES, SETTINGS, maps=maps, gather=gather) as own:
            score(own, 2, rank)
            barrier.wait()
        found[rank] = own.galleries

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: galleries, 1: galleries}
    assert {p.relative_to(together).as_posix(): p.read_bytes() for p in together.rglob("*.*") if p.is_file()} == files


def test_too_many_classes_for_a_page_have_no_pictures(tmp_path, root):
    many = [Sample(sample.img_path, "", f"{number}", "", 1) for number in range(200) for sample in SAMPLES[:1]]
    with MapFiles(tmp_path, root, many, SETTINGS[:1], overlays=False) as files:
        files.keep(0, 0, map_of(0, 0))
        files.written()
        assert not list(tmp_path.rglob("*.npy"))
        files.finish(ClassScores(0, "0", {}, [0], [1.0], {}, {}))
    assert files.galleries == {}


def test_images_that_differ_in_the_suffix_alone_keep_their_pictures_apart(tmp_path, root):
    twins = [SAMPLES[0], SAMPLES[0]._replace(img_path="nut/0.bmp"), SAMPLES[2]]
    with Image.open(root / "nut/0.png") as image:
        image.save(root / "nut/0.bmp")
    with MapFiles(tmp_path, root, twins, SETTINGS[:1], maps=True) as files:
        for index in range(3):
            files.keep(0, index, map_of(0, index))
        files.finish(ClassScores(0, "nut", {}, [0, 1, 2], [0.0, 1.0, 2.0], {}, {}))
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "0_bmp.npy", "0_bmp.png", "0_png.npy", "0_png.png", "2.npy", "2.png"
    ]  # fmt: skip
    for index, name in enumerate(("0_png", "0_bmp", "2")):
        np.testing.assert_array_equal(np.load(tmp_path / f"maps/nut/{name}.npy"), map_of(0, index))
    assert list(files.galleries[0, "nut"].thumbnails) == ["nut/0.png", "nut/0.bmp", "nut/2.png"]


def test_pictures_show_what_was_scored(tmp_path, root):
    """Values of 12 bits in a file of 16, and a photograph that is to be turned."""
    Image.fromarray(np.full((40, 60), 4095, np.uint16)).save(root / "nut/deep.png")
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(root / "nut/0.png") as image:
        image.save(root / "nut/turned.jpg", exif=exif)
    for name, wanted in (("nut/deep.png", {"bits": 12}), ("nut/turned.jpg", {"exif": True})):
        for keywords in ({}, wanted):
            folder = tmp_path / f"{name.replace('/', '_')}_{len(keywords)}"
            folder.mkdir()
            shown, pixels = [Sample(name, "", "nut", "good", 0)], PixelSettings(**keywords)
            with MapFiles(folder, root, shown, SETTINGS[:1], pixels=pixels) as files:
                files.keep(0, 0, map_of(0, 0))
                files.finish(ClassScores(0, "nut", {}, [0], [0.0], {}, {}))
    dark, bright = (Image.open(tmp_path / f"nut_deep.png_{n}/imgs/nut/deep.png") for n in (0, 1))
    assert dark.getpixel((190, 150))[0] < 20 and bright.getpixel((190, 150)) == (255, 255, 255)
    stored, turned = (Image.open(tmp_path / f"nut_turned.jpg_{n}/imgs/nut/turned.png") for n in (0, 1))
    assert stored.width > 3 * stored.height and turned.width < 3 * turned.height


def test_maps_beyond_half_precision_have_colours(tmp_path, root):
    """Squared residuals of large backbones have no bound."""
    with MapFiles(tmp_path, root, SAMPLES[:3], SETTINGS[:1]) as files:
        for index in range(3):
            files.keep(0, index, 1e6 * (3 + map_of(0, index)))
        files.finish(ClassScores(0, "nut", {}, [0, 1, 2], [0.0, 1.0, 2.0], {}, {}))
    pictures_of = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "imgs").rglob("*.png"))]
    assert len(pictures_of) == 3 and all(len(np.unique(one.reshape(-1, 3), axis=0)) > 500 for one in pictures_of)


@pytest.mark.parametrize(("least", "spec"), [(1, SquareInput(32)), (1000, SquareInput(28, center_crop=True))])
def test_what_a_reader_has_seen_is_drawn_without_reading_it_again(tmp_path, root, monkeypatch, least, spec):
    """The very files, though image and mask are gone since."""
    monkeypatch.setattr(map_files, "MIN_PICTURES", least)
    (tmp_path / "again").mkdir(), (tmp_path / "kept").mkdir()
    expected, galleries = drawn(tmp_path / "again", root, shown=spec.shown)
    dataset = AnomalyDataset(root, SAMPLES, spec)
    with MapFiles(tmp_path / "kept", tmp_path / "gone", SAMPLES, SETTINGS, shown=spec.shown) as files:
        watched = AnomalyDataset(root, SAMPLES, spec, on_read=files.previews)
        for index in range(len(SAMPLES)):
            assert torch.equal(watched[index]["image"], dataset[index]["image"])
        score(files)
    found = {
        path.relative_to(tmp_path / "kept").as_posix(): path.read_bytes() for path in (tmp_path / "kept").rglob("*.*")
    }
    assert found == expected and files.galleries == galleries
    assert not list((tmp_path / "kept").glob(".*"))


def test_nobody_keeps_pictures_of_a_test_without_overlays(tmp_path, root):
    with MapFiles(tmp_path, root, SAMPLES, SETTINGS, overlays=False) as files:
        assert files.previews is None


def test_readers_that_are_ahead_keep_nothing_alive(tmp_path, root):
    """They write on while the run ends by an error, which is the one that is told."""
    ahead, ended = threading.Event(), threading.Event()

    def read_on(previews) -> None:
        picture = Image.new("RGB", (64, 64))
        for index in itertools.count():
            try:
                previews(index, picture, None)
            except OSError:  # the folder is gone
                break
            if index == 20:
                ahead.set()
        ended.set()

    with pytest.raises(RuntimeError, match="of the pass"), MapFiles(tmp_path, root, SAMPLES, SETTINGS) as files:
        threading.Thread(target=read_on, args=(files.previews,), daemon=True).start()
        ahead.wait(10)
        raise RuntimeError("of the pass")
    assert ended.wait(10) and list(tmp_path.iterdir()) == [tmp_path / "imgs"]
