"""Which images to look at, and the few pictures of a class that report.html shows."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from report.predictions import ScoredImage

MAX_PICTURES = 360  # in a page, at 15 to 30 kB each
_LARGEST = 4096  # pixels of a thumbnail's side; those that are drawn have a seventh of that
_PER_LIST = (3, 2, 1, 0)  # pictures in each of the three lists of a class


class SelectedImages(NamedTuple):
    """The images worth looking at, the most telling one first."""

    hits: list[ScoredImage]  # defects with the highest scores
    missed: list[ScoredImage]  # defects with the lowest scores
    alarms: list[ScoredImage]  # normal images with the highest scores


@dataclass(frozen=True)
class Gallery:
    """The pictures of one class under one setting.

    thumbnails: img_path -> original, anomaly map and ground truth side by side, a WebP file.
    """

    selected: SelectedImages
    thumbnails: Mapping[str, bytes]

    def to_json(self) -> dict[str, Any]:
        """The same in values that JSON can hold."""
        lists = {key: [image._asdict() for image in images] for key, images in self.selected._asdict().items()}
        return {**lists, "thumbnails": {key: base64.b64encode(one).decode() for key, one in self.thumbnails.items()}}

    @classmethod
    def from_json(cls, value: Any) -> "Gallery":
        """The gallery of which `to_json` gave the value. Raises ValueError where it is none."""
        try:
            lists = [[_image(fields) for fields in value[key]] for key in SelectedImages._fields]
            thumbnails = {key: base64.b64decode(one, validate=True) for key, one in value["thumbnails"].items()}
            if any(image.img_path not in thumbnails for images in lists for image in images):
                raise ValueError("a thumbnail is missing")
            for one in thumbnails.values():
                with Image.open(io.BytesIO(one), formats=["WEBP"]) as picture:  # OSError where it is none
                    if max(picture.size) > _LARGEST:
                        raise ValueError("a thumbnail is too large")
        except (AttributeError, KeyError, OSError, TypeError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"not the pictures of a class ({error!r})") from None
        return cls(SelectedImages(*lists), thumbnails)


def _image(fields: Mapping[str, Any]) -> ScoredImage:
    image = ScoredImage(**fields)
    texts, numbers = (image.img_path, image.cls_name, image.specie_name), (image.k_shot, image.score)
    if not all(isinstance(text, str) for text in texts) or not all(type(one) in (int, float) for one in numbers):
        raise ValueError("a field is of another type")
    if image.anomaly not in (0, 1):
        raise ValueError(f"anomaly {image.anomaly!r} is neither 0 nor 1")
    return image


def choose(images: Iterable[ScoredImage], hits: int = 6, misses: int = 2, per_class: int = 2) -> SelectedImages:
    """The clearest hits and the worst misses of one setting; equal scores keep their order.

    Args:
        images: of one setting.
        hits: how many hits.
        misses: how many missed defects, and how many false alarms.
        per_class: how many of one class in each list, so that no class takes them all.

    Returns:
        No image is a hit and missed: of few defects, the upper half can be hits.
    """
    images = list(images)
    rising = sorted(images, key=lambda image: image.score)
    falling = sorted(images, key=lambda image: -image.score)
    defects = [image for image in falling if image.anomaly]
    clearest = _first(defects, min(hits, (len(defects) + 1) // 2), per_class)
    others = [image for image in rising if image.anomaly and not any(image is hit for hit in clearest)]
    normal = [image for image in falling if not image.anomaly]
    return SelectedImages(clearest, _first(others, misses, per_class), _first(normal, misses, per_class))


def _first(images: Iterable[ScoredImage], count: int, per_class: int) -> list[ScoredImage]:
    taken: list[ScoredImage] = []
    for image in images:
        if len(taken) < count and sum(image.cls_name == other.cls_name for other in taken) < per_class:
            taken.append(image)
    return taken


def pictures_per_list(galleries: int) -> int:
    """How many images each list of a class may have, so that all galleries of a page find room; 0 where none do."""
    return next(count for count in _PER_LIST if 3 * count * galleries <= MAX_PICTURES)


def settings_with_pictures(k_shots: Sequence[int]) -> list[int]:
    """The settings that have pictures and histograms in a page, as indices: the first of each k."""
    return [k_shots.index(k) for k in dict.fromkeys(k_shots)]
