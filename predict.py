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
import csv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import OwnImages, find_images, load_image
from model import METHODS, memory, room
from test import load_detector
from utils import runtime
from utils.calibration import Calibration, images_for
from utils.checkpoint import must_agree
from utils.config import log_settings, predict_parser, resolve_onnx, resolve_predict
from utils.engine import batches as shared_batches
from utils.exported import Exported
from utils.inspection import Finding, Inspector, readable
from utils.processes import each_round, gather
from utils.runtime import LOG
from utils.visualize import StreamedOverlays, check_names, sampled, save_map

RESULTS = ("scores.csv", "skipped.csv", "calibration.json", "imgs", "maps")
_SHOWN = 20  # unreadable files that the log names one by one


def main(argv: list[str] | None = None) -> int:
    args = predict_parser(list(METHODS)).parse_intermixed_args(argv)
    if args.onnx is not None:
        return run_exported(args)
    settings, sources = resolve_predict(args)
    accelerator = runtime.accelerator(settings.device, settings.precision)
    images = inputs(settings)
    detector, description, stored, normal, known = the_detector(settings, accelerator)
    batch = min(settings.batch_size, len(images))
    detector.backbone.check_room(batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size")
    begin(settings, sources, description, accelerator)
    inspector = Inspector(detector, accelerator, settings.fpr, description)
    bank, calibration = prepare(settings, inspector, stored, normal)
    calibration = known or calibration

    def look(batch: Tensor) -> list[Finding]:
        return inspector(batch, settings.class_name, bank, calibration)

    code = report(settings, look, images, calibration, accelerator)
    if detector.backbone.cache:
        detector.backbone.cache.log()
    runtime.leave(accelerator)
    return code


def run_exported(args) -> int:
    """What an exported detector finds, without building the model that it was made from."""
    detector = Exported(args.onnx)
    said = {"method": detector.method, "class_name": detector.class_name, "image_size": detector.image_size}
    settings, sources = resolve_onnx(args, detector.made_with | said)
    accelerator = runtime.accelerator("cpu", "fp32")
    images = inputs(settings)
    begin(settings, sources, detector.made_with, accelerator)
    code = report(settings, lambda batch: detector.look(batch.numpy()), images, detector.calibration, accelerator)
    runtime.leave(accelerator)
    return code


def inputs(settings) -> list[tuple[Path, str]]:
    """The images to score, without those in the folder of results; refuses what would make results go nowhere."""
    found = find_images(settings.inputs)
    images = [(path, name) for path, name in found if not lies_in(path, settings.save_path)]
    if not images:
        raise ValueError(f"--save_path {settings.save_path} holds the images themselves; name another folder")
    if len(images) < len(found):
        LOG.info(
            "%d images below --save_path %s are results and left out", len(found) - len(images), settings.save_path
        )
    if settings.save_maps or not settings.no_images:
        check_names([name for _, name in images])
    runtime.result_folder(settings.save_path)
    return images


def lies_in(path: Path, folder: str) -> bool:
    return path.resolve().is_relative_to(Path(folder).resolve())


def normal_images(flag: str, settings) -> list[Path]:
    """The images that --references or --calibrate names; results of an earlier run are none (ValueError)."""
    given = getattr(settings, flag)
    files = [path for path, _ in find_images([given])]
    if any(lies_in(path, settings.save_path) for path in files):
        raise ValueError(f"--{flag} {given} lies in --save_path {settings.save_path}; name another folder for results")
    return files


def begin(settings, sources, description, accelerator: Accelerator) -> None:
    """An empty folder of results, with its log and config.json."""
    save_path = Path(settings.save_path)
    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        runtime.clear_results(save_path, RESULTS)
        runtime.clear_leftovers(save_path)
    accelerator.wait_for_everyone()  # nobody may write where the first process still clears
    runtime.log_to(save_path, quiet=not accelerator.is_main_process)
    log_settings(settings, sources)
    if accelerator.is_main_process:
        runtime.write_config(save_path, settings, sources, description)


def report(
    settings,
    look: Callable[[Tensor], list[Finding]],
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
    skipped = score(settings, look, images, calibration, accelerator)
    LOG.info("images scored: %d; results are in %s", len(images) - len(skipped), save_path)
    if skipped and accelerator.is_main_process:
        write_skipped(save_path / "skipped.csv", skipped)
        for name, reason in skipped[:_SHOWN]:
            LOG.warning("skipped %s: %s", name, reason)
        LOG.warning("%d of %d files could not be read, see skipped.csv", len(skipped), len(images))
    return 3 if skipped else 0


# --- references and calibration -------------------------------------------------------------------------------------


def the_detector(settings, accelerator) -> tuple:
    """(detector, its description, file of memories or None, images of the references, known calibration or None), the
    texts encoded; export.py takes it too."""
    known = None if settings.calibration is None else Calibration.load(settings.calibration)
    stored, normal = reference_files(settings, accelerator)
    detector, description = load_detector(settings, accelerator, stored)
    description |= identity(settings, normal)
    if known:
        keys = description.keys() - {"version", "pretrained", "dataset"}
        absent = dict.fromkeys(keys, "nothing known")  # a file of ours says all of them
        must_agree(f"calibration {settings.calibration} was made", absent | known.made_with, description, sorted(keys))
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
        return memory.load(settings.references, accelerator.device), []
    return None, normal_images("references", settings)


def identity(settings, normal: Sequence[Path]) -> dict[str, str | None]:
    """What else, beside the detector's description, the scores depend on."""
    files = {"checkpoint": settings.checkpoint_path, "memory": settings.memory}
    held = {key: None if path is None else runtime.digest([path]) for key, path in files.items()}
    references = runtime.digest(normal) if normal else held.pop("memory")
    return {"class_name": settings.class_name, "prompts": settings.prompts, "references": references,
            "checkpoint": held["checkpoint"]}  # fmt: skip


def prepare(settings, inspector: Inspector, stored, normal: Sequence[Path]) -> tuple:
    """(memory of the references or None, calibration or None)."""
    bank, calibration, name = None, None, settings.class_name
    if stored:
        bank = the_memory(settings, *stored)
    elif normal:
        advice = "name fewer images, or lower --image_size"
        room.check_bank(inspector.detector, len(normal), inspector.accelerator.device, "--references", advice)
        source = settings.references if settings.calibrate is None and settings.calibration is None else None
        bank, calibration = inspector.remember(readable(batches(settings, normal)), len(normal), name, source)
    if settings.calibrate is not None:
        files = normal_images("calibrate", settings)
        same = {runtime.digest([path]) for path in files} & {runtime.digest([path]) for path in normal}
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


def the_memory(settings, header, memories):
    """The one memory of the class in a file of memories."""
    found = [one for (_, name), one in memories.items() if name == settings.class_name]
    if len(found) != 1:
        raise ValueError(
            f"memory {settings.references}: holds {len(found)} memories of class '{settings.class_name}' (its classes: "
            f"{', '.join(header['classes'])}); want one, made by test.py with one --k_shot and one --seed"
        )
    return found[0]


# --- images ---------------------------------------------------------------------------------------------------------


def batches(settings, files: Sequence[Path]) -> DataLoader:
    dataset = OwnImages(files, settings.image_size)
    return DataLoader(dataset, settings.batch_size, num_workers=min(settings.num_workers, len(files)))


def score(
    settings, look: Callable[[Tensor], list[Finding]], images, calibration, accelerator: Accelerator
) -> list[tuple[str, str]]:
    """Score all images as they come; writes scores.csv, overlays and maps. Returns what was skipped, and why.

    Of several processes each scores its part of a round, and the first writes the rows of all, in the order of images.
    """
    save_path, skipped, writer = Path(settings.save_path), [], None
    dataset = OwnImages([path for path, _ in images], settings.image_size)
    loader = shared_batches(dataset, settings.batch_size, settings.num_workers, accelerator)
    bar = tqdm(total=len(images), desc="predict", unit="image", disable=None if accelerator.is_main_process else True)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            temporary = stack.enter_context(runtime.replacing(save_path / "scores.csv"))
            file = stack.enter_context(temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace"))
        draw = None
        if not settings.no_images:
            ends = calibration.heat if calibration else None
            draw = stack.enter_context(StreamedOverlays(save_path / "imgs", upright, ends))
        for length, batch in each_round(loader):
            found, unreadable = findings(images, look, batch) if batch else ([], [])
            rows = [(images[index][1], finding.values) for index, finding in found]
            pixels = [sampled(finding.map) for _, finding in found] if draw and draw.learning else []
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
                    save_map(save_path / "maps", name, one)
                if draw:
                    draw.keep(path, name, one, f"score {values['score']:.3f} {values.get('verdict', '')}")
            bar.update(length)
    bar.close()
    return skipped


def findings(images, look: Callable[[Tensor], list[Finding]], batch) -> tuple[list, list[tuple[str, str]]]:
    """What a batch of `OwnImages` shows: (index, finding) of each readable image; name of each other one, and why."""
    indices, errors = batch["index"].tolist(), batch["error"]
    unreadable = [(images[index][1], error) for index, error in zip(indices, errors, strict=True) if error]
    good = [row for row, error in enumerate(errors) if not error]
    shown = look(batch["image"][good]) if good else []
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
        runtime.replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([("img_path", "reason"), *skipped])


if __name__ == "__main__":
    runtime.run(main, "no scores.csv is written; start again")
