"""The anomaly maps of a test: each is written to one file, and all pictures of a class are drawn from these files."""

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.box import WHOLE, Box
from data.images import result_names
from data.meta import PixelSettings, Sample
from data.references import FewShotSetting
from report.gallery import Gallery, SelectedImages, choose, pictures_per_list, settings_with_pictures
from report.heatmap import HeatScale, sample_pixels
from report.overlays import PANEL_SIDE
from report.pictures import MIN_PICTURES, Drawn, PictureJob, Previews, draw, get_ready, shrink_map
from report.predictions import ClassScores, scored_images
from utils.files import atomic_write, save_array
from utils.helpers import Helpers
from utils.launch import worker_count

OVERLAYS, MAPS = "imgs", "maps"  # folders of the results
SPOOL = ".maps-"  # beginning of the name of the folder of waiting maps
_THREADS = 2  # that draw a few pictures
_WAITING = 32  # maps in memory that are to be written


def save_map(folder: Path, name: str, one: NDArray[Any]) -> None:
    """Write a map, (S, S), as float32 under the image's name with the suffix .npy."""
    _write_map(folder / PurePosixPath(name).with_suffix(".npy"), one)


def _write_map(path: Path, one: NDArray[Any]) -> None:
    with atomic_write(path) as temporary:
        save_array(temporary, one.astype(np.float32))


def setting_folder(k_shot: int, seed: int | None) -> str:
    """The subfolder of a few-shot setting in imgs/ and maps/; a test of one setting has none."""
    return f"k{k_shot}_seed{seed}" if k_shot else "zero_shot"


def _remove(folder: Path) -> None:
    """Remove a folder into which others may still write: readers that are ahead when a run is interrupted."""
    gone = folder.with_name(f"{folder.name}.gone")
    folder.rename(gone)  # from now on they fail, and nothing new comes while it is emptied
    shutil.rmtree(gone)


class _Class(NamedTuple):
    """A class whose maps have come, under some settings or all of them.

    pages: setting -> what the page shows of it. maps: index of an image -> what is to be drawn of it. drawing: index of
    an image -> its thumbnails, in the order of its maps.
    """

    pages: dict[int, SelectedImages]
    maps: dict[int, list[tuple[int, Drawn]]]
    drawing: dict[int, Future[list[bytes | None]]]


