"""How a picture becomes what a detector takes. The specification belongs to the detector; the dataset asks it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.box import WHOLE, Box
from data.exact_resize import Filter, resize, resize_picture

_MOST_PIXELS = 1 << 26  # of a resized picture
MOST_RAW = 1 << 21  # pixels of a picture that is resized later

Resizer = Literal["bicubic", "bilinear", "torchvision"]


class InputSpec(Protocol):
    """Turns pictures and masks into tensors."""

    @property
    def side(self) -> int:
        """Of a square input, or the shorter one of another, in pixels; bounds what reading a picture may cost."""

    @property
    def keeps_shape(self) -> bool:
        """Whether inputs have the shapes of their pictures, and maps their sizes. `Detector.encode` takes `map_size`
        then; else all inputs and maps are S x S."""

    @property
    def shown(self) -> Box:
        """The part of a picture that its map shows."""

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture -> (H, W) of its map and mask."""

    def image(self, picture: Image.Image) -> Tensor:
        """Grey or RGB of any size -> (3, h, w) uint8 RGB."""

    def blank(self) -> Tensor:
        """(3, h, w) uint8, what stands for an image that cannot be read."""

    def mask(self, mask: Image.Image) -> Tensor:
        """A mask of 0 and 255, as large as its picture -> (H, W) uint8, 1 = defect."""


@dataclass(frozen=True)
class SquareInput:
    """Pictures stretched to S x S, by Pillow on 8 bits; grey becomes RGB after that, as in the published programs.

    side: S.
    resizer: "bicubic" or "bilinear" of Pillow; "torchvision" is bicubic with antialias of torch, on 8 bits as well.
    center_crop: stretch to S / 0.875 a side, and take the S x S in the middle.
    """

    side: int
    resizer: Resizer = "bicubic"
    center_crop: bool = False

    @property
    def keeps_shape(self) -> bool:
        return False

    @property
    def shown(self) -> Box:
        start, end = self._start / self._stretched, (self._start + self.side) / self._stretched
        return (start, start, end, end)

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.side, self.side

    def image(self, picture: Image.Image) -> Tensor:
        """(3, S, S) uint8 RGB"""
        return self._cropped(_RESIZERS[self.resizer](picture, self._stretched)).contiguous()

    def raw(self, picture: Image.Image) -> Tensor | None:
        """(H, W, C) uint8, of which `from_raw` makes what `image` makes of the picture; None where it cannot, and of a
        picture so large that it costs less to resize it before it goes anywhere."""
        if self.resizer == "torchvision" or picture.width * picture.height > MOST_RAW:
            return None
        return torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1)

    def from_raw(self, raw: Tensor) -> Tensor:
        """(B, H, W, C) uint8 of `raw` -> (B, 3, S, S) uint8 RGB, on the same device"""
        assert self.resizer != "torchvision"  # see `raw`
        resized = resize(raw, self._stretched, self._stretched, self.resizer).permute(0, 3, 1, 2)
        return self._cropped(resized).expand(-1, 3, -1, -1).contiguous()

    def blank(self) -> Tensor:
        """(3, S, S) uint8, black"""
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8)

    def mask(self, mask: Image.Image) -> Tensor:
        """Stretched, bilinear; defect above half of full scale. (S, S) uint8"""
        return self._cropped(torch.from_numpy(resize_mask(mask, self._stretched))).contiguous()

    @property
    def _stretched(self) -> int:
        return int(self.side / 0.875) if self.center_crop else self.side

    @property
    def _start(self) -> int:
        return round((self._stretched - self.side) / 2)

    def _cropped(self, image: Tensor) -> Tensor:
        end = self._start + self.side
        return image[..., self._start : end, self._start : end]


class OwnSizeMaps:
    """Of inputs whose maps and masks have the picture's own size."""

    @property
    def keeps_shape(self) -> bool:
        return True

    @property
    def shown(self) -> Box:
        return WHOLE

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[1], size[0]

    def mask(self, mask: Image.Image) -> Tensor:
        """As it is; defect above half of full scale. (H, W) uint8"""
        return torch.from_numpy((np.asarray(mask) > 127).astype(np.uint8))


