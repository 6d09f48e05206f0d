"""Write a detector for one object as an ONNX file, which runs without PyTorch.

    python export.py --class_name screw --method winclip --references photos_of_good_screws/ --save_path exps/screw
    python predict.py photos/ --onnx exps/screw --save_path out

Writes detector.onnx (images of any number, (B, 3, h, w) uint8 RGB, to maps and scores; weights above 1.5 GB stand in
detector.onnx.data), detector.json (what it is, how to bring images to that form, scale and threshold, checksums) and
log.txt into --save_path. The class name, the references and, with normal images (as predict.py takes them), the scale
of the scores are fixed in it. The file is run and compared with PyTorch before it gets its name. On the CPU, in single
precision; where --calibrate takes long on that, calibrate with predict.py on a GPU and give its file to --calibration.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import export_parser

if __name__ == "__main__":
    export_parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

# isort: split
from config.resolve import resolve_export
from config.settings import log_settings
from inference.inputs import example_picture, log_bits_hint
from inference.onnx_export import FixedClassDetector, export
from inference.setup import build_for_object, encode_normal_images, normal_images
from utils.devices import make_accelerator
from utils.errors import run_script
from utils.files import lock_folder, result_folder
from utils.logs import log_to
from utils.packages import require


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_export(export_parser().parse_args(argv))
    require("export.py", ("onnx", "onnxruntime", "onnxscript"), "requirements-export.txt")
    save_path = result_folder(settings.save_path)
    accelerator = make_accelerator(settings.device, settings.precision)
    normal = normal_images(settings)
    one = build_for_object(settings, normal, accelerator)
    values = {**settings.as_dict(), **one.built.decided}
    with lock_folder(save_path):
        log_to(save_path)
        log_settings(values, sources)
        log_bits_hint([*normal.references.values(), *normal.calibrate.values()], settings.bits)
        memory, calibration = encode_normal_images(one, normal, settings)
        limits = calibration.limits if calibration else None
        example = example_picture(normal, one.built.detector.input_spec, settings.bits)
        fixed = FixedClassDetector(one.built.detector, settings.class_name, memory, limits, example)
        export(fixed, save_path, calibration, one.description, values)


if __name__ == "__main__":
    run_script(main)
