"""Metrics against the published numbers, scikit-learn, and a brute force over every distinct value."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from conftest import load_case
from metrics import evaluate, histogram, mean, pixel
from metrics.histogram import NO_KEY, KeyTable, search, split_pixels, to_keys, to_values, unite
from metrics.image import IMAGE, image_metrics
from metrics.pixel import PIXEL, PixelMetrics, label_regions

PUBLISHED_NAMES = {"aupro": "aupro_exact", "aupro_200": "aupro_published"}


@pytest.fixture(scope="module", params=["metrics_smooth", "metrics_ties"])
def case(request):
    return load_case(request.param)


def test_published_numbers(case):
    row = evaluate(*(case.arrays[name] for name in ("maps", "masks", "labels", "scores")))
    assert tuple(row) == PIXEL + IMAGE
    for name, value in row.items():
        if name not in ("iou_px", "threshold_px"):
            assert value == pytest.approx(case.facts["metrics"][PUBLISHED_NAMES.get(name, name)], abs=1e-9), name
    assert row["threshold_px"] == pytest.approx(case.facts["metrics"]["vcp_threshold"], abs=1e-9)
    cut, mask = case.arrays["maps"] >= row["threshold_px"], case.arrays["masks"] > 0
    assert row["iou_px"] == pytest.approx((cut & mask).sum() / (cut | mask).sum(), abs=1e-12)


def curve_by_hand(maps, masks, thresholds, above) -> tuple[np.ndarray, np.ndarray]:
    """FPR and mean overlap at each threshold, by looking at every pixel and every region."""
    numbered = [label(mask > 0, connectivity=2) for mask in masks]
    pairs = [(labels == one, owner) for owner, labels in enumerate(numbered) for one in range(1, labels.max() + 1)]
    cuts = [above(maps, threshold) for threshold in thresholds]
    fpr = [cut[masks == 0].mean() for cut in cuts]
    return np.array(fpr), np.array([np.mean([cut[owner][region].mean() for region, owner in pairs]) for cut in cuts])


def aupro_by_hand(maps, masks) -> float:
    fpr, pro = curve_by_hand(maps, masks, np.unique(maps)[::-1], np.greater_equal)
    points = [(0.0, 0.0), *zip(fpr, pro, strict=True)]
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        stop = min(x1, 0.3)
        if stop > x0:
            area += (stop - x0) * (y0 + y0 + (y1 - y0) * (stop - x0) / (x1 - x0)) / 2
    return area / 0.3


def aupro_200_by_hand(maps, masks) -> float | None:
    low, high = float(maps.min()), float(maps.max())
    thresholds = [low + i * (high - low) / 200 for i in range(200)]
    fpr, pro = curve_by_hand(maps.astype(np.float64), masks, thresholds, np.greater)
    fpr, pro = fpr[fpr < 0.3], pro[fpr < 0.3]
    if len(np.unique(fpr)) < 2:
        return None
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return sum((fpr[i] - fpr[i + 1]) * (pro[i] + pro[i + 1]) / 2 for i in range(len(fpr) - 1))


def by_hand(maps, masks) -> dict:
    truth, values = masks.ravel() > 0, maps.ravel()
    if truth.all() or not truth.any():
        return dict.fromkeys(PIXEL)
    precision, recall, thresholds = precision_recall_curve(truth, values)
    f1 = [0.0 if p + r == 0 else 2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    cut = values >= thresholds[int(np.argmax(np.round(f1, 12)))]
    constant = values.min() == values.max()
    return {
        "auroc_px": roc_auc_score(truth, values),
        "f1_px": max(f1),
        "ap_px": average_precision_score(truth, values),
        "aupro": None if constant else aupro_by_hand(maps, masks),
        "aupro_200": None if constant else aupro_200_by_hand(maps, masks),
        "iou_px": (cut & truth).sum() / (cut | truth).sum(),
        "threshold_px": thresholds[int(np.argmax(np.round(f1, 12)))],
    }


def assert_same(row, expected, tolerance=1e-9):
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or row[name] is None:
            assert row[name] is value, (name, row[name], value)
        else:
            assert math.isclose(row[name], value, rel_tol=tolerance, abs_tol=tolerance), (name, row[name], value)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
VALUES = {
    "any float32": st.floats(-(2.0**127), 2.0**127, width=32),
    "ties": st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, 3.0]),
    "near constant": st.sampled_from([2.0, 2.0 + 2.0**-22, 2.0 + 2.0**-20, 2.0 - 2.0**-20]),
    "tiny": st.floats(-(2.0**-127), 2.0**-127, width=32),
    "outlier": st.one_of(st.floats(0, 1, width=32), st.just(2.0**100)),
}


@st.composite
def maps_and_masks(draw):
    shape, kind = draw(SHAPES), draw(st.sampled_from(sorted(VALUES)))
    maps = draw(hnp.arrays(np.float32, shape, elements=VALUES[kind]))
    return maps, draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 255])))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(maps_and_masks())
def test_brute_force(data):
    maps, masks = data
    assert_same({name: evaluate(maps, masks)[name] for name in PIXEL}, by_hand(maps, masks))


@settings(max_examples=100, deadline=None)
@given(maps_and_masks(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_order_batches_and_shards(data, random, parts):
    """However the images are ordered, batched and spread over processes, the result is the same."""
    maps, masks = data
    regions = np.stack([label_regions(mask) for mask in masks])
    order = list(range(len(maps)))
    random.shuffle(order)
    total = PixelMetrics()
    for part in np.array_split(order, parts):
        shard = PixelMetrics()
        shard.update(maps[part], regions[part])
        total.merge(pickle.loads(pickle.dumps(shard)))
    assert_same(total.compute(), {name: evaluate(maps, masks)[name] for name in PIXEL}, 1e-13)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int64, 7, elements=st.integers(0, 1)),
    hnp.arrays(np.float32, 7, elements=st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 1.0]))),
)
def test_image_metrics(labels, scores):
    row = image_metrics(labels, scores)
    if len(set(labels.tolist())) < 2:
        assert row == dict.fromkeys(IMAGE)
        return
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))
    plain = roc_auc_score(labels, scores), best, average_precision_score(labels, scores)
    assert_same(row, dict(zip(("auroc_sp", "f1_sp", "ap_sp"), plain, strict=True)))


def smooth_stream(images: int = 24, size: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps with a few defects each, the later ones brighter, and one outlier."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.standard_normal((images, 1, 8, 8), dtype=np.float32))
    maps = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[:, 0].numpy()
    masks = np.zeros(maps.shape, np.uint8)
    for mask in masks[::2]:
        for row, column, side in random.integers([0, 0, 1], [size, size, 32], (4, 3)):
            mask[row : row + side, column : column + side] = 1
    maps += masks + np.linspace(0, 1, images, dtype=np.float32)[:, None, None]
    maps[3, 5, 5] = 1e30
    return maps, masks


@pytest.fixture
def small_tables(monkeypatch):
    """Make sketches of maps that are small enough for a test: some 150,000 pixels through tables of 10,000."""
    monkeypatch.setattr(pixel, "NORMAL_CAPACITY", 10_000)
    monkeypatch.setattr(pixel, "DEFECT_CAPACITY", 3_000)
    monkeypatch.setattr(pixel, "BUFFER_BYTES", 40_000)
    monkeypatch.setattr(pixel, "DEFECT_BUFFER_BYTES", 40_000)
    monkeypatch.setattr(histogram, "RESOLUTION", 3e-3)


ORDERS = {
    "darkest first": np.arange(24),
    "brightest first": np.arange(24)[::-1],
    "mixed": np.random.default_rng(1).permutation(24),
}


@pytest.mark.parametrize("order", ORDERS)
def test_sketch_stays_near_and_small(small_tables, monkeypatch, order):
    maps, masks = smooth_stream()
    sketch = PixelMetrics()
    for one in ORDERS[order]:
        sketch.update(maps[one][None], label_regions(masks[one])[None])
        assert len(sketch._normal.table.keys) <= 10_000 and len(sketch._defect.table.keys) <= 3_000
    assert sketch._normal.table.cell and sketch._defect.table.cell
    monkeypatch.undo()
    exact = evaluate(maps, masks)
    row = sketch.compute()
    assert_same({**row, "threshold_px": None}, {**{name: exact[name] for name in PIXEL}, "threshold_px": None}, 1e-3)
    assert sketch._normal.table.mass.sum() == (masks == 0).sum()
    assert sketch._defect.table.mass[0].sum() == masks.sum()


def test_sketch_does_not_depend_on_batches(small_tables):
    maps, masks = smooth_stream()
    regions = np.stack([label_regions(mask) for mask in masks])
    whole, single = PixelMetrics(), PixelMetrics()
    whole.update(maps, regions)
    for one in range(len(maps)):
        single.update(maps[one : one + 1], regions[one : one + 1])
    assert whole.compute() == single.compute() == {name: evaluate(maps, masks)[name] for name in PIXEL}


def test_sketches_merge(small_tables, monkeypatch):
    maps, masks = smooth_stream()
    regions = np.stack([label_regions(mask) for mask in masks])
    total = PixelMetrics()
    for rank in range(3):
        shard = PixelMetrics()
        shard.update(maps[rank::3], regions[rank::3])
        before = shard.compute()
        total.merge(shard)
        assert shard.compute() == before
    assert len(total._normal.table.keys) <= 10_000
    monkeypatch.undo()
    row, exact = total.compute(), evaluate(maps, masks)
    assert_same({**row, "threshold_px": None}, {**{name: exact[name] for name in PIXEL}, "threshold_px": None}, 1e-3)


def test_sketch_fits_whatever_the_resolution(small_tables, monkeypatch):
    monkeypatch.setattr(histogram, "RESOLUTION", 1e-9)
    maps, masks = smooth_stream()
    sketch = PixelMetrics()
    for one, mask in zip(maps, masks, strict=True):
        sketch.update(one[None], label_regions(mask)[None])
        assert len(sketch._normal.table.keys) <= 10_000 and len(sketch._defect.table.keys) <= 3_000
    assert sketch.compute()["auroc_px"] is not None


def fed(maps, masks) -> PixelMetrics:
    pixels = PixelMetrics()
    for one, mask in zip(maps, masks, strict=True):
        pixels.update(one[None], label_regions(mask)[None])
    pixels.compute()
    return pixels


def test_heavy_ties_stay_exact_in_a_sketch(small_tables):
    """A third of all pixels share a value in the middle: its key keeps all of them and takes nothing else."""
    maps, masks = smooth_stream()
    maps[np.abs(maps - 0.5) < 0.4] = 0.5
    table = fed(maps, masks)._normal.table
    assert table.cell
    key = int((to_values(table.keys) == 0.5).nonzero())
    assert table.mass[0, key] == ((maps == 0.5) & (masks == 0)).sum()


def test_small_regions_stay_exact_in_a_sketch(small_tables):
    """A region of one pixel weighs as much as one of thousands: its key is never merged with others."""
    maps, masks = smooth_stream()
    masks[:] = 0
    masks[:6, :, 40:] = 1
    masks[:6, 5, 5] = 1
    table = fed(maps, masks)._defect.table
    assert table.cell and (table.mass[0, table.mass[1] >= 1] == 1).sum() == 6


def test_sketch_of_far_apart_values(small_tables, monkeypatch):
    """Neighbouring keys may differ by more than an int32 holds."""
    maps, masks = smooth_stream()
    maps[3, 5, 5] = 3
    maps *= np.float32(1e35)
    sketch = fed(maps, masks)
    monkeypatch.undo()
    row, exact = sketch.compute(), evaluate(maps, masks)
    assert sketch._normal.table.cell and row["auroc_px"] == pytest.approx(exact["auroc_px"], abs=1e-4)
    assert row["aupro"] == pytest.approx(exact["aupro"], abs=1e-3)


def test_published_thresholds_that_meet_values():
    """Thresholds are whole numbers here: above means greater, and the point with FPR = 0.3 is left out."""
    maps = np.array([[[0] * 7 + [30, 199, 200] + [50, 150]]], np.float32)
    masks = np.array([[[0] * 10 + [1, 1]]])
    assert evaluate(maps, masks)["aupro_200"] == pytest.approx(aupro_200_by_hand(maps, masks), abs=1e-12)


MAP = np.array([[0.1, 0.2, 0.9], [0.3, 0.4, 0.8]], np.float32)
MASK = np.array([[0, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("maps", "masks", "absent"),
    [
        ([MAP], [np.zeros_like(MASK)], set(PIXEL)),
        ([MAP], [np.ones_like(MASK)], set(PIXEL)),
        ([np.ones_like(MAP)], [MASK], {"aupro", "aupro_200"}),
        ([np.where(MASK[:, ::-1], np.float32(1e30), MAP)], [MASK], {"aupro_200"}),  # no threshold with FPR < 0.3
        ([], [], set(PIXEL)),
    ],
)
def test_absent(maps, masks, absent):
    row = evaluate(maps, masks)
    assert {name for name in PIXEL if row[name] is None} == absent
    assert {name for name in IMAGE if row[name] is None} == set(IMAGE)


def test_nothing_given():
    assert evaluate() == dict.fromkeys(PIXEL + IMAGE)
    assert evaluate([MAP], None, [0, 1], [0.1, 0.2]) == {**dict.fromkeys(PIXEL), **dict.fromkeys(IMAGE, 1.0)}
    assert PixelMetrics().compute() == dict.fromkeys(PIXEL)
    assert image_metrics([], []) == dict.fromkeys(IMAGE)


def test_lowest_of_equal_thresholds():
    """F1 is 2/3 at both 4 and 1; scikit-learn's curve meets the lower one first."""
    row = evaluate([[[4.0, 3.0, 2.0, 1.0]]], [[[1, 0, 0, 1]]])
    assert row["f1_px"] == pytest.approx(2 / 3) and row["threshold_px"] == 1.0 and row["iou_px"] == 0.5


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda maps: torch.from_numpy(maps).requires_grad_(),
        lambda maps: torch.from_numpy(maps).to(torch.bfloat16),
        lambda maps: maps.astype(np.float64),
        lambda maps: maps.astype(np.float16),
        lambda maps: maps.astype(np.int64),
        lambda maps: np.asfortranarray(maps),
        lambda maps: maps.tolist(),
    ],
)
def test_kinds_of_input(convert):
    maps = np.arange(12, dtype=np.float32).reshape(2, 2, 3) % 5
    masks = np.stack([MASK, MASK[:, ::-1]])
    assert evaluate(convert(maps), masks) == evaluate(maps, masks)
    assert evaluate(maps, torch.from_numpy(masks.copy()) > 0) == evaluate(maps, masks)


