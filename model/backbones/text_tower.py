"""CLIP's text tower, frozen: sentences, or tokens that a method makes itself, -> embeddings."""

from collections.abc import Callable, Sequence
from typing import Protocol

import open_clip
import torch
from torch import Tensor, nn

from model.backbones.architectures import silent
from model.backbones.taps import project
from utils.errors import first_line

_SENTENCES_AT_ONCE = 256


class _Tokenizer(Protocol):
    """As open_clip has them."""

    context_length: int

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Numbers of the tokens, (n, context_length), cut at their end or padded."""


class TextTower:
    """The text side of an open_clip model; see `model.text_interface.PromptableTextTower`.

    Args:
        clip: the whole model, whose text side may be its own (CLIP) or a module in it.
        model: the architecture's name.

    Raises:
        ValueError: a tokenizer that is not available here.
    """

    def __init__(self, clip: nn.Module, model: str):
        self.clip: open_clip.CLIP | open_clip.CustomTextCLIP = clip
        self.tokenizer: _Tokenizer = _tokenizer(model)
        self._name = model

    @property
    def context_length(self) -> int:
        return self.tokenizer.context_length

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings of sentences, (n, D), not normalised."""
        ids = self._ids(sentences, self.context_length).to(self._device)
        return torch.cat([self.encode_ids(part) for part in ids.split(_SENTENCES_AT_ONCE)]).float()

    def cut(self, sentences: Sequence[str]) -> list[bool]:
        """Of each sentence, whether it is longer than the tower reads."""
        # One token more than is read is padding, unless the sentence goes on.
        ends = self._ids([*sentences, ""], self.context_length + 1)[:, -1]  # (n + 1,)
        return [bool(end) for end in (ends[:-1] != ends[-1])]

    def _ids(self, sentences: Sequence[str], length: int) -> Tensor:
        return self.tokenizer(list(sentences), length)

    @property
    def _device(self) -> torch.device:
        parameter: nn.Parameter = next(self.clip.parameters())
        return parameter.device

    def encode_ids(self, ids: Tensor) -> Tensor:
        """open_clip's `encode_text` without the padding: under the causal mask nothing sees what follows the end token,
        so the tokens behind the longest sentence need not be computed."""
        clip = self.clip
        if not self._causal:
            embeddings: Tensor = clip.encode_text(ids)
            return embeddings
        end = ids.argmax(-1)  # (n,), the end token has the largest id
        length = int(end.max()) + 1
        x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]  # (n, length, width)
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        return self.project(x[torch.arange(len(x), device=x.device), end])

    @property
    def _causal(self) -> bool:
        """Whether this is CLIP's own text tower, which looks back only and pools the end token."""
        clip = self.clip
        return isinstance(clip, open_clip.CLIP) and clip.attn_mask is not None and clip.text_pool_type == "argmax"

    # --- texts with learned tokens ---

    def check_learned_tokens(self, method: str) -> None:
        """Raises ValueError where learned tokens cannot be put into the text tower: it must be CLIP's own."""
        if not self._causal or not isinstance(self.tokenizer, open_clip.tokenizer.SimpleTokenizer):
            raise ValueError(f"{method} puts learned tokens into CLIP's own text tower; {self._name} has another one")

    @property
    def width(self) -> int:
        """Width of its tokens."""
        return len(self.clip.ln_final.weight)

    @property
    def depth(self) -> int:
        """Number of its blocks."""
        return len(self.clip.transformer.resblocks)

    def tokens(self, sentence: str) -> tuple[Tensor, Tensor]:
        """Numbers of all tokens of a whole sentence, padding included, (context length,), and their embeddings without
        positions, (context length, width)."""
        (ids,) = self._ids([sentence], self.context_length).to(self._device)
        return ids, self.clip.token_embedding(ids)

    def embed(self, text: str, *, start: bool = False, end: bool = False) -> Tensor:
        """Embeddings of the tokens of a piece of text, (n, width), without positions.

        Args:
            start, end: with the token that begins, that ends a text.
        """
        tokenizer: open_clip.tokenizer.SimpleTokenizer = self.tokenizer
        ids = [tokenizer.sot_token_id] * start + tokenizer.encode(text) + [tokenizer.eot_token_id] * end
        tokens: Tensor = self.clip.token_embedding(torch.tensor(ids, dtype=torch.long, device=self._device))
        return tokens

    def positions(self, length: int) -> Tensor:
        """Position embeddings of the first tokens, (length, width)."""
        table: Tensor = self.clip.positional_embedding
        return table[:length]

    def run(self, tokens: Tensor, before_block: Callable[[int, Tensor], Tensor]) -> Tensor:
        """All blocks under the causal mask: (B, n, width) -> the same. Gradients flow through.

        Args:
            tokens: with positions; n at most the context length.
            before_block: (number of the block from 0, its input) -> what it is to have instead.
        """
        mask = self.clip.attn_mask[: tokens.shape[1], : tokens.shape[1]]
        for index, block in enumerate(self.clip.transformer.resblocks):
            tokens = block(before_block(index, tokens), attn_mask=mask)
        return tokens

    def project(self, tokens: Tensor) -> Tensor:
        """What `run` made of the end tokens, (B, width) -> embeddings (B, D), not normalised."""
        tokens = self.clip.ln_final(tokens)
        return tokens if self.clip.text_projection is None else project(tokens, self.clip.text_projection)


def _tokenizer(model: str) -> _Tokenizer:
    try:
        with silent():
            tokenizer: _Tokenizer = open_clip.get_tokenizer(model)
    except (ImportError, OSError) as error:
        raise ValueError(f"model '{model}': its tokenizer is not available here: {first_line(error)}") from None
    return tokenizer
