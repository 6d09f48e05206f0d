"""Made-up runs for the tests of pages."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from metrics.image import image_metrics
from metrics.pixel import PixelMetrics
from report.gallery import SelectedImages, choose
from report.tables import Run


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 16), (200, 80, 20)).save(file, "WEBP")
    return file.getvalue()


def made_up(settings, classes: dict[str, dict], *, pictures: bool = True) -> dict:
    """Arguments of `html.write` but for the path: random scores and maps of every class under every setting.

    Args:
        settings: (k_shot, seed) pairs.
        classes: name -> normal, anomalous (how many images), masks (whether there are any), kinds (of defects).
    """
    runs, rows, results, galleries = [], [], [], {}
    for number, (k_shot, seed) in enumerate(settings):
        metrics_of = {}
        for name, wanted in classes.items():
            own, pixels = _class(name, k_shot, seed, **wanted)
            labels, scores = [row["anomaly"] for row in own], [row["score"] for row in own]
            metrics_of[name] = {**pixels.compute(), **image_metrics(labels, scores)}
            results.append(SimpleNamespace(setting=number, name=name, curves=pixels.curves()))
            rows += own
            if pictures and k_shot not in [k for k, _ in settings[:number]]:
                chosen = choose(own, hits=2, misses=2)
                galleries[number, name] = SelectedImages(
                    *([{**row, "picture": picture()} for row in one] for one in chosen)
                )
        runs.append(Run(k_shot, seed, metrics_of))
    return {"runs": runs, "rows": rows, "results": results, "galleries": galleries}


def _class(name, k_shot, seed, normal: int, anomalous: int, masks: bool = True, kinds=("scratch", "hole")):
    rng = np.random.default_rng([len(name), k_shot, seed or 0])
    rows, pixels = [], PixelMetrics()
    for index in range(normal + anomalous):
        anomaly = int(index >= normal)
        kind = kinds[index % len(kinds)] if anomaly else "good"
        rows.append(
            {"img_path": f"{name}/{kind}/{index:03}.png", "cls_name": name, "specie_name": kind, "anomaly": anomaly,
             "k_shot": k_shot, "seed": seed, "score": float(rng.normal(anomaly))}
        )  # fmt: skip
        mask = np.zeros((1, 12, 12), np.int32)
        mask[0, 3:6, 3:6] = anomaly
        if masks:
            pixels.update(rng.normal(mask), mask)
    return rows, pixels