def test_inputs_are_left_alone():
    maps, regions = np.stack([MAP, -MAP]), np.stack([MASK, MASK])
    maps.flags.writeable = regions.flags.writeable = False
    evaluate(maps, regions)
    PixelMetrics().update(maps, regions)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    maps = np.stack([MAP, MAP, MAP])
    maps[1, 0, 2] = bad
    pixels = PixelMetrics()
    with pytest.raises(ValueError, match="map 1 of the batch"):
        pixels.update(maps, np.stack([MASK] * 3))
    assert pixels.compute() == dict.fromkeys(PIXEL)  # nothing of the batch was counted
    with pytest.raises(ValueError, match="image 1"):
        evaluate(maps, [MASK] * 3)
    with pytest.raises(ValueError, match="score 2"):
        image_metrics([0, 1, 1], [0.0, 1.0, bad])
    with pytest.raises(ValueError, match="map 0"):
        pixels.update(np.full((1, 2, 3), 1e300), MASK[None])  # infinite as float32


@pytest.mark.parametrize("regions", [MASK, MASK[None, :, :2], np.stack([MASK, MASK])])
def test_shapes_must_agree(regions):
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \("):
        PixelMetrics().update(MAP[None], regions)
    with pytest.raises(ValueError, match="1 maps but 2 masks"):
        evaluate([MAP], [MASK, MASK])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        image_metrics([0, 1], [0.1, 0.2, 0.3])


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 7])))
def test_regions(mask):
    """The partition is that of scikit-image; the numbers of the regions may differ."""
    ours, theirs = label_regions(mask), label(mask > 0, connectivity=2)
    assert ours.max() == theirs.max()
    assert len(np.unique(np.stack([ours, theirs]).reshape(2, -1), axis=1).T) == len(np.unique(theirs))


