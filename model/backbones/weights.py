"""Weights: where they come from, and reading them safely."""

import functools
import hashlib
import logging
import pickle
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors.torch import load_file
from torch import Tensor, nn

from model import state_dicts
from model.backbones import torchscript
from model.backbones.architectures import normalization, read_normalization, silent
from model.interface import OPENAI_NORMALIZATION, Normalization
from utils import memory_check
from utils.errors import first_line
from utils.files import check_regular

T = TypeVar("T")

_LOG = logging.getLogger("vand")
_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding",
              "visual.attnpool.positional_embedding")  # fmt: skip # tables that may be of another length
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # that OpenAI's archives carry along
_LOG_AFTER = 3.0  # seconds, after which a line says that a download still waits
# Seconds after which a download is given up: without an answer, and without a byte after it (the hub's client writes
# large blocks, which take their time on a slow line).
_NO_ANSWER, _NO_BYTE = 60.0, 300.0


@dataclass(frozen=True)
class Weights:
    """Where weights come from, and what they were trained with.

    quick_gelu: whether with QuickGELU; None where nobody says, or tags of the architecture differ.
    source: who says how images are normalised.
    """

    label: str
    path: Path | None
    normalization: Normalization = OPENAI_NORMALIZATION
    quick_gelu: bool | None = None
    source: str = ""

    @classmethod
    def find(
        cls,
        model: str,
        pretrained: str | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Weights":
        """The weights of a tag of open_clip, or of a file.

        A file does not say how images were normalised and which activation was used. That is taken, in this order, from
        the flags; from the architecture's own file (preprocess_cfg); from open_clip's tags of the architecture, where
        all of them agree; else images are normalised as OpenAI's.

        Args:
            mean, std: of the flags, both or none.
        """
        asked = asked_normalization(mean, std)
        if pretrained is None:
            return cls("random weights", None, asked or normalization(model) or OPENAI_NORMALIZATION)
        try:
            check_regular(pretrained)
        except ValueError as error:
            if not Path(pretrained).is_dir() or not _tags(model, pretrained):
                raise ValueError(f"--pretrained {error}") from None
        if Path(pretrained).is_file():
            tags = _tags(model)
            gelu = {tag.get("quick_gelu", False) for tag in tags}
            known, source = _known(model, tags)
            chosen, source = (asked, "--mean and --std") if asked else (known, source)
            return cls(pretrained, Path(pretrained), chosen, gelu.pop() if len(gelu) == 1 else None, source)
        found = _tags(model, pretrained)
        if not found:
            names = ", ".join(list_pretrained_tags_by_model(model)) or "none"
            raise ValueError(
                f"--pretrained {pretrained}: neither a file nor a tag of {model} (its tags: {names}); "
                "pass a tag or a weights file (.pt, .safetensors)"
            )
        label, (tag,) = f"{model} {pretrained}", found
        chosen, source = (asked, "--mean and --std") if asked else (Normalization(tag["mean"], tag["std"]), "")
        return cls(label, _download(tag, label), chosen, tag.get("quick_gelu", False), source)

    def log(self, model: str, quick_gelu: bool, *, asked: bool) -> None:
        """Say how images are normalised where a tag does not say it, and where the activation may be the wrong one.

        quick_gelu, asked: whether QuickGELU is used, and whether a flag says so.
        """
        if self.path is not None and self.source:
            (mean, std) = (" ".join(f"{value:g}" for value in values) for values in self.normalization)
            _LOG.info("%s: images are normalised by mean %s, std %s (%s)", self.label, mean, std, self.source)
        names = {True: "QuickGELU", False: "exact GELU"}
        if self.quick_gelu is not None and self.quick_gelu != quick_gelu:
            _LOG.warning(
                "%s was trained with %s and runs with %s; --quick_gelu %s changes it",
                self.label, names[self.quick_gelu], names[quick_gelu], "on" if self.quick_gelu else "off",
            )  # fmt: skip
        elif self.quick_gelu is None and self.path is not None and not asked:
            own = [name for name in list_pretrained_tags_by_model(model) if _tags(model, name)[0].get("quick_gelu")]
            if own:
                _LOG.warning(
                    "%s runs with %s; does it hold %s? These were trained with QuickGELU, others of %s were not: "
                    "--quick_gelu on or off says which", self.label, names[quick_gelu],
                    textwrap.shorten(", ".join(own), 90, placeholder=" ..."), model,
                )  # fmt: skip

    def load_into(self, clip: nn.Module, half_weights: bool) -> Tensor | None:
        """Load; position tables of another length are resampled by open_clip (size, antialias).

        Returns:
            The position table of the image tower as it is stored, (1 + M * M, W); None where there is none.

        Raises:
            ValueError: weights that cannot be read, or do not fit the model; nothing is widened before their shapes are
                known to fit.
        """
        if self.path is None:
            return clip.state_dict().get(_POSITIONS[0])
        own = clip.state_dict()
        state = _read_state(self.path, own.keys())
        try:
            _check_fit(state, own)
            for key, value in state.items():
                if value.is_floating_point():  # position tables must be widened before they are resampled
                    state[key] = value.half().float() if half_weights else value.float()
            broken = next((key for key, value in state.items() if not value.isfinite().all()), None)
            stored = state.get(_POSITIONS[0])
            with silent():
                resize_pos_embed(state, clip)
                resize_text_pos_embed(state, clip)
            state_dicts.check_fit(shapes_of(state), shapes_of(own))
            clip.load_state_dict(state)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, ValueError) as error:
            raise ValueError(f"weights {self.label} do not fit the architecture: {first_line(error)}") from None
        if broken:
            raise ValueError(f"--pretrained {self.path}: '{broken}' holds NaN or infinity; get the file again")
        return stored


