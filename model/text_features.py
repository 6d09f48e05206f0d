"""Text features of class names: encoded once, the latest are kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

_KEPT = 1000  # names; those of a dataset, and not all that the users of a web page ever typed


class TextFeatures:
    """Two unit vectors per class name, one per state; those of the latest names are kept.

    Args:
        encode_name: class name -> (D, 2), what the method makes of its prompts.
    """

    def __init__(self, encode_name: Callable[[str], Tensor]):
        self._encode_name = encode_name
        self._known: dict[str, Tensor] = {}

    def encode(self, names: Sequence[str]) -> None:
        """Encode the names that are not known yet; with a progress bar where they are several."""
        new = [name for name in dict.fromkeys(names) if name not in self._known]
        for name in tqdm(new, desc="text", unit="class", disable=None if len(new) > 1 else True):
            self._known[name] = self._encode_name(name)
        if new:
            others = [name for name in self._known if name not in names]  # the oldest first
            for name in others[: max(0, len(self._known) - _KEPT)]:
                del self._known[name]

    def __call__(self, names: Sequence[str]) -> Tensor:
        """(B, D, 2) for B class names."""
        self.encode(names)
        return torch.stack([self._known[name] for name in names])
