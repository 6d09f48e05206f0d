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
