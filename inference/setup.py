"""What predict.py and export.py do before they score or write: a detector for one object, references, scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from config.settings import ObjectSettings, Sources, log_settings
from dataset import UnlabeledImages
from engine import checkpoint
from engine.batches import batches
from engine.build import Built, build_for_scoring, check_memories
from engine.encoding import encode_texts
from engine.feature_cache import FeatureCache
from inference.calibration import Calibration
from inference.inputs import NormalImages, find_normal_images
from inference.predictor import OWN_IMAGES, Predictor, readable
from metrics.thresholds import ThresholdRule, images_needed
from model import capabilities, memory_bank
from model.interface import Memory
from utils import memory_check
from utils.files import clear_leftovers, clear_results, file_digest
from utils.logs import LOG, log_to
from utils.progress import tracked
from utils.provenance import write_config

RESULTS = ("scores.csv", "skipped.csv", "calibration.json", "report.html", "imgs", "maps")
MEMORY_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ObjectDetector:
    """A detector for one object, its texts encoded.

    description: what identifies the detector and the object.
    memory: of references that were stored in a file; None where there are none.
    calibration: of an earlier run; None where no file of it was given.
    """

    built: Built
    predictor: Predictor
    class_name: str
    description: Mapping[str, Any]
    memory: Memory | None
    calibration: Calibration | None


def normal_images(settings: ObjectSettings) -> NormalImages:
    """The images of --references and --calibrate. Raises ValueError: see `find_normal_images`; a method that takes no
    references, or that requires some."""
    abilities = capabilities(settings.method)
    if settings.references is not None and not abilities.few_shot:
        raise ValueError(f"--references {settings.references}: {settings.method} is zero-shot and takes none")
    if settings.references is None and not abilities.zero_shot:
        other = ", or --mode batched for a folder of unlabelled ones" if abilities.batched else ""
        raise ValueError(f"--method {settings.method} requires --references: normal images of the object{other}")
    folder = None if _is_memory(settings.references) else settings.references
    return find_normal_images(folder, settings.calibrate, settings.save_path, settings.bits)


def build_for_object(
    settings: ObjectSettings,
    normal: NormalImages,
    accelerator: Accelerator,
    feature_cache: FeatureCache | None = None,
) -> ObjectDetector:
    """The detector with its checkpoint; stored references and an earlier calibration are checked against it.

    Raises:
        ValueError: see `build_for_scoring`; a file of references or a calibration that was made with something else.
    """
    known = None if settings.calibration is None else Calibration.load(settings.calibration)
    memory_path = settings.references if _is_memory(settings.references) else None
    stored = None if memory_path is None else memory_bank.load(memory_path, accelerator.device)
    built = build_for_scoring(
        settings, settings.batch_size, settings.checkpoint_path, OWN_IMAGES, accelerator, feature_cache, settings.tiling
    )
    memory = None
    if memory_path is not None and stored is not None:
        header, memories = stored
        check_memories(memory_path, header, memories, built)
        memory = memory_of_class(memory_path, header["classes"], memories, settings.class_name)
    description = {**built.description, **_identity(settings, built.checkpoint, memory_path, normal)}
    if known:
        _check_calibration(str(settings.calibration), known, description)
    encode_texts(built.detector, [settings.class_name])
    predictor = Predictor(built.detector, accelerator, settings.rule, description, built.batch_size)
    return ObjectDetector(built, predictor, settings.class_name, description, memory, known)


def _is_memory(references: str | None) -> bool:
    return references is not None and Path(references).suffix == MEMORY_SUFFIX


def _identity(
    settings: ObjectSettings, trained: Path | None, memory_path: str | None, normal: NormalImages
) -> dict[str, Any]:
    """What the scores depend on beside the detector's description."""
    references = list(normal.references.values()) or ([] if memory_path is None else [Path(memory_path)])
    return {
        "class_name": settings.class_name,
        "prompts": settings.prompts,
        "references": file_digest(references) if references else None,
        "checkpoint": None if trained is None else file_digest([trained]),
        "bits": settings.bits,
    }


