"""The memory bank: the reference images' patch tokens, the distance of a token to its nearest one, and its file."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.interface import Memory, SimilarityCache
from utils import memory_check
from utils.errors import first_line
from utils.files import check_regular

Memories = dict[tuple[int, str], Memory]  # (number of the few-shot setting, class name) -> its memory
# Similarities held at once; bounds the memory of a search whatever the size of the bank: to 16 MiB, near the caches, on
# the CPU, and to 256 MiB on a GPU, which wants large products.
_CHUNK = {"cpu": 1 << 22, "": 1 << 26}
_BANK = 1 << 16  # bank tokens compared at once
_SIDE = 1 << 10  # on the CPU, where only the nearest counts: a square of similarities that the caches hold


def build_bank(tokens: Tensor) -> Tensor:
    """Pool the tokens of the reference images, (k, N, W), into one bank of unit vectors, (k * N, W), float32."""
    return _unit(tokens)


def nearest_distance(
    tokens: Tensor, references: Tensor, images: Sequence[str] = (), found: dict[str, Tensor] | None = None
) -> Tensor:
    """Cosine distance of each token to its nearest reference token, clamped at 0.

    Args:
        tokens: (B, N, W), any length.
        references: (M, W), unit length.
        images: the images that the references are made of, in equal parts; only with found.
        found: image -> (B * N,), the similarity of each token to its nearest one there, for these very tokens: images
            that are in it are not compared again, others are added.

    Returns:
        (B, N), in [0, 2]
    """
    if found is None or not images:
        best = _nearest(_unit(tokens), references)
    else:
        new = [number for number, image in enumerate(images) if image not in found]
        if new:
            each = references.unflatten(0, (len(images), -1))[new]  # (k, M / images, W)
            found.update(zip((images[number] for number in new), _nearest_in_each(_unit(tokens), each), strict=True))
        best = torch.stack([found[image] for image in images]).amax(0)
    return torch.unflatten((1 - best).clamp_min(0), 0, tokens.shape[:2])


def neighbour_distance(
    tokens: Tensor,
    references: Tensor,
    metric: Literal["cosine", "l2"],
    neighbours: int,
    *,
    allowed: Tensor | None = None,
    images: Sequence[str] = (),
    found: dict[str, Tensor] | None = None,
) -> Tensor:
    """Distance of each token to its nearest reference tokens: "cosine", the mean of 1 - cosine similarity over the
    nearest ones; "l2", the root of their mean squared Euclidean distance.

    Args:
        tokens: (B, N, W), any length.
        references: (M, W); for "cosine" of unit length.
        neighbours: how many nearest ones; infinity where there are fewer.
        allowed: (M,) bool, the references that count; None: all.
        images, found: as for `nearest_distance`, but found holds the smallest distances ("l2": squared ones) to the
            patches of each image, (n, B * N).

    Returns:
        (B, N), 0 or more
    """
    queries = _unit(tokens) if metric == "cosine" else tokens.flatten(0, 1).float()
    search = _cosine_distances if metric == "cosine" else _squared_distances
    if found is None or not images:
        nearest = search(queries, references, neighbours, allowed)  # (neighbours, B * N)
    else:
        size = len(references) // len(images)
        for number, image in enumerate(images):
            if image not in found:
                own = slice(number * size, (number + 1) * size)
                found[image] = search(queries, references[own], neighbours, None if allowed is None else allowed[own])
        nearest = torch.cat([found[image] for image in images])
        nearest = nearest.topk(min(neighbours, len(nearest)), dim=0, largest=False).values
    if len(nearest) < neighbours:
        nearest = nearest.new_full(nearest.shape[1:], torch.inf)[None]
    mean = nearest.mean(0)
    return torch.unflatten(mean if metric == "cosine" else mean.sqrt(), 0, tokens.shape[:2])


def mutual_distance(queries: Tensor, references: Sequence[Tensor], count: int) -> Tensor:
    """Mean of the distances, 1 - cosine similarity, that are strictly below the count-th smallest of each query.

    Where none is (equal distances), it is the smallest one.

    Args:
        queries: (Q, W), unit length.
        references: pieces, each (m, W), unit length; count or more vectors in all.
        count: 2 or more.

    Returns:
        (Q,)
    """
    best = queries.new_empty(len(queries), 0)
    for some in references:
        best = torch.cat([best, _largest(queries, some, count)[0]], dim=1)
        best = best.topk(min(count, best.shape[1]), dim=1).values
    distances = 1 - best  # (Q, count), ascending
    below = distances < distances[:, -1:]
    total = below.sum(1)
    return torch.where(total > 0, (distances * below).sum(1) / total.clamp_min(1), distances[:, 0])


def cached_similarities(found: SimilarityCache | None, name: str, key: str) -> dict[str, Tensor] | None:
    """The part of `SimilarityCache` that belongs to one bank of one class."""
    return None if found is None else found.setdefault((name, key), {})


def _unit(tokens: Tensor) -> Tensor:
    """(B, N, W) -> (B * N, W) unit vectors, float32."""
    return F.normalize(tokens.flatten(0, 1).float(), dim=-1)


def _nearest(queries: Tensor, references: Tensor) -> Tensor:
    """Largest similarity of each query, (Q, W), to references, (M, W): (Q,)."""
    if queries.device.type == "cpu" and not torch.compiler.is_compiling():
        return _nearest_in_squares(queries, references)
    best = [
        torch.cat([(part @ some.T).amax(1) for part in parts(queries, _at_once(queries) // len(some))])
        for some in parts(references, _BANK)
    ]
    return functools.reduce(torch.maximum, best)


def _nearest_in_squares(queries: Tensor, references: Tensor) -> Tensor:
    """The same in squares that are written to one place again and again, which takes a tenth less time on a CPU."""
    best = []
    products = queries.new_empty(min(_SIDE, len(queries)) * min(_SIDE, len(references)))
    for part in queries.split(_SIDE):
        nearest = part.new_full((len(part),), -torch.inf)
        for some in references.split(_SIDE):
            here = products[: len(part) * len(some)].view(len(part), len(some))
            nearest = torch.maximum(nearest, torch.mm(part, some.T, out=here).amax(1))
        best.append(nearest)
    return torch.cat(best)


def _nearest_in_each(queries: Tensor, references: Tensor) -> Tensor:
    """The same for each of k images by itself: (Q, W), (k, n, W) -> (k, Q). One product serves many small images."""
    best = []
    for some in references.split(max(1, _BANK // references.shape[1])):  # (few, n, W)
        if len(some) == 1:
            best.append(_nearest(queries, some[0])[None])
            continue
        flat = some.flatten(0, 1)
        products = (part @ flat.T for part in parts(queries, _at_once(queries) // len(flat)))
        best.append(torch.cat([product.unflatten(1, some.shape[:2]).amax(2) for product in products]).T)
    return torch.cat(best)


def _cosine_distances(queries: Tensor, references: Tensor, count: int, allowed: Tensor | None) -> Tensor:
    """The smallest distances, 1 - cosine similarity, of unit vectors: (Q, W), (M, W) -> (at most count, Q)."""
    if count == 1 and allowed is None and len(references):
        return (1 - _nearest(queries, references)).clamp_min(0)[None]
    bias = None if allowed is None else torch.where(allowed, 0.0, -torch.inf)
    return (1 - _largest(queries, references, count, bias)[0]).clamp_min(0).T


def _squared_distances(queries: Tensor, references: Tensor, count: int, allowed: Tensor | None) -> Tensor:
    """The smallest squared Euclidean distances: (Q, W), (M, W) -> (at most count, Q).

    Products find the nearest ones, and their distances are taken from the differences: |q|^2 - 2 q r + |r|^2 would lose
    the digits of a small distance between long vectors.
    """
    bias = references.square().sum(1) / -2  # q r - |r|^2 / 2 is largest where the distance is smallest
    if allowed is not None:
        bias = bias.masked_fill(~allowed, -torch.inf)
    values, places = _largest(queries, references, count, bias)
    rows = _at_once(queries) // max(1, places.shape[1] * references.shape[1])
    squares = [
        (some[:, None] - references[at]).square().sum(-1)  # (q, n, W) -> (q, n)
        for some, at in zip(parts(queries, rows), parts(places, rows), strict=True)
    ]
    return torch.where(values == -torch.inf, torch.inf, torch.cat(squares)).T


def _largest(queries: Tensor, references: Tensor, count: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest products of each query, (Q, W), with references, (M, W), plus bias, (M,): values and places, each
    (Q, min(count, M)), descending."""
    values, places = [], []
    for number, some in enumerate(parts(references, _BANK)):
        first = number * _BANK
        best = []
        for part in parts(queries, _at_once(queries) // max(1, len(some))):
            products = part @ some.T if bias is None else torch.addmm(bias[first : first + len(some)], part, some.T)
            best.append(products.topk(min(count, len(some)), dim=1))
        values.append(torch.cat([one.values for one in best]))
        places.append(torch.cat([one.indices for one in best]) + first)
    top = torch.cat(values, 1).topk(min(count, len(references)), dim=1)
    return top.values, torch.cat(places, 1).gather(1, top.indices)


def _at_once(queries: Tensor) -> int:
    return _CHUNK.get(queries.device.type, _CHUNK[""])


def parts(values: Tensor, rows: int) -> Sequence[Tensor]:
    """Pieces of at most so many rows (one, at least), to bound what a loop over them holds at once.

    A traced graph, whose batch has no fixed size, can have no such loop: there it is one piece.
    """
    return (values,) if torch.compiler.is_compiling() else values.split(max(1, rows))


def rows_by_name(names: Sequence[str]) -> dict[str, list[int] | slice]:
    """Class name -> the rows of a batch that are of that class; all of them where there is one name."""
    if len(set(names)) == 1:
        return {names[0]: slice(None)}
    return {name: [row for row, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}


def save(path: Path, memories: Mapping[tuple[int, str], Memory], header: Mapping[str, Any]) -> None:
    """Write memories as safetensors; the header (JSON) says what they were made with and belongs to.

    Raises:
        OSError: not to be written, as on a full disk.
    """
    names = sorted({name for _, name in memories})
    tensors = {
        f"{setting}/{names.index(name)}/{key}": bank.cpu().contiguous()
        for (setting, name), memory in memories.items()
        for key, bank in memory.banks.items()
    }
    try:
        save_file(tensors, path, {"header": json.dumps({**header, "classes": names})})
    except SafetensorError as error:  # as it reports a full disk
        raise OSError(error) from None


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Memories]:
    """What `save` wrote: (header, memories).

    Raises:
        ValueError: missing, broken, no file of memories, or more of them than fit into memory; names it.
    """
    try:
        check_regular(path)
        memory_check.check_file(path, device)
    except ValueError as error:
        raise ValueError(f"memory {error}") from None
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})["header"])
            if not isinstance(header["classes"], list) or not all(isinstance(name, str) for name in header["classes"]):
                raise ValueError("its classes are no list of names")
            banks: dict[tuple[int, str], dict[str, Tensor]] = {}
            for entry in file.keys():  # noqa: SIM118 - no mapping
                setting, name, key = entry.split("/", 2)
                banks.setdefault((int(setting), header["classes"][int(name)]), {})[key] = file.get_tensor(entry)
    except FileNotFoundError:
        raise ValueError(f"memory {path}: no such file") from None
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"memory {path}: no file that --save_memory wrote ({first_line(error)})") from None
    return header, {place: Memory(bank) for place, bank in banks.items()}


def check(path: str | Path, memories: Memories, widths: Mapping[str, int]) -> None:
    """Refuse memories that a detector cannot use; widths: its `bank_widths`.

    Raises:
        ValueError: a missing bank, one of another shape, NaN or infinity; names the file, class and bank.
    """
    for (_, name), memory in memories.items():
        for key, width in widths.items():
            bank = memory.banks.get(key)
            fits = bank is not None and bank.dtype == torch.float32 and bank.ndim == 2
            if bank is None or not fits or bank.shape[1] != width or not len(bank):
                found = "absent" if bank is None else f"of shape {tuple(bank.shape)}, {bank.dtype}"
                wanted = f"must be (tokens, {width}), torch.float32"
                raise ValueError(f"memory {path}: bank '{key}' of class '{name}' is {found}; {wanted}")
            if not bank.isfinite().all():
                raise ValueError(f"memory {path}: bank '{key}' of class '{name}' holds NaN or infinity")