@dataclass(frozen=True)
class ShorterEdgeInput(OwnSizeMaps):
    """Pictures resized (Pillow, bicubic) so that the shorter edge is S, then cut at the right and at the bottom to
    multiples of the patch. Maps and masks have the picture's own size.

    side: S.
    multiple: of the sides of an input, in pixels.
    """

    side: int
    multiple: int

    def image(self, picture: Image.Image) -> Tensor:
        """(3, h, w) uint8 RGB, sides multiples of `multiple`. Raises ValueError on a strip that becomes too long."""
        short = min(picture.size)
        width, height = (self.side * edge // short for edge in picture.size)
        if width * height > _MOST_PIXELS:
            raise ValueError(
                f"{picture.width} x {picture.height} pixels would become {width} x {height} at --image_size "
                f"{self.side}; cut it into pieces"
            )
        pixels = _to_tensor(resize_picture(picture.convert("RGB"), width, height, "bicubic"))
        return pixels[:, : height - height % self.multiple, : width - width % self.multiple].contiguous()

    def blank(self) -> Tensor:
        """(3, h, h) uint8, black, h the multiple next below S"""
        side = self.side - self.side % self.multiple
        return torch.zeros(3, side, side, dtype=torch.uint8)


@dataclass(frozen=True)
class FixedShapeInput:
    """The pictures that another specification brings to one shape, as an exported graph has; others are refused.

    spec: the other one.
    shape: (h, w) of the inputs.
    size: (H, W) of the maps, whatever the size of the picture.
    """

    spec: InputSpec
    shape: tuple[int, int]
    size: tuple[int, int]

    @property
    def side(self) -> int:
        return self.spec.side

    @property
    def keeps_shape(self) -> bool:
        return True

    @property
    def shown(self) -> Box:
        return self.spec.shown

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size

    def image(self, picture: Image.Image) -> Tensor:
        """(3, h, w) uint8 RGB. Raises ValueError on a picture of another shape."""
        image = self.spec.image(picture)
        height, width = image.shape[1:]
        if (height, width) != self.shape:
            raise ValueError(
                f"{picture.width} x {picture.height} pixels become {width} x {height}, and the exported detector takes "
                f"{self.shape[1]} x {self.shape[0]}: pictures of the shape of its normal images"
            )
        return image

    def blank(self) -> Tensor:
        """(3, h, w) uint8, black"""
        return torch.zeros(3, *self.shape, dtype=torch.uint8)

    def mask(self, mask: Image.Image) -> Tensor:
        return self.spec.mask(mask)


def describe(spec: InputSpec) -> dict[str, Any]:
    """A specification as plain values, for JSON."""
    (kind,) = (name for name, cls in _KINDS.items() if type(spec) is cls)
    return {"kind": kind, **vars(spec)}


def from_description(values: Mapping[str, Any]) -> InputSpec:
    """What `describe` was given. Raises ValueError for anything else."""
    own = dict(values)
    cls = _KINDS.get(str(own.pop("kind", "")))
    sizes = [own[name] for name in ("side", "multiple") if name in own]
    if (
        cls is None
        or not all(type(size) is int and size > 0 for size in sizes)
        or own.get("resizer", "bicubic") not in list(_RESIZERS)
        or type(own.get("center_crop", False)) is not bool
    ):
        raise ValueError(f"no input specification: {dict(values)!r:.200}")
    try:
        return cls(**own)
    except TypeError:  # a setting too many, or too few
        raise ValueError(f"no input specification: {dict(values)!r:.200}") from None


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """A mask of 0 and 255, stretched to S x S, bilinear; defect above half of full scale. (S, S) uint8, 1 = defect"""
    stretched = np.zeros((size, size), np.uint8)
    if (box := mask.getbbox()) is None:  # of a normal image
        return stretched
    # The rows first, as `resize_picture` does: those of the defect alone, and then the columns that it reaches. All of
    # them would take as long as a third of the picture's.
    top, bottom = box[1], box[3]
    rows = resize_picture(mask.crop((0, top, mask.width, bottom)), size, bottom - top, "bilinear")
    if (box := rows.getbbox()) is not None:
        columns = Image.new("L", (box[2] - box[0], mask.height))
        columns.paste(rows.crop((box[0], 0, box[2], rows.height)), (0, top))
        pixels = np.asarray(resize_picture(columns, columns.width, size, "bilinear"))
        stretched[:, box[0] : box[2]] = pixels > 127
    return stretched


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _pillow(kind: Filter) -> Callable[[Image.Image, int], Tensor]:
    def by_pillow(picture: Image.Image, side: int) -> Tensor:
        resized = resize_picture(picture, side, side, kind)
        return _to_tensor(resized if resized.mode == "RGB" else resized.convert("RGB"))

    return by_pillow


def _torch(picture: Image.Image, side: int) -> Tensor:
    pixels = _to_tensor(picture.convert("RGB"))[None]
    return F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)[0]


_RESIZERS: Mapping[str, Callable[[Image.Image, int], Tensor]] = {
    "bicubic": _pillow("bicubic"),
    "bilinear": _pillow("bilinear"),
    "torchvision": _torch,
}
_KINDS: Mapping[str, Callable[..., InputSpec]] = {"square": SquareInput, "shorter edge": ShorterEdgeInput}