@pytest.mark.parametrize(("count", "kind"), [(0, np.uint8), (255, np.uint8), (256, np.int32)])
def test_many_regions_have_numbers_of_their_own(count, kind):
    mask = np.zeros((1, 600), np.uint8)
    mask[0, : 2 * count : 2] = 1
    labels = label_regions(mask)
    assert labels.dtype == kind and np.unique(labels).tolist() == list(range(count + 1))


def test_masks_of_few_and_of_many_regions_are_counted_together():
    """A GPU's batch joins what the readers have labelled by themselves."""
    few, many = np.zeros((2, 1, 600), np.uint8)
    few[0, 3:9] = many[0, ::2] = 1
    maps = np.random.default_rng(0).random((2, 1, 600), dtype=np.float32)
    together, apart = PixelMetrics(), PixelMetrics()
    together.update(maps, torch.cat([torch.from_numpy(label_regions(one))[None] for one in (few, many)]))
    for one, mask in zip(maps, (few, many), strict=True):
        apart.update(one[None], label_regions(mask)[None])
    assert together.compute() == apart.compute()


def test_sizes_may_differ():
    maps, masks = [MAP, MAP[:, :2]], [MASK, MASK[:, :2]]
    assert evaluate(maps, masks)["auroc_px"] == 1.0


