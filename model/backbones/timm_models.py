"""Architectures of timm, by name or by a JSON file: what they say, and building them."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from model.backbones.architectures import read_normalization, silent, suggest_models
from model.interface import Normalization
from utils import memory_check
from utils.errors import first_line

_MOST_LAYERS = 1000  # more take minutes to build, however narrow they are
_LARGEST = 1 << 20  # of any number of an architecture
_DEPTHS = ("depth", "depths", "layers", "num_layers")
# What says where weights come from, or what kind of thing timm is to build: not for an architecture's file.
_REFUSED = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_model_args",
    "model_name", "checkpoint_path", "cache_dir", "features_only", "out_indices", "feature_cls", "scriptable",
    "exportable", "no_jit", "device", "dtype", "pruned", "use_naflex",
)  # fmt: skip


@dataclass(frozen=True)
class TimmArchitecture:
    """An architecture of timm.

    name: that --model has; of a file, its stem.
    timm_name: of timm's registry, without tag.
    kwargs: what a file changes.
    normalization: what a file says.
    """

    name: str
    timm_name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None

    def config(self, tag: str | None = None) -> Any:
        """What timm knows of a tag's weights, or of the architecture's first ones."""
        return get_pretrained_cfg(f"{self.timm_name}.{tag}" if tag else self.timm_name)

    @property
    def tags(self) -> list[str]:
        """The tags that name weights."""
        return [name.partition(".")[2] for name in timm.list_pretrained(f"{self.timm_name}.*")]


_REGISTERED: dict[str, TimmArchitecture] = {}  # of files, by stem


def register(name: str, config: Mapping[str, Any], where: str) -> None:
    """Register what an architecture's file says: timm_model, timm_kwargs and, if it likes, preprocess_cfg ({"mean":
    [r, g, b], "std": [r, g, b]}); other keys mean nothing here.

    Raises:
        ValueError, beginning with `where`: an unknown model, or kwargs that are not plain and harmless.
    """
    timm_name, kwargs = config["timm_model"], config.get("timm_kwargs", {})
    if not isinstance(timm_name, str) or not timm.is_model(timm_name):
        raise ValueError(f"{where}: timm has no model {timm_name!r:.80}{suggest_models(str(timm_name))}")
    if not isinstance(kwargs, dict):
        raise ValueError(f"{where}: timm_kwargs must be an object, not {kwargs!r:.80}")
    for key, value in kwargs.items():
        _check_kwarg(key, value, where)
    preprocess, said = config.get("preprocess_cfg"), None
    if isinstance(preprocess, dict) and {"mean", "std"} & preprocess.keys():
        said = read_normalization(preprocess.get("mean", ()), preprocess.get("std", ()), f"{where}: preprocess_cfg")
    _REGISTERED[name] = TimmArchitecture(name, timm_name, kwargs, said)


def forget(name: str) -> None:
    """Undo `register`: another library has the name now."""
    _REGISTERED.pop(name, None)


def _check_kwarg(key: str, value: Any, where: str) -> None:
    if key in _REFUSED:
        raise ValueError(f"{where}: timm_kwargs may not hold {key}; weights are named by --pretrained")
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, list):
            raise ValueError(f"{where}: {key} of timm_kwargs is nested too deeply")
        if one is not None and not isinstance(one, bool | int | float | str):
            raise ValueError(f"{where}: {key} of timm_kwargs must be a number, a text or a list, not {value!r:.80}")
        if isinstance(one, int | float) and not abs(one) <= (_MOST_LAYERS if key in _DEPTHS else _LARGEST):
            raise ValueError(f"{where}: {key} of timm_kwargs is {one!r:.80}, which is too large")
    if key == "in_chans" and value != 3:
        raise ValueError(f"{where}: in_chans of timm_kwargs must be 3, since images are RGB, not {value!r:.80}")


def registered(model: str) -> bool:
    """Whether a name is that of a registered file."""
    return model in _REGISTERED


def known(model: str) -> bool:
    """Whether a name is one of timm, with or without a tag, or of a registered file."""
    return model in _REGISTERED or timm.is_model(model.partition(".")[0])


def find(model: str) -> tuple[TimmArchitecture, str | None]:
    """The architecture of a known name, and the tag in it."""
    if model in _REGISTERED:
        return _REGISTERED[model], None
    name, _, tag = model.partition(".")
    return TimmArchitecture(name, name), tag or None


def draft(architecture: TimmArchitecture, *, img_size: int | tuple[int, int] | None = None, head: bool = False) -> Any:
    """The model without data, on the meta device.

    Args:
        img_size: that its position table is for; None: its own.
        head: with its classifier.

    Raises:
        ValueError: what timm cannot build.
    """
    with torch.device("meta"):
        return _create(architecture, img_size, head).eval()


def create(architecture: TimmArchitecture, *, img_size: int | tuple[int, int] | None = None) -> Any:
    """The model with random weights, without classifier, on the CPU.

    Raises:
        ValueError: weights that memory cannot hold, which is known before they are made; what timm cannot build.
    """
    need = bytes_of(draft(architecture, img_size=img_size))
    memory_check.check(need, "cpu", f"the weights of model '{architecture.name}'", "take a smaller one")
    return _create(architecture, img_size, False)


def bytes_of(model: nn.Module) -> int:
    """What its weights take."""
    return sum(value.numel() * value.element_size() for value in (*model.parameters(), *model.buffers()))


def load_tag(architecture: TimmArchitecture, tag: str) -> Any:
    """The model with its classifier and a tag's weights, which timm downloads and caches. Raises what timm raises.

    A ViT comes at the size of its stored position table, whatever img_size a file says: timm would resample the table
    by a rule of its own.
    """
    kwargs = _kwargs(architecture, None, True)
    if getattr(draft(architecture), "dynamic_img_size", False):
        kwargs.pop("img_size", None)
    return _call(architecture.timm_name, {**kwargs, "pretrained": True, "pretrained_cfg": tag})


def _create(architecture: TimmArchitecture, img_size: int | tuple[int, int] | None, head: bool) -> Any:
    try:
        with silent():
            return _call(architecture.timm_name, _kwargs(architecture, img_size, head))
    except Exception as error:  # whatever an architecture's numbers break, the user needs its name
        raise ValueError(
            f"model '{architecture.name}' cannot be built by timm: {textwrap.shorten(first_line(error), 200)}"
        ) from None


def _kwargs(architecture: TimmArchitecture, img_size: int | tuple[int, int] | None, head: bool) -> dict[str, Any]:
    kwargs = {key: value for key, value in architecture.kwargs.items() if key != "num_classes"}
    return {**kwargs, **({} if img_size is None else {"img_size": img_size}), **({} if head else {"num_classes": 0})}


def _call(timm_name: str, kwargs: Mapping[str, Any]) -> Any:
    """A model for images of any shape, where it can be made so."""
    try:
        return timm.create_model(timm_name, **{**kwargs, "dynamic_img_size": True})
    except TypeError:  # a model that has no such thing
        return timm.create_model(timm_name, **kwargs)
