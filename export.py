"""Write a detector for one object as an ONNX file, which runs without PyTorch.

    python export.py --class_name screw --method winclip --references photos_of_good_screws/ --save_path exps/screw
    python predict.py photos/ --onnx exps/screw/detector.onnx --save_path out

Writes detector.onnx (images of any number, (B, 3, S, S) uint8 RGB, to maps and scores; weights above 1.5 GB stand in
detector.onnx.data), detector.json (what it is, how to bring images to that form, scale and threshold) and log.txt into
--save_path. The class name, the references and, with normal images (as predict.py takes them), the scale of the scores
are fixed in it. The file is run and compared with PyTorch before it gets its name. On the CPU, in single precision;
where --calibrate takes long on that, calibrate with predict.py on a GPU and give its file to --calibration.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import uuid
from dataclasses import asdict

from config.flags import export_parser
from config.settings import log_settings, resolve_export
from inference.onnx_detector import CARD, FORMAT, ID, NAME, session
from inference.onnx_export import MEANING, PREPROCESSING, FixedClassDetector, check, replacing_all, save_onnx
from inference.predictor import Predictor
from inference.setup import build_for_object, prepare
from model import METHODS
from utils.devices import make_accelerator
from utils.errors import run_script
from utils.files import result_folder, write_json
from utils.logs import LOG, log_to
from utils.packages import require
from utils.provenance import provenance


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_export(export_parser(list(METHODS)).parse_args(argv))
    require("export.py", ("onnx", "onnxruntime", "onnxscript"), "requirements-export.txt")
    save_path = result_folder(settings.save_path)
    accelerator = make_accelerator(settings.device, settings.precision)
    detector, description, stored, normal, known = build_for_object(settings, accelerator)

    save_path.mkdir(parents=True, exist_ok=True)
    log_to(save_path)
    log_settings(settings, sources)
    inspector = Predictor(detector, accelerator, settings.fpr, description)
    bank, calibration = prepare(settings, inspector, stored, normal)
    calibration = known or calibration
    one = FixedClassDetector(detector, settings.class_name, bank, calibration and calibration.limits)
    with replacing_all(save_path) as folder:
        identity = uuid.uuid4().hex
        LOG.info("writing %s", save_path / NAME)
        outputs = save_onnx(one, folder / NAME, {ID: identity})
        card = {
            "format": FORMAT,
            ID: identity,
            "method": settings.method,
            "class_name": settings.class_name,
            "image_size": description["image_size"],
            "preprocessing": PREPROCESSING,
            "input": {"images": "(batch, 3, S, S) uint8 RGB, batch of any size"},
            "outputs": {name: MEANING.get(name, "(batch,) float32, a term of the score") for name in outputs},
            "calibration": calibration and asdict(calibration),
            "difference": check(one, session(folder / NAME)),
            "made_with": description,
            "settings": vars(settings),
            "versions": provenance(),
        }
        write_json(folder / CARD, card)
    size = sum(file.stat().st_size for file in save_path.glob(f"{NAME}*")) / 1e6
    LOG.info("%s: %.1f MB, checked with onnxruntime; %s says what it is", save_path / NAME, size, CARD)


if __name__ == "__main__":
    run_script(main)
