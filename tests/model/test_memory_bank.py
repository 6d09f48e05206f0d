"""Distances to the nearest reference, cut into pieces or shared between settings, against every pair at once."""

import os

import pytest
import torch
import torch.nn.functional as F

from model import memory_bank
from model.interface import Memory
from utils import memory_check

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randn(3, 7, 24, generator=GENERATOR)
BANK = F.normalize(torch.randn(50, 24, generator=GENERATOR), dim=-1)


def brute_force(tokens, bank):
    """Cosine distance of unit vectors is half the squared Euclidean one."""
    pairs = torch.cdist(F.normalize(tokens.flatten(0, 1).double(), dim=-1), bank.double()) ** 2 / 2
    return pairs.amin(1).unflatten(0, tokens.shape[:2]).float()


@pytest.mark.parametrize(("at_once", "rows"), [(1 << 22, 1 << 16), (1, 1), (64, 7), (1000, 50), (35, 16)])
def test_distances_in_pieces(monkeypatch, at_once, rows):
    monkeypatch.setattr(memory_bank, "_CHUNK", {"": at_once})
    monkeypatch.setattr(memory_bank, "_BANK", rows)
    expected = brute_force(TOKENS, BANK)
    torch.testing.assert_close(memory_bank.nearest_distance(TOKENS, BANK), expected, atol=1e-5, rtol=0)
    found = {}
    for images in ("abcde", "ba", "e"):  # ten tokens each
        bank = torch.cat([BANK[10 * "abcde".index(image) :][:10] for image in images])
        own = memory_bank.nearest_distance(TOKENS, bank, tuple(images), found)
        torch.testing.assert_close(own, brute_force(TOKENS, bank), atol=1e-5, rtol=0)
    assert set(found) == set("abcde")


def test_images_that_were_found_are_not_compared_again():
    found = {"a": torch.ones(21)}  # as if every token had an equal in it
    assert not memory_bank.nearest_distance(TOKENS, BANK, ("a", "b"), found).any()
    assert set(found) == {"a", "b"}


def test_a_token_of_the_bank_is_at_distance_zero():
    assert memory_bank.nearest_distance(3 * BANK[None], BANK).amax() < 1e-6


# --- several neighbours, Euclidean distances, references that do not count -------------------------------------------


def neighbours_by_hand(tokens, bank, metric, count, allowed):
    """Every pair in double precision."""
    tokens, bank = tokens.flatten(0, 1).double(), bank[allowed].double()
    if metric == "cosine":
        return (1 - F.normalize(tokens, dim=-1) @ bank.T).sort(1).values[:, :count].mean(1)
    return torch.cdist(tokens, bank).square().sort(1).values[:, :count].mean(1).sqrt()


@pytest.mark.parametrize("pieces", [None, (30, 7)])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_distance_to_several_neighbours(monkeypatch, metric, count, some, pieces):
    """Alone, and shared by settings."""
    if pieces:
        monkeypatch.setattr(memory_bank, "_CHUNK", {"": pieces[0]})
        monkeypatch.setattr(memory_bank, "_BANK", pieces[1])
        monkeypatch.setattr(memory_bank, "_SIDE", pieces[1])
    bank = BANK if metric == "cosine" else 3 * torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
    allowed = torch.arange(50) % 3 > 0 if some else torch.ones(50, dtype=torch.bool)
    expected = neighbours_by_hand(TOKENS, bank, metric, count, allowed)
    mask = allowed if some else None
    own = memory_bank.neighbour_distance(TOKENS, bank, metric, count, allowed=mask)
    torch.testing.assert_close(own.flatten(), expected.float(), atol=1e-5, rtol=0)
    found, sizes = {}, {"a": slice(0, 10), "b": slice(10, 20), "c": slice(40, 50)}  # fewer than neighbours
    for images in ("abc", "cb", "ba"):
        places = torch.cat([torch.arange(50)[sizes[image]] for image in images])
        mask = allowed[places] if some else None
        own = memory_bank.neighbour_distance(
            TOKENS, bank[places], metric, count, allowed=mask, images=images, found=found
        )
        expected = neighbours_by_hand(TOKENS, bank[places], metric, count, allowed[places])
        torch.testing.assert_close(own.flatten(), expected.float(), atol=1e-5, rtol=0)
    assert set(found) == set("abc")


def test_small_euclidean_distances_between_long_vectors_keep_their_digits():
    """|q|^2 - 2 q r + |r|^2 would give 0, or the root of a negative number."""
    tokens = TOKENS + 1000
    bank = (tokens.flatten(0, 1) + 1e-2).contiguous()
    own = memory_bank.neighbour_distance(tokens, bank, "l2", 1)
    torch.testing.assert_close(own, torch.full((3, 7), 1e-2 * 24**0.5), atol=1e-3, rtol=0)


def test_fewer_references_than_neighbours_are_no_neighbours():
    assert memory_bank.neighbour_distance(TOKENS, BANK[:2], "l2", 3).isinf().all()
    allowed = torch.arange(50) < 2
    assert memory_bank.neighbour_distance(TOKENS, BANK, "cosine", 3, allowed=allowed).isinf().all()


@pytest.mark.parametrize("pieces", [(50,), (3, 20, 27), (25, 25)])
@pytest.mark.parametrize("count", [2, 9])
def test_mutual_distance_is_the_mean_strictly_below_a_quantile(pieces, count):
    queries = F.normalize(TOKENS.flatten(0, 1), dim=-1)
    distances = (1 - queries @ BANK.T).sort(1).values
    own = memory_bank.mutual_distance(queries, BANK.split(pieces), count)
    torch.testing.assert_close(own, distances[:, : count - 1].mean(1), atol=1e-6, rtol=0)


def test_mutual_distance_of_ties():
    """Entries that equal the quantile do not count; where all do, it is the smallest distance."""
    query = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    torch.testing.assert_close(memory_bank.mutual_distance(query, [bank], 3), torch.tensor([0.0]))
    torch.testing.assert_close(memory_bank.mutual_distance(query, [bank[1:4]], 3), torch.tensor([0.4]))


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_memories_that_memory_cannot_hold_is_not_read(monkeypatch, tmp_path):
    """Sparse: 200 GB of tokens in a file of some bytes."""
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.truncate(2 * 10**11)
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"memory .*m\.safetensors: at least 200\.0 GB"):
        memory_bank.load(path)


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_memories_of_no_file_are_refused_and_not_waited_for(kind, tmp_path):
    path = {"FIFO": tmp_path / "m.safetensors", "device": "/dev/zero", "folder": tmp_path}[kind]
    if kind == "FIFO":
        os.mkfifo(path)
    with pytest.raises(ValueError, match=f"memory {path}: is a .*{kind}"):
        memory_bank.load(path)


@pytest.mark.parametrize("bank", [torch.tensor(1.0), torch.zeros(0, 24), torch.zeros(3, 23), torch.zeros(3, 24).half()])
def test_a_bank_of_another_form(bank):
    with pytest.raises(ValueError, match=r"bank '4' of class 'nut' is of shape .*; .* \(tokens, 24\)"):
        memory_bank.check("m.safetensors", {(0, "nut"): Memory({"4": bank})}, {"4": 24})
