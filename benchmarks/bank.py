"""The search of a memory bank, as few-shot methods do it, against faiss-cpu's flat index where that is installed.

16 references in 8 rotations, DINOv2 ViT-S/14 at 448: 131072 vectors of 384, searched for the 1024 patches of an image.
"""

import functools
import resource
import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import PEAK_UNIT, Row, finish, in_turns, median_ratio
from model import memory_bank

PATCHES, WIDTH = 1024, 384
PEAK = "import sys; from benchmarks import bank; print(bank.peak(sys.argv[1], *map(int, sys.argv[2:])))"
try:
    import faiss
except ImportError:
    faiss = None


def measure(quick: bool) -> Iterator[Row]:
    images, turns = (4, 3) if quick else (16 * 8, 9)
    names = ["ours"] + ["faiss-cpu"] * (faiss is not None)
    shown = f"{PATCHES} patches among {images * PATCHES} of {WIDTH}"
    peaks = {name: float(finish(["-c", PEAK, name, images, torch.get_num_threads()])[1]) / 2**20 for name in names}
    bank, queries = vectors(images)
    sides: dict[str, Callable[[], Tensor]] = {name: functools.partial(searcher(name, bank), queries) for name in names}
    floor = queries.new_empty(PATCHES, PATCHES)
    sides["products"] = lambda: [torch.mm(queries, some.T, out=floor) for some in bank.split(PATCHES)][-1]
    for side in sides.values():
        side()  # warm
    seconds, results = in_turns(sides, turns)
    ratio = f"{median_ratio(seconds['ours'], seconds['products']):.2f} times the matrix products alone"
    yield Row(f"nearest of {shown}: ours", f"{1000 * statistics.median(seconds['ours']):.0f} ms", ratio)
    if faiss is None:
        yield Row("faiss-cpu", "not installed: pip install faiss-cpu")
        return
    ratio = f"{median_ratio(seconds['faiss-cpu'], seconds['ours']):.2f} times ours"
    median = f"{1000 * statistics.median(seconds['faiss-cpu']):.0f} ms"
    yield Row(f"the same: faiss-cpu {faiss.__version__}, flat", median, ratio, ">= 1.0")
    shown = f"{peaks['ours']:.0f}, {peaks['faiss-cpu']:.0f} MiB"
    yield Row("peak memory with imports: ours, faiss-cpu", shown, f"{peaks['ours'] / peaks['faiss-cpu']:.2f}", "<= 1.0")
    difference = (results["ours"] - results["faiss-cpu"]).abs().max()
    yield Row("largest difference of a distance", f"{difference:.1e}")


def vectors(images: int) -> tuple[Tensor, Tensor]:
    """The bank (M, W), and the patches of an image (N, W), unit vectors."""
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(images * PATCHES, WIDTH, generator=generator), dim=-1)
    return bank, F.normalize(torch.randn(PATCHES, WIDTH, generator=generator), dim=-1)


def searcher(name: str, bank: Tensor) -> Callable[[Tensor], Tensor]:
    """A search that gives the distances, (N,), of unit vectors, (N, W)."""
    if name == "ours":
        return lambda queries: memory_bank.nearest_distance(queries[None], bank)[0]
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    return lambda queries: torch.from_numpy(index.search(queries.numpy(), 1)[0][:, 0]) / 2


def peak(name: str, images: int, threads: int) -> int:
    """Bytes of this process after a search."""
    torch.set_num_threads(threads)
    bank, queries = vectors(images)
    search = searcher(name, bank)
    if name != "ours":
        del bank  # the index has its own
    search(queries)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
