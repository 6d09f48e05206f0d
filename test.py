"""Score the test split of a dataset, zero-shot or with a few normal reference images per class.

    python test.py --mode few_shot --dataset visa --data_path ./data/visa --checkpoint_path ./exps/visa/epoch_3.pth \\
        --k_shot 1 2 4 --seed 1 2 3 --save_path ./results/visa

Writes log.txt, config.json, metrics.json, metrics.csv, predictions.csv, k_shot.json, imgs/ and, with --save_maps,
maps/ into --save_path.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from dataset import AnomalyDataset, Sample, Shots, draw_shots, load_image, load_mask, load_shots, read, select
from model import METHODS, build
from utils import checkpoint, report, runtime
from utils.config import detector_settings, log_settings, resolve_test, test_parser
from utils.engine import ClassScores, References, score
from utils.runtime import LOG
from utils.visualize import Overlays


def main(argv: list[str] | None = None) -> None:
    settings, sources = resolve_test(test_parser(list(METHODS)).parse_args(argv))
    accelerator = runtime.accelerator(settings.device, settings.precision)
    meta = read(settings.data_path, settings.meta_path)
    samples = select(meta["test"], settings.classes)
    classes = list(dict.fromkeys(sample.cls_name for sample in samples))
    shots = choose_shots(settings, meta, classes)
    if settings.checkpoint_path is None:
        raise ValueError(f"{settings.method} needs --checkpoint_path: adapters from train.py, or published ones")
    trained = checkpoint.load(settings.checkpoint_path)
    detector = build(settings.method, **detector_settings(settings)).to(accelerator.device).eval()
    description = checkpoint.describe(detector, settings)
    checkpoint.restore(trained, detector, description)

    save_path = Path(settings.save_path)
    save_path.mkdir(parents=True, exist_ok=True)
    runtime.log_to(save_path, quiet=not accelerator.is_main_process)
    settings.features_list, settings.image_size = description["features_list"], description["image_size"]
    settings.few_shot_features = list(detector.few_shot_features)
    log_settings(settings, sources)

    # Each process takes classes of its own, so that no count has to be merged.
    own_classes = classes[accelerator.process_index :: accelerator.num_processes]
    own = [sample for sample in samples if sample.cls_name in own_classes]
    detector.encode_names(own_classes)
    load = partial(loader, settings, description["image_size"])
    references = References(detector, shots, lambda paths: load([Sample(p, "", "", "", 0) for p in paths]), accelerator)
    results, rows = [], []
    with contextlib.ExitStack() as stack:
        root = Path(settings.data_path)
        drawn = None if settings.no_images else stack.enter_context(
            Overlays(save_path / "imgs", root, load_image, load_mask))  # fmt: skip
        folders = [folder_name(shot) if len(shots) > 1 else "" for shot in shots]

        def keep_map(setting: int, index: int, one: np.ndarray) -> None:
            if drawn:
                drawn.keep(setting, index, one)
            if settings.save_maps:
                save_map(save_path / "maps" / folders[setting], own[index], one)

        for result in score(detector, load(own), own, shots, references, accelerator, keep_map):
            results.append(result)
            rows += prediction_rows(result, shots[result.setting], own)
            if drawn:
                drawn.draw(result.setting, folders[result.setting], {i: own[i] for i in result.indices},
                           dict(zip(result.indices, result.scores, strict=True)))  # fmt: skip
    if accelerator.num_processes > 1:
        results, rows = gather_object(results), gather_object(rows)
    if accelerator.is_main_process:
        place = {(sample.cls_name, sample.img_path): number for number, sample in enumerate(samples)}
        rows.sort(key=lambda row: (row["k_shot"], row["seed"] or 0, place[row["cls_name"], row["img_path"]]))
        write_results(save_path, settings, sources, description, shots, classes, results, rows)


def choose_shots(settings, meta: dict[str, list[Sample]], classes: list[str]) -> list[Shots]:
    """The few-shot settings asked for; zero-shot is one with k_shot 0 and no seed."""
    if settings.references:
        everything = meta["train"] + meta["test"]
        return load_shots(settings.references, everything, classes, settings.k_shot, settings.seed)
    few = [
        draw_shots(settings.dataset, meta["train"], classes, k_shot, seed)
        for k_shot in settings.k_shot
        for seed in settings.seed
        if k_shot > 0
    ]
    return ([Shots(0, None, {})] if 0 in settings.k_shot else []) + few


def loader(settings, image_size: int, samples: Sequence[Sample]) -> DataLoader:
    dataset = AnomalyDataset(settings.data_path, samples, image_size)
    return DataLoader(dataset, settings.batch_size, num_workers=min(settings.num_workers, len(samples)))


def folder_name(shot: Shots) -> str:
    return "zero_shot" if shot.k_shot == 0 else f"k{shot.k_shot}_seed{shot.seed}"


def save_map(folder: Path, sample: Sample, one: np.ndarray) -> None:
    with runtime.replacing(folder / PurePosixPath(sample.img_path).with_suffix(".npy")) as path:
        np.save(path, one.astype(np.float32))


def prediction_rows(result: ClassScores, shot: Shots, samples: Sequence[Sample]) -> list[dict]:
    rows = []
    for place, index in enumerate(result.indices):
        sample = samples[index]
        row = {key: getattr(sample, key) for key in ("img_path", "cls_name", "specie_name", "anomaly")}
        terms = {key: values[place] for key, values in result.terms.items()}
        rows.append({**row, "k_shot": shot.k_shot, "seed": shot.seed, "score": result.scores[place], **terms})
    return rows


def write_results(save_path, settings, sources, description, shots, classes, results, rows) -> None:
    by_place = {(result.setting, result.name): result.metrics for result in results}
    runs = [
        report.Run(shot.k_shot, shot.seed, {name: by_place[number, name] for name in classes})
        for number, shot in enumerate(shots)
    ]
    few = [shot._asdict() for shot in shots if shot.k_shot > 0]
    runtime.write_json(
        save_path / "config.json",
        {"settings": vars(settings), "sources": sources, "description": description, **runtime.provenance()},
    )
    if few:
        runtime.write_json(save_path / "k_shot.json", few)
    report.write_predictions(save_path / "predictions.csv", rows)
    report.write(save_path, runs, {**description, "mode": settings.mode})
    for name, missing in report.absent(runs).items():
        LOG.warning("%s: %s cannot be computed from its labels and masks", name, ", ".join(missing))
    LOG.info("\n%s\n\nresults are in %s", report.markdown(runs), save_path)


if __name__ == "__main__":
    runtime.run(main)
