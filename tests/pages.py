"""Made-up runs for the tests of pages."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from metrics.image import image_metrics
from metrics.pixel import PixelMetrics
from report.gallery import Gallery, choose
from report.predictions import ScoredImage
from report.tables import Run


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 16), (200, 80, 20)).save(file, "WEBP")
    return file.getvalue()


def made_up(settings, classes: dict[str, dict], *, pictures: bool = True) -> dict:
    """Arguments of `html.write_page` but for the path: random scores and maps of every class under every setting.

    Args:
        settings: (k_shot, seed) pairs.
        classes: name -> normal, anomalous (how many images), masks (whether there are any), kinds (of defects).
    """
    runs, images, results, galleries = [], [], [], {}
    for number, (k_shot, seed) in enumerate(settings):
        metrics_of = {}
        for name, wanted in classes.items():
            own, pixels = _class(name, k_shot, seed, **wanted)
            labels, scores = [image.anomaly for image in own], [image.score for image in own]
            metrics_of[name] = {**pixels.compute(), **image_metrics(labels, scores)}
            results.append(SimpleNamespace(setting=number, name=name, curves=pixels.curves()))
            images += own
            if pictures and k_shot not in [k for k, _ in settings[:number]]:
                selected = choose(own, hits=2, misses=2)
                galleries[number, name] = Gallery(selected, {image.img_path: picture() for image in own})
        runs.append(Run(k_shot, seed, metrics_of))
    return {"runs": runs, "images": images, "results": results, "galleries": galleries}


def _class(name, k_shot, seed, normal: int, anomalous: int, masks: bool = True, kinds=("scratch", "hole")):
    rng = np.random.default_rng([len(name), k_shot, seed or 0])
    images, pixels = [], PixelMetrics()
    for index in range(normal + anomalous):
        anomaly = int(index >= normal)
        kind = kinds[index % len(kinds)] if anomaly else "good"
        path, score = f"{name}/{kind}/{index:03}.png", float(rng.normal(anomaly))
        images.append(ScoredImage(path, name, kind, anomaly, k_shot, seed, score))
        mask = np.zeros((1, 12, 12), np.int32)
        mask[0, 3:6, 3:6] = anomaly
        if masks:
            pixels.update(rng.normal(mask), mask)
    return images, pixels
