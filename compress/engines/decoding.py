"""Token after token on an engine: what transformers' `_sample` does, and not more than an engine has use for.

Of a small model's token, transformers' own loop takes more time than the engine: it prepares each call anew, asks each criterion with
tensors, and copies logits that are the caller's already. Here its logits processors run as they are, and its usual bounds (length,
end of text) are looked up in Python. The tokens are the very same, random numbers included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of scores, by what is written
PLAIN = {"attention_mask", "use_cache", "past_key_values", "logits_to_keep", "cache_position"}


class Forward(Protocol):
    """A language model that keeps a past: logits [batch, tokens, vocabulary] that are the caller's, and the past to go on with."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Any, logits_to_keep: int
    ) -> CausalLMOutputWithPast: ...


@dataclass(frozen=True)
class Ending:
    """When a row has ended: at a length, behind some tokens, or where another criterion says so."""

    longest: int
    tokens: frozenset[int]
    others: StoppingCriteriaList

    @classmethod
    def of(cls, criteria: StoppingCriteriaList) -> Ending:
        longest, tokens, others = 10**18, frozenset[int](), []
        for one in criteria:
            # One that would warn beyond a model's positions is asked as it is.
            if type(one) is MaxLengthCriteria and one.max_length <= (one.max_position_embeddings or one.max_length):
                longest = min(longest, one.max_length)
            elif type(one) is EosTokenCriteria:
                tokens |= frozenset(one.eos_token_id.tolist())
            else:
                others.append(one)
        return cls(longest, tokens, StoppingCriteriaList(others))


@dataclass(frozen=True)
class NoEnd:
    """Lets no text end before a length: transformers looks for the tokens that end one in the whole vocabulary each time."""

    until: int
    tokens: torch.Tensor

    @classmethod
    def of(cls, processor: LogitsProcessor) -> Change:
        """The same as a logits processor that does nothing else; any other processor itself."""
        if type(processor) is MinNewTokensLengthLogitsProcessor:
            return cls(processor.prompt_length_to_skip + processor.min_new_tokens, processor.eos_token_id)
        if type(processor) is MinLengthLogitsProcessor:
            return cls(processor.min_length, processor.eos_token_id)
        return processor

    def __call__(self, written: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if written.shape[1] >= self.until:
            return scores
        known = self.tokens[self.tokens < scores.shape[1]]  # a model may lack the token that its tokenizer has
        return scores.index_fill(1, known, -math.inf)


def plain(config: GenerationConfig, arguments: Mapping[str, Any], synced: bool) -> bool:
    """Whether a generation asks for tokens alone, from a prompt without a past: what `decode` does."""
    return (
        not synced
        and not config.return_dict_in_generate
        and not config.is_assistant
        and config.prefill_chunk_size is None
        and bool(arguments.get("use_cache"))
        and arguments.get("past_key_values") is None
        and arguments.keys() <= PLAIN
    )


def decode(
    model: Forward,
    prompt: torch.Tensor,
    mask: torch.Tensor | None,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    streamer: BaseStreamer | None,
) -> torch.Tensor:
    """Continue a prompt, int64 [batch, tokens], as transformers' greedy decoding and sampling do. Returns [batch, more tokens]."""
    ending, changes, pad = Ending.of(criteria), [NoEnd.of(one) for one in processors], config._pad_token_tensor
    written, alive, past, fed = prompt, [True] * len(prompt), None, prompt
    while True:
        out = model.forward(fed, mask if past is None else None, past, 1)
        past, scores = out.past_key_values, out.logits[:, -1].float()
        for process in changes:
            scores = process(written, scores)
        found = torch.multinomial(scores.softmax(-1), 1).squeeze(1) if config.do_sample else scores.argmax(-1)
        if not all(alive):
            found = torch.where(torch.tensor(alive, device=found.device), found, pad)
        fed = found[:, None]
        written = torch.cat((written, fed), 1)
        if streamer is not None:
            streamer.put(found.cpu())
        alive = _alive(alive, written, found, ending)
        if not any(alive):
            break
    if streamer is not None:
        streamer.end()
    return written


def _alive(alive: list[bool], written: torch.Tensor, found: torch.Tensor, ending: Ending) -> list[bool]:
    if written.shape[1] >= ending.longest:
        return [False] * len(alive)
    ended: list[bool] = ending.others(written, None).tolist() if ending.others else [False] * len(alive)
    return [a and not e and t not in ending.tokens for a, e, t in zip(alive, ended, found.tolist(), strict=True)]
