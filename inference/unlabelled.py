"""The parts of a dataset without labels, in a test: what `--unlabelled` and `--submission` score and write."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from accelerate import Accelerator
from torch import Tensor

from config.settings import TestSettings
from data import mvtec2_server
from data.box import WHOLE
from data.meta import Sample, UnlabelledImage, read_unlabelled, source_of
from data.references import FewShotSetting
from engine.build import Built
from engine.ground_truth import Size, resized
from engine.references import MemorySource
from engine.test_run import ScoredData
from engine.unlabelled import KeptSets, Scored, UnlabelledSet, score_unlabelled, sets_of
from inference.calibration import Calibration
from inference.dataset_thresholds import DatasetThresholds
from report.submission import Submission, problems
from report.unlabelled import FILE, UnlabelledRow, write_unlabelled
from utils.files import read_json, result_folder
from utils.logs import LOG

_NAMED = 5  # problems that the log names one by one


class UnlabelledParts:
    """What a test scores without labels; nothing where no flag asks for it.

    Args:
        settings: of the test; data: what it scores with labels.
        shots: the few-shot settings.
        built: the detector.

    Raises:
        ValueError: there is nothing to score, or no submission can be made of it.
    """

    def __init__(self, settings: TestSettings, data: ScoredData, shots: Sequence[FewShotSetting], built: Built):
        self._settings, self._data, self._shots, self._built = settings, data, shots, built
        self._save_path = Path(settings.save_path)
        self.sets: list[UnlabelledSet] = []
        self._submission = Submission(settings.submission) if settings.submission else None
        if not settings.unlabelled:
            return
        root, meta_path = settings.data_path, settings.meta_path
        parts = read_unlabelled(root, meta_path, follow_links=settings.follow_links)
        self.sets = sets_of(parts, data.classes)
        flag, source = "--submission" if self._submission else "--unlabelled", source_of(root, meta_path)
        if not self.sets:
            raise ValueError(f"{flag}: {source} names no images without labels; drop the flag")
        unknown = {image.cls_name for part in parts.values() for image in part} - set(data.classes)
        if unknown and self._submission:
            raise ValueError(
                f"{flag}: {source}: class {min(unknown)} has images without labels and none in test; unpack the whole "
                "dataset and write meta.json again, since the server takes all classes"
            )
        if unknown and settings.classes is None:
            raise ValueError(
                f"{flag}: {source}: class {min(unknown)} has images without labels and none in test; name the classes "
                "that are to be scored to --class"
            )
        if self._submission:
            self._check_submission()

    @property
    def samples(self) -> list[Sample]:
        """What is scored."""
        return [sample for one in self.sets for sample in one.samples()]

    @property
    def results(self) -> list[Path]:
        """What there is when all is done."""
        return [self._save_path / FILE] * bool(self.sets) + ([self._submission.archive] if self._submission else [])

    def _check_submission(self) -> None:
        """Raises ValueError where no submission can be made."""
        assert self._submission is not None
        folder, where = self._submission.folder, f"--submission {self._settings.submission}"
        if len(self._shots) != 1:
            raise ValueError(
                f"{where}: holds one setting, and there are {len(self._shots)}; give one --k_shot and --seed"
            )
        if self._built.detector.input_spec.shown != WHOLE:
            raise ValueError(f"{where}: needs maps of whole pictures; drop --center_crop")
        there = {(one.part, one.name) for one in self.sets}
        for name in self._data.classes:
            for part in mvtec2_server.PARTS:
                if (part, name) not in there:
                    raise ValueError(f"{where}: no image in {part} of class {name}; unpack the dataset whole")
        for one in self.sets:
            if len({PurePosixPath(image.img_path).stem for image in one.images}) < len(one.images):
                raise ValueError(f"{where}: two images in {one.part} of class {one.name} have one name; rename one")
        result_folder(str(folder))
        own = self._save_path.resolve()
        if folder.resolve() in (own, *own.parents):
            raise ValueError(
                f"{where}: holds --save_path {self._save_path}; the server takes no other files, name another"
            )
        if not self._submission.is_empty() and self._earlier() != folder:
            raise ValueError(
                f"{where}: there is something in it, or in {folder.name}.tar.gz beside it; name an empty folder"
            )

    def _earlier(self) -> Path | None:
        """The submission of the run whose results are in --save_path."""
        try:
            return Submission(read_json(self._save_path / "config.json")["settings"]["submission"]).folder
        except (KeyError, OSError, TypeError, ValueError):
            return None

    def begin(self, thresholds: DatasetThresholds, accelerator: Accelerator, identity: str) -> None:
        """Remove an earlier submission of these results, but for images that `--resume` goes on from: of an interrupted
        run of this identity. Raises ValueError where a class has no threshold of pixels."""
        if self._submission is None:
            return
        for name in self._data.classes:
            known = thresholds.known(0, name)
            if isinstance(known, str):
                raise ValueError(f"--submission {self._settings.submission}: class {name} has no threshold: {known}")
        if accelerator.is_main_process:
            goes_on = self._settings.resume and self._kept(identity).is_of_this_run()
            self._submission.clear(keep=goes_on)

    def _kept(self, identity: str) -> KeptSets:
        return KeptSets(self._save_path, identity, len(self._shots))

    def score(
        self,
        memories: MemorySource,
        accelerator: Accelerator,
        identity: str,
        thresholds: DatasetThresholds | None,
    ) -> None:
        """Score all images, and write unlabelled.csv and the images of the submission. Of several processes each must
        call it.

        Args:
            memories: of the references.
            identity: of the run, by which an interrupted one goes on.
            thresholds: of all classes, where a rule is named.
        """
        if not self.sets:
            return
        settings, submission = self._settings, self._submission
        files = {n: [file for image in one.images for file in submission.files(one.part, one.name, image.img_path)]
                 for n, one in enumerate(self.sets)} if submission else {}  # fmt: skip

        def keep_map(one: UnlabelledSet, image: UnlabelledImage, map_: Tensor, picture: Size) -> None:
            assert submission is not None and thresholds is not None
            known = thresholds.known(0, one.name)
            assert isinstance(known, Calibration) and known.pixel_threshold is not None  # see `begin`
            low, high = known.heat
            pixels = resized(map_, picture).cpu().numpy()
            submission.add(one.part, one.name, image.img_path, pixels, known.pixel_threshold, high - low)

        scored = list(
            score_unlabelled(
                self._built, self.sets, settings.data_path, self._data.pixels, self._shots, memories, accelerator,
                self._kept(identity), num_workers=settings.num_workers,
                keep_map=keep_map if submission else None, files=files, resume=settings.resume,
            )
        )  # fmt: skip
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_unlabelled(self._save_path / FILE, self._rows(scored, thresholds))

    def pack(self) -> None:
        """Write the archive of the submission, if there is one: minutes for a whole dataset, in one process."""
        if self._submission:
            self._submission.pack()
            _log(self._submission)

    def _rows(self, scored: Sequence[Scored], thresholds: DatasetThresholds | None) -> list[UnlabelledRow]:
        """Setting by setting, by shots and seed."""
        rows = []
        for setting, shot in sorted(enumerate(self._shots), key=lambda pair: (pair[1].k_shot, pair[1].seed or 0)):
            for one, scores in zip(self.sets, scored, strict=True):
                components = scores[setting].score_components
                terms = {key: torch.tensor(values) for key, values in components.items()}
                plain = self._built.detector.image_scores(terms).tolist()
                judged: list[tuple[float | None, str]] = [(None, "")] * len(plain)
                known = thresholds.known(setting, one.name) if thresholds else ""
                if thresholds and not isinstance(known, str):
                    judged = [(score, known.verdict(score)) for score in thresholds.scores(known, components)]
                for row, image in enumerate(one.images):
                    own = {key: values[row] for key, values in components.items()}
                    rows.append(UnlabelledRow(one.part, *image, shot.k_shot, shot.seed, plain[row], *judged[row], own))
        return rows


def _log(submission: Submission) -> None:
    found = list(problems(submission.folder, contents=False))
    LOG.info("the submission is in %s and, packed, in %s", submission.folder, submission.archive)
    for line in found[:_NAMED]:
        LOG.warning("the server would refuse it: %s", line)
    if len(found) > _NAMED:
        LOG.warning("and %d lines more: python -m report.submission %s", len(found) - _NAMED, submission.folder)
