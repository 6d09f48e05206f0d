"""Which files are scored, and which are the normal images that they are compared with.

One picture counts once among normal images, by its decoded pixels: a copy says nothing new, and would find itself among
the others. Whatever is left out is named in one line.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.images import bits_hint, find_images, load_image, passed_over_line, pixel_digest
from data.input_spec import InputSpec
from utils.files import file_digest
from utils.logs import LOG

_NAMED = 3  # files that a line names


class NormalImages(NamedTuple):
    """Normal images without copies: digest of the pixels -> file."""

    references: Mapping[str, Path]
    calibrate: Mapping[str, Path]


def images_to_score(inputs: Sequence[str], save_path: str) -> list[tuple[Path, str]]:
    """(file, name of the image) of all images of files and folders, but for those in the folder of results.

    Raises:
        ValueError: see `find_images`; no image but in the folder of results.
    """
    found, passed_over = find_images(inputs)
    _log_passed_over([path for path in passed_over if not _lies_in(path, save_path)])
    images = [(path, name) for path, name in found if not _lies_in(path, save_path)]
    if not images:
        raise ValueError(f"--save_path {save_path} holds the images themselves; name another folder")
    if len(images) < len(found):
        LOG.info("left out: %d images below --save_path %s, which are results", len(found) - len(images), save_path)
    return images


def example_picture(normal: NormalImages, spec: InputSpec, bits: int | None) -> Image.Image | None:
    """The first of the normal images, as it is read to be scored. Raises ValueError where it cannot be read."""
    files = [*normal.references.values(), *normal.calibrate.values()]
    return load_image(files[0], upright=True, bits=bits, side=spec.side) if files else None


def find_normal_images(
    references: str | None, calibrate: str | None, save_path: str, bits: int | None = None
) -> NormalImages:
    """The images of --references and --calibrate (None: not given).

    Args:
        save_path: folder of the results, none of which is a normal image.
        bits: see `load_image`.

    Raises:
        ValueError: a file that cannot be read; results of an earlier run; an image that is in both.
    """
    normal = NormalImages(
        {} if references is None else _distinct("references", references, save_path, bits),
        {} if calibrate is None else _distinct("calibrate", calibrate, save_path, bits),
    )
    if same := normal.references.keys() & normal.calibrate.keys():
        raise ValueError(
            f"--calibrate {calibrate}: {len(same)} of its images are references, and find themselves among them; drop "
            "--calibrate (the references alone give a threshold), or name other images"
        )
    return normal


def _distinct(flag: str, folder: str, save_path: str, bits: int | None) -> dict[str, Path]:
    """Digest of the pixels -> the first file that has them."""
    found, passed_over = find_images([folder])
    _log_passed_over(passed_over)
    files, names = [path for path, _ in found], dict(found)
    if any(_lies_in(path, save_path) for path in files):
        raise ValueError(f"--{flag} {folder} lies in --save_path {save_path}; name another folder for results")
    first, copies = distinct(files, bits)
    if copies:
        original = first[pixel_digest(copies[0], bits=bits)]
        LOG.warning(
            "--%s %s: %d of %d images are copies of others and left out (%s is one of %s)",
            flag, folder, len(copies), len(files), names[copies[0]], names[original],
        )  # fmt: skip
    return first


def distinct(files: Iterable[Path], bits: int | None, *, upright: bool = True) -> tuple[dict[str, Path], list[Path]]:
    """(digest of the pixels -> the first file that has them, files that show what an earlier one shows). Raises
    ValueError: a file that cannot be read."""
    first: dict[str, Path] = {}
    copies = []
    for path in files:
        if first.setdefault(pixel_digest(path, upright=upright, bits=bits), path) is not path:
            copies.append(path)
    return first, copies


def log_scored_normal_images(images: Sequence[tuple[Path, str]], normal: NormalImages) -> None:
    """A line where images to score are normal images, too: their scores say less than those of others."""
    for flag, files in (("references", normal.references), ("calibrate", normal.calibrate)):
        sizes = {path.stat().st_size for path in files.values()}
        own = {file_digest([path]) for path in files.values()}
        near = [(path, name) for path, name in images if path.is_file() and path.stat().st_size in sizes]
        same = [name for path, name in near if _digest(path) in own]
        if same:
            more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
            LOG.warning(
                "%d of the images to score are normal images of --%s, so that their scores are too low: %s%s",
                len(same), flag, ", ".join(same[:_NAMED]), more,
            )  # fmt: skip


def _digest(path: Path) -> str | None:
    """None of a file that cannot be read, which scoring will name."""
    try:
        return file_digest([path])
    except (OSError, ValueError):
        return None


def log_bits_hint(files: Sequence[Path], bits: int | None) -> None:
    """A line where pictures of 16 bits seem to hold fewer, unless --bits says how many."""
    hint = bits_hint(files) if bits is None else None
    if hint:
        LOG.warning("%s", hint)


def _log_passed_over(paths: Sequence[Path]) -> None:
    if paths:
        LOG.info("%s", passed_over_line(paths))


def _lies_in(path: Path, folder: str) -> bool:
    return path.resolve().is_relative_to(Path(folder).resolve())
