"""Which image files are read, and which picture of a file is meant."""

from PIL import Image

# Formats that Pillow hands to other programs (EPS to Ghostscript, which runs what is in it) or to nobody; IPTC opens
# what it holds as any format.
_FOREIGN = {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
# Formats whose further frames are pictures of their own; those of an MPO or PSD are variants and layers of the first.
_SERIES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "FLI", "DCX"}
_SUBFILE_TYPE = 254  # a TIFF tag; bit 0: a reduced copy, bit 2: a transparency mask


def formats() -> list[str]:
    """The formats that are read, all by Pillow's own decoders."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _FOREIGN]


def pictures_in(image: Image.Image) -> int:
    """How many a file holds, without the reduced copies and masks that a TIFF may have; goes to the first."""
    if image.format not in _SERIES or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return image.n_frames
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 0b101:
            pages.append(page)
    image.seek(pages[0] if pages else 0)
    return max(len(pages), 1)
