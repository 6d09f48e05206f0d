"""What people may hand to the web page: checked before a pixel is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads more, some by running other programs
NAME_LENGTH = 80  # characters; CLIP reads no more than 77 tokens


@dataclass(frozen=True)
class UploadLimits:
    """Of one request: megabytes (10^6 bytes) of a file, pixels of an image, number of reference images.

    find_picture: goes to the picture of an opened file that is going to be read: the first is not always the one.
    """

    megabytes: int
    pixels: int
    references: int
    find_picture: Callable[[Image.Image], object]

    def check(self, name: str, image: str | None, references: Sequence[str]) -> None:
        """Raises ValueError with a sentence for the user: something missing, too much, or no image by its content."""
        if image is None:
            raise ValueError("There is no image yet: drop one, or take one of the examples.")
        if not name.strip():
            raise ValueError("Type what the image shows: screw, leather, circuit board ...")
        if len(name) > NAME_LENGTH:
            raise ValueError(f"The name has {len(name)} characters; {NAME_LENGTH} are allowed.")
        if len(references) > self.references:
            raise ValueError(f"There are {len(references)} reference images; {self.references} are allowed.")
        for path in (image, *references):
            self._check_file(Path(path))

    def _check_file(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path.name} is no longer here, uploads are kept for an hour; add it again.")
        size = path.stat().st_size
        if size > self.megabytes * 10**6:
            raise ValueError(f"{path.name} has {size / 1e6:.1f} MB; {self.megabytes} MB are allowed.")
        Image.init()  # `open` wants formats that are loaded
        formats = [kind for kind in FORMATS if kind in Image.OPEN]
        try:
            with Image.open(path, formats=formats) as image:  # reads headers alone
                self.find_picture(image)
                width, height = image.size
        except Image.DecompressionBombError:
            raise ValueError(f"{path.name} has more pixels than can be opened safely.") from None
        except Exception:  # decoders raise what they like on a broken file
            kinds = ", ".join(FORMATS)
            raise ValueError(f"{path.name} is not an image that can be read here; want one of {kinds}.") from None
        if width * height > self.pixels:
            allowed = f"{self.pixels / 1e6:.3g} megapixels are allowed"
            raise ValueError(f"{path.name} has {width} x {height} pixels; {allowed}.")
