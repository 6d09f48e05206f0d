"""Position rules against their formulas, written out with numpy."""

import numpy as np
import pytest
import torch

from model.backbones.positions import PositionTable, resample
from model.options import POSITION_RULES


def kernel(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel of Keys."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def rows(stored: int, wanted: int, rule: str) -> np.ndarray:
    """How each wanted row is made of the stored ones, (wanted, stored)."""
    step = stored / (wanted + 0.1 if rule == "offset" else wanted)
    made = np.zeros((wanted, stored))
    for row in range(wanted):
        centre = (row + 0.5) * step - 0.5
        if rule == "size_antialias":  # the kernel grows where the grid shrinks; what lies outside does not count
            scale = max(step, 1)
            weights = kernel((np.arange(stored) - centre) / scale, -0.5)
            made[row] = weights / weights.sum()
            continue
        centre = max(centre, 0) if rule == "bilinear" else centre
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            distance = np.array(tap - centre)
            weight = max(0, 1 - abs(distance)) if rule == "bilinear" else kernel(distance, -0.75)
            made[row, np.clip(tap, 0, stored - 1)] += weight  # the border is repeated
    return made


@pytest.mark.parametrize("grid", [(7, 7), (9, 4), (3, 8), (2, 3), (5, 6)])
@pytest.mark.parametrize("rule", POSITION_RULES)
def test_each_rule_is_its_formula(rule, grid):
    torch.manual_seed(0)
    table = torch.randn(1 + 25, 6)
    found = resample(table, 1, grid, rule)
    patches = table[1:].reshape(5, 5, 6).double().numpy()
    expected = np.einsum("ia,jb,abw->ijw", rows(5, grid[0], rule), rows(5, grid[1], rule), patches)
    np.testing.assert_allclose(found[1:].numpy(), expected.reshape(-1, 6), atol=2e-5)
    assert torch.equal(found[0], table[0])


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_the_own_grid_is_the_stored_table(rule):
    table = torch.randn(2 + 12, 4)
    assert resample(table, 2, (3, 4), rule, (3, 4)) is table


def test_a_table_that_was_stored_for_a_wide_image():
    table = torch.randn(12, 4)
    wide = resample(table, 0, (6, 8), "size", (3, 4))
    turned = table.reshape(3, 4, 4).transpose(0, 1).reshape(12, 4)
    high = resample(turned, 0, (8, 6), "size", (4, 3))
    torch.testing.assert_close(wide.reshape(6, 8, 4), high.reshape(8, 6, 4).transpose(0, 1))


@pytest.mark.parametrize(
    ("rows", "rule", "said"),
    [
        (26, "cubic", r"--position_rule cubic: unknown; known: offset, size"),
        (25, "size", r"of 24 patches belongs to no"),
    ],
)
def test_what_is_refused(rows, rule, said):
    with pytest.raises(ValueError, match=said):
        resample(torch.zeros(rows, 3), 1, (4, 4), rule)


def test_tables_of_the_latest_grids_are_kept_and_no_more():
    tables = PositionTable(torch.randn(10, 3), 1, (3, 3), "size")
    first = tables.at((4, 4))
    assert tables.at((4, 4)) is first
    for side in range(5, 25):
        tables.at((side, 3))
    assert tables.at((4, 4)) is not first and torch.equal(tables.at((4, 4)), first)
    assert len(tables._tables) == 16
    assert not tables.state_dict()  # what a checkpoint holds is the model's own table


def test_a_grid_is_as_wanted_by_the_offset_rule():
    table = torch.randn(1 + 37 * 37, 2)
    for side in range(1, 160):
        assert len(resample(table, 1, (side, 1), "offset")) == 1 + side
