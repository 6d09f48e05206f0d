"""Find anomalies in one's own images.

    python predict.py photos/ --references photos_of_good_screws/ --save_path out
    python predict.py photos/ --class_name screw --save_path out
    python predict.py photos/ --class_name screw --method winclip --references photos_of_good_screws/ --save_path out
    python predict.py photos/ --onnx exps/screw --save_path out

Writes scores.csv, imgs/ (original and anomaly map), config.json, log.txt and, with --save_maps, maps/ into --save_path;
with normal images (--references FOLDER of two or more, or --calibrate FOLDER) also calibration.json, and a verdict per
image. Images that are scored together (--mode batched; --method musc) are sorted by their scores there and in
report.html, the odd ones first. Files that cannot be read are listed in skipped.csv, and the exit code is then 3.
--onnx runs what export.py wrote, which knows its class, method and calibration.

Where no flag names a method or a model, the small model that ships serves: with --references its features in
AnomalyDINO's memory bank; without, APRIL-GAN by the texts of --class_name; without that, all images together, by MuSc.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import predict_parser

if __name__ == "__main__":
    predict_parser().parse_intermixed_args()  # --help and wrong flags are answered before the slow imports below

# isort: split
import argparse
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from config.resolve import resolve_onnx, resolve_predict
from config.settings import OnnxSettings, PredictSettings
from data.input_spec import InputSpec
from data.tiles import inputs_per_picture
from engine.feature_cache import FeatureCache
from inference.inputs import NormalImages, images_to_score, log_bits_hint, log_scored_normal_images
from inference.onnx_detector import OnnxDetector
from inference.predictor import ImageResult
from inference.scoring import ScoringOptions, score_and_report
from inference.set_scoring import check_set, score_set_and_report
from inference.setup import ObjectDetector, build_for_object, encode_normal_images, normal_images, start_results
from utils.devices import make_accelerator
from utils.distributed import shutdown
from utils.errors import run_script
from utils.files import check_results_of, lock_folder, result_folder
from utils.logs import LOG


def main(argv: list[str] | None = None) -> int:
    args = predict_parser().parse_intermixed_args(argv)
    return run_detector(args) if args.onnx is None else run_exported(args)


def run_detector(args: argparse.Namespace) -> int:
    """Score with a detector that is built here."""
    settings, sources = resolve_predict(args)
    accelerator = make_accelerator(settings.device, settings.precision)
    images = images_to_score(settings.inputs, settings.save_path)
    save_path = result_folder(settings.save_path)
    check_results_of(save_path, "predict.py")
    together = settings.mode == "batched"
    normal = NormalImages({}, {}) if together else normal_images(settings)
    cache = FeatureCache.of(settings.feature_cache, settings.feature_cache_size, accelerator)
    one = build_for_object(settings, normal, accelerator, cache)
    batch = min(one.built.batch_size, len(images) * inputs_per_picture(one.built.detector))
    one.built.detector.backbone.check_room(
        batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size"
    )
    if together:
        check_set(one.built.detector, settings.method, len(images))
    with lock_folder(save_path):
        start_results(save_path, {**settings.as_dict(), **one.built.decided}, sources, one.description, accelerator)
        log_scored_normal_images(images, normal)
        files = [*normal.references.values(), *normal.calibrate.values(), *(path for path, _ in images)]
        log_bits_hint(files, settings.bits)
        options = scoring_options(settings, one.built.detector.input_spec, one.built.batch_size)
        score = score_together if together else score_each
        code = score(one, options, images, normal, settings, accelerator)
        if cache:
            cache.log()
        shutdown(accelerator)  # before the lock is let go: other processes may still draw
    return code


def score_each(
    one: ObjectDetector, options: ScoringOptions, images: Sequence[tuple[Path, str]], normal: NormalImages,
    settings: PredictSettings, accelerator: Accelerator,
) -> int:  # fmt: skip
    """Score images one by one, on the scale of normal ones."""
    memory, calibration = encode_normal_images(one, normal, settings)
    if settings.threshold and not calibration:
        LOG.warning("--threshold %s: there is none, since it takes two normal images or more", settings.threshold)

    def predict(batch: Tensor, map_size: tuple[int, int]) -> list[ImageResult]:
        return one.predictor.predict(batch, settings.class_name, memory, calibration, map_size)

    no_verdict = "--calibrate FOLDER of normal images gives one"
    return score_and_report(options, predict, images, calibration, accelerator, no_verdict)


def score_together(
    one: ObjectDetector, options: ScoringOptions, images: Sequence[tuple[Path, str]], _: NormalImages,
    settings: PredictSettings, accelerator: Accelerator,
) -> int:  # fmt: skip
    """Score images as one set."""
    scored_by = f"{settings.method}, {settings.model} at {one.built.detector.backbone.image_size} pixels"
    return score_set_and_report(options, one.predictor, images, accelerator, settings.method, scored_by)


def run_exported(args: argparse.Namespace) -> int:
    """Score with what export.py wrote, without building the model that it was made from."""
    detector = OnnxDetector(args.onnx)
    fixed = {"method": detector.method, "class_name": detector.class_name, "image_size": detector.image_size}
    settings, sources = resolve_onnx(args, detector.made_with | fixed)
    accelerator = make_accelerator("cpu", "fp32")
    images = images_to_score(settings.inputs, settings.save_path)
    save_path = result_folder(settings.save_path)
    check_results_of(save_path, "predict.py")
    with lock_folder(save_path):
        start_results(save_path, settings.as_dict(), sources, detector.made_with, accelerator)
        log_bits_hint([path for path, _ in images], settings.bits)

        def predict(batch: Tensor, _: tuple[int, int]) -> list[ImageResult]:
            return detector.predict(batch.numpy())

        options = scoring_options(settings, detector.input_spec, settings.batch_size)
        no_verdict = "export.py --calibrate FOLDER of normal images gives one"
        code = score_and_report(options, predict, images, detector.calibration, accelerator, no_verdict)
        shutdown(accelerator)
    return code


def scoring_options(settings: PredictSettings | OnnxSettings, input_spec: InputSpec, batch_size: int) -> ScoringOptions:
    return ScoringOptions(
        save_path=Path(settings.save_path), class_name=settings.class_name, input_spec=input_spec,
        batch_size=batch_size, num_workers=settings.num_workers, bits=settings.bits, save_maps=settings.save_maps,
        draw=not settings.no_images,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, "no scores.csv is written; start again")
