"""Scores of one's own images as a set: scores.csv and report.html, both sorted by the scores, overlays and maps."""

import functools
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from data.images import load_image
from dataset import UnlabeledImages
from engine.batched import SetPasses
from engine.encoding import Timer
from inference.predictor import Predictor, check_finite
from inference.scoring import Pictures, ScoringOptions, Skipped, Table, report_end
from report.heatmap import crop
from report.ranking import Ranking
from utils.distributed import begin_reading
from utils.logs import LOG
from utils.progress import tracked


class _Reasons(Dataset[str]):
    """Of each image "" or why it cannot be read."""

    def __init__(self, images: UnlabeledImages):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> str:
        return str(self._images[index]["error"])


def check_set(detector: object, method: str, images: int) -> None:
    """Raises ValueError where so many images are too few for a method that scores them together."""
    least = getattr(detector, "SET_MINIMUM", 1)
    if images < least:
        raise ValueError(f"--method {method} scores images together and takes {least} or more; here are {images}")


def score_set_and_report(
    options: ScoringOptions,
    predictor: Predictor,
    images: Sequence[tuple[Path, str]],
    accelerator: Accelerator,
    method: str,
    scored_by: str,
) -> int:
    """Score images, (file, name) each, together; returns the exit code: 3 where some could not be read.

    All files are read once before, so that the set is known when its first image is scored. Several processes score it
    together: each draws its part of the pictures, the first one writes the table and the page.

    Args:
        method: its name, for messages.
        scored_by: method and model, for the page.

    Raises:
        ValueError: fewer readable images than the method takes; a result that is no number.
    """
    dataset = UnlabeledImages([path for path, _ in images], options.input_spec, bits=options.bits)
    is_main = accelerator.is_main_process
    errors = _read(dataset, options.num_workers, is_main)
    skipped: Skipped = [(images[index][1], error) for index, error in enumerate(errors) if error]
    own = [index for index, error in enumerate(errors) if not error]
    check_set(predictor.detector, method, len(own))
    LOG.info("%d images are scored together: a score belongs to this set, and there is no verdict", len(own))
    names = [images[index][1] for index in own]
    passes = SetPasses(
        predictor.detector, Subset(dataset, own), names, accelerator, Timer(), batch_size=options.batch_size,
        num_workers=options.num_workers, folder=options.save_path,
    )  # fmt: skip
    ranking, rows = Ranking(functools.partial(_load, options)), []
    with Pictures(options, images, None) as pictures:
        for number, results in enumerate(predictor.predict_set(passes, options.class_name)):
            indices = passes.groups[number].indices
            check_finite(results, [images[index][1] for index in indices])
            found = list(zip(indices, results, strict=True))
            pictures.learn(pictures.sample(found))
            if number % passes.processes.ranks == passes.processes.rank:
                pictures.write(found)
            for index, result in found if is_main else ():
                ranking.add(*images[index], result.score, result.map)
                rows.append((images[index][1], result.values))
    if is_main:
        with Table.open(options.save_path / "scores.csv", options.class_name) as table:
            table.write(sorted(rows, key=lambda row: -float(row[1]["score"])))
        ranking.write(options.save_path / "report.html", scored_by)
    return report_end(options.save_path, skipped, len(images), accelerator, "report.html")


def _load(options: ScoringOptions, path: Path) -> Image.Image:
    """A picture, the part that its map shows."""
    return crop(load_image(path, upright=True, bits=options.bits), options.input_spec.shown)


def _read(dataset: UnlabeledImages, num_workers: int, is_main: bool) -> list[str]:
    """Of each image "" or why it cannot be read."""
    workers = min(num_workers, len(dataset))
    loader = DataLoader(_Reasons(dataset), batch_size=None, num_workers=workers, worker_init_fn=begin_reading)
    return list(tracked(loader, "read", "image", shown=is_main))
