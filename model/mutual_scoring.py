"""How far the patches of each image of a set are from the patches of all others: the mutual scoring of MuSc (LNAMD and
MSM of arXiv 2401.16753).

Two things make it cheap. Every pair of images is compared once: one block of products gives the nearest neighbours both
ways. And all sizes of neighbourhoods share the products of single patches: the product of two means of patches is the
mean of their products. Per patch only the smallest distances are kept.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import Processes

# Bytes of the features of a block of images: on a GPU a share of what is free, else a part of what all images take,
# at most 32 MiB.
_SHARE = 0.2
_PART, _BLOCK = 8, 1 << 25
# Products held at once: 2 MiB on the CPU, near its caches; 256 MiB elsewhere, which wants large products.
_CHUNK = {"cpu": 1 << 19, "": 1 << 26}
# Below this distance of unit vectors the product of single precision says too little of it: it is computed again, from
# the pairs whose cosine is nearly the largest, by more than what it is off by; in double where these are too many.
_NEAR, _MARGIN, _CROWD = 0.05, 1e-5, 16

_ALONE = Processes()
Grid = tuple[int, int]


def neighborhood_means(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Local aggregation with neighbourhoods of one size (LNAMD).

    The published program normalises all values of an image together (layer norm), takes the mean over side x side
    patches, zeros beyond the border, and makes each patch a unit vector. Of the layer norm and of the mean's divisor
    only the subtracted mean outlasts that.

    Args:
        tokens: (B, N, W), of any precision.
        grid: (g_h, g_w), N = g_h * g_w.
        side: odd.

    Returns:
        (B, N, W) float32
    """
    return F.normalize(_neighborhood_sums(_centered(tokens), grid, side), dim=-1)


