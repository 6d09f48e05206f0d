"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, table.md, report.html, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and,
with --save_maps, maps/ into --save_path. Until all classes are scored, finished/ keeps what is known of those that are;
after an interruption the same command with --resume goes on there.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import test_parser

if __name__ == "__main__":
    test_parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

# isort: split
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from config.resolve import resolve_test
from config.settings import TestSettings, log_settings
from data.meta import PixelSettings, Sample, read, read_settings
from data.references import FewShotSetting
from dataset import AnomalyDataset, select
from engine.build import Built, build_for_scoring, check_memories, check_room
from engine.encoding import Timer
from engine.evaluation import ClassScores, batches, score
from engine.feature_cache import FeatureCache
from engine.references import KeptReferences, MemorySource, References, few_shot_settings, stored_settings
from engine.resume import FOLDER, ClassResult, FinishedClasses, run_identity
from model import METHODS, memory_bank
from report.gallery import Gallery
from report.map_files import MapFiles
from report.write import write_results
from utils.devices import make_accelerator
from utils.distributed import flatten, gather, shutdown
from utils.errors import run_script
from utils.files import atomic_write, clear_leftovers, clear_results, lock_folder, result_folder
from utils.logs import LOG, Lines, log_to
from utils.provenance import write_config

TABLES = ("table.md", "report.html", "metrics.json", "metrics.csv", "predictions.csv", "k_shot.json")
PICTURES = ("imgs", "maps", FOLDER)
WAITING = (".maps-*", ".thumbnails-*", "imgs/.maps-*")  # what a killed process leaves, of this version or an older one
RESUME_ADVICE = "the classes that are done are kept, and the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser().parse_args(argv))
    accelerator = make_accelerator(settings.device, settings.precision)
    if sources["save_path"] == "default":
        check_owner(settings)
    data = read_dataset(settings)
    save_path = result_folder(settings.save_path)
    if settings.save_memory:
        result_folder(str(Path(settings.save_memory).parent))
    timer = Timer()
    built, shots, memories = prepare(settings, accelerator, data, timer)
    decided = {**settings.as_dict(), **built.decided, **data.pixels._asdict()}
    identity = run_identity(
        decided, built.description, accelerator, settings.data_path, data.samples, shots, built.checkpoint,
        settings.memory,
    )  # fmt: skip
    finished = FinishedClasses(save_path, identity, data.classes)
    files = MapFiles(
        save_path, settings.data_path, data.samples, shots, overlays=not settings.no_images, maps=settings.save_maps,
        bits=data.pixels.bits, upright=data.pixels.exif, gather=lambda own: flatten(gather(own, accelerator)),
    )  # fmt: skip
    with lock_folder(save_path):
        known = begin(settings, accelerator, finished, files.expected_files())
        if known is None:
            shutdown(accelerator)
            return
        if settings.resume:
            LOG.info("resumed: %d of %d classes are done", len(known), len(data.classes))
        log_settings(decided, sources)
        if accelerator.is_main_process:
            write_config(save_path, decided, sources, {**built.description, "identity": finished.identity})
        built.detector.encode_names(data.classes)
        results, kept = score_classes(
            settings, accelerator, built, data, shots, memories, files, finished, known, timer
        )
        if accelerator.is_main_process:
            shared = {**built.description, "mode": settings.mode}
            extra = METHODS[settings.method].PRESET.extra_metrics
            write_results(save_path, results, shots, data.samples, files.galleries, shared, extra)
            if settings.save_memory:
                save_memories(settings.save_memory, kept, data.classes, {**built.description, "shots": shots})
            finished.remove()
        shutdown(accelerator)


class ScoredData(NamedTuple):
    """What is scored. meta: all samples of the dataset, by split; pixels: how its files are read."""

    meta: Mapping[str, list[Sample]]
    samples: list[Sample]
    classes: list[str]
    pixels: PixelSettings


def read_dataset(settings: TestSettings) -> ScoredData:
    meta = read(settings.data_path, settings.meta_path, follow_links=settings.follow_links)
    samples = select(meta["test"], settings.classes)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    return ScoredData(meta, samples, classes, read_settings(settings.data_path, settings.meta_path))


def check_owner(settings: TestSettings) -> None:
    """Raises ValueError where the folder, which no flag has named, holds results of other data of the same name."""
    try:
        config = json.loads(Path(settings.save_path, "config.json").read_text(encoding="utf-8"))
        other = Path(config["settings"]["data_path"])
    except (KeyError, OSError, TypeError, ValueError):
        return
    if other.resolve() != Path(settings.data_path).resolve():
        raise ValueError(f"{settings.save_path} holds the results of {other}; name another place with --save_path")


