"""State dicts from files: what programs wrap around them, what may not be in them, how they differ from a model's."""

import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training programs keep the weights
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DistributedDataParallel, of Lightning and alike, of torch.compile
_KEY_LENGTH = 80  # characters of a key in a message
_PACKED = 1 << 24  # bytes that a packed entry may hold: PyTorch packs code alone, and more may be a bomb


def check_archive(path: Path) -> None:
    """Raises ValueError where a zip file (which PyTorch's files are) would unpack to more than it holds."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED and entry.file_size > _PACKED:
                    raise ValueError(f"{entry.filename[:_KEY_LENGTH]} in it is {entry.file_size} bytes, packed")


def unwrap(content: Mapping[str, Any], wanted: Collection[str]) -> Mapping[str, Any]:
    """The part of a file's content that holds the wanted keys, or any: what training programs keep under "state_dict",
    "model_state_dict" or "model"; the content itself where there is no such part."""
    for _ in _WRAPPERS:
        if not content.keys().isdisjoint(wanted):
            break
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return content


def strip_prefixes(state: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The state without what programs put in front of every key ("module.", "model.", "_orig_mod."), where that makes
    its keys the wanted ones; else as it is."""
    if not all(isinstance(key, str) for key in state):
        return dict(state)
    found = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while found.keys() != set(wanted):
        prefix = next((one for one in _PREFIXES if found and all(key.startswith(one) for key in found)), None)
        if prefix is None:
            break
        found = {key[len(prefix) :]: value for key, value in found.items()}
    fits = len(found) == len(state) and not found.keys().isdisjoint(wanted)
    return found if fits else dict(state)


def check_tensors(state: Mapping[str, Any]) -> None:
    """Raises ValueError for the first entry that is no plain tensor with data of its own, naming it and its kind."""
    for key, value in state.items():
        kind = _strange(value)
        if kind:
            raise ValueError(f"'{_short(str(key))}' is {kind}, not a dense tensor of real numbers")


def _strange(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta:
        return "a meta tensor, which holds no data"
    if value.layout != torch.strided:
        return f"a sparse tensor ({str(value.layout).removeprefix('torch.')})"
    if value.is_quantized:
        return "a quantised tensor"
    if value.is_complex():
        return f"complex ({value.dtype})"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "larger than its data"
    return None


def check_fit(shapes: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError where a file's keys or shapes are not a model's: one short line with the first that differs,
    and how many do."""
    missing = [key for key in wanted if key not in shapes]
    surplus = [key for key in shapes if key not in wanted]
    parts = []
    if missing:
        parts.append(f"{name_first(missing)} is absent in the file ({len(missing)} of {len(wanted)} tensors are)")
    if surplus:
        parts.append(f"{name_first(surplus)} in it is absent in this model ({len(surplus)} of {len(shapes)} are)")
    if parts:
        raise ValueError("; ".join(parts))
    wrong = [key for key in wanted if tuple(shapes[key]) != tuple(wanted[key])]
    if wrong:
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise ValueError(
            f"'{_short(wrong[0])}' is {tuple(shapes[wrong[0]])} in the file but {tuple(wanted[wrong[0]])} in this model"
            f"{more}"
        )


def name_first(keys: Sequence[str]) -> str:
    """The first of some keys, and what all have in common at their beginning."""
    prefix = os.path.commonprefix(list(keys)).rpartition(".")[0]
    common = f", one of {len(keys)} that begin with '{_short(prefix, 20)}.'," if prefix and len(keys) > 1 else ""
    return f"'{_short(keys[0], 40)}'{common}"


def _short(key: str, length: int = _KEY_LENGTH) -> str:
    return key if len(key) <= length else f"{key[: length - 3]}..."
