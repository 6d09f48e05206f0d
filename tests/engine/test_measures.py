"""Measures through the scoring pass: at the maps' size and at each picture's own, with regions of several masks, kinds
of anomalies, and thresholds that are given."""

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from data.defect_kinds import DefectKind
from data.input_spec import SquareInput
from data.meta import PixelSettings, Sample
from data.references import ZERO_SHOT
from dataset import AnomalyDataset
from engine.batches import batches
from engine.evaluation import score
from engine.ground_truth import GroundTruth, Measuring, asked_measures
from metrics import evaluate, pimo
from metrics.image import calibration_error
from metrics.measures import Thresholds
from metrics.spro import SaturatedRegion, SproCounts
from model.interface import Prediction

SIDE = 24
KINDS = {7: DefectKind("whole", 7, 1.0, True), 9: DefectKind("some", 9, 5.0, False)}
SIZES = [(30, 40), (36, 28), (30, 40), (26, 26), (36, 28), (30, 40)]  # (H, W)
SPECIES = ["good", "good", *["structural_anomalies"] * 2, *["logical_anomalies"] * 2]


class Brightness(nn.Module):
    """The map is the picture's brightness; the score its mean, which serves as a probability."""

    def __init__(self, *, crop: bool) -> None:
        super().__init__()
        self.input_spec = SquareInput(SIDE, center_crop=crop)

    def encode(self, images):
        return images[:, 0].float() / 255

    def zero_shot(self, tokens, names) -> Prediction:
        return Prediction(tokens, {"text": tokens.mean((1, 2))})

    def image_scores(self, score_components, limits=None):
        return score_components["text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A class of MVTec LOCO's kind: each defect a folder with a mask for each of two regions, which overlap."""
    root, rng, samples = tmp_path_factory.mktemp("loco"), np.random.default_rng(0), []
    for number, ((height, width), kind) in enumerate(zip(SIZES, SPECIES, strict=True)):
        pixels = rng.integers(0, 200, (height, width), np.uint8)
        if kind != "good":
            (root / f"{number}").mkdir()
            for value, (top, left) in ((7, (6, 6)), (9, (10, 12))):
                mask = np.zeros((height, width), np.uint8)
                mask[top : top + 8, left : left + 7] = value
                pixels[mask > 0] = np.maximum(pixels[mask > 0], rng.integers(50, 256, (mask > 0).sum()))
                Image.fromarray(mask).save(root / f"{number}/{value}.png")
        Image.fromarray(pixels).save(root / f"{number}.png")
        samples.append(Sample(f"{number}.png", "" if kind == "good" else f"{number}", "box", kind, int(kind != "good")))
    return root, samples


def by_hand(folder, *, crop: bool, own_size: bool) -> tuple[list, list, list]:
    """(maps, masks, regions) of all images, by OpenCV and by slices of arrays."""
    root, samples = folder
    spec, maps, masks, regions = SquareInput(SIDE, center_crop=crop), [], [], []
    for sample, (height, width) in zip(samples, SIZES, strict=True):
        one = spec.image(Image.open(root / sample.img_path))[0].numpy().astype(np.float32) / 255
        left, top, right, bottom = (round(part * side) for part, side in zip(spec.shown, (width, height) * 2))  # noqa: B905
        own = []
        for value, kind in KINDS.items() if sample.anomaly else ():
            whole = np.asarray(Image.open(root / sample.mask_path / f"{value}.png")) == value
            small = spec.mask(Image.fromarray(whole.astype(np.uint8) * 255)).numpy() > 0
            shown = whole[top:bottom, left:right] if own_size else small
            own.append((shown, kind.saturation(56) * shown.sum() / 56))
        if own_size:
            one = cv2.resize(one, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        maps.append(one)
        masks.append(np.any([np.zeros(one.shape, bool), *(mask for mask, _ in own)], 0))
        regions.append(own)
    return maps, masks, regions


@pytest.mark.parametrize(("crop", "own_size", "batch_size"), [(False, True, 4), (True, True, 1), (False, False, 4)])
def test_all_measures_of_a_class(folder, monkeypatch, crop, own_size, batch_size):
    root, samples = folder
    monkeypatch.setattr(pimo, "BOUNDS", (0.01, 0.1))
    measures = asked_measures(["aupimo", "spro", "ece", "fpr95"], [0.3, 0.1], samples)._replace(given=True)
    detector, accelerator = Brightness(crop=crop), Accelerator(cpu=True)
    truth = GroundTruth(
        root, samples, PixelSettings(), detector.input_spec, own_size=own_size, settings=2, defects={"box": KINDS}
    )
    given = Measuring(measures, truth, lambda setting, name: Thresholds(0.601, 0.42 + setting))
    loader = batches(AnomalyDataset(root, samples, detector.input_spec), batch_size, 0, accelerator)
    shots = [ZERO_SHOT] * 2
    both = list(score(detector, loader, samples, shots, lambda _: [None] * 2, accelerator, measuring=given))
    result, labels = both[0], [sample.anomaly for sample in samples]
    assert set(result.metrics) - set(evaluate()) == set(measures.metric_names()) and measures.by_kind

    maps, masks, regions = by_hand(folder, crop=crop, own_size=own_size)
    expected = evaluate(maps, masks, labels, result.scores)
    # A union of masks that are resized is not quite the resized union; only at the pictures' size they are the same.
    if own_size:
        assert {key: result.metrics[key] for key in expected} == pytest.approx(expected, abs=1e-3)
        cut = [one > 0.601 for one in maps]
        hits = sum((a & b).sum() for a, b in zip(cut, masks, strict=True))
        f1 = 2 * hits / sum(a.sum() + b.sum() for a, b in zip(cut, masks, strict=True))
        assert result.metrics["f1_px_given"] == pytest.approx(f1, abs=1e-3)
        assert result.metrics["f1_px_oracle"] == result.metrics["f1_px"] >= f1
        counts = pimo.PimoCounts(2)
        for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
            if labels[index]:
                counts.add_anomalous(index, torch.from_numpy(one), torch.from_numpy(mask))
            else:
                counts.add_normal(torch.from_numpy(one))
        values = [counts.compute().get(index) for index in range(6)]
        above = [one.mean() for one in cut]
        assert result.image_measures == {
            "aupimo": pytest.approx(values, abs=2e-3), "above_px": pytest.approx(above, abs=1e-3),
        } and values[0] is None  # fmt: skip
        assert result.metrics["fpr_px_given"] == pytest.approx(np.mean(above[:2]), abs=1e-3)
        assert result.metrics["aupimo"] == pytest.approx(np.mean(values[2:]), abs=2e-3)

    spro = SproCounts()
    for one, own, kind in zip(maps, regions, SPECIES, strict=True):
        areas = [SaturatedRegion(torch.from_numpy(mask), saturation) for mask, saturation in own]
        spro.update(torch.from_numpy(one), areas, kind.removesuffix("_anomalies"))
    wanted = spro.compute(measures)
    assert len(wanted) == 6 and {key: result.metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-3)
    assert result.metrics["ece_sp"] == calibration_error(labels, result.scores)
    assert [one.metrics["threshold_sp_given"] for one in both] == pytest.approx([0.42, 1.42])
    assert result.metrics["f1_sp_given"] is not None and both[1].metrics["f1_sp_given"] == 0


def test_measures_that_flags_ask_for():
    def names(species, *flags):
        return asked_measures(*flags, [Sample("a", "", "c", kind, int(kind != "good")) for kind in species])

    assert names(["good", "hole"], None, None).metric_names() == ()
    assert names(["good", "hole"], ["ece", "ece"], [0.1, 0.1, 0.3]).metric_names() == ("aupro_fpr0.1", "ece_sp")
    assert not names(["good", "hole", "logical_anomalies"], None, None).by_kind
    assert names(["good", "logical_anomalies"], None, None).by_kind
