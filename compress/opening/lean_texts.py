"""A CLIP tokenizer read once a text: the tokens that a stock pipeline gets of it, which asks twice and builds tensors twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

SEVERAL = "_1"  # a textual inversion of several vectors names its tokens `<it>`, `<it>_1`, `<it>_2`, which pipelines spell out
FAR = 10**6  # what tokenizers say that know no length


@dataclass(frozen=True)
class Reader:
    """A tokenizer's own rules, without padding and cutting.

    rules: None of a tokenizer that must be asked itself.
    size: how many tokens it knew; more are added in place.
    """

    tokenizer: object
    rules: Any
    size: int
    longest: int
    padding: int

    @classmethod
    def of(cls, tokenizer: Any) -> Reader:
        size, longest, padding = len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id
        plain = (
            getattr(tokenizer, "is_fast", False)
            and tokenizer.padding_side == "right"
            and longest < FAR
            and padding is not None
            and not any(name.endswith(SEVERAL) for name in tokenizer.added_tokens_encoder)
        )
        rules = None
        if plain:
            rules = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
            rules.no_padding()
            rules.no_truncation()
        return cls(tokenizer, rules, size, longest, padding if padding is not None else 0)

    def reads_as(self, tokenizer: Any) -> bool:
        """Whether it still reads as this tokenizer does."""
        return bool(len(tokenizer) == self.size and tokenizer is self.tokenizer)

    def read(self, texts: Sequence[str]) -> torch.Tensor | None:
        """int64 [texts, longest]; None where a text is longer, of which the stock pipeline warns."""
        if self.rules is None:
            return None
        rows = [self.rules.encode(text).ids for text in texts]
        if any(len(row) > self.longest for row in rows):
            return None
        return torch.tensor([row + [self.padding] * (self.longest - len(row)) for row in rows])
