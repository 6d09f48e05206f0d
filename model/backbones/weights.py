"""Weights: where they come from, and reading them safely."""

import hashlib
import logging
import pickle
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors.torch import load_file
from torch import Tensor, nn

from model.backbones import torchscript
from model.backbones.architectures import first_line, silent

_LOG = logging.getLogger("vand")


@dataclass(frozen=True)
class Weights:
    """Where weights come from, and what they were trained with."""

    label: str
    path: Path | None
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    quick_gelu: bool | None = None  # what the tag was trained with; None where nobody says

    @classmethod
    def find(cls, model: str, pretrained: str | None) -> "Weights":
        if pretrained is None:
            return cls("random weights", None)
        if Path(pretrained).is_file():
            return cls(pretrained, Path(pretrained))
        tag = get_pretrained_cfg(model.replace("/", "-"), pretrained)
        if not tag:
            known = ", ".join(list_pretrained_tags_by_model(model)) or "none"
            raise ValueError(
                f"--pretrained {pretrained}: neither a file nor a tag of {model} (its tags: {known}); "
                "pass a tag or a weights file (.pt, .safetensors)"
            )
        label = f"{model} {pretrained}"
        return cls(label, _download(tag, label), tag["mean"], tag["std"], tag.get("quick_gelu", False))

    def warn_of_activation(self, quick_gelu: bool) -> None:
        if self.quick_gelu is not None and self.quick_gelu != quick_gelu:
            names = {True: "QuickGELU", False: "exact GELU"}
            _LOG.warning(
                "%s was trained with %s and runs with %s; --quick_gelu %s changes it",
                self.label, names[self.quick_gelu], names[quick_gelu], "on" if self.quick_gelu else "off",
            )  # fmt: skip

    def load_into(self, clip: nn.Module, half_weights: bool) -> None:
        if self.path is None:
            return
        state = _read_state(self.path)
        if half_weights:  # before the position table is resampled
            state = {key: value.half().float() if value.is_floating_point() else value for key, value in state.items()}
        if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        try:
            for key in ("logit_scale", "logit_bias"):  # a scalar in some files, one element in others
                if key in state and getattr(clip, key, None) is not None:
                    state[key] = state[key].reshape(getattr(clip, key).shape)
            with silent():
                resize_pos_embed(state, clip)
                resize_text_pos_embed(state, clip)
            clip.load_state_dict(state)
        except (AssertionError, AttributeError, RuntimeError) as error:
            detail = str(error).strip().splitlines()
            raise ValueError(
                f"weights {self.label} do not fit the architecture: {' '.join(line.strip() for line in detail[:3])}"
            ) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict in float32: half-precision position tables must be widened before they are resampled.

    No code of the file is run, whatever kind it is: safetensors, a `weights_only` pickle, a TorchScript archive.
    """
    try:
        with silent():
            if path.suffix == ".safetensors":
                state = load_file(path)
            elif torchscript.is_archive(path):
                state = torchscript.read(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"--pretrained {path}: refused, since it is broken or holds objects whose loading would run code"
        ) from None
    except Exception as error:  # the readers raise what they like on a broken file; the user needs its name
        raise ValueError(f"--pretrained {path}: no readable weights file ({first_line(error)})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"--pretrained {path}: holds no state dict of a CLIP")
    for key in ("input_resolution", "context_length", "vocab_size"):  # numbers that OpenAI's archives carry along
        state.pop(key, None)
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"--pretrained {path}: '{key}' holds NaN or infinity; get the file again")
    return {key.removeprefix("module."): value.float() if value.is_floating_point() else value
            for key, value in state.items()}  # fmt: skip


def _download(tag: dict, label: str) -> Path:
    """open_clip downloads and caches; its hub is tried first, the tag's own address second."""
    tried = []
    for from_hub, address in ((True, tag.get("hf_hub")), (False, tag.get("url"))):
        if address:
            try:
                with silent():
                    return Path(download_pretrained(tag, prefer_hf_hub=from_hub))
            except Exception as error:  # noqa: BLE001 - whatever the network stack raises, the user needs one line
                tried.append(f"{address} ({textwrap.shorten(first_line(error), 90)})")
    raise OSError(
        f"weights {label} could not be downloaded: get the file elsewhere and pass it by --pretrained FILE; tried "
        + ", then ".join(tried)
    )


def fingerprint(clip: nn.Module) -> str:
    """Identity of the weights in 16 hex digits: a sample of every tensor but the resampled position tables."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(clip.state_dict().items()):
        if not key.endswith("positional_embedding") or key == "positional_embedding":
            flat = value.detach().float().flatten()
            sample = flat[:: max(1, len(flat) // 256)].contiguous()
            digest.update(f"{key} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
