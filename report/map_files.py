"""Where the maps of a scoring pass go."""

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.images import load_image, load_mask
from data.references import FewShotSetting
from dataset import Sample
from report import html
from report.gallery import Thumbnails
from report.overlays import Overlays
from utils.distributed import flatten, gather
from utils.files import atomic_write, save_array


def save_map(folder: Path, name: str, one: np.ndarray) -> None:
    """Write a map, (S, S), as float32 under the image's name with the suffix .npy."""
    with atomic_write(folder / PurePosixPath(name).with_suffix(".npy")) as path:
        save_array(path, one.astype(np.float32))


def check_names(paths: Sequence[str]) -> None:
    """Maps and overlays are named after the images without their suffix: two images of one name would collide.

    Raises:
        ValueError: names both images.
    """
    owners: dict[PurePosixPath, str] = {}
    for path in paths:
        owner = owners.setdefault(PurePosixPath(path).with_suffix(""), path)
        if owner != path:
            raise ValueError(
                f"{owner} and {path} differ in the suffix alone, and their maps would overwrite each other; rename "
                "one, or use --no_images without --save_maps"
            )


class MapFiles(contextlib.ExitStack):
    """Where the maps of a scoring pass go: overlays, .npy files, thumbnails, any or none of them.

    Args:
        samples: the samples that the maps' indices count.
        subfolders: one per few-shot setting; "" for none.
        maps: folder of the .npy files.
        overlays: what draws the pictures.
        thumbnails: `report.gallery.Thumbnails`; what it draws is collected in `galleries`, by (setting, class).
    """

    def __init__(
        self,
        samples: Sequence[Any],
        subfolders: Sequence[str],
        maps: Path | None,
        overlays: Overlays | None,
        thumbnails: Any = None,
    ):
        super().__init__()
        self.galleries: dict[tuple[int, str], Any] = {}
        self._thumbnails = thumbnails and self.enter_context(thumbnails)
        self._samples, self._subfolders, self._maps = samples, subfolders, maps
        self._overlays = overlays and self.enter_context(overlays)

    def keep(self, setting: int, index: int, one: np.ndarray) -> None:
        """Take one map, (S, S) float32."""
        if self._overlays:
            self._overlays.keep(setting, index, one)
        if self._thumbnails:
            self._thumbnails.keep(setting, index, one)
        if self._maps:
            save_map(self._maps / self._subfolders[setting], self._samples[index].img_path, one)

    def gallery(self, name: str) -> dict[int, Any]:
        """What the thumbnails of a class are, by setting."""
        return {setting: chosen for (setting, owner), chosen in self.galleries.items() if owner == name}

    def finish(self, result: Any) -> None:
        """Draw a class whose maps have all come; result: `engine.evaluation.ClassScores`."""
        scores = dict(zip(result.indices, result.scores, strict=True))
        samples = {index: self._samples[index] for index in result.indices}
        gallery = self._thumbnails and self._thumbnails.draw(result.setting, samples, scores)
        if gallery:
            self.galleries[result.setting, result.name] = gallery
        if self._overlays:
            self._overlays.draw(result.setting, self._subfolders[result.setting], samples, scores)


def pictures_of(settings, shots: Sequence[FewShotSetting], samples: Sequence[Sample]) -> dict[str, list[Path]]:
    """Class -> the overlays and maps that it is to have."""
    wanted = [] if settings.no_images else [("imgs", ".png")]
    wanted += [("maps", ".npy")] if settings.save_maps else []
    found: dict[str, list[Path]] = {sample.cls_name: [] for sample in samples}
    for kind, suffix in wanted:
        for folder in subfolders(shots):
            for sample in samples:
                path = Path(settings.save_path, kind, folder, sample.img_path)
                found[sample.cls_name].append(path.with_suffix(suffix))
    return found


def map_files(
    settings, shots: Sequence[FewShotSetting], samples: Sequence[Sample], classes: int, accelerator
) -> MapFiles:
    def together(own: list) -> list:
        return flatten(gather(own, accelerator))

    save_path = Path(settings.save_path)
    root = Path(settings.data_path)
    shown = html.pictured_settings([shot.k_shot for shot in shots])
    choose = html.chooser(classes * len(shown))
    return MapFiles(
        samples,
        subfolders(shots),
        save_path / "maps" if settings.save_maps else None,
        None if settings.no_images else Overlays(save_path / "imgs", root, load_image, load_mask, together),
        Thumbnails(save_path, root, shown, choose, load_image, load_mask, together),
    )


def subfolders(shots: Sequence[FewShotSetting]) -> list[str]:
    """Of each setting, for its pictures and maps."""
    if len(shots) == 1:
        return [""]
    return ["zero_shot" if shot.k_shot == 0 else f"k{shot.k_shot}_seed{shot.seed}" for shot in shots]
