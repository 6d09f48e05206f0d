"""Which samples of a dataset have defect pixels, and which lose them at the size of the network's input."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.input_spec import resize_mask
from data.meta import Sample
from data.regions import read_mask


class DefectPixels(NamedTuple):
    """What the masks of some samples hold. Paths are those of masks."""

    masks: int  # of anomalous samples, each once
    empty: list[str]  # without a defect pixel
    vanished: list[str]  # with defect pixels in the file, but with none at the asked size
    classes_without: list[str]  # whose samples have no defect pixel at the asked size, with masks or without


def defect_pixels(root: str | Path, samples: Sequence[Sample], size: int) -> DefectPixels:
    """Read all masks of the anomalous samples, as a training at S x S pixels sees them.

    Raises:
        ValueError: a mask that cannot be read; names it.
    """
    classes = dict.fromkeys((sample.cls_name for sample in samples), 0)  # class -> defect pixels
    wanted = {sample.mask_path: sample.cls_name for sample in samples if sample.anomaly and sample.mask_path}
    empty, vanished = [], []
    for path, cls_name in wanted.items():
        mask = read_mask(Path(root) / path)
        left = int(resize_mask(mask, size).sum())
        classes[cls_name] += left
        if not np.asarray(mask).any():
            empty.append(path)
        elif not left:
            vanished.append(path)
    return DefectPixels(len(wanted), empty, vanished, [name for name, pixels in classes.items() if not pixels])
