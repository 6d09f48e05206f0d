"""What a method may ask of a text tower. The shape legend is in model/interface.py."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class TextTower(Protocol):
    """A frozen text encoder: what a method may ask of it, apart from the image tower."""

    @property
    def context_length(self) -> int:
        """Tokens that it reads; a longer text is cut at its end."""

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings of sentences, (n, D), not normalised."""

    def cut(self, sentences: Sequence[str]) -> list[bool]:
        """Of each sentence, whether it is longer than the tower reads."""


class PromptableTextTower(TextTower, Protocol):
    """A text encoder into which a method may put tokens of its own. Gradients flow through `run` and `project`."""

    @property
    def width(self) -> int:
        """Width of its tokens."""

    @property
    def depth(self) -> int:
        """Number of its blocks."""

    def check_learned_tokens(self, method: str) -> None:
        """Raises ValueError where learned tokens cannot be put into this text tower."""

    def tokens(self, sentence: str) -> tuple[Tensor, Tensor]:
        """Numbers of all tokens of a whole sentence, padding included, (context length,), and their embeddings without
        positions, (context length, width)."""

    def embed(self, text: str, *, start: bool = False, end: bool = False) -> Tensor:
        """Embeddings of the tokens of a piece of text, (n, width), without positions.

        start, end: with the token that begins, that ends a text.
        """

    def positions(self, length: int) -> Tensor:
        """Position embeddings of the first tokens, (length, width)."""

    def run(self, tokens: Tensor, before_block: Callable[[int, Tensor], Tensor]) -> Tensor:
        """All blocks under the causal mask: (B, n, width) -> the same.

        Args:
            tokens: with positions; n at most the context length.
            before_block: (number of the block from 0, its input) -> what it is to have instead.
        """

    def project(self, tokens: Tensor) -> Tensor:
        """What `run` made of the end tokens, (B, width) -> embeddings (B, D), not normalised."""
