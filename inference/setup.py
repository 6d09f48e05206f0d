"""What predict.py and export.py need before they score: inputs, detector, references and calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from config.settings import log_settings
from data.images import find_images, passed_over_line
from dataset import UnlabeledImages
from engine import checkpoint
from engine.build import load_detector
from inference.calibration import Calibration, images_for
from inference.predictor import Predictor, readable
from model import METHODS, memory_bank
from report.map_files import check_names
from utils import memory_check
from utils.files import clear_leftovers, clear_results, file_digest, result_folder
from utils.logs import LOG, log_to
from utils.provenance import write_config

RESULTS = ("scores.csv", "skipped.csv", "calibration.json", "imgs", "maps")


def inputs(settings) -> list[tuple[Path, str]]:
    """The images to score, without those in the folder of results; refuses what would make results go nowhere."""
    found, passed_over = find_images(settings.inputs)
    passed_over = [path for path in passed_over if not lies_in(path, settings.save_path)]
    if passed_over:
        LOG.info(passed_over_line(passed_over))
    images = [(path, name) for path, name in found if not lies_in(path, settings.save_path)]
    if not images:
        raise ValueError(f"--save_path {settings.save_path} holds the images themselves; name another folder")
    if len(images) < len(found):
        LOG.info(
            "%d images below --save_path %s are results and left out", len(found) - len(images), settings.save_path
        )
    if settings.save_maps or not settings.no_images:
        check_names([name for _, name in images])
    result_folder(settings.save_path)
    return images


def lies_in(path: Path, folder: str) -> bool:
    return path.resolve().is_relative_to(Path(folder).resolve())


def normal_images(flag: str, settings) -> list[Path]:
    """The images that --references or --calibrate names; results of an earlier run are none (ValueError)."""
    given = getattr(settings, flag)
    files = [path for path, _ in find_images([given]).images]
    if any(lies_in(path, settings.save_path) for path in files):
        raise ValueError(f"--{flag} {given} lies in --save_path {settings.save_path}; name another folder for results")
    return files


def begin(settings, sources, description, accelerator: Accelerator) -> None:
    """An empty folder of results, with its log and config.json."""
    save_path = Path(settings.save_path)
    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        clear_results(save_path, RESULTS)
        clear_leftovers(save_path)
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    log_to(save_path, quiet=not accelerator.is_main_process)
    log_settings(settings, sources)
    if accelerator.is_main_process:
        write_config(save_path, settings, sources, description)


def build_for_object(settings, accelerator) -> tuple:
    """(detector, its description, file of memories or None, images of the references, known calibration or None), the
    texts encoded; export.py takes it too."""
    known = None if settings.calibration is None else Calibration.load(settings.calibration)
    stored, normal = reference_files(settings, accelerator)
    detector, description = load_detector(settings, accelerator, stored)
    description |= identity(settings, normal)
    if known:
        keys = description.keys() - {"version", "pretrained", "dataset"}
        absent = dict.fromkeys(keys, "nothing known")  # a file of ours says all of them
        checkpoint.check_compatible(
            f"calibration {settings.calibration} was made", absent | known.made_with, description, sorted(keys)
        )
    vars(settings).update(detector.options, image_size=description["image_size"])
    detector.encode_names([settings.class_name])
    return detector, description, stored, normal, known


def reference_files(settings, accelerator) -> tuple[Any, list[Path]]:
    """(a file of memories or None, images of the references)."""
    settings.memory = None
    if settings.references is None:
        return None, []
    if not METHODS[settings.method].FEW_SHOT:
        raise ValueError(f"--references {settings.references}: {settings.method} is zero-shot and takes none")
    if Path(settings.references).suffix == ".safetensors":
        settings.memory = settings.references
        return memory_bank.load(settings.references, accelerator.device), []
    return None, normal_images("references", settings)


def identity(settings, normal: Sequence[Path]) -> dict[str, str | None]:
    """What else, beside the detector's description, the scores depend on."""
    files = {"checkpoint": settings.checkpoint_path, "memory": settings.memory}
    held = {key: None if path is None else file_digest([path]) for key, path in files.items()}
    references = file_digest(normal) if normal else held.pop("memory")
    return {"class_name": settings.class_name, "prompts": settings.prompts, "references": references,
            "checkpoint": held["checkpoint"]}  # fmt: skip


def prepare(settings, inspector: Predictor, stored, normal: Sequence[Path]) -> tuple:
    """(memory of the references or None, calibration or None)."""
    bank, calibration, name = None, None, settings.class_name
    if stored:
        bank = class_memory(settings, *stored)
    elif normal:
        advice = "name fewer images, or lower --image_size"
        memory_check.check_bank(inspector.detector, len(normal), inspector.accelerator.device, "--references", advice)
        source = settings.references if settings.calibrate is None and settings.calibration is None else None
        bank, calibration = inspector.build_memory(readable(batches(settings, normal)), len(normal), name, source)
    if settings.calibrate is not None:
        files = normal_images("calibrate", settings)
        same = {file_digest([path]) for path in files} & {file_digest([path]) for path in normal}
        if same:
            raise ValueError(
                f"--calibrate {settings.calibrate}: {len(same)} of its images are references, and find themselves "
                "among them; drop --calibrate (the references alone give a threshold), or name other images"
            )
        calibration = inspector.calibrate(readable(batches(settings, files)), name, bank, settings.calibrate)
    if calibration and calibration.fpr > settings.fpr:
        LOG.warning(
            "--fpr %g takes %d normal images; with %d the rate is %.2g, and the threshold is their highest score",
            settings.fpr, images_for(settings.fpr), calibration.normal_images, calibration.fpr,
        )  # fmt: skip
    return bank, calibration


def class_memory(settings, header, memories):
    """The one memory of the class in a file of memories."""
    found = [one for (_, name), one in memories.items() if name == settings.class_name]
    if len(found) != 1:
        raise ValueError(
            f"memory {settings.references}: holds {len(found)} memories of class '{settings.class_name}' (its classes: "
            f"{', '.join(header['classes'])}); want one, made by test.py with one --k_shot and one --seed"
        )
    return found[0]


def batches(settings, files: Sequence[Path]) -> DataLoader:
    dataset = UnlabeledImages(files, settings.image_size)
    return DataLoader(dataset, settings.batch_size, num_workers=min(settings.num_workers, len(files)))
