"""Text features of class names: the sentences of their states encoded, once; the latest names are kept."""

import logging
import textwrap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.text_interface import TextTower
from prompt_ensemble import Prompts, sentences, up_to_state
from utils.progress import tracked

_LOG = logging.getLogger("vand")
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
        for name in tracked(new, "text", "class", shown=len(new) > 1):
            self._known[name] = self._encode_name(name)
        if new:
            others = [name for name in self._known if name not in names]  # the oldest first
            for name in others[: max(0, len(self._known) - _KEPT)]:
                del self._known[name]

    def __call__(self, names: Sequence[str]) -> Tensor:
        """(B, D, 2) for B class names."""
        self.encode(names)
        return torch.stack([self._known[name] for name in names])


def encode_states(tower: TextTower, name: str, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Embeddings of the sentences of both states of a class, (normal, abnormal), each (n, D), not normalised.

    A sentence that is longer than the text tower reads is cut at its end, with a line that counts them.

    Raises:
        ValueError: the words of a state are cut off, so that the states cannot be told apart; names the sentence.
    """
    normal, abnormal = sentences(name, prompts)
    cut = tower.cut([*normal, *abnormal])
    if any(cut):
        needed = [text for state in up_to_state(name, prompts) for text in state]
        for text, lost in zip([*normal, *abnormal], tower.cut(needed), strict=True):
            if lost:
                raise ValueError(
                    f"class '{_short(name)}': the text '{_short(text)}' is cut after {tower.context_length} tokens, "
                    "before the words of its state end; shorten the class name, or the texts of --prompts"
                )
        _LOG.warning(
            "class '%s': %d of its %d texts are longer than the %d tokens that are read, and are cut at their end; "
            "shorten the class name, or the texts of --prompts", _short(name), sum(cut), len(cut), tower.context_length,
        )  # fmt: skip
    return tower.encode(normal), tower.encode(abnormal)


def _short(text: str) -> str:
    return textwrap.shorten(text, 60, placeholder=" ...")
