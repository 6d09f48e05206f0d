"""test.py on a hand-made MVTec LOCO: AU-sPRO at several limits against plain loops over the maps that it has saved."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

import test as test_script
from data import mvtec_loco, script

HEIGHT, WIDTH = 20, 26
KINDS = [("too many", 255, 0.5, True), ("dent", 254, 9, False)]  # half of the region is enough; nine pixels are
KEYS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
LIMITS = (0.3, 0.6, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three good images, and two of each kind of anomaly, with a region each or two that overlap."""
    root, rng = tmp_path_factory.mktemp("loco"), np.random.default_rng(1)
    places = {"train/good": 1, "validation/good": 1, "test/good": 3, "test/logical_anomalies": 2,
              "test/structural_anomalies": 2}  # fmt: skip
    for place, count in places.items():
        (root / "box" / place).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(100, 256, (HEIGHT, WIDTH, 3), np.uint8)
            for region in range(number + 1 if "anomalies" in place else 0):
                mask = np.zeros((HEIGHT, WIDTH), np.uint8)
                mask[4 + 3 * region : 12 + 3 * region, 3 + 4 * region : 13 + 4 * region] = 255 - (number + region) % 2
                pixels[mask > 0] = rng.integers(0, 100, (int((mask > 0).sum()), 3))
                truth = root / "box" / place.replace("test", "ground_truth") / f"{number:03}"
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{region:03}.png")
            Image.fromarray(pixels).save(root / "box" / place / f"{number:03}.png")
    rows = [dict(zip(KEYS, row, strict=True)) for row in KINDS]
    (root / "box/defects_config.json").write_text(json.dumps(rows))
    script.run(mvtec_loco.build, None, ["--root", str(root)])
    return root


def by_hand(root, maps, kind: str, limit: float) -> float:
    """Every value of a map as the threshold: mean saturated overlap over the rate of all pixels in no region, by
    trapezoids up to the limit."""
    free, overlaps = [], []  # pixels in no region; (pixels of a region, its saturation)
    for (place, number), one in maps.items():
        if place not in ("good", kind):
            continue
        union = np.zeros((HEIGHT, WIDTH), bool)
        for file in sorted((root / f"box/ground_truth/{place}/{number}").glob("*.png")):
            mask = np.asarray(Image.open(file))
            saturation = {255: 0.5 * (mask > 0).sum(), 254: 9}[int(mask.max())]
            overlaps.append((one[mask > 0], saturation))
            union |= mask > 0
        free.append(one[~union])
    pixels = np.concatenate(free)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for one in maps.values() for value in one.ravel()}, reverse=True):
        shares = [min((own >= threshold).sum() / saturation, 1) for own, saturation in overlaps]
        points.append(((pixels >= threshold).mean(), sum(shares) / len(shares)))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if x0 < min(x1, limit):
            stop = min(x1, limit)
            area += (stop - x0) * (y0 + (y0 + (y1 - y0) * (stop - x0) / (x1 - x0))) / 2
    return area / limit


def test_three_tables_at_the_pictures_size(root, tiny_a, tmp_path):
    argv = ["--method", "winclip", *tiny_a.flags, "--image_size", 96, "--dataset", "mvtec_loco", "--data_path", root,
            "--measures", "spro", "--fpr_limits", *LIMITS, "--metric_size", "image", "--num_workers", 0, "--save_maps",
            "--no_images", "--device", "cpu", "--k_shot", 1, "--seed", 1, "--save_path", tmp_path]  # fmt: skip
    test_script.main([str(word) for word in argv])
    maps = {}
    for file in sorted((tmp_path / "maps/box/test").rglob("*.npy")):
        resized = cv2.resize(np.load(file), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        maps[file.parent.name, file.stem] = resized
    row = json.loads((tmp_path / "metrics.json").read_text())["classes"]["box"]
    for limit in LIMITS:
        name = f"auspro_fpr{limit:g}"
        expected = {kind: by_hand(root, maps, f"{kind}_anomalies", limit) for kind in ("structural", "logical")}
        for kind, value in expected.items():
            assert row[f"{name}.{kind}"] == pytest.approx(value, abs=1e-4) and value > 0
        assert row[f"{name}.both"] == pytest.approx(sum(expected.values()) / 2, abs=1e-4)
    titles = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("1-shot")]
    assert [title.removeprefix("1-shot, seed 1") for title in titles] == [
        "", ", structural anomalies and the good images", ", logical anomalies and the good images",
        ", mean of structural and logical",
    ]  # fmt: skip
