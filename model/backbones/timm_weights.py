"""Weights of timm's models: tags, which timm downloads, and files of ours, of timm or of the official programs."""

import contextlib
import inspect
import logging
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from model import state_dicts
from model.backbones import timm_models
from model.backbones.architectures import silent
from model.backbones.timm_models import TimmArchitecture
from model.backbones.weights import Download, asked_normalization, read_state, shapes_of
from model.interface import Normalization
from utils import memory_check
from utils.errors import first_line
from utils.files import check_regular

_LOG = logging.getLogger("vand")
IMAGENET_NORMALIZATION = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_OFFICIAL = ("mask_token", "register_tokens")  # keys of DINOv2's own files, whose table has a class entry
_TOKENS = ("cls_token", "pos_embed", "register_tokens")  # that conversions add up


@dataclass(frozen=True)
class TimmWeights:
    """Where weights come from, how images are normalised for them, and their licence where timm knows it.

    path, tag: one of them, or none of random weights.
    source: who says how images are normalised.
    """

    label: str
    path: Path | None
    tag: str | None
    normalization: Normalization = IMAGENET_NORMALIZATION
    source: str = ""
    licence: str | None = None

    @classmethod
    def find(
        cls,
        architecture: TimmArchitecture,
        pretrained: str | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "TimmWeights":
        """The weights of a tag of timm, or of a file.

        Args:
            mean, std: of the flags, both or none.

        Raises:
            ValueError: neither; names the known tags.
        """
        asked = asked_normalization(mean, std)
        own = asked or architecture.normalization
        if pretrained is None:
            return cls("random weights", None, None, own or _known(architecture)[0])
        try:
            check_regular(pretrained)
        except ValueError as error:
            if pretrained not in architecture.tags:
                raise ValueError(f"--pretrained {error}") from None
        if Path(pretrained).is_file():
            chosen, source = _known(architecture)
            if own:
                chosen, source = own, "--mean and --std" if asked else "preprocess_cfg of --config_path"
            return cls(pretrained, Path(pretrained), None, chosen, source)
        if pretrained not in architecture.tags:
            names = ", ".join(architecture.tags) or "none"
            raise ValueError(
                f"--pretrained {pretrained}: neither a file nor a tag of timm's {architecture.timm_name} (its tags: "
                f"{names}); pass a tag or a weights file (.pt, .safetensors)"
            )
        config = architecture.config(pretrained)
        said = Normalization(tuple(config.mean), tuple(config.std))
        label = f"{architecture.timm_name}.{pretrained}"
        return cls(label, None, pretrained, own or said, "", config.license)

    def log(self) -> None:
        """Say the licence, and how images are normalised where a tag does not say it."""
        if self.tag is not None:
            licence = self.licence or "not known to timm; see the page of its authors"
            _LOG.info("weights %s: licence %s", self.label, licence)
        if self.source:
            (mean, std) = (" ".join(f"{value:g}" for value in values) for values in self.normalization)
            _LOG.info("%s: images are normalised by mean %s, std %s (%s)", self.label, mean, std, self.source)

    def load(self, architecture: TimmArchitecture) -> Any:
        """The model with these weights on the CPU, at the size of its stored position table.

        Raises:
            ValueError: weights that cannot be read, or do not fit the model; nothing is made before their shapes are
                known to fit.
            OSError: weights that cannot be downloaded.
        """
        if self.tag is not None:
            model = _download(architecture, self.tag, self.label)
            _check_finite(model.state_dict(), self.label)
            return model
        if self.path is None:
            return timm_models.create(architecture)
        draft = timm_models.draft(architecture)
        state = read_state(self.path, draft.state_dict().keys(), f"model '{architecture.name}'")
        try:
            size = _stored_size(state, draft)
            if size is not None:
                draft = timm_models.draft(architecture, img_size=size)
            state = _converted(state, draft)
            state = _without_head(state, draft, architecture)
            _check_fit(state, draft.state_dict())
            model = timm_models.create(architecture, img_size=size)
            model.load_state_dict(state)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"weights {self.label} do not fit the architecture: {first_line(error)}") from None
        except ValueError as error:
            raise ValueError(f"weights {self.label} do not fit the architecture: {error}") from None
        _check_finite(state, f"--pretrained {self.path}")
        return model


