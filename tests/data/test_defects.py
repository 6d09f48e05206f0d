"""data/defects.py: masks without a defect pixel, and those that lose theirs at the size of the network's input."""

import numpy as np
import pytest
from PIL import Image

from data.defects import defect_pixels
from data.meta import Sample


def sample(root, name, cls_name, pixels, size=(100, 80)):
    """An anomalous image whose mask has a square of so many pixels a side."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[10 : 10 + pixels, 20 : 20 + pixels] = 255
    Image.fromarray(mask).save(root / f"{name}.png")
    return Sample(f"{name}.jpg", f"{name}.png", cls_name, "bent", 1)


def test_empty_and_vanishing_masks_are_counted(tmp_path):
    samples = [
        sample(tmp_path, "large", "nut", 40),
        sample(tmp_path, "tiny", "nut", 1),
        sample(tmp_path, "empty", "nut", 0),
        sample(tmp_path, "only_tiny", "bolt", 1),
        Sample("unmasked.jpg", "", "wire", "", 1),
        Sample("normal.jpg", "", "gear", "good", 0),
    ]
    counts = defect_pixels(tmp_path, samples, 16)
    assert counts.masks == 4 and counts.empty == ["empty.png"]
    assert counts.vanished == ["tiny.png", "only_tiny.png"]
    assert counts.classes_without == ["bolt", "wire", "gear"]
    assert defect_pixels(tmp_path, samples, 100).vanished == []


def test_no_sample_has_none(tmp_path):
    assert defect_pixels(tmp_path, [], 16) == (0, [], [], [])


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="m.png: unreadable"):
        defect_pixels(tmp_path, [Sample("i.png", "m.png", "nut", "", 1)], 16)