def prepare(
    settings: TestSettings,
    accelerator: Accelerator,
    data: ScoredData,
    timer: Timer,
) -> tuple[Built, list[FewShotSetting], MemorySource]:
    """The detector, the few-shot settings, and the memories of their references."""
    stored = None if settings.memory is None else memory_bank.load(settings.memory, accelerator.device)
    if stored:
        shots, memories = stored_settings(settings.memory, *stored, settings.k_shot, settings.seed, data.classes)
    else:
        shots = few_shot_settings(
            settings.references, settings.k_shot, settings.seed, settings.dataset, data.meta, data.classes
        )
    cache = FeatureCache.of(settings.feature_cache, settings.feature_cache_size, accelerator)
    built = build_for_scoring(
        settings, settings.batch_size, settings.checkpoint_path, settings.dataset, accelerator, cache
    )
    if stored:
        check_memories(settings.memory, *stored, built)
    check_room(
        built, accelerator, len(data.samples), [] if stored else shots, len(data.classes) if settings.save_memory else 0
    )
    if not stored:
        memories = References(
            built.detector, shots, accelerator, root=settings.data_path, image_size=built.description["image_size"],
            batch_size=built.batch_size, num_workers=settings.num_workers, pixels=data.pixels, timer=timer,
        )  # fmt: skip
    return built, shots, memories


def begin(
    settings: TestSettings,
    accelerator: Accelerator,
    finished: FinishedClasses,
    pictures: Mapping[str, Sequence[Path]],
) -> dict[str, ClassResult] | None:
    """Prepare the folder and its log. Returns the results of classes that an interrupted test has finished; None where
    the whole test has ended already, and its results are left as they are.

    pictures: class -> the files that it is to have.
    """
    save_path, is_main = Path(settings.save_path), accelerator.is_main_process
    resumes = settings.resume and is_main
    if gather(resumes and is_whole(settings, finished.identity, pictures), accelerator)[0]:
        log_to(save_path, append=True, quiet=not is_main)
        table = Lines((save_path / "table.md").read_text(encoding="utf-8"))
        LOG.info("%s\nnothing to resume: these results are in %s", table, save_path)
        finished.remove()  # of a test that was killed after the last table
        return None
    known = finished.load(pictures, Gallery.from_json) if resumes else {}
    if is_main:
        clear_results(save_path, (*TABLES, *WAITING, *(() if known else PICTURES)))
        clear_leftovers(save_path, PICTURES)
    known = gather(known, accelerator)[0]  # nobody may write where the first process still clears
    log_to(save_path, append=bool(known), quiet=not is_main)
    return known


def is_whole(settings: TestSettings, identity: str, pictures: Mapping[str, Sequence[Path]]) -> bool:
    """Whether a test of this identity has ended in --save_path, and all that it has written is there."""
    save_path = Path(settings.save_path)
    few_shot = settings.mode == "few_shot"
    files = [save_path / name for name in TABLES if name != "k_shot.json" or few_shot]
    files += [Path(settings.save_memory)] if settings.save_memory else []
    try:
        done = json.loads((save_path / "config.json").read_text(encoding="utf-8"))["description"]["identity"]
    except (KeyError, OSError, TypeError, ValueError):
        return False
    return done == identity and all(path.is_file() for path in chain(files, *pictures.values()))


def score_classes(
    settings: TestSettings,
    accelerator: Accelerator,
    built: Built,
    data: ScoredData,
    shots: Sequence[FewShotSetting],
    memories: MemorySource,
    files: MapFiles,
    finished: FinishedClasses,
    known: Mapping[str, ClassResult],
    timer: Timer,
) -> tuple[list[ClassScores], KeptReferences]:
    """The results of all classes, and the memories that were used; files: takes the maps."""
    kept = KeptReferences(memories)
    source = kept if settings.save_memory else memories
    samples, size = data.samples, built.description["image_size"]
    images = AnomalyDataset(settings.data_path, samples, size, bits=data.pixels.bits, upright=data.pixels.exif)
    first = next((index for index, sample in enumerate(samples) if sample.cls_name not in known), len(samples))
    loader = batches(images, built.batch_size, settings.num_workers, accelerator, first=first)
    results = [result for one in known.values() for result in one.scores]
    for name, one in known.items():
        files.restore(name, one.page)
    with files:
        for result in score(built.detector, loader, samples, shots, source, accelerator, files.keep, timer, known):
            files.finish(result)
            results.append(result)
            if result.setting == len(shots) - 1:  # the last of its class
                accelerator.wait_for_everyone()  # until each process has drawn its pictures
                if accelerator.is_main_process:
                    finished.keep(result.name, ClassResult(results[-len(shots) :], files.page_values(result.name)))
    if first < len(samples):
        LOG.info("%d images in %.1f s, %.1f s of that in the backbone", len(samples) - first, *timer.seconds())
    if built.detector.backbone.cache:
        built.detector.backbone.cache.log()
    return results, kept


def save_memories(path: str, kept: KeptReferences, classes: Sequence[str], header: Mapping[str, Any]) -> None:
    for name in set(classes) - {name for _, name in kept.kept}:  # of which this process had no image
        kept(name)
    shots = [shot._asdict() for shot in header["shots"]]
    with atomic_write(path) as temporary:
        memory_bank.save(temporary, kept.kept, {**header, "shots": shots})


if __name__ == "__main__":
    run_script(main, RESUME_ADVICE)
