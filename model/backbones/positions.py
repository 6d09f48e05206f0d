"""Position tables of ViTs at other grids than their own, by the rules of the published programs."""

import hashlib
import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.options import POSITION_RULES

_KEPT = 16  # grids whose tables are kept: images of a class have few shapes
_OFFSET = 0.1  # patches, which DINOv2's and DINO's programs add to the wanted side before they divide


def resample(
    table: Tensor, prefix: int, grid: tuple[int, int], rule: str, stored: tuple[int, int] | None = None
) -> Tensor:
    """A table for a wanted grid, in float32; as it is where that is its own grid.

    Rules, all with align_corners off:
        offset: bicubic, no antialias; the sampling step is M / (g + 0.1), as in the programs of DINO and DINOv2.
        size: bicubic, no antialias, step M / g, as in Hugging Face's `Dinov2Model`.
        size_antialias: the same with antialias, as in DINOv2 with registers, open_clip and timm.
        bilinear: no antialias, step M / g, as in AnomalyCLIP's program.

    Args:
        table: (prefix + M_h * M_w, W), row by row.
        prefix: entries in front that belong to no patch and stay as they are.
        grid: (g_h, g_w).
        rule: one of POSITION_RULES.
        stored: (M_h, M_w); None: the table is square.

    Returns:
        (prefix + g_h * g_w, W).

    Raises:
        ValueError: an unknown rule, a table that fits no grid.
    """
    if rule not in POSITION_RULES:
        raise ValueError(f"--position_rule {rule}: unknown; known: {', '.join(POSITION_RULES)}")
    side = math.isqrt(len(table) - prefix)
    height, width = stored or (side, side)
    if height * width != len(table) - prefix:
        raise ValueError(f"a position table of {len(table) - prefix} patches belongs to no {height} x {width} grid")
    if (height, width) == tuple(grid):
        return table
    first, rest = table[:prefix].float(), table[prefix:].float()
    rest = rest.T.reshape(1, -1, height, width)  # (1, W, M_h, M_w)
    if rule == "offset":
        scale = ((grid[0] + _OFFSET) / height, (grid[1] + _OFFSET) / width)
        rest = F.interpolate(rest, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        mode = "bilinear" if rule == "bilinear" else "bicubic"
        rest = F.interpolate(rest, tuple(grid), mode=mode, align_corners=False, antialias=rule == "size_antialias")
    if rest.shape[2:] != tuple(grid):
        raise ValueError(f"--position_rule {rule}: gives a grid of {tuple(rest.shape[2:])}, not {tuple(grid)}")
    return torch.cat([first, rest.flatten(2)[0].T])


class PositionTable(nn.Module):
    """A stored table and the rule by which other grids are served; the tables of the latest grids are kept.

    Args:
        stored: (prefix + M_h * M_w, W).
        prefix: see `resample`.
        grid: (M_h, M_w).
        rule: see `resample`.
    """

    def __init__(self, stored: Tensor, prefix: int, grid: tuple[int, int], rule: str):
        super().__init__()
        self.stored: Tensor
        self.register_buffer("stored", stored.detach().clone(), persistent=False)
        self.prefix, self.grid, self.rule = prefix, grid, rule
        self._tables: OrderedDict[tuple[tuple[int, int], torch.device], Tensor] = OrderedDict()
        self.at(grid)  # refuses an unknown rule now

    @property
    def digest(self) -> str:
        """Identity of the stored table."""
        raw: Any = self.stored.cpu().float().contiguous().numpy()
        return hashlib.sha256(raw).hexdigest()

    @torch.no_grad()
    def at(self, grid: tuple[int, int]) -> Tensor:
        """The table of a grid, (prefix + g_h * g_w, W), on the device of the stored one."""
        key = (grid, self.stored.device)
        table = self._tables.get(key)
        if table is None:
            # On the CPU, so that a table does not depend on the device.
            table = resample(self.stored.cpu(), self.prefix, grid, self.rule, self.grid).to(self.stored.device)
            self._tables[key] = table
            if len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        return table