def mutual_scores(
    images: Sequence[Tensor],
    grid: Grid,
    sides: Sequence[int],
    count: int,
    device: torch.device,
    compared: Callable[[int], object] = lambda pairs: None,
    processes: Processes = _ALONE,
) -> Tensor:
    """Of each patch of each image, the mean of its `count` smallest distances to other images: (sides, n, N) float32,
    in main memory.

    The distance to an image is the Euclidean one to its nearest patch (MSM). Features are put in place block by
    block, as they are needed. Several processes share the pairs of blocks, and all get the same result.

    Args:
        images: the tokens of one layer of each of n images, (N, W), anywhere and of any precision.
        grid, sides: see `neighborhood_means`.
        count: from 1 to n - 1.
        device: where to compute.
        compared: is told, now and then, how many further pairs of images have been compared, here.
        processes: that work on the same images.
    """
    patches, width = images[0].shape
    at_once = _images_at_once(len(images), 4 * patches * width, device, processes.ranks)
    at_once = min(processes.gather(at_once))  # GPUs may have different room
    blocks = [slice(start, min(start + at_once, len(images))) for start in range(0, len(images), at_once)]
    pairs = _Pairs(grid, sides, device)
    smallest = torch.full((len(sides), len(images), patches, count), torch.inf, device=device)

    def features(block: slice) -> Tensor:
        return _centered(torch.stack(list(images[block])).to(device))  # (b, N, W)

    def keep(block: slice, distances: Tensor) -> None:
        """distances: (sides, b, m, N), of the block's images to m others"""
        found = torch.cat([smallest[:, block], distances.transpose(2, 3)], dim=3)
        smallest[:, block] = found.topk(count, dim=3, largest=False, sorted=False).values

    scales = torch.cat([pairs.scales(features(block)) for block in blocks], dim=1)  # (sides, n, N)
    for number, block in enumerate(blocks):
        own = features(block)
        shared = range(number, len(blocks))  # by the sum of the two numbers, which gives all processes as much to do
        for other in (blocks[place] for place in shared if (number + place) % processes.ranks == processes.rank):
            if other is block:
                keep(block, pairs.within(own, scales[:, block]))
                compared(len(own) * (len(own) - 1) // 2)
                continue
            theirs = features(other)
            forward, backward = pairs.between(own, theirs, scales[:, block], scales[:, other])
            keep(block, forward)
            keep(other, backward)
            compared(len(own) * len(theirs))
    means = []
    for block in blocks:  # the smallest of all processes, sorted: the mean does not depend on who has found them
        found = torch.cat(processes.gather(smallest[:, block].cpu()), dim=3)
        means.append(found.topk(count, dim=3, largest=False).values.mean(3))
    return torch.cat(means, dim=1)


def _images_at_once(images: int, size: int, device: torch.device, ranks: int) -> int:
    """Images of a block, of so many; size: bytes of the features of one. Several processes want two blocks each."""
    most = images if ranks == 1 else -(-images // (2 * ranks))
    if device.type != "cuda":
        return max(1, min(most, images // _PART, _BLOCK // size))
    return max(1, min(most, int(_SHARE * torch.cuda.mem_get_info(device)[0]) // size))


def _centered(tokens: Tensor) -> Tensor:
    """(B, N, W) -> float32, less the mean of each image's values."""
    tokens = tokens.float()
    return tokens - tokens.mean((1, 2), keepdim=True)


def _neighborhood_sums(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Sums over side x side patches, zeros beyond the border: (B, N, W) -> the same."""
    if side == 1:
        return tokens
    tokens = tokens.unflatten(1, grid)  # (B, g_h, g_w, W)
    for axis in (1, 2):
        padded = F.pad(tokens, [0, 0] * (3 - axis) + [side // 2] * 2)
        tokens = functools.reduce(torch.add, [padded.narrow(axis, start, grid[axis - 1]) for start in range(side)])
    return tokens.flatten(1, 2)


class _Pairs:
    """Compares images, as `_centered` gives them, under all sizes of neighbourhoods.

    grid, sides: see `neighborhood_means`.
    """

    def __init__(self, grid: Grid, sides: Sequence[int], device: torch.device):
        self._grid, self._sides = grid, sides
        self._bands = [[_band(length, side).to(device) for length in grid] for side in sides]

    def scales(self, images: Tensor) -> Tensor:
        """1 / length of each sum over a neighbourhood: (b, N, W) -> (sides, b, N)."""
        sums = (_neighborhood_sums(images, self._grid, side) for side in self._sides)
        return torch.stack([1 / one.norm(dim=-1).clamp_min(1e-12) for one in sums])

    def between(self, own: Tensor, theirs: Tensor, scales: Tensor, their_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Distances of each patch to the nearest one in each image of the other block.

        Args:
            own, theirs: (a, N, W), (b, N, W).
            scales, their_scales: what `scales` makes of them.

        Returns:
            (sides, a, b, N) of own patches, (sides, b, a, N) of theirs
        """
        forward = own.new_empty(len(self._sides), len(own), len(theirs), own.shape[1])
        backward = own.new_empty(len(self._sides), len(theirs), len(own), own.shape[1])
        for row, image in enumerate(own):
            self._compare(image, theirs, scales[:, row], their_scales, forward[:, row], backward[:, :, row])
        return forward, backward

    def within(self, own: Tensor, scales: Tensor) -> Tensor:
        """The same within a block: (sides, a, a, N), infinite of an image to itself."""
        found = own.new_full((len(self._sides), len(own), len(own), own.shape[1]), torch.inf)
        for row, image in enumerate(own[:-1]):
            rest = slice(row + 1, None)
            self._compare(image, own[rest], scales[:, row], scales[:, rest], found[:, row, rest], found[:, rest, row])
        return found

    def _compare(
        self, image: Tensor, others: Tensor, scale: Tensor, scales: Tensor, forward: Tensor, backward: Tensor
    ) -> None:
        """Fill in the distances of one image, (N, W), to b others: of its patches and of theirs, both (sides, b, N);
        scale: (sides, N), scales: (sides, b, N)."""
        patches = len(image)
        at_once = max(1, _CHUNK.get(image.device.type, _CHUNK[""]) // patches**2)
        for start in range(0, len(others), at_once):
            place = slice(start, start + at_once)
            some = others[place]  # (c, N, W)
            products = (image @ some.flatten(0, 1).T).unflatten(1, (-1, patches))  # (N, c, N)
            for number, side in enumerate(self._sides):
                sums = products if side == 1 else self._summed(products, *self._bands[number])
                cosines = (sums * scales[number, place]).mul_(scale[number][:, None, None])
                largest = cosines.amax(2), cosines.amax(0)  # (N, c), (c, N)
                ours, theirs = ((2 - 2 * one).clamp_min_(0).sqrt_() for one in largest)
                if min(ours.min(), theirs.min()) < _NEAR:
                    own, other = (
                        _neighborhood_sums(one, self._grid, side) * lengths[..., None]
                        for one, lengths in ((image[None], scale[number, None]), (some, scales[number, place]))
                    )
                    _correct(cosines, *largest, own[0], other, ours, theirs)
                forward[number, place], backward[number, place] = ours.T, theirs

    def _summed(self, products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Products of sums over neighbourhoods from those of patches, (N, c, N): sums over the neighbours of both."""
        height, width = self._grid
        sums = products.view(-1, width) @ columns  # (N * c * g_h, g_w)
        sums = rows @ sums.view(-1, height, width)  # (N * c, g_h, g_w)
        sums = columns @ sums.view(height, width, -1)  # (g_h, g_w, c * N)
        return (rows @ sums.view(height, -1)).view(products.shape)


def _band(length: int, side: int) -> Tensor:
    """What sums each place of a line with its neighbours, by a product: (length, length)."""
    places = torch.arange(length)
    return ((places[:, None] - places).abs() <= side // 2).float()


def _correct(
    cosines: Tensor, largest: Tensor, their_largest: Tensor, own: Tensor, others: Tensor, ours: Tensor, theirs: Tensor
) -> None:
    """Put right the small ones of the distances to the nearest patch, since a cosine of 1 is off by so much that equal
    patches would be 8e-4 apart.

    Args:
        cosines: of the patches of an image with those of others, (N, c, N), and the largest ones, (N, c) and (c, N).
        own, others: unit vectors, (N, W), (c, N, W).
        ours, theirs: distances of both, (N, c), (c, N).
    """
    near, their_near = ours < _NEAR, theirs < _NEAR
    bound = torch.where(near, largest - _MARGIN, torch.inf)[..., None]  # (N, c, 1)
    their_bound = torch.where(their_near, their_largest - _MARGIN, torch.inf)
    pairs = (cosines >= bound) | (cosines >= their_bound)
    if pairs.sum() > _CROWD * (near.sum() + their_near.sum()):  # an image of equal patches: a product costs less
        double = [one.cpu() if one.device.type == "mps" else one for one in (own, others)]  # which has no double
        units, their_units = (F.normalize(one.double(), dim=-1) for one in double)
        products = (units @ their_units.flatten(0, 1).T).unflatten(1, others.shape[:2])  # (N, c, N)
        found, their_found = ((2 - 2 * products.amax(dim)).clamp_min(0).sqrt().to(ours) for dim in (2, 0))
    else:
        patch, image, other = pairs.nonzero(as_tuple=True)
        at_once = max(1, _CHUNK.get(own.device.type, _CHUNK[""]) // own.shape[1])
        parts = zip(*(one.split(at_once) for one in (patch, image, other)), strict=True)
        exact = torch.cat([(own[one] - others[two, three]).norm(dim=-1) for one, two, three in parts])
        found, their_found = (torch.full_like(one, torch.inf).flatten() for one in (ours, theirs))
        found.scatter_reduce_(0, patch * len(others) + image, exact, "amin")
        their_found.scatter_reduce_(0, image * len(own) + other, exact, "amin")
    ours.copy_(torch.where(near, found.view_as(ours), ours))
    theirs.copy_(torch.where(their_near, their_found.view_as(theirs), theirs))
