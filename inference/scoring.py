"""Scores of one's own images: scores.csv, overlays and maps, written as they come."""

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data.images import load_image, result_names
from dataset import UnlabeledImages
from engine.evaluation import batches
from inference.calibration import Calibration
from inference.predictor import ImageResult
from report.heatmap import sample_pixels
from report.map_files import save_map
from report.overlays import StreamedOverlays
from utils.distributed import each_round, gather
from utils.files import atomic_write
from utils.logs import LOG

_SHOWN = 20  # unreadable files that the log names one by one


def score_and_report(
    settings,
    predict: Callable[[Tensor], list[ImageResult]],
    images: Sequence[tuple[Path, str]],
    calibration: Calibration | None,
    accelerator: Accelerator,
) -> int:
    """Score all images; returns the exit code. look: images (B, 3, S, S) uint8 RGB -> what each shows."""
    save_path = Path(settings.save_path)
    if calibration:
        if accelerator.is_main_process:
            calibration.save(save_path / "calibration.json")
        share, count = 100 * calibration.fpr, calibration.normal_images
        LOG.info("threshold %.4g: about %.1f%% of normal images lie above it", calibration.threshold, share)
        LOG.info("scale and threshold come from %d normal images: %s", count, calibration.source)
    else:
        LOG.info(
            "scores are on a scale of their own, and there is no verdict; %s FOLDER of normal images gives one",
            "export.py --calibrate" if settings.onnx else "--calibrate",
        )
    skipped = score_images(settings, predict, images, calibration, accelerator)
    LOG.info("images scored: %d; results are in %s", len(images) - len(skipped), save_path)
    if skipped and accelerator.is_main_process:
        write_skipped(save_path / "skipped.csv", skipped)
        for name, reason in skipped[:_SHOWN]:
            LOG.warning("skipped %s: %s", name, reason)
        LOG.warning("%d of %d files could not be read, see skipped.csv", len(skipped), len(images))
    return 3 if skipped else 0


def score_images(
    settings, predict: Callable[[Tensor], list[ImageResult]], images, calibration, accelerator: Accelerator
) -> list[tuple[str, str]]:
    """Score all images as they come; writes scores.csv, overlays and maps. Returns what was skipped, and why.

    Of several processes each scores its part of a round, and the first writes the rows of all, in the order of images.
    """
    save_path, skipped, writer = Path(settings.save_path), [], None
    dataset = UnlabeledImages([path for path, _ in images], settings.image_size)
    loader = batches(dataset, settings.batch_size, settings.num_workers, accelerator)
    bar = tqdm(total=len(images), desc="predict", unit="image", disable=None if accelerator.is_main_process else True)
    stems = result_names([name for _, name in images])
    with ExitStack() as stack:
        if accelerator.is_main_process:
            temporary = stack.enter_context(atomic_write(save_path / "scores.csv"))
            file = stack.enter_context(temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace"))
        draw = None
        if not settings.no_images:
            ends = calibration.heat if calibration else None
            draw = stack.enter_context(StreamedOverlays(save_path / "imgs", upright, ends))
        for length, batch in each_round(loader):
            found, unreadable = findings(images, predict, batch) if batch else ([], [])
            rows = [(images[index][1], finding.values) for index, finding in found]
            pixels = [sample_pixels(finding.map) for _, finding in found] if draw and draw.learning else []
            for their_rows, their_unreadable, their_pixels in gather((rows, unreadable, pixels), accelerator):
                skipped += their_unreadable
                if draw:
                    draw.learn(their_pixels)
                for name, values in their_rows if accelerator.is_main_process else ():
                    if writer is None:
                        writer = csv.DictWriter(file, ["img_path", "cls_name", *values])
                        writer.writeheader()
                    writer.writerow({"img_path": name, "cls_name": settings.class_name, **values})
            for index, (one, values) in found:
                path, name = images[index]
                if settings.save_maps:
                    save_map(save_path / "maps", stems[name] + PurePosixPath(name).suffix, one)
                if draw:
                    draw.keep(
                        path,
                        stems[name] + PurePosixPath(name).suffix,
                        one,
                        f"score {values['score']:.3f} {values.get('verdict', '')}",
                    )
            bar.update(length)
    bar.close()
    return skipped


def findings(
    images: Sequence[tuple[Path, str]], predict: Callable[[Tensor], list[ImageResult]], batch: Mapping[str, Any]
) -> tuple[list[tuple[int, ImageResult]], list[tuple[str, str]]]:
    """What a batch of `UnlabeledImages` shows: (index, result) of each readable image, (name, reason) of each other."""
    indices, errors = batch["index"].tolist(), batch["error"]
    unreadable = [(images[index][1], error) for index, error in zip(indices, errors, strict=True) if error]
    good = [row for row, error in enumerate(errors) if not error]
    shown = predict(batch["image"][good]) if good else []
    found = [(indices[row], finding) for row, finding in zip(good, shown, strict=True)]
    for index, finding in found:
        if not finding.finite:
            raise ValueError(
                f"the anomaly map or score of {images[index][0]} holds NaN or infinity; are the weights broken?"
            )
    return found, unreadable


def upright(path: Path):
    return load_image(path, upright=True)


def write_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([("img_path", "reason"), *skipped])