def test_mean():
    rows = [{"a": 1.0, "b": None, "c": 0.0}, {"a": 0.0, "b": None, "c": None}, {"a": 0.5, "b": None, "c": None}]
    assert mean(rows) == {"a": 0.5, "b": None, "c": 0.0}
    assert mean(iter(rows)) == mean(rows) and mean([]) == {}


def test_batches_of_several_shapes():
    """Maps may have the size of their images, and masks with them."""
    rng = np.random.default_rng(4)
    shapes = [(3, 20, 31), (1, 5, 40), (2, 31, 20)]
    batches = [(rng.random(shape, dtype=np.float32), rng.random(shape) > 0.9) for shape in shapes]
    pixels = PixelMetrics()
    for maps, masks in batches:
        pixels.update(torch.from_numpy(maps), torch.from_numpy(np.stack([label_regions(mask) for mask in masks])))
    maps, masks = ([one for batch in column for one in batch] for column in zip(*batches, strict=True))
    assert_same({name: evaluate(maps, masks)[name] for name in PIXEL}, pixels.compute(), 1e-13)


# --- the table's parts, which are the same on every device ----------------------------------------------------------


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
)
def device(request):
    return request.param


def test_metrics_are_the_same_on_every_device(small_tables, device):
    maps, masks = smooth_stream()
    regions = np.stack([label_regions(mask) for mask in masks])
    own, expected = PixelMetrics(), PixelMetrics()
    own.update(torch.from_numpy(maps).to(device), torch.from_numpy(regions).to(device))
    expected.update(maps, regions)
    assert_same(own.compute(), expected.compute(), 1e-12)
    assert own.curves() == expected.curves()


