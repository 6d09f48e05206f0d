"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, table.md, report.html, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and,
with --save_maps, maps/ into --save_path. Until all classes are scored, finished/ keeps what is known of those that are;
after an interruption the same command with --resume goes on there.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from config.flags import test_parser
from config.settings import log_settings, resolve_test
from dataset import AnomalyDataset, read, select
from engine.build import check_room, load_detector
from engine.encoding import Timer
from engine.evaluation import batches, score
from engine.references import draw_memories, drawn_settings, keep_memories, stored_settings
from engine.resume import FOLDER, ClassResult, FinishedClasses, run_identity
from model import METHODS, memory_bank
from report.map_files import check_names, map_files, pictures_of
from report.write import prediction_rows, write_results
from utils.devices import make_accelerator
from utils.distributed import gather, shutdown
from utils.errors import run_script
from utils.files import atomic_write, clear_leftovers, clear_results, read_json, result_folder
from utils.logs import LOG, Lines, log_to
from utils.provenance import write_config

TABLES = ("table.md", "report.html", "metrics.json", "metrics.csv", "predictions.csv", "k_shot.json")
PICTURES = ("imgs", "maps", FOLDER)
WAITING = (".thumbnails-*", "imgs/.maps-*")  # what a killed process leaves
RESUME_ADVICE = "the classes that are done are kept, and the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser(list(METHODS)).parse_args(argv))
    if settings.mode == "few_shot" and not METHODS[settings.method].FEW_SHOT:
        able = ", ".join(name for name, method in METHODS.items() if method.FEW_SHOT)
        raise ValueError(f"{settings.method} is zero-shot and takes no references; these methods do: {able}")
    accelerator = make_accelerator(settings.device, settings.precision)
    if sources["save_path"] == "default":
        check_owner(settings)
    meta = read(settings.data_path, settings.meta_path)
    samples = select(meta["test"], settings.classes)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    save_path = result_folder(settings.save_path)
    if settings.save_maps or not settings.no_images:
        check_names([sample.img_path for sample in samples])
    if settings.save_memory:
        result_folder(str(Path(settings.save_memory).parent))
    stored = None if settings.memory is None else memory_bank.load(settings.memory, accelerator.device)
    shots, held = (
        stored_settings(settings, stored, classes) if stored else (drawn_settings(settings, meta, classes), {})
    )
    detector, description = load_detector(settings, accelerator, stored)
    check_room(settings, accelerator, detector, samples, [] if stored else shots, len(classes))

    save_path.mkdir(parents=True, exist_ok=True)
    finished = FinishedClasses(save_path, run_identity(settings, description, accelerator, samples, shots), classes)
    pictures = pictures_of(settings, shots, samples)
    resumes = settings.resume and accelerator.is_main_process
    if gather(resumes and is_whole(settings, finished.identity, pictures), accelerator)[0]:
        log_to(save_path, append=True, quiet=not accelerator.is_main_process)
        table = Lines((save_path / "table.md").read_text(encoding="utf-8"))
        LOG.info("%s\nnothing to resume: these results are in %s", table, save_path)
        finished.remove()  # of a test that was killed after the last table
        shutdown(accelerator)
        return
    known = finished.load(pictures, samples, len(shots)) if resumes else {}
    if accelerator.is_main_process:
        clear_results(save_path, (*TABLES, *WAITING, *(() if known else PICTURES)))
        clear_leftovers(save_path, PICTURES)
    known = gather(known, accelerator)[0]  # nobody may write where the first process still clears
    log_to(save_path, append=bool(known), quiet=not accelerator.is_main_process)
    if settings.resume:
        LOG.info("resumed: %d of %d classes are done", len(known), len(classes))
    vars(settings).update(detector.options, image_size=description["image_size"])
    log_settings(settings, sources)
    if accelerator.is_main_process:
        write_config(save_path, settings, sources, {**description, "identity": finished.identity})

    detector.encode_names(classes)
    clock, kept = Timer(), {}
    memories_of = draw_memories(settings, accelerator, detector, shots, clock)
    if stored:
        memories_of = lambda name: [held.get((number, name)) for number in range(len(shots))]  # noqa: E731
    memories_of = keep_memories(memories_of, kept, settings)
    images = AnomalyDataset(settings.data_path, samples, settings.image_size)
    first = next((index for index, sample in enumerate(samples) if sample.cls_name not in known), len(samples))
    loader = batches(images, settings.batch_size, settings.num_workers, accelerator, first=first)
    results = [result for one in known.values() for result in one.scores]
    galleries = {(setting, name): chosen for name, one in known.items() for setting, chosen in one.galleries.items()}
    with map_files(settings, shots, samples, len(classes), accelerator) as files:
        for result in score(detector, loader, samples, shots, memories_of, accelerator, files.keep, clock, known):
            files.finish(result)
            results.append(result)
            if result.setting == len(shots) - 1:  # the last of its class
                accelerator.wait_for_everyone()  # until each process has drawn its pictures
                if accelerator.is_main_process:
                    finished.keep(result.name, ClassResult(results[-len(shots) :], files.gallery(result.name)))
    galleries |= files.galleries
    rows = [row for result in results for row in prediction_rows(result, shots[result.setting], samples)]
    if first < len(samples):
        LOG.info("%d images in %.1f s, %.1f s of that in the backbone", len(samples) - first, *clock.seconds())
    if detector.backbone.cache:
        detector.backbone.cache.log()
    if accelerator.is_main_process:
        place = {(sample.cls_name, sample.img_path): number for number, sample in enumerate(samples)}
        rows.sort(key=lambda row: (row["k_shot"], row["seed"] or 0, place[row["cls_name"], row["img_path"]]))
        write_results(settings, description, shots, classes, results, rows, galleries)
        if settings.save_memory:
            for name in set(classes) - {name for _, name in kept}:  # of which this process had no image
                memories_of(name)
            with atomic_write(settings.save_memory) as path:
                memory_bank.save(path, kept, {**description, "shots": [shot._asdict() for shot in shots]})
        finished.remove()
    shutdown(accelerator)


def check_owner(settings) -> None:
    """Raises ValueError where the folder, which no flag has named, holds results of other data of the same name."""
    try:
        other = Path(read_json(Path(settings.save_path, "config.json"))["settings"]["data_path"])
        same = other.resolve() == Path(settings.data_path).resolve()
    except (KeyError, OSError, RuntimeError, TypeError, ValueError):  # RuntimeError: a link to itself
        return
    if not same:
        raise ValueError(f"{settings.save_path} holds the results of {other}; name another place with --save_path")


def is_whole(settings, identity: str, pictures: Mapping[str, Sequence[Path]]) -> bool:
    """Whether a test of this identity has ended in --save_path, and all that it has written is there."""
    save_path = Path(settings.save_path)
    few_shot = settings.mode == "few_shot"
    files = [save_path / name for name in TABLES if name != "k_shot.json" or few_shot]
    files += [Path(settings.save_memory)] if settings.save_memory else []
    try:
        done = read_json(save_path / "config.json")["description"]["identity"]
    except (KeyError, OSError, TypeError, ValueError):
        return False
    return done == identity and all(path.is_file() for path in chain(files, *pictures.values()))


if __name__ == "__main__":
    run_script(main, RESUME_ADVICE)
