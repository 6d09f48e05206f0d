"""Checkpoints: the published keys plus "meta"; saved atomically, loaded without running code in them, verified."""

import contextlib
import io
import pickle
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model import state_dicts
from model.interface import OPENAI_NORMALIZATION
from model.options import PositionRules
from utils import memory_check
from utils.errors import first_line
from utils.files import atomic_write, check_regular
from utils.provenance import VERSION

# What a checkpoint and a run must share beside the method's own options: adapters trained one way mean nothing the
# other way. "sentences" are what a method makes of its prompts, where it trains with them.
_MUST_AGREE = ("method", "model", "weights", "quick_gelu", "position_rule", "normalization", "sentences")
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")  # suffixes of files of weights; a tag has none
UNFINISHED = "last.pth"  # of a training that was interrupted within an epoch


class Checkpoint(NamedTuple):
    """A checkpoint's content; meta is empty in published files."""

    path: Path
    state: dict[str, Any]
    meta: dict[str, Any]


def save(path: str | Path, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write the trained parts under their published keys, and what they were made with under "meta".

    Raises:
        ValueError: a weight or a moment of the optimiser is NaN or infinite; names it, and nothing is written.
    """
    broken = next((name for name, value in _tensors({**state, **meta}) if not value.isfinite().all()), None)
    if broken:
        raise ValueError(
            f"checkpoint {path} is not written, since {broken} holds NaN or infinity; lower --learning_rate or use "
            "--precision fp32"
        )
    content = io.BytesIO()  # torch.save itself raises no OSError where the disk is full
    torch.save({**state, "meta": dict(meta)}, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested mappings and sequences, with their place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


def latest(folder: Path) -> Path | None:
    """The last checkpoint that train.py saved in a folder; None where there is none.

    losses.csv ends with the epoch of it, so that higher epochs of an earlier, longer run are not taken for it; without
    a row, all are of an earlier run.
    """
    found = {int(path.stem[6:]): path for path in folder.glob("epoch_*.pth") if path.stem[6:].isdecimal()}
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, *rows = (folder / "losses.csv").read_text().splitlines()
        if not rows:
            return None
        epoch = int(rows[-1].split(",")[0])
        if epoch in found:
            return found[epoch]
    return found[max(found)] if found else None


def to_resume(folder: Path) -> Path | None:
    """Where train.py --resume goes on; None where nothing has been saved."""
    unfinished = folder / UNFINISHED
    return unfinished if unfinished.is_file() else latest(folder)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or the latest one of a folder.

    Raises:
        ValueError: missing, truncated, holding anything but plain data and tensors; names the file.
    """
    path = Path(path)
    if path.is_dir():
        found = latest(path)
        if not found and any(path.glob("epoch_*.pth")):
            raise ValueError(
                f"checkpoint {path}: the training there has saved no epoch yet; go on with train.py --resume, or name "
                "an epoch_N.pth of the training before it"
            )
        path = found or path
    else:
        try:
            check_regular(path)
            memory_check.check_file(path)
        except ValueError as error:
            raise ValueError(f"checkpoint {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dicts.check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"checkpoint {path}: no such file, and no folder with epoch_N.pth in it; train.py writes one"
        ) from None
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"wants to call {called[1]}, which would run code" if called else "is broken or would run code"
        raise ValueError(f"checkpoint {path}: refused, since its loading {reason}") from None
    except Exception as error:  # torch.load raises what it likes on a broken file; the user needs its name
        raise ValueError(f"checkpoint {path}: unreadable ({textwrap.shorten(first_line(error), 150)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path}: holds a {type(content).__name__}, not a mapping; it is no checkpoint")
    meta = content.pop("meta", {})
    if not isinstance(meta, dict) or not all(key == "optimizer" or _is_plain(value) for key, value in meta.items()):
        raise ValueError(f'checkpoint {path}: its "meta" is not what train.py writes')
    return Checkpoint(path, content, meta)


def _is_plain(value: Any) -> bool:
    """Whether a value is one that settings have: a text, a number, None, or a list of them."""
    if isinstance(value, list | tuple):
        return all(isinstance(part, str | int | float | None) for part in value)
    return isinstance(value, str | int | float | None)


def describe(detector: Any, method: str, dataset: str) -> dict[str, Any]:
    """What identifies a run, for "meta" and for `restore`."""
    backbone = detector.backbone
    return {
        "method": method,
        **backbone.description(),
        "dataset": dataset,
        "version": VERSION,
        **detector.options,
    }


def restore(checkpoint: Checkpoint, detector: Any, description: Mapping[str, Any]) -> None:
    """Put a checkpoint into a detector, unless it contradicts the run; what a published file does not say cannot.

    Raises:
        ValueError: names the file, the setting and both values.
    """
    path, state, meta = checkpoint
    options = [option.name for option in detector.OPTIONS if option.trained]
    known = complete(meta, description) if meta else {}  # a published file says nothing
    check_compatible(f"checkpoint {path} was trained", known, description, [*_MUST_AGREE, *options])
    wanted = detector.trainable_state().keys()
    try:
        detector.load_trainable_state(state_dicts.strip_prefixes(state_dicts.unwrap(state, wanted), wanted))
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None


def complete(header: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of this toolkit says it was made with; and, of an earlier version, what that did not write down.

    Earlier versions normalised images as the tag of the weights says, and for weights by file as OpenAI's. They had no
    --bits, no tiles, and one position rule. own: the description of this run.
    """
    by_file = Path(str(header.get("pretrained"))).suffix in _WEIGHTS
    openai = [*OPENAI_NORMALIZATION.mean, *OPENAI_NORMALIZATION.std]
    normalization = openai if by_file else own["normalization"]
    then = {"bits": None, "tiles": "none", "position_rule": PositionRules().clip}
    return {**then, "normalization": normalization, **header}


def check_compatible(beginning: str, theirs: Mapping[str, Any], own: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ValueError for the first of the keys on which a file and a run differ, naming both values. What only one
    of them has (a CLIP its activation) says nothing.

    beginning: of the message, "checkpoint FILE was trained".
    """
    for key in keys:
        if key in theirs and key in own and theirs[key] != own[key]:
            raise ValueError(f"{beginning} with {key} {_text(theirs[key])} but this run has {_text(own[key])}")


def _text(value: Any) -> str:
    return textwrap.shorten(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value), 120)
