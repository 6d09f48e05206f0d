"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, table.md, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and, with
--save_maps, maps/ into --save_path.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
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
    read,
    select,
)
from model import METHODS, build, memory
from utils import checkpoint, report, runtime
from utils.config import detector_settings, log_settings, resolve_test, test_parser
from utils.engine import ClassScores, References, score
from utils.runtime import LOG
from utils.visualize import Overlays

RESULTS = ("config.json", "table.md", "metrics.json", "metrics.csv", "predictions.csv", "k_shot.json")


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser(list(METHODS)).parse_args(argv))
    accelerator = runtime.accelerator(settings.device, settings.precision)
    meta = read(settings.data_path, settings.meta_path)
    samples = select(meta["test"], settings.classes)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    save_path = runtime.result_folder(settings.save_path)
    if settings.save_maps or not settings.no_images:
        check_names(samples)
    stored = None if settings.memory is None else memory.load(settings.memory, accelerator.device)
    shots, held = stored_shots(settings, stored, classes) if stored else (drawn_shots(settings, meta, classes), {})
    detector, description = load_detector(settings, accelerator, stored)

    save_path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for name in RESULTS:  # of an earlier run: they must not stand beside this run's log
            (save_path / name).unlink(missing_ok=True)
    runtime.log_to(save_path, quiet=not accelerator.is_main_process)
    vars(settings).update(detector.options, image_size=description["image_size"])
    log_settings(settings, sources)

    # Each process takes classes of its own, so that no count has to be merged.
    own_classes = classes[accelerator.process_index :: accelerator.num_processes]
    own = [sample for sample in samples if sample.cls_name in own_classes]
    detector.encode_names(own_classes)
    remember = draw_memories(settings, accelerator, detector, shots)
    if stored:
        remember = lambda name: [held.get((number, name)) for number in range(len(shots))]  # noqa: E731
    results, rows, kept = [], [], {}
    with MapFiles(settings, shots, own) as files:
        for result in score(
            detector, loader(settings, own), own, shots, keeping(remember, kept, settings), accelerator, files.keep
        ):
            files.finish(result)
            results.append(result)
            rows += prediction_rows(result, shots[result.setting], own)
    if accelerator.num_processes > 1:
        results, rows, kept = gather_object(results), gather_object(rows), dict(gather_object(list(kept.items())))
    if accelerator.is_main_process:
        place = {(sample.cls_name, sample.img_path): number for number, sample in enumerate(samples)}
        rows.sort(key=lambda row: (row["k_shot"], row["seed"] or 0, place[row["cls_name"], row["img_path"]]))
        write_results(settings, sources, description, shots, classes, results, rows)
        if settings.save_memory:
            with runtime.replacing(settings.save_memory) as path:
                memory.save(path, kept, {**description, "shots": [shot._asdict() for shot in shots]})


def check_names(samples: Sequence[Sample]) -> None:
    """Maps and overlays are named after the images without their suffix: two images of one name would collide."""
    owners: dict[PurePosixPath, str] = {}
    for sample in samples:
        owner = owners.setdefault(PurePosixPath(sample.img_path).with_suffix(""), sample.img_path)
        if owner != sample.img_path:
            raise ValueError(
                f"{owner} and {sample.img_path} differ in the suffix alone, and their maps would overwrite each other; "
                "rename one, or use --no_images without --save_maps"
            )


def load_detector(settings, accelerator: Accelerator, stored) -> tuple:
    """(detector, its description), with the checkpoint in it; refuses what contradicts the run."""
    trainable = METHODS[settings.method].TRAINABLE
    if trainable and settings.checkpoint_path is None:
        raise ValueError(f"{settings.method} needs --checkpoint_path: adapters from train.py, or published ones")
    if not trainable and settings.checkpoint_path is not None:
        raise ValueError(f"{settings.method} has nothing to train: drop --checkpoint_path {settings.checkpoint_path}")
    trained = checkpoint.load(settings.checkpoint_path) if trainable else None
    if trained:
        settings.checkpoint_path = str(trained.path)
        origin = {key: trained.meta[key] for key in ("dataset", "epoch") if key in trained.meta}
        LOG.info("checkpoint %s %s", trained.path, origin or "(a published file: says nothing of its origin)")
    detector = build(settings.method, **detector_settings(settings)).to(accelerator.device).eval()
    description = checkpoint.describe(detector, settings)
    if trained:
        checkpoint.restore(trained, detector, description)
    if stored:
        keys = ("method", "model", "weights", "quick_gelu", "image_size", *detector.options)
        checkpoint.must_agree(f"memory {settings.memory} was made", stored[0], description, keys)
    return detector, description


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
        every = [Shots(**entry) for entry in header["shots"]]
    except (KeyError, TypeError):
        raise ValueError(f"memory {settings.memory}: does not say which settings it holds") from None
    shots = choose_shots(f"memory {settings.memory}", every, settings.k_shot, settings.seed)
    held = {}
    for new, shot in enumerate(shots):
        for name in classes if shot.k_shot > 0 else ():
            held[new, name] = memories.get((every.index(shot), name))
            if held[new, name] is None:
                raise ValueError(f"memory {settings.memory}: holds no references of class '{name}'")
    return shots, held