def _check_calibration(path: str, known: Calibration, description: Mapping[str, Any]) -> None:
    """Raises ValueError where a calibration was made with another detector, object or references."""
    keys = description.keys() - {"version", "pretrained", "dataset"}
    made_with = dict.fromkeys(keys, "nothing known") | checkpoint.complete(known.made_with, description)
    checkpoint.check_compatible(f"calibration {path} was made", made_with, description, sorted(keys))


def memory_of_class(
    path: str, classes: Sequence[str], memories: Mapping[tuple[int, str], Memory], class_name: str
) -> Memory:
    """The one memory of a class in a file of memories. Raises ValueError where it holds none, or several."""
    found = [memory for (_, name), memory in memories.items() if name == class_name]
    if not found:
        raise ValueError(
            f"memory {path}: holds no class '{class_name}'; name one by --class_name: {', '.join(classes)}"
        )
    if len(found) != 1:
        raise ValueError(
            f"memory {path}: holds {len(found)} memories of class '{class_name}' (its classes: {', '.join(classes)}); "
            "must be one, made by test.py with one --k_shot and one --seed"
        )
    return found[0]


def start_results(
    save_path: Path,
    values: Mapping[str, Any],
    sources: Sources,
    description: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """An empty folder of results, with its log and config.json. values: of the settings, by name."""
    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        clear_results(save_path, RESULTS)
        clear_leftovers(save_path)
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    log_to(save_path, quiet=not accelerator.is_main_process)
    log_settings(values, sources)
    if accelerator.is_main_process:
        write_config(save_path, values, sources, description)


def encode_normal_images(
    one: ObjectDetector, normal: NormalImages, settings: ObjectSettings
) -> tuple[Memory | None, Calibration | None]:
    """(memory of the references, calibration on normal images), each None where there is none."""
    predictor, memory, calibration = one.predictor, one.memory, one.calibration
    references = list(normal.references.values())
    if references:
        advice = "name fewer images, or lower --image_size"
        device = predictor.accelerator.device
        memory_check.check_bank(predictor.detector, len(references), device, "--references", advice)
        wanted = settings.calibrate is None and settings.calibration is None
        source = settings.references if wanted else None
        encoded = predictor.encode_references(
            references, one.class_name, source, bits=settings.bits, num_workers=settings.num_workers
        )
        memory, calibration = encoded.memory, encoded.calibration or calibration
        _log_near_copies([references[row] for row in encoded.near_copies], len(references))
    if settings.calibrate is not None:
        images = UnlabeledImages(list(normal.calibrate.values()), predictor.detector.input_spec, bits=settings.bits)
        loader = batches(images, predictor.batch_size, settings.num_workers, predictor.accelerator, shared=False)
        shown = predictor.accelerator.is_main_process
        read = tracked(loader, "normal images", "batch", shown=shown, leave=False)
        (calibration,) = predictor.calibrate(readable(read), one.class_name, [memory], settings.calibrate)
    if calibration and settings.calibration is None:
        log_too_few(calibration, settings.rule)
    return memory, calibration


def log_too_few(calibration: Calibration, rule: ThresholdRule, of: str = "") -> None:
    """Say where a rate cannot be kept with so few normal images. of: what they are of, to begin the line with."""
    if rule.kind == "conformal" and calibration.fpr is not None and calibration.fpr > rule.fpr:
        LOG.warning(
            "%s--fpr %g takes %d normal images; with %d the rate is %.2g, and the threshold is their highest score",
            of, rule.fpr, images_needed(rule.fpr), calibration.normal_images, calibration.fpr,
        )  # fmt: skip


def _log_near_copies(files: Sequence[Path], count: int) -> None:
    if files:
        LOG.warning(
            "%d of %d references are nearly copies of others (%s is one), so that scale and threshold are too low; "
            "take each photograph anew, or name normal images to --calibrate",
            len(files), count, files[0],
        )  # fmt: skip
