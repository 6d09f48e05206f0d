import torch

from model import text_features
from model.text_features import TextFeatures


def test_a_name_is_encoded_once_while_it_is_among_the_latest(monkeypatch):
    monkeypatch.setattr(text_features, "_KEPT", 3)
    encoded = []

    def encode(name: str) -> torch.Tensor:
        encoded.append(name)
        return torch.full((2, 2), float(len(name)))

    texts = TextFeatures(encode)
    texts.encode(["a", "bb", "ccc", "dddd"])  # more than are kept, and all are needed
    assert texts(["dddd", "a", "a"])[:, 0, 0].tolist() == [4, 1, 1] and encoded == ["a", "bb", "ccc", "dddd"]
    assert texts(["eeeee", "a"])[:, 0, 0].tolist() == [5, 1]  # the oldest of the others go
    texts(["dddd"])
    assert encoded == ["a", "bb", "ccc", "dddd", "eeeee"]
    texts(["bb"])
    assert encoded[5:] == ["bb"]
