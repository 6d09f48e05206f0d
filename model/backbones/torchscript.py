"""The tensors of a TorchScript archive (OpenAI's own files are such), read as data: none of its code is run.

`torch.jit.load` runs what an archive brings along, which can write files. This reads the pickle of the modules with the
few names that stand for tensors, and the tensors' bytes out of the zip file.
"""

import io
import math
import pickle
import pickletools
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import state_dicts

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
_MODULES = 10_000  # visited at most: modules that hold each other would never end
_LONGEST_NAME = 1000  # characters of a weight's name
_CLASS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n(?:  __buffers__ = \[(.*?)\]\n)?", re.M)


class _Module:
    """A module as the pickle has it: attributes alone."""

    place: str  # path of its class
    attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"refused, since {type(self).__name__} in it would set itself up by running code")
        self.attributes = state


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as `torch.jit.load(path).state_dict()` has them.

    Raises:
        ValueError: anything in it but modules of plain data and tensors; what the zip and pickle readers raise on a
            broken file.
    """
    state_dicts.check_archive(path)
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        root = pickled.partition("/")[0]
        order = _bytes(archive, f"{root}/byteorder") if f"{root}/byteorder" in archive.namelist() else b"little"
        if order != sys.byteorder.encode():
            raise ValueError("its bytes are in the order of another kind of machine")
        top = _Reader(archive, root).load()
        if not isinstance(top, _Module):
            raise ValueError("it holds no module")
        return _collect(top, _tensor_names(archive, root))


class _Reader(pickle.Unpickler):
    """Unpickles modules and tensors; any other name that the pickle wants to call is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        pickled = _bytes(archive, f"{root}/data.pkl")
        _check_memo(pickled)
        super().__init__(io.BytesIO(pickled))
        self._archive, self._root = archive, root
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Module,), {"place": module})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("collections", "OrderedDict"): dict,
                 ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
                 **{("torch.jit._pickle", one): list for one in _LISTS}}  # fmt: skip
        if (module, name) not in known:
            raise ValueError(f"refused, since it wants to call {module}.{name}, which would run code")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int):
            raise ValueError("it holds something else than tensors")
        if (key, dtype) not in self._storages:
            values = bytearray(_bytes(self._archive, f"{self._root}/data/{key}"))
            # No storage of our own making: a pickle may ask for a tensor to be resized, and a buffer cannot be.
            whole = torch.frombuffer(values or bytearray(dtype.itemsize), dtype=dtype)
            self._storages[key, dtype] = whole if values else whole[:0]
        return self._storages[key, dtype]


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    return archive.read(name)


def _check_memo(pickled: bytes) -> None:
    """Raises ValueError where a pickle gives what it keeps a number beyond any need: its memo has room for all numbers
    up to the highest, so that a few bytes can ask for gigabytes."""
    for opcode, number, _ in pickletools.genops(pickled):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > len(pickled):
            raise ValueError(f"its pickle of {len(pickled)} bytes keeps something under the number {number}")


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of what a storage holds, which a tensor of a state dict never exceeds."""
    if not isinstance(storage, Tensor) or math.prod(size) > len(storage):
        raise ValueError("a tensor in it is larger than its data")
    return storage.as_strided(size, stride, offset)


def _tensor_names(archive: zipfile.ZipFile, root: str) -> dict[tuple[str, str], set[str]]:
    """(module path, class) -> its parameters and buffers, by what the classes say; other tensors are no weights."""
    names = {}
    for entry in archive.namelist():
        if entry.startswith(f"{root}/code/") and entry.endswith(".py"):
            place = entry[len(root) + 6 : -3].replace("/", ".")
            for name, *lists in _CLASS.findall(_bytes(archive, entry).decode()):
                names[place, name] = {word for one in lists for word in re.findall(r'"([^"]+)"', one)}
    return names


def _collect(top: _Module, names: dict[tuple[str, str], set[str]]) -> dict[str, Tensor]:
    """All weights of a module and of those that it holds, by their places."""
    state: dict[str, Tensor] = {}
    waiting, visited = [("", top)], 0
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        own = names.get((module.place, type(module).__name__))
        if own is None:
            raise ValueError(f"nothing says which tensors of {type(module).__name__} are weights")
        if visited > _MODULES or len(prefix) > _LONGEST_NAME:
            raise ValueError("its modules hold each other, or have endless names")
        for name, value in module.attributes.items():
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in own:
                state[prefix + name] = value
    return state