def test_pixels_of_a_batch_are_those_of_its_images(device):
    rng = np.random.default_rng(4)
    maps = torch.from_numpy(rng.normal(size=(3, 20, 31)).astype(np.float32))
    maps[0, :4] = -0.0
    regions = torch.from_numpy(np.stack([label_regions(mask) for mask in rng.random((3, 20, 31)) > 0.9]))
    keys, packed = split_pixels(maps.to(device), regions.to(device))
    each = [split_pixels(one[None], its[None]) for one, its in zip(maps, regions, strict=True)]
    assert torch.equal(keys.cpu(), torch.cat([one for one, _ in each]))
    assert torch.equal(packed.cpu(), torch.cat([one for _, one in each]))
    assert ((keys == NO_KEY).cpu() == (regions != 0).flatten()).all()
    areas = [int((regions[0] == number).sum()) for number in regions[0][regions[0] > 0]]
    assert (each[0][1] & 0xFFFFFFFF).tolist() == areas


def test_keys_sort_as_values_do(device):
    values = torch.tensor([-3e38, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 3e38], device=device)
    keys = to_keys(values)
    assert keys.sort(descending=True).values.tolist() == keys.tolist() and keys[3] == keys[4]
    assert to_values(keys).tolist() == (values + 0).double().tolist() and keys.max() < NO_KEY


@settings(max_examples=100, deadline=None)
@given(*[st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 5)), max_size=12)] * 2)
def test_tables_unite(one, other):
    """Against a dictionary."""
    expected: dict[int, int] = {}
    for key, mass in one + other:
        expected[key] = expected.get(key, 0) + mass
    table = KeyTable(1, 100)
    for part in (one, other):
        part = sorted(part)
        table.add(*(torch.tensor([pair[n] for pair in part], dtype=kind) if n == 0 else
                    torch.tensor([[pair[n] for pair in part]], dtype=kind)
                    for n, kind in enumerate((torch.int32, torch.float64))))  # fmt: skip
    assert dict(zip(table.keys.tolist(), table.mass[0].tolist(), strict=True)) == expected
    assert table.keys.tolist() == sorted(expected)


def test_uniting_with_an_empty_table():
    keys, mass = torch.tensor([1, 2], dtype=torch.int32), torch.ones(1, 2, dtype=torch.float64)
    nothing = torch.empty(0, dtype=torch.int32), torch.zeros(1, 0, dtype=torch.float64)
    for pair in ((keys, mass, *nothing), (*nothing, keys, mass)):
        assert [one.tolist() for one in unite(*pair)] == [[1, 2], [[1.0, 1.0]]]


def test_search(device):
    ascending, values = torch.tensor([1, 3, 3], device=device), torch.tensor([0, 3, 9], device=device)
    assert search(ascending, values).tolist() == [0, 1, 3] and search(ascending, values, right=True).tolist() == [
        0,
        3,
        3,
    ]
