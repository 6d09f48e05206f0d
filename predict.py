"""Find anomalies in one's own images.

    python predict.py photos/ --class_name screw --method winclip --references photos_of_good_screws/ --save_path out
    python predict.py photos/ --onnx detector.onnx --save_path out

Writes scores.csv, imgs/ (original and anomaly map), config.json, log.txt and, with --save_maps, maps/ into --save_path;
with normal images (--references FOLDER of two or more, or --calibrate FOLDER) also calibration.json, and a verdict per
image. Files that cannot be read are listed in skipped.csv, and the exit code is then 3. --onnx runs what export.py
wrote, which knows its class, method and calibration.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split

from torch import Tensor

from config.flags import predict_parser
from config.settings import resolve_onnx, resolve_predict
from inference.onnx_detector import OnnxDetector
from inference.predictor import ImageResult, Predictor
from inference.scoring import score_and_report
from inference.setup import begin, build_for_object, inputs, prepare
from model import METHODS
from utils.devices import make_accelerator
from utils.distributed import shutdown
from utils.errors import run_script


def main(argv: list[str] | None = None) -> int:
    args = predict_parser(list(METHODS)).parse_intermixed_args(argv)
    if args.onnx is not None:
        return run_exported(args)
    settings, sources = resolve_predict(args)
    accelerator = make_accelerator(settings.device, settings.precision)
    images = inputs(settings)
    detector, description, stored, normal, known = build_for_object(settings, accelerator)
    batch = min(settings.batch_size, len(images))
    detector.backbone.check_room(batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size")
    begin(settings, sources, description, accelerator)
    inspector = Predictor(detector, accelerator, settings.fpr, description)
    bank, calibration = prepare(settings, inspector, stored, normal)
    calibration = known or calibration

    def predict(batch: Tensor) -> list[ImageResult]:
        return inspector(batch, settings.class_name, bank, calibration)

    code = score_and_report(settings, predict, images, calibration, accelerator)
    if detector.backbone.cache:
        detector.backbone.cache.log()
    shutdown(accelerator)
    return code


def run_exported(args) -> int:
    """What an exported detector finds, without building the model that it was made from."""
    detector = OnnxDetector(args.onnx)
    said = {"method": detector.method, "class_name": detector.class_name, "image_size": detector.image_size}
    settings, sources = resolve_onnx(args, detector.made_with | said)
    accelerator = make_accelerator("cpu", "fp32")
    images = inputs(settings)
    begin(settings, sources, detector.made_with, accelerator)
    code = score_and_report(
        settings, lambda batch: detector.predict(batch.numpy()), images, detector.calibration, accelerator
    )
    shutdown(accelerator)
    return code


if __name__ == "__main__":
    run_script(main, "no scores.csv is written; start again")
