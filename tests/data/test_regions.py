"""data/regions.py: masks of several files, wherever a mask is read."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.defects import defect_pixels
from data.meta import Sample
from data.regions import mask_files, read_mask, read_regions
from dataset import AnomalyDataset
from engine.resume import run_identity
from report.pictures import Drawn, PictureJob, draw

ONE, OTHER = np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.uint8)
ONE[1:5, 2:9], OTHER[3:11, 6:14] = 1, 200


def put(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def samples(tmp_path):
    """One image twice: with its regions in a folder, and in one file."""
    put(tmp_path / "i.png", np.arange(12 * 16, dtype=np.uint8).reshape(12, 16))
    put(tmp_path / "regions 1/a.png", ONE)
    put(tmp_path / "regions 1/b.PNG", OTHER)
    put(tmp_path / "regions 1/c.png", 0 * ONE)
    (tmp_path / "regions 1/notes.txt").touch()
    put(tmp_path / "m.png", ONE | OTHER)
    return [Sample("i.png", mask, "nut", "bent", 1) for mask in ("regions 1", "m.png")]


def test_the_union_is_the_mask_wherever_one_is_read(tmp_path, samples):
    folder, file = samples
    np.testing.assert_array_equal(read_mask(tmp_path / "regions 1"), 255 * ((ONE | OTHER) > 0))
    dataset = AnomalyDataset(tmp_path, samples, 8)
    np.testing.assert_array_equal(dataset[0]["mask"], dataset[1]["mask"])
    assert dataset[0]["mask"].any() and defect_pixels(tmp_path, samples, 8).empty == []
    np.save(tmp_path / "map.npy", np.random.default_rng(0).random((8, 8), dtype=np.float32))
    pictures = []
    for sample in (folder, file, Sample("i.png", "", "nut", "bent", 1)):
        overlay = tmp_path / f"{len(pictures)}_overlay.png"
        draw(PictureJob(tmp_path, sample, [Drawn(tmp_path / "map.npy", 0.5, (0.0, 1.0), overlay, False)]))
        pictures.append(np.asarray(Image.open(overlay)))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_each_file_of_a_folder_is_a_region(tmp_path, samples):
    regions = read_regions(tmp_path, samples[0])
    for region, pixels in zip(regions, (ONE, OTHER), strict=True):
        np.testing.assert_array_equal(region.mask, pixels > 0)
        assert region.saturation == (pixels > 0).sum()


def test_regions_of_one_file_are_its_components(tmp_path):
    pixels = np.zeros((5, 7), np.uint8)
    pixels[0, 0] = pixels[1, 1] = pixels[4, 3:] = 9
    put(tmp_path / "m.png", pixels)
    assert [region.saturation for region in read_regions(tmp_path, Sample("i", "m.png", "nut", "", 1))] == [2.0, 4.0]


def test_what_is_no_mask_of_several_files_is_named(tmp_path, samples):
    put(tmp_path / "regions 1/d.png", ONE[:4])
    with pytest.raises(ValueError, match=r"d\.png is 16 x 4 pixels but a\.png beside it 16 x 12; they must agree"):
        AnomalyDataset(tmp_path, samples, 8)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: a folder of masks without an image in it"):
        read_mask(tmp_path / "empty")


def test_a_resumed_test_notes_another_mask_in_a_folder(tmp_path, samples):
    def identity():
        accelerator = SimpleNamespace(num_processes=1, device=SimpleNamespace(type="cpu"))
        return run_identity({"prompts": None}, {}, accelerator, str(tmp_path), samples, [], None, None)

    before = identity()
    assert before == identity()
    assert {path for path, *_ in before["images"]} >= {str(file) for file in mask_files(tmp_path / "regions 1")}
    put(tmp_path / "regions 1/c.png", 0 * ONE[:2])
    assert identity() != before