def draw_memories(settings, accelerator: Accelerator, detector, shots: Sequence[Shots]) -> References:
    def load(paths: Sequence[str]) -> DataLoader:
        return loader(settings, [Sample(path, "", "", "", 0) for path in paths])

    return References(detector, shots, load, accelerator)


def keeping(remember: Callable[[str], list], kept: dict, settings) -> Callable[[str], list]:
    """`remember`, which keeps what it gave where --save_memory asks for it."""

    def remembered(name: str) -> list:
        memories = remember(name)
        if settings.save_memory:
            kept.update({(number, name): one.cpu() for number, one in enumerate(memories) if one is not None})
        return memories

    return remembered


def loader(settings, samples: Sequence[Sample]) -> DataLoader:
    dataset = AnomalyDataset(settings.data_path, samples, settings.image_size)
    return DataLoader(dataset, settings.batch_size, num_workers=min(settings.num_workers, len(samples)))


# --- results --------------------------------------------------------------------------------------------------------


class MapFiles(ExitStack):
    """Overlays and .npy files of the maps; several settings go to subfolders of imgs/ and maps/."""

    def __init__(self, settings, shots: Sequence[Shots], samples: Sequence[Sample]):
        super().__init__()
        save_path = Path(settings.save_path)
        self._samples = samples
        self._folders = [folder_name(shot) if len(shots) > 1 else "" for shot in shots]
        self._maps = save_path / "maps" if settings.save_maps else None
        self._overlays = None
        if not settings.no_images:
            overlays = Overlays(save_path / "imgs", Path(settings.data_path), load_image, load_mask)
            self._overlays = self.enter_context(overlays)

    def keep(self, setting: int, index: int, one: np.ndarray) -> None:
        """Take one map, (S, S) float32."""
        if self._overlays:
            self._overlays.keep(setting, index, one)
        if self._maps:
            name = PurePosixPath(self._samples[index].img_path).with_suffix(".npy")
            with runtime.replacing(self._maps / self._folders[setting] / name) as path:
                np.save(path, one.astype(np.float32))

    def finish(self, result: ClassScores) -> None:
        """Draw a class whose maps have all come."""
        if self._overlays:
            scores = dict(zip(result.indices, result.scores, strict=True))
            samples = {index: self._samples[index] for index in result.indices}
            self._overlays.draw(result.setting, self._folders[result.setting], samples, scores)


def folder_name(shot: Shots) -> str:
    return "zero_shot" if shot.k_shot == 0 else f"k{shot.k_shot}_seed{shot.seed}"


def prediction_rows(result: ClassScores, shot: Shots, samples: Sequence[Sample]) -> list[dict]:
    rows = []
    for place, index in enumerate(result.indices):
        sample = samples[index]
        row = {key: getattr(sample, key) for key in ("img_path", "cls_name", "specie_name", "anomaly")}
        terms = {key: values[place] for key, values in result.terms.items()}
        rows.append({**row, "k_shot": shot.k_shot, "seed": shot.seed, "score": result.scores[place], **terms})
    return rows


def write_results(settings, sources, description, shots, classes, results, rows) -> None:
    save_path = Path(settings.save_path)
    by_place = {(result.setting, result.name): result.metrics for result in results}
    runs = [
        report.Run(shot.k_shot, shot.seed, {name: by_place[number, name] for name in classes})
        for number, shot in enumerate(shots)
    ]
    few = [shot._asdict() for shot in shots if shot.k_shot > 0]
    runtime.write_config(save_path, settings, sources, description)
    if few:
        runtime.write_json(save_path / "k_shot.json", few)
    report.write_predictions(save_path / "predictions.csv", rows)
    report.write(save_path, runs, {**description, "mode": settings.mode})
    for name, missing in report.absent(runs).items():
        LOG.warning("%s: %s cannot be computed (one label only, no masks, or constant maps)", name, ", ".join(missing))
    LOG.info("\n%s\n\nresults are in %s", report.markdown(runs), save_path)


if __name__ == "__main__":
    runtime.run(main)
