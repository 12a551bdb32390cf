"""A language model's steps on a cache of fixed size, which is what a graph can be taken of.

transformers' StaticCache writes each token's keys and values into memory that stays where it is, at a position that is a tensor. Its
`generate` makes a new one for each call, and compiles on a GPU by itself; here one is kept for each batch and length, and emptied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

KEPT = 4  # caches
STRIDE = 128  # a cache's length is a multiple of it, so that calls of about one length share one
LENGTH, CACHE, COMPILE = "max_new_tokens", "past_key_values", "disable_compile"
# Ways to generate that need a cache of their own.
OTHERWISE = (
    *(CACHE, "cache_implementation", "generation_config", "assistant_model", "prompt_lookup_num_tokens"),
    *("custom_generate", "inputs_embeds", "use_cache", "cache_config", "return_dict_in_generate", "prefill_chunk_size"),
)


def is_step(call: Mapping[str, Any]) -> bool:
    """Whether a language model is called on one token for each row, and on a cache that is filled in place."""
    tokens, cache = call.get("input_ids"), call.get(CACHE)
    return (
        isinstance(tokens, torch.Tensor) and tokens.shape[-1] == 1 and isinstance(cache, StaticCache) and fixed(cache)
    )


def fixed(cache: StaticCache) -> bool:
    """Whether a cache's steps are alike: those of a window count in Python, and an empty one has no memory yet."""
    return all(type(layer) is StaticLayer and layer.is_initialized for layer in cache.layers)


@contextmanager
def between_steps(cache: StaticCache | None) -> Iterator[None]:
    """Within it a step may be made that does not count: what it wrote lies behind the end, where no other step looks."""
    lengths = [layer.cumulative_length for layer in cache.layers] if cache is not None else []
    before = [length.clone() for length in lengths]
    try:
        yield
    finally:
        for length, was in zip(lengths, before, strict=True):
            length.copy_(was)


class Generate:
    """Stands where a model's `generate` stood: greedy and sampled decoding go on a kept cache, all else as it was."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stock: Callable[..., Any] = model.generate
        self._caches: OrderedDict[tuple[int, int], StaticCache] = OrderedDict()

    def __call__(self, inputs: Any = None, *others: Any, **given: Any) -> Any:
        tokens = inputs if inputs is not None else given.get("input_ids")
        length = self._length(tokens, given)
        if tokens is None or others or length is None:
            return self.stock(inputs, *others, **given)
        return self.stock(inputs, **{COMPILE: True, **given, CACHE: self._emptied(len(tokens), length)})

    def _length(self, tokens: Any, given: Mapping[str, Any]) -> int | None:
        """How long a cache must be; None where the call is not one for a kept cache."""
        usual = self.model.generation_config
        several = max(
            given.get(name) or getattr(usual, name, None) or 1 for name in ("num_beams", "num_return_sequences")
        )
        new = given.get(LENGTH) or getattr(usual, LENGTH, None)
        if not isinstance(tokens, torch.Tensor) or tokens.dim() != 2 or several > 1 or not isinstance(new, int):
            return None
        if any(given.get(name) is not None for name in OTHERWISE) or getattr(usual, "cache_implementation", None):
            return None
        return -(-(tokens.shape[1] + new) // STRIDE) * STRIDE

    def _emptied(self, rows: int, length: int) -> StaticCache:
        cache = self._caches.pop((rows, length), None)
        if cache is None:
            cache = StaticCache(config=self.model.config, max_cache_len=length)
        else:
            cache.reset()
        self._caches[rows, length] = cache
        if len(self._caches) > KEPT:
            self._caches.popitem(last=False)
        return cache
