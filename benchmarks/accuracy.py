"""Pixel metrics: how far they are from the exact ones, on maps of many kinds of distribution and order.

Where a class has more different values than are kept, the rarest are merged; here the same maps are measured with all
values kept. Takes 4 GB.
"""

import sys
from collections.abc import Iterator

import numpy as np

from benchmarks.common import Row
from benchmarks.metrics import KINDS, stream
from metrics.pixel import PixelMetrics, label_regions

NAMES = ("auroc_px", "ap_px", "f1_px", "iou_px", "aupro", "aupro_200")


def measure(quick: bool) -> Iterator[Row]:
    images, size = (10, 128) if quick else (400, 518)
    for kind in KINDS:
        merged, exact = PixelMetrics(), PixelMetrics()
        exact._normal.table.capacity = exact._defect.table.capacity = sys.maxsize
        for maps, masks in stream(images, size, kind):
            regions = np.stack([label_regions(mask) for mask in masks])
            merged.update(maps, regions)
            exact.update(maps, regions)
        row, truth = merged.compute(), exact.compute()
        differences = {name: abs(row[name] - truth[name]) for name in NAMES if truth[name] is not None}
        worst = max(differences, key=differences.get)
        kept = [len(one._normal.table.keys) + len(one._defect.table.keys) for one in (merged, exact)]
        what = f"{kind}: largest distance of a metric from the exact one, {images} maps of {size} x {size}"
        yield Row(what, f"{differences[worst]:.1e} ({worst})", f"{kept[0]} of {kept[1]} values kept", "<= 1e-5")
