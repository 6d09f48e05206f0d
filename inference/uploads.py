"""What people may upload to the web page: checked before a pixel is decoded, so that its cost is bounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images import check_size, pictures_in
from utils.text import escape_controls

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads more, some by running other programs
NAME_LENGTH = 80  # characters; CLIP reads no more than 77 tokens


@dataclass(frozen=True)
class UploadLimits:
    """Of one request: megabytes (10^6 bytes) of a file, pixels of an image, number of reference images; side of the
    square that images are resized to, in pixels."""

    megabytes: int
    pixels: int
    references: int
    side: int

    def check(self, name: str, image: str | None, references: Sequence[str], *, needs_name: bool = True) -> str:
        """Returns the image's path. Raises ValueError with a sentence for the user: something missing, too much, or no
        image by its content."""
        if image is None:
            raise ValueError("There is no image yet: drop one, or take one of the examples.")
        if needs_name and not name.strip():
            other = "" if references or not self.references else " Or add normal images to compare it with."
            raise ValueError(f"Type what the image shows: screw, leather, circuit board ...{other}")
        if len(name) > NAME_LENGTH:
            raise ValueError(f"The name has {len(name)} characters; {NAME_LENGTH} are allowed.")
        if len(references) > self.references:
            raise ValueError(f"There are {len(references)} reference images; {self.references} are allowed.")
        for path in (image, *references):
            self._check_file(Path(path))
        return image

    def check_set(self, images: Sequence[str], least: int, most: int) -> None:
        """The same of images that are scored together, from so many to so many."""
        if not least <= len(images) <= most:
            raise ValueError(f"There are {len(images)} images; {least} to {most} are scored together.")
        for path in images:
            self._check_file(Path(path))

    def _check_file(self, path: Path) -> None:
        name = escape_controls(path.name)
        if not path.is_file():
            raise ValueError(f"{name} is no longer here, uploads are kept for an hour; add it again.")
        size = path.stat().st_size
        if size > self.megabytes * 10**6:
            raise ValueError(f"{name} has {size / 1e6:.1f} MB; {self.megabytes} MB are allowed.")
        Image.init()  # `open` wants formats that are loaded
        formats = [kind for kind in FORMATS if kind in Image.OPEN]
        try:
            with Image.open(path, formats=formats) as image:  # reads headers alone
                count = pictures_in(image)  # goes to the one that is going to be read
                width, height = image.size
                check_size(width, height, self.side)
        except Image.DecompressionBombError:
            raise ValueError(f"{name} has more pixels than can be opened safely.") from None
        except Exception:  # decoders raise what they like on a broken file
            kinds = ", ".join(FORMATS)
            raise ValueError(f"{name} is not an image that can be read here; must be one of {kinds}.") from None
        if count > 1:
            raise ValueError(
                f"{name} holds several pictures in one file; save the one that is meant as a file of its own."
            )
        if width * height > self.pixels:
            allowed = f"{self.pixels / 1e6:.3g} megapixels are allowed"
            raise ValueError(f"{name} has {width} x {height} pixels; {allowed}.")
