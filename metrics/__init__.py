"""Anomaly metrics: pure functions, and one accumulator for pixels whose memory does not grow with the number of images.

Every pixel metric here follows from three counts at each threshold: the normal pixels above it, the defect pixels above
it, and the share of each region above it. So no map need be kept. Float32 values become int32 keys that sort as the
values do, with all 32 bits, and two tables (normal pixels, defect pixels) hold how often each key occurred: ties stay
ties, whatever the scale of the maps. One sweep over both tables, from the highest value down, gives every metric.

A table that outgrows its capacity becomes a sketch: neighbouring keys are merged where their pixels are few beside
those that rank higher (`RESOLUTION`), so that precision, recall and false positive rate hardly move at any cut; a key
that is heavy by itself stays alone. Later pixels join the nearest key that has room, or enter as keys of their own, so
that errors do not add up over the images. benchmarks/metrics.py measures speed and memory, benchmarks/accuracy.py how
far a sketch is from the exact numbers (below 3e-6 in every metric, for 400 maps of 518 x 518 in 12 kinds).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metrics.image import as_array, image_metrics
from metrics.names import IMAGE, PIXEL
from metrics.pixel import PixelMetrics, label_regions


def evaluate(
    maps: Sequence | None = None, masks: Sequence | None = None, labels: Any = None, scores: Any = None
) -> dict[str, float | None]:
    """All metrics of one class from arrays in memory; the numbers are those of `PixelMetrics` fed with the same maps.

    Args:
        maps: N anomaly maps (H, W), an (N, H, W) array or a sequence; sizes may differ between images.
        masks: N masks (H, W), any non-zero value is defect; without them the pixel metrics are None.
        labels, scores: (N,) as in `image_metrics`; without them the image metrics are None.

    Returns:
        The `PIXEL` and `IMAGE` keys.

    Raises:
        ValueError: maps and masks do not fit each other, or values are not finite.

    Example:
        >>> row = evaluate([[[0.1, 0.2], [0.3, 0.9]]], [[[0, 0], [0, 1]]])
        >>> row["auroc_px"], row["threshold_px"], row["auroc_sp"]
        (1.0, 0.8999999761581421, None)
    """
    row: dict[str, float | None] = dict.fromkeys(PIXEL + IMAGE)
    if maps is not None and masks is not None:
        row |= _evaluate_pixels(maps, masks)
    if labels is not None and scores is not None:
        row |= image_metrics(labels, scores)
    return row


def mean(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Plain mean over classes of every metric, over the classes that have it; None where none has."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    present = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in present.items()}


def _evaluate_pixels(maps: Sequence, masks: Sequence) -> dict[str, float | None]:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks")
    metrics = PixelMetrics()
    for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        try:
            metrics.update(as_array(one, np.float32)[None], label_regions(mask)[None])
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from error
    return metrics.compute()
