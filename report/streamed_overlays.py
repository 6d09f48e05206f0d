"""Pictures of one's own images, drawn beside the scoring as the images come."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.box import WHOLE, Box
from data.meta import PixelSettings
from report.heatmap import SCALE_IMAGES, HeatScale
from report.overlays import PANEL_SIDE
from report.pictures import MIN_PICTURES, draw_unlabelled, shrink_map
from utils.helpers import Helpers
from utils.launch import worker_count


class StreamedOverlays(ExitStack):
    """Original and anomaly map of images without ground truth, in bounded memory: each waits for the colour scale, then
    for one of the processes that draw. An error of drawing is raised with one of the next images, or at the end.

    Args:
        folder: where <name>.png goes.
        pixels: how images are read.
        ends: of the colour scale; None takes those of the first images that `learn` gets, until when maps wait.
        count: of the images; a few are drawn in this process.
    """

    def __init__(
        self,
        folder: Path,
        pixels: PixelSettings,
        ends: tuple[float, float] | None,
        count: int,
        shown: Box = WHOLE,
    ):
        super().__init__()
        self._folder, self._pixels, self._ends, self._shown = folder, pixels, ends, shown
        self._scale = HeatScale(SCALE_IMAGES)
        self._waiting: list[_Waiting] = []
        self._helpers: Helpers | None = None
        self._drawn: deque[Future[None]] = deque()
        if count >= MIN_PICTURES:
            drawing = worker_count()
            self._helpers = self.enter_context(Helpers(drawing, waiting=2 * drawing))
        self.push(self._finish)  # before the helpers end

    @property
    def learning(self) -> bool:
        """Whether the ends are still to be found."""
        return self._ends is None and not self._scale.full

    def learn(self, maps: Iterable[NDArray[Any]]) -> None:
        """The next maps, or what `sample_pixels` keeps of them, in the order of images. Several processes exchange
        theirs, so that one scale serves all pictures."""
        for one in maps:
            if self.learning:
                self._scale.add(one)

    def keep(
        self,
        path: Path,
        name: str,
        one: NDArray[np.float32],
        caption: str,
        foreground: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take one map, (H, W) float32, of the image at `path`; name: of the picture, whose suffix becomes .png;
        foreground: see `pictures.Drawn`."""
        self._waiting.append(_Waiting(path, name, shrink_map(one, PANEL_SIDE), caption, foreground))
        if not self.learning:
            self._draw_waiting()

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._waiting:
            self._draw_waiting()
        while kind is None and self._drawn:
            self._drawn.popleft().result()

    def _draw_waiting(self) -> None:
        ends = self._ends = self._ends or self._scale.ends()
        for path, name, one, caption, foreground in self._waiting:
            file = self._folder / PurePosixPath(name).with_suffix(".png")
            job = path, one, ends, caption, file, self._pixels, self._shown, foreground
            if self._helpers is None:
                draw_unlabelled(*job)
            else:
                self._drawn.append(self._helpers.submit(str(path), draw_unlabelled, *job))
        self._waiting.clear()
        while self._drawn and self._drawn[0].done():
            self._drawn.popleft().result()


class _Waiting(NamedTuple):
    image: Path
    name: str
    map: NDArray[np.float32]
    caption: str
    foreground: NDArray[np.bool_] | None
