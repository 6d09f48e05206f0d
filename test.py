"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, table.md, report.html, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and,
with --save_maps, maps/ into --save_path; with --threshold also thresholds.json, and a verdict per image; with
--unlabelled the scores of images without labels, unlabelled.csv. Until all classes are scored, finished/ keeps what is
known of those that are; after an interruption the same command with --resume goes on there.
"""

import utils.packages  # noqa: F401 - first of all
from config.flags import test_parser

if __name__ == "__main__":
    test_parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

# isort: split
from collections import Counter
from pathlib import Path

from accelerate import Accelerator

from config.resolve import resolve_test
from config.settings import TestSettings, log_settings
from data.meta import Sample
from data.references import FewShotSetting
from engine.batched import check_sets
from engine.build import Built, build_for_scoring, check_memories, check_room
from engine.class_scores import ClassScores
from engine.encoding import Timer, encode_texts
from engine.feature_cache import FeatureCache
from engine.ground_truth import GroundTruth, Measuring, asked_measures, no_thresholds
from engine.references import (
    KeptReferences,
    MemorySource,
    References,
    check_settings,
    few_shot_settings,
    stored_settings,
    with_views,
)
from engine.resume import FinishedClasses, run_identity
from engine.test_run import ScoredData, TestFolder, read_dataset, save_memories, score_classes
from inference.dataset_thresholds import DatasetThresholds, with_image_f1
from inference.predictor import Predictor
from inference.unlabelled import UnlabelledParts
from metrics.names import IN_FILES_ALONE, Measures
from model import METHODS, memory_bank
from report.gallery import Gallery
from report.judged import FILE as THRESHOLDS
from report.map_files import MapFiles
from report.write import write_results
from utils.devices import make_accelerator
from utils.distributed import flatten, gather, shutdown
from utils.errors import run_script
from utils.files import check_results_of, lock_folder, read_json, result_folder
from utils.logs import LOG
from utils.provenance import write_config

RESUME_ADVICE = "every finished class is kept, and the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser().parse_args(argv))
    accelerator = make_accelerator(settings.device, settings.precision)
    root, save_path = settings.data_path, result_folder(settings.save_path)
    data = read_dataset(root, settings.meta_path, settings.classes, follow_links=settings.follow_links)
    if sources["save_path"] == "default":
        check_owner(settings)
    check_results_of(save_path, "test.py")
    if settings.save_memory:
        result_folder(str(Path(settings.save_memory).parent))
    timer = Timer()
    built, shots, source = prepare(settings, accelerator, data, timer)
    thresholds = make_thresholds(settings, accelerator, built, data, shots, source)
    unlabelled = UnlabelledParts(settings, data, shots, built)
    decided = {**settings.as_dict(), **built.decided, **data.pixels._asdict()}
    identity = run_identity(
        decided, built.description, accelerator, root, fixed_by(settings, data, unlabelled), shots,
        built.checkpoint, settings.memory,
    )  # fmt: skip
    files = MapFiles(
        save_path, root, data.samples, shots, overlays=not settings.no_images, maps=settings.save_maps,
        pixels=data.pixels, shown=built.detector.input_spec.shown, gather=lambda own: flatten(gather(own, accelerator)),
    )  # fmt: skip
    truth = GroundTruth(
        root, data.samples, data.pixels, built.detector.input_spec, own_size=settings.metric_size == "image",
        settings=len(shots), defects=data.defects,
    )  # fmt: skip
    measures = asked_measures(settings.measures, settings.fpr_limits, data.samples, given=thresholds is not None)
    finished = FinishedClasses(save_path, identity, data.classes, measures)
    folder = TestFolder(
        save_path, finished, files.expected_files(), data.samples, len(shots), settings.mode == "few_shot",
        settings.save_memory, [*unlabelled.results, *([save_path / THRESHOLDS] if settings.threshold else [])],
    )  # fmt: skip
    with lock_folder(save_path):
        known = folder.begin(accelerator, Gallery.from_json, resume=settings.resume)
        if known is not None:
            if settings.resume:
                LOG.info("resumed: %d of %d classes are done", len(known), len(data.classes))
            log_settings(decided, sources)
            if accelerator.is_main_process:
                write_config(save_path, decided, sources, {**built.description, "identity": finished.identity})
            encode_texts(built.detector, data.classes)
            if thresholds:
                unlabelled.begin(thresholds.fix(), accelerator, finished.identity)
            memories = KeptReferences(source)
            results = score_classes(
                built, data, root, shots, memories if settings.save_memory else source, accelerator, files, folder,
                known, batched=settings.mode == "batched", num_workers=settings.num_workers, timer=timer,
                measuring=Measuring(measures, truth, thresholds or no_thresholds),
            )  # fmt: skip
            if accelerator.is_main_process:
                write(settings, built, data, shots, results, files, measures, thresholds)
                if settings.save_memory:
                    save_memories(settings.save_memory, memories, data.classes, shots, built.description)
            unlabelled.score(source, accelerator, finished.identity, thresholds)
        shutdown(accelerator)
        if known is not None and accelerator.is_main_process:
            unlabelled.pack()  # when no other process waits any more
            finished.remove()


def write(
    settings: TestSettings, built: Built, data: ScoredData, shots: list[FewShotSetting], results: list[ClassScores],
    files: MapFiles, measures: Measures, thresholds: DatasetThresholds | None,
) -> None:  # fmt: skip
    """Tables, page and predictions, with verdicts where there are thresholds."""
    judged = thresholds.judge(results) if thresholds else None
    extra = (*METHODS[settings.method].PRESET.extra_metrics, *measures.metric_names())
    write_results(
        Path(settings.save_path), with_image_f1(results, judged) if judged else results, shots, data.samples,
        files.galleries, {**built.description, "mode": settings.mode},
        [key for key in extra if key not in IN_FILES_ALONE], judged,
    )  # fmt: skip


def fixed_by(settings: TestSettings, data: ScoredData, unlabelled: UnlabelledParts) -> list[Sample]:
    """The images that results depend on, beside references."""
    return [*data.samples, *(data.everything["validation"] if settings.threshold else ()), *unlabelled.samples]


def make_thresholds(
    settings: TestSettings, accelerator: Accelerator, built: Built, data: ScoredData, shots: list[FewShotSetting],
    source: MemorySource,
) -> DatasetThresholds | None:  # fmt: skip
    """What makes the thresholds of all classes; None where none are asked for."""
    if settings.threshold is None:
        return None
    predictor = Predictor(built.detector, accelerator, settings.rule, built.description, built.batch_size)
    return DatasetThresholds(
        predictor, data, settings.data_path, shots, source, stored=settings.memory is not None,
        num_workers=settings.num_workers,
    )  # fmt: skip


def check_owner(settings: TestSettings) -> None:
    """Raises ValueError where the folder, which no flag has named, holds results of other data of the same name."""
    try:
        other = Path(read_json(Path(settings.save_path, "config.json"))["settings"]["data_path"])
        same = other.resolve() == Path(settings.data_path).resolve()
    except (KeyError, OSError, RuntimeError, TypeError, ValueError):  # RuntimeError: a link to itself
        return
    if not same:
        raise ValueError(f"{settings.save_path} holds the results of {other}; name another place with --save_path")


def prepare(
    settings: TestSettings, accelerator: Accelerator, data: ScoredData, timer: Timer
) -> tuple[Built, list[FewShotSetting], MemorySource]:
    """The detector, the few-shot settings, and where the memories of their references come from."""
    memory = settings.memory
    order = list(dict.fromkeys(settings.classes or data.classes))  # in which published programs draw for them
    if memory is not None:
        header, stored = memory_bank.load(memory, accelerator.device)
        shots, source = stored_settings(memory, header, stored, settings.k_shot, settings.seed, data.classes)
    else:
        published = METHODS[settings.method].draw_references if settings.reference_draw == "published" else None
        shots = few_shot_settings(
            settings.references, settings.k_shot, settings.seed, settings.dataset, data.everything, order, published,
        )  # fmt: skip
    if settings.mode != "batched":
        check_settings(settings.method, shots)
    cache = FeatureCache.of(settings.feature_cache, settings.feature_cache_size, accelerator)
    built = build_for_scoring(
        settings, settings.batch_size, settings.checkpoint_path, settings.dataset, accelerator, cache, settings.tiling
    )
    if memory is None:
        shots = with_views(built.detector, settings.method, shots, settings.dataset, order)
    if settings.mode == "batched":
        check_sets(built.detector, settings.method, Counter(sample.cls_name for sample in data.samples))
    kept = len(data.classes) if settings.save_memory else 0
    check_room(built, accelerator, len(data.samples), [] if memory else shots, kept)
    if memory is not None:
        check_memories(memory, header, stored, built)
        return built, shots, source
    return built, shots, References(
        built.detector, shots, accelerator, root=settings.data_path, batch_size=built.batch_size,
        num_workers=settings.num_workers, pixels=data.pixels, timer=timer,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, RESUME_ADVICE)
