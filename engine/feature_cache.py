"""What the frozen backbone makes of images, kept on disk: a run with another method, seed or k skips the backbone.

A file holds one feature of one image (the tokens of a layer, the pooled embedding, ...), so that methods share what is
common to them. Its name is the digest of everything that the feature depends on: the weights, the precision and the
device, which feature it is, and the image's pixels as the backbone gets them. The same stands inside and is compared; a
file that says something else, or is broken, is as good as absent, and written anew.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.interface import Encoder
from utils.files import atomic_write, is_temporary
from utils.logs import LOG
from utils.provenance import VERSION

_OWN = re.compile(r"[0-9a-f]{40}\.safetensors")  # names that may go when room is needed
_KEY = "feature"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that a backbone computes in
_HEADER = 1 << 16  # bytes of a file beside the feature, at most
_BLOCK = 4096  # bytes that a file system gives out at once
# Every process knows the size of the folder from its last look, and looks again after writing this part of the bound.
_STEP = 1 / 32
_FREE = 4 * _STEP  # left after a look: four runs at once stay within the bound
_HOUR = 3600  # seconds, after which a temporary file was left by a run that is gone


class FeatureCache:
    """Features of images in a folder, which several processes and runs may use at once.

    Args:
        folder: made where it is missing.
        gigabytes: bound of the folder's size; the least recently used files go. It holds for up to four runs at once.
        accelerator: device and processes of the run.

    Raises:
        ValueError: a folder that cannot be made.
    """

    def __init__(self, folder: str | Path, gigabytes: float, accelerator: Accelerator):
        self.folder, self._accelerator = Path(folder), accelerator
        self._most = gigabytes * 1e9  # bytes
        self._step = self._most * _STEP / accelerator.num_processes
        self._written = math.inf  # bytes since the last look at the folder; there was none yet
        self._found = self._encoded = self._dropped = 0
        self._keeping = True
        try:
            if not str(folder).strip():
                raise FileNotFoundError("it has no name")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--feature_cache '{folder}': cannot be made ({error.strerror or error}); name another"
            ) from None

    @classmethod
    def of(cls, folder: str | None, size: float | None, accelerator: Accelerator) -> "FeatureCache | None":
        """The one that --feature_cache and --feature_cache_size ask for; None where no folder is given."""
        return None if folder is None or size is None else cls(folder, size, accelerator)

    def __call__(
        self,
        images: Tensor,
        identity: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        encode: Encoder,
    ) -> dict[str, Tensor]:
        """The named features of all images, each (B, ...); what a file does not hold is encoded and kept.

        Args:
            images: (B, 3, S, S) uint8.
            identity: what the features depend on beside the image and their names.
            shapes: name of each feature -> its shape of one image.
            encode: images (b, 3, S, S), those that lack a feature -> name -> (b, ...).
        """
        height, width = images.shape[-2:]
        shape = b"" if height == width else f"{height} {width}".encode()
        pixels = [hashlib.sha256(shape + image.numpy().tobytes()).hexdigest() for image in images.cpu().contiguous()]
        labels = [
            {
                name: json.dumps({**identity, "vand_kit": VERSION, "feature": name, "image": one}, sort_keys=True)
                for name in shapes
            }
            for one in pixels
        ]
        held = {row: found for row, each in enumerate(labels) if (found := self._read_all(each, shapes)) is not None}
        missing = [row for row in range(len(images)) if row not in held]
        self._found += len(held)
        self._encoded += len(missing)
        if missing:
            encoded = encode(images[missing])
            for place, row in enumerate(missing):
                held[row] = {name: encoded[name][place] for name in shapes}
                for name, feature in held[row].items():
                    self._write(labels[row][name], feature)
        rows = [held[row] for row in range(len(images))]
        return {name: torch.stack([features[name].to(images.device) for features in rows]) for name in shapes}

    def log(self) -> None:
        """Say how many images were found, and how many had to be encoded; all processes together."""
        device = self._accelerator.device
        counts = torch.tensor([self._found, self._encoded, self._dropped], device=device)
        found, encoded, dropped = self._accelerator.reduce(counts, "sum").tolist()
        LOG.info("feature cache %s: %d images found, %d encoded", self.folder, found, encoded)
        if dropped:
            LOG.warning(
                "feature cache %s: %d files had to go; images that do not fit together are never found again: raise "
                "--feature_cache_size %g", self.folder, dropped, self._most / 1e9,
            )  # fmt: skip

    # --- files ------------------------------------------------------------------------------------------------------

    def _path(self, label: str) -> Path:
        name = hashlib.sha256(label.encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read_all(self, labels: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """All features of an image; None where one is missing."""
        features = {}
        for name, label in labels.items():
            feature = self._read(label, shapes[name])
            if feature is None:
                return None
            features[name] = feature
        return features

    def _read(self, label: str, shape: tuple[int, ...]) -> Tensor | None:
        path = self._path(label)
        most = _HEADER + math.prod(shape) * torch.float32.itemsize
        try:
            content = _read_file(path, most)
            length = int.from_bytes(content[:8], "little")
            said = json.loads(content[8 : 8 + length])["__metadata__"]
            feature = load(content)[_KEY]
            if feature.shape != shape or feature.dtype not in _DTYPES:
                return None
            if said["label"] != label or said["checksum"] != _checksum(feature):
                return None
        except (OSError, RecursionError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        with contextlib.suppress(OSError):  # somebody else's folder, or the file has just gone
            os.utime(path)
        return feature

    def _write(self, label: str, feature: Tensor) -> None:
        if not self._keeping:
            return
        feature = feature.detach().cpu().contiguous()
        content = save({_KEY: feature}, {"label": label, "checksum": _checksum(feature)})
        size = _on_disk(len(content))
        try:
            if size > self._step:
                raise OSError(
                    f"--feature_cache_size {self._most / 1e9:g} is too small for {size / 1e6:.3g} MB an image"
                )
            if self._written + size > self._step:
                self._make_room()
            path = self._path(label)
            _check_folder(path.parent)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            self._keeping = False
            LOG.warning("feature cache %s: not written any more (%s)", self.folder, error.strerror or error)
        self._written += size

    def _make_room(self) -> None:
        """Remove the least recently used files until the folder is well within its bound."""
        files, total = [], 0
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):  # another process makes room, too; or the folder is a link
                _check_folder(path.parent)
                state = path.lstat()
                if is_temporary(path) and state.st_mtime < time.time() - _HOUR:
                    path.unlink()
                    continue
                total += _on_disk(state.st_size)
                if _OWN.fullmatch(path.name):
                    files.append((state.st_mtime, _on_disk(state.st_size), path))
        for _, size, path in sorted(files):
            if total <= self._most * (1 - _FREE):
                break
            path.unlink(missing_ok=True)
            total -= size
            self._dropped += 1
        self._written = 0


def _check_folder(folder: Path) -> None:
    """Raises OSError where a folder of the cache is a link, which would lead out of it."""
    if folder.is_symlink():
        raise OSError(f"{folder} is a link")


def _read_file(path: Path, most: int) -> bytes:
    """What a file holds that others may have put there. Raises OSError for a link, what is no file (a FIFO would be
    waited for), or what is larger than `most` bytes."""
    _check_folder(path.parent)
    # Windows has neither of the two, nor FIFOs in folders.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size > most:
            raise OSError(f"{path} is no file of at most {most} bytes")
        return file.read(most)


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _checksum(feature: Tensor) -> str:
    """Of the values, their type and shape."""
    start = zlib.crc32(f"{feature.dtype} {tuple(feature.shape)}".encode())
    return f"{zlib.crc32(feature.view(torch.uint8).numpy().data, start):08x}"