def asked_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("--mean and --std belong together; give both, or none")
    return read_normalization(mean, std, "--mean, --std")


def _tags(model: str, tag: str | None = None) -> list[dict[str, Any]]:
    """What open_clip knows of an architecture's tags, or of one of them; empty where there is none."""
    names = list_pretrained_tags_by_model(model.replace("/", "-")) if tag is None else [tag]
    found = (get_pretrained_cfg(model.replace("/", "-"), name) for name in names)
    return [one for one in found if one]


def _known(model: str, tags: Sequence[Mapping[str, Any]]) -> tuple[Normalization, str]:
    """How images are normalised for weights by file, and who says so."""
    own = normalization(model)
    if own is not None:
        return own, "preprocess_cfg of --config_path; --mean and --std set others"
    each = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}
    if len(each) == 1:
        return Normalization(*each.pop()), f"as all tags of {model}; --mean and --std set others"
    why = f"tags of {model} differ" if each else "no tag of it is known"
    return OPENAI_NORMALIZATION, f"OpenAI's, since {why}; --mean and --std set others"


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _check_fit(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises ValueError where keys, shapes or kinds of numbers are not the model's; position tables may be of another
    length. A scalar and one element are the same: `state` gets the model's shape."""
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own and state[key].numel() == 1:
            state[key] = state[key].reshape(own[key].shape)
    shapes = shapes_of(state)
    for key in _POSITIONS:
        if key in state and key in own and state[key].ndim == own[key].ndim:
            shapes[key] = (own[key].shape[0], *shapes[key][1:])
    state_dicts.check_fit(shapes, shapes_of(own))
    for key, value in state.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(
                f"'{key}' holds {str(value.dtype).removeprefix('torch.')} numbers, not floating-point ones"
            )


def _read_state(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """The state dict of a CLIP's file, under the keys of a model where only a prefix differs."""
    state = read_state(path, wanted, "a CLIP")
    state = {key: value for key, value in state.items() if key not in _NUMBERS}
    if "positional_embedding" in state and "positional_embedding" not in wanted:
        state = convert_to_custom_text_state_dict(state)
    return state


def read_state(path: Path, wanted: Collection[str], what: str) -> dict[str, Tensor]:
    """The state dict of a file, without what programs wrap around it, where that leads to some wanted keys.

    No code of the file is run, whatever kind it is: safetensors, a `weights_only` pickle, a TorchScript archive.

    Args:
        what: that the file should hold, for the message.
    """
    try:
        memory_check.check_file(path)
    except ValueError as error:
        raise ValueError(f"--pretrained {error}") from None
    try:
        with silent():
            if path.suffix == ".safetensors":
                content = load_file(path)
            elif torchscript.is_archive(path):
                content = torchscript.read(path)
            else:
                state_dicts.check_archive(path)
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"--pretrained {path}: refused, since it is broken or holds objects whose loading would run code"
        ) from None
    except Exception as error:  # the readers raise what they like on a broken file; the user needs its name
        reason = textwrap.shorten(first_line(error), 150)
        raise ValueError(f"--pretrained {path}: no readable weights file ({reason})") from None
    state = state_dicts.unwrap(content, wanted) if isinstance(content, Mapping) else None
    if not state or not all(isinstance(key, str) for key in state):
        raise ValueError(f"--pretrained {path}: holds no state dict of {what}")
    try:
        state_dicts.check_tensors({key: value for key, value in state.items() if key not in _NUMBERS})
    except ValueError as error:
        raise ValueError(f"--pretrained {path}: {error}") from None
    return state_dicts.strip_prefixes(state, wanted)


def _download(tag: dict[str, Any], label: str) -> Path:
    """open_clip downloads and caches; its hub is tried first, the tag's own address second."""
    tried = []
    for from_hub, address in ((True, tag.get("hf_hub")), (False, tag.get("url"))):
        if address:
            try:
                fetch = functools.partial(download_pretrained, tag, prefer_hf_hub=from_hub)
                return Path(Download(fetch).wait(f"weights {label}", address))
            except Exception as error:  # noqa: BLE001 - whatever the network stack raises, the user needs one line
                tried.append(f"{address} ({textwrap.shorten(first_line(error), 90)})")
    raise OSError(
        f"weights {label} could not be downloaded: get the file elsewhere and pass it by --pretrained FILE; tried "
        + ", then ".join(tried)
    )


class Download(threading.Thread, Generic[T]):
    """A download in a thread of its own, which may wait for a server as long as it likes: it ends with the process.

    Args:
        fetch: downloads, and returns what came of it.
    """

    def __init__(self, fetch: Callable[[], T]):
        super().__init__(daemon=True)
        self._fetch = fetch
        self._found: list[T] = []
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._found.append(self._fetch())
        except Exception as error:  # noqa: BLE001 - for the thread that waits
            self._error = error

    def wait(self, what: str, address: str) -> T:
        """What `fetch` returned. Raises what the download raised; TimeoutError where nothing comes any more."""
        with silent():
            self.start()
            self.join(_LOG_AFTER)
        if self.is_alive():
            _LOG.info(
                "%s: downloading from %s; given up after %g s without an answer or %g s without a byte",
                what, address, _NO_ANSWER, _NO_BYTE,
            )  # fmt: skip
        written, since, most = _written(), time.monotonic(), _NO_ANSWER
        while self.is_alive():
            with silent():
                self.join(0.2)
            if _written() != written:
                written, since, most = _written(), time.monotonic(), _NO_BYTE
            elif time.monotonic() - since > most:
                raise TimeoutError(f"nothing came for {most:g} s")
        if self._error is not None:
            raise self._error
        return self._found[0]


def _written() -> int:
    """Bytes that this process has written: what is downloaded goes to a file as it comes. Where the system does not
    count them (macOS), bytes that the machine has received."""
    process = psutil.Process()
    if not hasattr(process, "io_counters"):
        return int(psutil.net_io_counters().bytes_recv)
    counters = process.io_counters()
    return int(getattr(counters, "write_chars", counters.write_bytes))


def fingerprint(clip: nn.Module) -> str:
    """Identity of the weights in 16 hex digits: a sample of every tensor but the resampled position tables."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(clip.state_dict().items()):
        if not key.endswith("positional_embedding") or key == "positional_embedding":
            flat = value.detach().float().flatten()
            sample = flat[:: max(1, len(flat) // 256)].contiguous()
            digest.update(f"{key} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
