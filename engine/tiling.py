"""Any method on large pictures: a detector that takes pictures in tiles (see `data.tiles`), asks another one about each
tile, and puts maps and scores together. Neither the method nor those who call it know of tiles.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from data.tiles import TiledInput, Tiling
from engine.ground_truth import Size, resized
from model.interface import Memory, Prediction, ScoringDetector, SimilarityCache
from model.tokens import each_tensor, join_tokens, split_tokens


class TiledTokens(NamedTuple):
    """What a detector makes of B pictures in T tiles each."""

    tiles: Any  # its tokens, whose tensors begin with (B, T)
    map_size: Size  # (H, W) of the pictures


class TiledDetector:
    """A detector as `model.interface.ScoringDetector` describes it; it has a part where the other one has it.

    A map is the blend of the tiles' maps, brought to the size of their tiles. A component of an image score is the
    largest of any tile, so that a small defect counts as in a picture of the size of a tile.

    Args:
        inner: the detector of tiles.
        tiling: of 2 or more tiles a side.
        at_once: tiles that go through the backbone together.
    """

    def __init__(self, inner: ScoringDetector, tiling: Tiling, at_once: int):
        self._inner, self._tiling, self._at_once = inner, tiling, at_once
        self.input_spec = TiledInput(inner.input_spec, tiling)
        if hasattr(inner, "zero_shot"):
            self.zero_shot = self._zero_shot
        if hasattr(inner, "summarize"):
            self.summarize = self._summarize

    def __getattr__(self, name: str) -> Any:
        """What tiles do not change."""
        return getattr(self._inner, name)

    def encode(self, images: Tensor, map_size: Size) -> TiledTokens:
        """images: (B, T, 3, h, w) uint8 RGB; map_size: (H, W) of the pictures."""
        beside = (self._tile_size(map_size),) if self._inner.input_spec.keeps_shape else ()
        tiles = images.flatten(0, 1).split(self._at_once)
        tokens = join_tokens([self._inner.encode(some, *beside) for some in tiles])
        return TiledTokens(each_tensor(tokens, lambda tensor: tensor.unflatten(0, images.shape[:2])), map_size)

    def _zero_shot(self, tokens: TiledTokens, names: Sequence[str]) -> Prediction:
        return self._merge(self._inner.zero_shot(_flat(tokens), self._names(names)), tokens.map_size)

    def few_shot(
        self,
        zero_shot: Prediction | None,
        tokens: TiledTokens,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        """zero_shot: of the pictures, from which that of their tiles cannot be had; it is made again."""
        flat, names = _flat(tokens), self._names(names)
        of_tiles = None if zero_shot is None else self._inner.zero_shot(flat, names)
        return self._merge(self._inner.few_shot(of_tiles, flat, names, memories, found), tokens.map_size)

    def _summarize(self, passes: Sequence[TiledTokens]) -> Any:
        return self._inner.summarize([_flat(one) for one in passes])  # type: ignore[attr-defined]

    def build_memory(self, references: Sequence[Any]) -> Memory:
        """Of all tiles of all references."""
        if hasattr(self._inner, "summarize"):
            return self._inner.build_memory(references)
        tiles = [_flat(one) for one in references]
        return self._inner.build_memory([one for some in tiles for one in split_tokens(some, self._tiling.count)])

    @property
    def bank_rows(self) -> dict[str, int]:
        """Of a method that sums references up, as if they were no tiles: their bank need not grow with them."""
        times = 1 if hasattr(self._inner, "summarize") else self._tiling.count
        return {key: times * rows for key, rows in self._inner.bank_rows.items()}

    def _names(self, names: Sequence[str]) -> list[str]:
        return [name for name in names for _ in range(self._tiling.count)]

    def _tile_size(self, map_size: Size) -> Size:
        (top, bottom), (left, right) = (self._tiling.spans(edge)[0] for edge in map_size)
        return bottom - top, right - left

    def _merge(self, of_tiles: Prediction, map_size: Size) -> Prediction:
        """From predictions of B * T tiles those of the B pictures, with maps of (H, W)."""
        if of_tiles.foreground is not None:
            raise ValueError("--tiles: this method masks backgrounds, which takes whole pictures; drop --tiles")
        maps = of_tiles.maps.unflatten(0, (-1, self._tiling.count))  # (B, T, h, w)
        components = {
            key: term.unflatten(0, (-1, self._tiling.count)).amax(1) for key, term in of_tiles.score_components.items()
        }
        return Prediction(blend(maps, self._tiling, map_size), components)


def blend(maps: Tensor, tiling: Tiling, map_size: Size) -> Tensor:
    """Maps of the tiles of each picture, (B, T, h, w) of any size -> maps of the pictures, (B, H, W) float32."""
    merged = torch.zeros(len(maps), *map_size, device=maps.device)
    rows, columns = (tiling.weights(edge).to(maps.device) for edge in map_size)
    places = [(row, column) for row in range(tiling.side) for column in range(tiling.side)]
    spans = [tiling.spans(edge) for edge in map_size]
    for tile, (row, column) in enumerate(places):
        (top, bottom), (left, right) = spans[0][row], spans[1][column]
        weights = rows[row][:, None] * columns[column]  # (h, w)
        for picture, one in enumerate(maps[:, tile]):
            merged[picture, top:bottom, left:right] += weights * resized(one, (bottom - top, right - left))
    return merged


def tiled(detector: ScoringDetector, tiling: Tiling, at_once: int) -> ScoringDetector:
    """A detector of whole pictures as one that takes them in tiles; itself where nothing is cut. Arguments as of
    `TiledDetector`."""
    return detector if tiling.side == 1 else cast(ScoringDetector, TiledDetector(detector, tiling, at_once))


def _flat(tokens: TiledTokens) -> Any:
    """The tokens of all tiles, as their detector made them."""
    return each_tensor(tokens.tiles, lambda tensor: tensor.flatten(0, 1))
