"""Scoring sets: the unlabelled images of a class are scored together, by methods that look at them all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset, Subset

from data.meta import Sample
from dataset import AnomalyDataset
from engine.batches import batches
from engine.class_scores import Classes, ClassScores, KeepMap, check_finite, finish_class, keep_maps
from engine.encoding import Timer, encode
from engine.ground_truth import Measuring, Size
from model.interface import ScoringDetector
from model.tokens import each_tensor, to_device, token_bytes
from utils import memory_check
from utils.distributed import Processes, each_round, flatten
from utils.files import NotWrittenError
from utils.logs import LOG

_SHARE = 0.5  # of the free memory that the tokens of a set may take, in all processes of a machine together
_ALIGNED = 64  # bytes, where tensors begin in a file


class ImageGroup(NamedTuple):
    """Images of a set that are encoded together: their places in the dataset, and what is known of their masks."""

    indices: list[int]
    regions: Tensor | None  # (B, H, W) as `label_regions` gives them; None of images without masks
    sizes: list[Size]  # of their pictures; [] of images without masks


class SetPasses:
    """`model.interface.TokenPasses` over the images of a dataset. Tokens are encoded once: of several processes each
    encodes its part, and all get all of them. For a method with more than one pass they are kept, in memory where half
    of what is free holds them, else in a temporary file.

    Args:
        detector, accelerator, timer: as for `engine.encoding.encode`.
        dataset: of the set, see `engine.batches.batches`.
        paths: of the images, in order.
        batch_size: images at a time, in each process; num_workers: processes that read.
        folder: of the temporary file; None: where the system keeps such files.

    Attributes:
        groups: what each bundle of tokens is of, known when it comes.
    """

    def __init__(
        self,
        detector: Any,
        dataset: Dataset[Any],
        paths: Sequence[str],
        accelerator: Accelerator,
        timer: Timer,
        *,
        batch_size: int,
        num_workers: int,
        folder: Path | None,
    ):
        self._detector, self._accelerator, self._timer = detector, accelerator, timer
        self._loader, self._folder = batches(dataset, batch_size, num_workers, accelerator), folder
        self.paths = paths
        self.processes = Processes(accelerator)
        self.groups: list[ImageGroup] = []
        self._kept: list[Any] | None = None

    def __call__(self) -> Iterator[Any]:
        """A pass: the tokens of all images, bundle by bundle."""
        if self._kept is None and self._detector.SET_PASSES > 1:
            self._kept = self._keep(self._encode())
        for tokens in self._encode() if self._kept is None else self._kept:
            yield to_device(tokens, self._accelerator.device)

    def _encode(self) -> Iterator[Any]:
        """The tokens of all images: in main memory where they come from several processes."""
        self.groups = []
        for _, batch in each_round(self._loader):
            own = []
            for group in batch or ():
                for error in filter(None, group.get("error", ())):  # of a file that could be read before
                    raise ValueError(error)
                self._timer.start()
                tokens = encode(self._detector, group["image"], self._accelerator, self._timer, group["map_size"])
                regions = group["regions"].cpu() if "regions" in group else None
                images = ImageGroup(group["index"].tolist(), regions, group.get("sizes", []))
                own.append((images, to_device(tokens, "cpu") if self.processes.ranks > 1 else tokens))
            for images, tokens in flatten(self.processes.gather(own)):
                self.groups.append(images)
                yield tokens

    def _keep(self, bundles: Iterator[Any]) -> list[Any]:
        """All bundles, in memory or in a file; the first one shows how large they will be.

        Raises:
            ValueError: neither has room.
        """
        first = next(bundles)
        images, regions, _ = self.groups[0]
        of_image = token_bytes(first) / len(images)
        beside = 0 if regions is None else token_bytes(regions) / len(images)
        need, here = len(self.paths) * (of_image + beside), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        free = memory_check.free_bytes("cpu")
        said = f"the features of {len(self.paths)} images take {need / 1e9:.1f} GB"
        said += f" in each of {self.processes.ranks} processes" if self.processes.ranks > 1 else ""
        every = chain([first], bundles)
        if need * here <= _SHARE * free:
            LOG.info("%s: kept in memory, of which %.1f GB are free", said, free / 1e9)
            return [to_device(tokens, "cpu") for tokens in every]
        folder = self._folder or Path(tempfile.gettempdir())
        room = shutil.disk_usage(folder).free
        said += f", and {free / 1e9:.1f} GB of memory are free"
        if len(self.paths) * of_image * self.processes.ranks > room:
            raise ValueError(
                f"{said}, {room / 1e9:.1f} GB of the disk of {folder}; free some space, give fewer images, or lower "
                "--image_size"
            )
        LOG.info("%s: kept in a temporary file in %s, %.1f GB free", said, folder, room / 1e9)
        return in_file(every, folder)


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """The errors of a file that has no name."""
    try:
        yield
    except OSError as error:
        raise NotWrittenError(folder / "a temporary file", error) from None


def in_file(bundles: Iterable[Any], folder: Path) -> list[Any]:
    """The bundles, with their tensors in a file from which they are read as they are used. The file has no name, so
    that nothing is left of it however the process ends.

    Raises:
        NotWrittenError: the file cannot be written.
    """
    starts: list[int] = []

    def write(tensor: Tensor) -> Tensor:
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
        with _named(folder):
            starts.append(file.seek(-file.tell() % _ALIGNED, os.SEEK_CUR))
            file.write(content)
        return tensor.to("meta")

    with contextlib.ExitStack() as stack:
        with _named(folder):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        shapes = [each_tensor(bundle, write) for bundle in bundles]
        with _named(folder):
            file.flush()
            content = torch.from_numpy(np.memmap(file, np.uint8, "c"))
    place = iter(starts)

    def read(tensor: Tensor) -> Tensor:
        start = next(place)
        return content[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    return [each_tensor(bundle, read) for bundle in shapes]


def check_sets(detector: ScoringDetector, method: str, counts: dict[str, int]) -> None:
    """Raises ValueError where a set is too small. counts: class -> images."""
    for name, count in counts.items():
        if count < detector.SET_MINIMUM:
            raise ValueError(
                f"{method} scores the images of a class together and takes {detector.SET_MINIMUM} or more; class "
                f"'{name}' has {count}"
            )


@torch.no_grad()
def score_sets(
    detector: ScoringDetector,
    dataset: AnomalyDataset,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    keep_map: KeepMap,
    *,
    batch_size: int,
    num_workers: int,
    timer: Timer,
    folder: Path | None = None,
    finished: Collection[str] = (),
    measuring: Measuring | None = None,
) -> Iterator[ClassScores]:
    """Score each class as one set; yields its results when it is complete, as `evaluation.score` does. Several
    processes score a set together.

    Args:
        dataset: of the samples; their labels and masks serve the metrics alone.
        batch_size, num_workers, folder: see `SetPasses`.
        keep_map, timer, finished, measuring: as for `evaluation.score`.

    Raises:
        ValueError: a map holds NaN or infinity; names the image.
    """
    indices: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        if sample.cls_name not in finished:
            indices.setdefault(sample.cls_name, []).append(index)
    for name, own in indices.items():
        LOG.info("%s: %d images are scored together", name, len(own))
        paths = [samples[index].img_path for index in own]
        passes = SetPasses(
            detector, Subset(dataset, own), paths, accelerator, timer, batch_size=batch_size, num_workers=num_workers,
            folder=folder,
        )  # fmt: skip
        classes = Classes([samples[index] for index in own], 1, (), measuring)
        for number, prediction in enumerate(detector.score_set(passes, name)):
            images, regions, sizes = passes.groups[number]
            check_finite(prediction, samples, images)
            if number % passes.processes.ranks == passes.processes.rank:
                assert regions is not None  # of a dataset with masks
                names = [name] * len(images)
                classes.add(0, names, images, prediction, regions.to(accelerator.device), sizes)
                keep_maps(keep_map, 0, names, images, prediction, ())
        ((_, pending),) = classes.complete(len(paths))
        yield from finish_class(detector, name, pending, samples, accelerator, measuring)
    timer.stop()
