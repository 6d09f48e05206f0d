"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, table.md, report.html, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and,
with --save_maps, maps/ into --save_path. Until all classes are scored, finished/ keeps what is known of those that are;
after an interruption the same command with --resume goes on there.
"""

import utils.packages  # noqa: F401 - first of all

# isort: split
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader

from dataset import (
    ZERO_SHOT,
    AnomalyDataset,
    Sample,
    Shots,
    choose_shots,
    draw_shots,
    load_image,
    load_mask,
    load_shots,
    parse_shots,
    read,
    select,
)
from model import METHODS, build, memory, room
from prompt_ensemble import load_prompts
from utils import checkpoint, page, report, runtime
from utils.config import detector_settings, log_settings, resolve_test, test_parser
from utils.engine import Clock, References, batches, fitting_batch, score
from utils.feature_cache import FeatureCache
from utils.finished import FOLDER, Finished, FinishedClasses, of_files
from utils.processes import flat, gather
from utils.runtime import LOG
from utils.thumbnails import Thumbnails
from utils.visualize import MapFiles, Overlays, check_names

TABLES = ("table.md", "report.html", "metrics.json", "metrics.csv", "predictions.csv", "k_shot.json")
PICTURES = ("imgs", "maps", FOLDER)
WAITING = (".thumbnails-*", "imgs/.maps-*")  # what a killed process leaves
# Settings on which no result depends, or whose files are looked at instead.
NEUTRAL = ("save_path", "save_memory", "resume", "num_workers", "feature_cache", "feature_cache_size", "meta_path",
           "checkpoint_path", "references", "memory", "prompts")  # fmt: skip
GO_ON = "the classes that are done are kept, and the same command with --resume goes on"


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser(list(METHODS)).parse_args(argv))
    if settings.mode == "few_shot" and not METHODS[settings.method].FEW_SHOT:
        able = ", ".join(name for name, method in METHODS.items() if method.FEW_SHOT)
        raise ValueError(f"{settings.method} is zero-shot and takes no references; these methods do: {able}")
    accelerator = runtime.accelerator(settings.device, settings.precision)
    if sources["save_path"] == "default":
        check_owner(settings)
    meta = read(settings.data_path, settings.meta_path)
    samples = select(meta["test"], settings.classes)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    save_path = runtime.result_folder(settings.save_path)
    if settings.save_maps or not settings.no_images:
        check_names([sample.img_path for sample in samples])
    if settings.save_memory:
        runtime.result_folder(str(Path(settings.save_memory).parent))
    stored = None if settings.memory is None else memory.load(settings.memory, accelerator.device)
    shots, held = stored_shots(settings, stored, classes) if stored else (drawn_shots(settings, meta, classes), {})
    detector, description = load_detector(settings, accelerator, stored)
    check_room(settings, accelerator, detector, samples, [] if stored else shots, len(classes))

    save_path.mkdir(parents=True, exist_ok=True)
    finished = FinishedClasses(save_path, identity(settings, description, accelerator, samples, shots), classes)
    pictures = pictures_of(settings, shots, samples)
    resumes = settings.resume and accelerator.is_main_process
    if gather(resumes and is_whole(settings, finished.identity, pictures), accelerator)[0]:
        runtime.log_to(save_path, append=True, quiet=not accelerator.is_main_process)
        table = (save_path / "table.md").read_text(encoding="utf-8")
        LOG.info("%s\nnothing to resume: these results are in %s", table, save_path)
        finished.remove()  # of a test that was killed after the last table
        runtime.leave(accelerator)
        return
    known = finished.load(pictures) if resumes else {}
    if accelerator.is_main_process:
        runtime.clear_results(save_path, (*TABLES, *WAITING, *(() if known else PICTURES)))
        runtime.clear_leftovers(save_path, PICTURES)
    known = gather(known, accelerator)[0]  # nobody may write where the first process still clears
    runtime.log_to(save_path, append=bool(known), quiet=not accelerator.is_main_process)
    if settings.resume:
        LOG.info("resumed: %d of %d classes are done", len(known), len(classes))
    vars(settings).update(detector.options, image_size=description["image_size"])
    log_settings(settings, sources)
    if accelerator.is_main_process:
        runtime.write_config(save_path, settings, sources, {**description, "identity": finished.identity})

    detector.encode_names(classes)
    clock, kept = Clock(), {}
    remember = draw_memories(settings, accelerator, detector, shots, clock)
    if stored:
        remember = lambda name: [held.get((number, name)) for number in range(len(shots))]  # noqa: E731
    remember = keeping(remember, kept, settings)
    images = AnomalyDataset(settings.data_path, samples, settings.image_size)
    first = next((index for index, sample in enumerate(samples) if sample.cls_name not in known), len(samples))
    loader = batches(images, settings.batch_size, settings.num_workers, accelerator, first=first)
    results = [result for one in known.values() for result in one.scores]
    galleries = {(setting, name): chosen for name, one in known.items() for setting, chosen in one.galleries.items()}
    with map_files(settings, shots, samples, len(classes), accelerator) as files:
        for result in score(detector, loader, samples, shots, remember, accelerator, files.keep, clock, known):
            files.finish(result)
            results.append(result)
            if result.setting == len(shots) - 1:  # the last of its class
                accelerator.wait_for_everyone()  # until each process has drawn its pictures
                if accelerator.is_main_process:
                    finished.keep(result.name, Finished(results[-len(shots) :], files.gallery(result.name)))
    galleries |= files.galleries
    rows = [row for result in results for row in report.prediction_rows(result, shots[result.setting], samples)]
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
                remember(name)
            with runtime.replacing(settings.save_memory) as path:
                memory.save(path, kept, {**description, "shots": [shot._asdict() for shot in shots]})
        finished.remove()
    runtime.leave(accelerator)


def check_owner(settings) -> None:
    """Raises ValueError where the folder, which no flag has named, holds results of other data of the same name."""
    try:
        config = json.loads(Path(settings.save_path, "config.json").read_text(encoding="utf-8"))
        other = Path(config["settings"]["data_path"])
    except (KeyError, OSError, TypeError, ValueError):
        return
    if other.resolve() != Path(settings.data_path).resolve():
        raise ValueError(f"{settings.save_path} holds the results of {other}; name another place with --save_path")


def load_detector(settings, accelerator: Accelerator, stored) -> tuple:
    """(detector, its description), with the checkpoint in it; refuses what contradicts the run."""
    trainable = METHODS[settings.method].TRAINABLE
    if trainable and settings.checkpoint_path is None:
        others = ", ".join(name for name, method in METHODS.items() if not method.TRAINABLE)
        raise ValueError(
            f"{settings.method} needs --checkpoint_path: what train.py or its authors have trained; by --method, these "
            f"need none: {others}"
        )
    if not trainable and settings.checkpoint_path is not None:
        raise ValueError(f"{settings.method} has nothing to train: drop --checkpoint_path {settings.checkpoint_path}")
    trained = checkpoint.load(settings.checkpoint_path) if trainable else None
    if trained:
        settings.checkpoint_path = str(trained.path)
        origin = {key: trained.meta[key] for key in ("dataset", "epoch") if key in trained.meta}
        LOG.info("checkpoint %s %s", trained.path, origin or "(a published file: says nothing of its origin)")
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    detector = build(settings.method, prompts=prompts, **detector_settings(settings)).to(accelerator.device).eval()
    if settings.compile:
        runtime.check_compiler(accelerator.device)
        detector.backbone.compile_encoder()
    if settings.batch_size == "auto":
        settings.batch_size = fitting_batch(detector, detector.backbone.image_size, accelerator)
    detector.backbone.cache = FeatureCache.wanted(settings, accelerator)  # last: the images above are no images
    description = checkpoint.describe(detector, settings)
    if trained:
        checkpoint.restore(trained, detector, description)
    if stored:
        keys = ("method", "model", "weights", "quick_gelu", "image_size", *detector.options)
        absent = dict.fromkeys(keys, "nothing known")  # a file of ours says all of them
        checkpoint.must_agree(f"memory {settings.memory} was made", absent | stored[0], description, keys)
        memory.check(settings.memory, stored[1], detector.bank_widths)
    return detector, description


def check_room(settings, accelerator: Accelerator, detector, samples, shots: Sequence[Shots], classes: int) -> None:
    """Refuse batches and references that cannot fit into memory."""
    batch = min(settings.batch_size, len(samples))
    detector.backbone.check_room(batch, accelerator.device, f"--batch_size {batch}", "lower it, or --image_size")
    images = sum(shot.k_shot for shot in shots)
    if images:
        advice = "lower --k_shot or --image_size, or give fewer seeds"
        room.check_bank(detector, images, accelerator.device, "the references of a class", advice)
        if settings.save_memory:
            room.check_bank(detector, classes * images, "cpu", "--save_memory", f"{advice} or classes")


def identity(settings, description, accelerator: Accelerator, samples, shots: Sequence[Shots]) -> dict:
    """All that the results of a class depend on."""
    own = {key: value for key, value in vars(settings).items() if key not in NEUTRAL}
    prompts = None if settings.prompts is None else load_prompts(settings.prompts)
    held = {key: runtime.digest([path]) for key in ("checkpoint_path", "memory") if (path := getattr(settings, key))}
    versions = {key: value for key, value in runtime.provenance().items() if key != "git"}
    # Batches, and with them the last bits of results, follow from the number of processes and the device.
    where = (accelerator.num_processes, accelerator.device.type)
    images = {path for sample in samples for path in (sample.img_path, sample.mask_path) if path}
    images |= {path for shot in shots for paths in shot.references.values() for path in paths}
    files = of_files([Path(settings.data_path, path) for path in sorted(images)])
    return {"settings": own, "prompts": prompts, "files": held, "description": description, "versions": versions,
            "where": where, "samples": samples, "shots": shots, "images": files}  # fmt: skip


def pictures_of(settings, shots: Sequence[Shots], samples: Sequence[Sample]) -> dict[str, list[Path]]:
    """Class -> the overlays and maps that it is to have."""
    wanted = [] if settings.no_images else [("imgs", ".png")]
    wanted += [("maps", ".npy")] if settings.save_maps else []
    found: dict[str, list[Path]] = {sample.cls_name: [] for sample in samples}
    for kind, suffix in wanted:
        for folder in subfolders(shots):
            for sample in samples:
                path = Path(settings.save_path, kind, folder, sample.img_path)
                found[sample.cls_name].append(path.with_suffix(suffix))
    return found


def is_whole(settings, identity: str, pictures: Mapping[str, Sequence[Path]]) -> bool:
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


# --- references -----------------------------------------------------------------------------------------------------


def drawn_shots(settings, meta: dict[str, list[Sample]], classes: Sequence[str]) -> list[Shots]:
    """The few-shot settings asked for, from --references or drawn; zero-shot is one of them."""
    if settings.references is not None:
        everything = meta["train"] + meta["test"]
        return load_shots(settings.references, everything, classes, settings.k_shot, settings.seed)
    return [ZERO_SHOT] * (0 in settings.k_shot) + [
        draw_shots(settings.dataset, meta["train"], classes, k_shot, seed)
        for k_shot in dict.fromkeys(settings.k_shot)
        for seed in dict.fromkeys(settings.seed)
        if k_shot > 0
    ]


def stored_shots(settings, stored, classes: Sequence[str]) -> tuple[list[Shots], memory.Memories]:
    """The settings of a file of memories that the flags ask for (all, where they say nothing), and their memories."""
    header, memories = stored
    try:
        every = parse_shots(header["shots"])
    except (KeyError, ValueError):
        raise ValueError(f"memory {settings.memory}: does not say which settings it holds") from None
    shots = choose_shots(f"memory {settings.memory}", every, settings.k_shot, settings.seed)
    held = {}
    for new, shot in enumerate(shots):
        for name in classes if shot.k_shot > 0 else ():
            held[new, name] = memories.get((every.index(shot), name))
            if held[new, name] is None:
                raise ValueError(f"memory {settings.memory}: holds no references of class '{name}'")
    return shots, held


def draw_memories(settings, accelerator: Accelerator, detector, shots: Sequence[Shots], clock: Clock) -> References:
    def load(paths: Sequence[str]) -> DataLoader:
        images = [Sample(path, "", "", "", 0) for path in paths]
        dataset = AnomalyDataset(settings.data_path, images, settings.image_size)
        return batches(dataset, settings.batch_size, settings.num_workers, accelerator, shared=False)

    return References(detector, shots, load, accelerator, clock)


def keeping(remember: Callable[[str], list], kept: dict, settings) -> Callable[[str], list]:
    """`remember`, which keeps what it gave where --save_memory asks for it."""

    def remembered(name: str) -> list:
        memories = remember(name)
        if settings.save_memory:
            kept.update({(number, name): one.cpu() for number, one in enumerate(memories) if one is not None})
        return memories

    return remembered


# --- results --------------------------------------------------------------------------------------------------------


def map_files(settings, shots: Sequence[Shots], samples: Sequence[Sample], classes: int, accelerator) -> MapFiles:
    def together(own: list) -> list:
        return flat(gather(own, accelerator))

    save_path = Path(settings.save_path)
    root = Path(settings.data_path)
    shown = page.shown([shot.k_shot for shot in shots])
    choose = page.chooser(classes * len(shown))
    return MapFiles(
        samples,
        subfolders(shots),
        save_path / "maps" if settings.save_maps else None,
        None if settings.no_images else Overlays(save_path / "imgs", root, load_image, load_mask, together),
        Thumbnails(save_path, root, shown, choose, load_image, load_mask, together),
    )


def subfolders(shots: Sequence[Shots]) -> list[str]:
    """Of each setting, for its pictures and maps."""
    if len(shots) == 1:
        return [""]
    return ["zero_shot" if shot.k_shot == 0 else f"k{shot.k_shot}_seed{shot.seed}" for shot in shots]


def write_results(settings, description, shots, classes, results, rows, galleries) -> None:
    save_path = Path(settings.save_path)
    runs = report.collect(results, shots, classes)
    few = [shot._asdict() for shot in shots if shot.k_shot > 0]
    if few:
        runtime.write_json(save_path / "k_shot.json", few)
    report.write_predictions(save_path / "predictions.csv", rows)
    extra = METHODS[settings.method].EXTRA_FIGURES
    report.write(save_path, runs, {**description, "mode": settings.mode}, extra)
    page.write(save_path / "report.html", runs, rows, results, galleries, extra)
    for name, missing in report.absent(runs).items():
        LOG.warning("%s: %s cannot be computed (one label only, no masks, or constant maps)", name, ", ".join(missing))
    LOG.info("\n%s\n\nresults are in %s", report.markdown(runs, extra), save_path)


if __name__ == "__main__":
    runtime.run(main, GO_ON)