class MapFiles:
    """Takes the maps of a scoring pass, and draws the pictures of a class when its last map has come, since one colour
    scale serves the whole class.

    Until then the maps wait on disk, so that memory does not grow with the number of images: as the files of
    --save_maps where these are wanted, else in a temporary folder, which is removed at the end and on
    an interruption. Of several processes each draws the images whose maps it has.

    Many pictures are drawn in processes beside the pass, which goes on: a class is done when it is settled. A few are
    drawn at once, since such processes take time to start. An error of drawing is raised with one of the next maps, or
    when the class is settled.

    Args:
        save_path: the folder of results.
        root: the dataset's root.
        samples: the samples that the maps' indices count.
        settings: the few-shot settings.
        overlays: whether imgs/ is wanted.
        maps: whether maps/ is wanted.
        pixels: how images and masks are read.
        shown: the part of a picture that its map shows.
        gather: a list -> the lists of all processes, one after the other.

    Attributes:
        galleries: (setting, class) -> the pictures of report.html, of the classes that are settled.
        beside: whether pictures are drawn beside the pass.
        previews: from `__enter__` on, keeps what overlays show of an image when it is read; None without overlays.
    """

    def __init__(
        self,
        save_path: Path,
        root: str | Path,
        samples: Sequence[Sample],
        settings: Sequence[FewShotSetting],
        *,
        overlays: bool = True,
        maps: bool = False,
        pixels: PixelSettings | None = None,
        shown: Box = WHOLE,
        gather: Callable[[list[Any]], list[Any]] = list,
    ):
        self.galleries: dict[tuple[int, str], Gallery] = {}
        self._save_path, self._root, self._samples, self._settings = save_path, Path(root), samples, settings
        self._overlays, self._maps, self._gather = overlays, maps, gather
        self._pixels, self._shown = pixels or PixelSettings(), shown
        self._names = result_names([sample.img_path for sample in samples])
        several = len(settings) > 1
        self._folders = [setting_folder(one.k_shot, one.seed) if several else "" for one in settings]
        in_page = settings_with_pictures([setting.k_shot for setting in settings])
        self._per_list = pictures_per_list(len({sample.cls_name for sample in samples}) * len(in_page))
        self._in_page = in_page if self._per_list else []
        self._counts = Counter(sample.cls_name for sample in samples)
        self._own: dict[tuple[int, int], NDArray[np.float32]] = {}  # (setting, index) of waiting maps -> some pixels
        self._foreground: dict[tuple[int, int], NDArray[np.bool_]] = {}  # of the maps that wait, of a method that masks
        self._classes: dict[str, _Class] = {}
        self._errors: list[BaseException] = []
        self._writing: deque[Future[None]] = deque()
        self._ready = False
        thumbnails = 3 * self._per_list * len(self._counts) * len(self._in_page)
        self.previews: Previews | None = None
        self.beside = (len(samples) * len(settings) if overlays else thumbnails) >= MIN_PICTURES

    def __enter__(self) -> "MapFiles":
        if self._overlays:
            (self._save_path / OVERLAYS).mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._spool = Path(tempfile.mkdtemp(prefix=SPOOL, dir=self._save_path))
            stack.callback(_remove, self._spool)
            self.previews = Previews(self._spool, self._shown) if self._overlays else None
            self._writer = stack.enter_context(ThreadPoolExecutor(1))
            if self.beside:
                self._helpers = stack.enter_context(Helpers(worker_count()))
            else:
                self._threads = stack.enter_context(ThreadPoolExecutor(_THREADS))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            for name in list(self._classes) if kind is None else ():
                self.settle(name)

    def expected_files(self) -> dict[str, list[Path]]:
        """Class -> the overlays and maps that it is to have."""
        kinds = [(OVERLAYS, ".png")] * self._overlays + [(MAPS, ".npy")] * self._maps
        found: dict[str, list[Path]] = {sample.cls_name: [] for sample in self._samples}
        for kind, suffix in kinds:
            for setting in range(len(self._settings)):
                for sample in self._samples:
                    found[sample.cls_name].append(self._result(kind, setting, sample, suffix))
        return found

    def keep(
        self, setting: int, index: int, one: NDArray[np.float32], foreground: NDArray[np.bool_] | None = None
    ) -> None:
        """Take one map, (H, W) float32, which must not be changed any more. A thread writes it, so that a GPU need not
        wait for the disk; an error of that is raised with one of the next maps, or by `finish`."""
        if self.beside and not self._ready:
            self._ready = True
            for _ in range(worker_count()):  # so that those who draw are there when the first class is
                self._helpers.submit("the start of drawing", get_ready)
        if foreground is not None and self._overlays:
            self._foreground[setting, index] = foreground
        self._writing.append(self._writer.submit(self._write, setting, index, one))
        while len(self._writing) > _WAITING or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()
        if self._errors:
            raise self._errors[0]

    def written(self) -> None:
        """Wait until all maps that have come are on the disk."""
        while self._writing:
            self._writing.popleft().result()

    def _write(self, setting: int, index: int, one: NDArray[np.float32]) -> None:
        small = shrink_map(one, PANEL_SIDE)
        if self._maps:
            _write_map(self._file(setting, index), one)
        elif self._draws(setting):
            save_array(self._file(setting, index), small)
        if self._draws(setting):
            self._own[setting, index] = sample_pixels(small, self._counts[self._samples[index].cls_name])

    def finish(self, result: ClassScores) -> None:
        """All maps of a class under a setting have come. With the last setting it is drawn: each image with all its
        maps, since reading it takes as long as drawing."""
        self.written()
        one = self._classes.setdefault(result.name, _Class({}, {}, {}))
        if self._draws(result.setting):
            self._add_maps(one, result)
        if result.setting == len(self._settings) - 1:
            for index, maps in one.maps.items():
                one.drawing[index] = self._draw(index, [drawn for _, drawn in maps])
            if not self.beside:
                self.settle(result.name)

    def _add_maps(self, one: _Class, result: ClassScores) -> None:
        setting, in_page = result.setting, set()
        if setting in self._in_page:
            images = scored_images(result, self._settings[setting], self._samples)
            page = one.pages[setting] = choose(images, self._per_list, self._per_list, self._per_list)
            in_page = {image.img_path for chosen in page for image in chosen}
        own = {index: score for index, score in zip(result.indices, result.scores, strict=True)
               if (setting, index) in self._own}  # fmt: skip
        ends = self._ends([self._own.pop((setting, index)) for index in own], len(result.indices))
        for index, score in own.items():
            drawn = self._drawn(setting, index, score, ends, in_page)
            if drawn.overlay or drawn.thumbnail:
                one.maps.setdefault(index, []).append((setting, drawn))
            elif drawn.discard:
                drawn.map_file.unlink()

    def is_drawn(self, name: str, within: float) -> bool:
        """Whether all pictures of a class that has been finished are there, or come within some seconds."""
        drawn, others = wait(self._classes[name].drawing.values() if name in self._classes else (), within)
        return not others and not any(future.exception() for future in drawn)

    def settle(self, name: str) -> None:
        """Wait for the pictures of a class that has been finished. Of several processes each must call it."""
        one = self._classes.pop(name, None)
        if one is None:
            return
        own = [
            (setting, self._samples[index].img_path, picture)
            for index, future in one.drawing.items()
            for (setting, _), picture in zip(one.maps[index], future.result(), strict=True)
            if picture
        ]
        thumbnails = self._gather(own)
        if self.previews:
            for index, sample in enumerate(self._samples):
                if sample.cls_name == name:
                    self.previews.file(index).unlink(missing_ok=True)
        for setting, page in one.pages.items():
            of_setting = {path: picture for number, path, picture in thumbnails if number == setting}
            self.galleries[setting, name] = Gallery(page, of_setting)

    def page_values(self, name: str) -> dict[int, Any]:
        """Setting -> what report.html needs of a class, as JSON can hold it; `restore` takes it back."""
        return {setting: one.to_json() for (setting, owner), one in self.galleries.items() if owner == name}

    def restore(self, name: str, values: Mapping[int, Any]) -> None:
        """Take what `page_values` gave of a class in the test that is resumed."""
        self.galleries |= {(setting, name): Gallery.from_json(value) for setting, value in values.items()}

    def _draws(self, setting: int) -> bool:
        """Whether any pictures of a setting are wanted."""
        return self._overlays or setting in self._in_page

    def _ends(self, own: list[NDArray[np.float32]], count: int) -> tuple[float, float]:
        """Of the colour scale of a class, from the maps of all processes."""
        scale = HeatScale(count)
        for pixels in self._gather(own):
            scale.add(pixels)
        return scale.ends()

    def _drawn(
        self, setting: int, index: int, score: float, ends: tuple[float, float], in_page: Collection[str]
    ) -> Drawn:
        sample = self._samples[index]
        overlay = self._result(OVERLAYS, setting, sample, ".png") if self._overlays else None
        thumbnail = sample.img_path in in_page
        foreground = self._foreground.pop((setting, index), None)
        return Drawn(self._file(setting, index), score, ends, overlay, thumbnail, not self._maps, foreground)

    def _draw(self, index: int, maps: Sequence[Drawn]) -> Future[list[bytes | None]]:
        sample, preview = self._samples[index], self.previews.file(index) if self.previews else None
        kept = preview if preview and preview.exists() else None
        job = PictureJob(self._root, sample, maps, self._pixels, self._shown, kept)
        if not self.beside:
            return self._threads.submit(draw, job)
        future = self._helpers.submit(sample.img_path, draw, job)
        future.add_done_callback(self._note_error)
        return future

    def _note_error(self, future: Future[list[bytes | None]]) -> None:
        if not future.cancelled() and (error := future.exception()):
            self._errors.append(error)

    def _file(self, setting: int, index: int) -> Path:
        """Where a map is until its class is drawn."""
        if self._maps:
            return self._result(MAPS, setting, self._samples[index], ".npy")
        return self._spool / f"{setting}-{index}.npy"

    def _result(self, kind: str, setting: int, sample: Sample, suffix: str) -> Path:
        return self._save_path / kind / self._folders[setting] / f"{self._names[sample.img_path]}{suffix}"