def _known(architecture: TimmArchitecture) -> tuple[Normalization, str]:
    """How images are normalised for weights by file, and who says so."""
    name = architecture.timm_name
    configs = [architecture.config(tag) for tag in architecture.tags] or [architecture.config()]
    each = {(tuple(one.mean), tuple(one.std)) for one in configs if one}
    if len(each) == 1:
        mean, std = each.pop()
        return Normalization(mean, std), f"as all weights of timm's {name}; --mean and --std set others"
    return IMAGENET_NORMALIZATION, f"ImageNet's, since tags of {name} differ; --mean and --std set others"


def _stored_size(state: Mapping[str, Tensor], draft: Any) -> tuple[int, int] | None:
    """(H, W) in pixels that a file's position table is for, where the model's is for another. Raises ValueError where
    it is for no square."""
    table, own = state.get("pos_embed"), getattr(draft, "pos_embed", None)
    if table is None or own is None or table.ndim != 3 or not hasattr(draft.patch_embed, "patch_size"):
        return None
    official = any(key in state for key in _OFFICIAL)
    prefix = 1 if official else 0 if draft.no_embed_class else draft.num_prefix_tokens
    patches = table.shape[1] - prefix
    if patches == draft.patch_embed.num_patches:
        return None
    side = math.isqrt(max(patches, 0))
    if side**2 != patches or not side:
        raise ValueError(f"'pos_embed' is {tuple(table.shape)} in the file, which is no square grid of patches")
    height, width = draft.patch_embed.patch_size
    return side * height, side * width


def _converted(state: Mapping[str, Tensor], draft: Any) -> dict[str, Tensor]:
    """The state under timm's keys, as the model's own module of timm converts files of other programs."""
    patches, wanted = state.get("patch_embed.proj.weight"), draft.state_dict().get("patch_embed.proj.weight")
    if patches is not None and wanted is not None and patches.shape[2:] != wanted.shape[2:]:
        raise ValueError(f"its patches are {tuple(patches.shape[2:])} pixels, the model's {tuple(wanted.shape[2:])}")
    state = {key: value.float() if key in _TOKENS else value for key, value in state.items()}
    module = sys.modules[timm.model_entrypoint(draft.pretrained_cfg["architecture"]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    with silent():
        converted = convert(state, draft) if len(inspect.signature(convert).parameters) > 1 else convert(state)
    return dict(converted)


def _without_head(state: Mapping[str, Tensor], draft: Any, architecture: TimmArchitecture) -> dict[str, Tensor]:
    """The state without what only the model with its classifier has."""
    wanted = draft.state_dict().keys()
    names = draft.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    kept = {key: value for key, value in state.items() if key in wanted or not key.startswith(heads or ("head.",))}
    if kept.keys() - wanted:
        with contextlib.suppress(ValueError):
            whole = timm_models.draft(architecture, head=True).state_dict().keys()
            kept = {key: value for key, value in kept.items() if key in wanted or key not in whole}
    return kept


def _check_fit(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises ValueError where keys, shapes or kinds of numbers are not the model's."""
    state_dicts.check_fit(shapes_of(state), shapes_of(own))
    for key, value in state.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(
                f"'{key}' holds {str(value.dtype).removeprefix('torch.')} numbers, not floating-point ones"
            )


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    broken = next((key for key, value in state.items() if not value.isfinite().all()), None)
    if broken:
        raise ValueError(f"{where}: '{broken}' holds NaN or infinity; get the file again")


def _download(architecture: TimmArchitecture, tag: str, label: str) -> Any:
    """timm downloads, caches and loads; with the classifier, so that it insists on every weight."""
    need = timm_models.bytes_of(timm_models.draft(architecture, head=True))
    memory_check.check(need, "cpu", f"the weights of model '{architecture.name}'", "take a smaller one")
    config = architecture.config(tag)
    address = config.hf_hub_id or config.url or "the address that timm knows"

    def fetch() -> Any:
        return timm_models.load_tag(architecture, tag)

    try:
        model = Download(fetch).wait(f"weights {label}", address)
    except Exception as error:  # noqa: BLE001 - whatever the network stack raises, the user needs one line
        raise OSError(
            f"weights {label} could not be downloaded: get the file elsewhere and pass it by --pretrained FILE; tried "
            f"{address} ({textwrap.shorten(first_line(error), 90)})"
        ) from None
    model.reset_classifier(0)
    return model
