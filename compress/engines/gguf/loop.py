"""Greedy decoding and sampling with nothing between two calls of llama.cpp but the choice of a token.

transformers' own loop spends time on masks, caches and criteria that an engine does not have, and finds its code gone
from the processor's caches after each token: weights have passed through them. So a token here is as little code as can
be. What transformers has prepared is kept: its processors, its end of a text, its draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from compress.algorithms.tensors import to_array, to_host

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    from compress.engines.gguf.runtime import LlamaModel

ELSEWHERE = (
    "synced_gpus",
    "streamer",
    "past_key_values",
    "inputs_embeds",
)  # arguments that only transformers' loop serves


@dataclass(frozen=True)
class Forbidden:
    """Tokens that may not be chosen while a text, its prompt with it, is shorter than `before`."""

    tokens: frozenset[int]
    before: int


@dataclass(frozen=True)
class Plain:
    """A generation that this loop can do: how a token is chosen, and when the text is at its end."""

    processors: Any  # of transformers, for each token's scores; empty where `forbidden` says it all
    forbidden: tuple[Forbidden, ...]
    sampled: bool
    most: int
    ends: frozenset[int]
    pad: int

    @classmethod
    def of(
        cls,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **others: object,
    ) -> Plain | None:
        """What `generate` asks for; None where only its own loop can do that."""
        known = all(type(c) in (MaxLengthCriteria, EosTokenCriteria) for c in stopping_criteria)
        asked = any(others.get(name) is not None and others[name] is not False for name in ELSEWHERE)
        if not known or asked or generation_config.return_dict_in_generate or others.get("use_cache") is False:
            return None
        forbidden = _forbidden(logits_processor)
        ends = (
            int(t) for c in stopping_criteria if isinstance(c, EosTokenCriteria) for t in c.eos_token_id.reshape(-1)
        )
        pad = generation_config._pad_token_tensor
        return cls(
            processors=logits_processor if forbidden is None else (),
            forbidden=forbidden or (),
            sampled=bool(generation_config.do_sample),
            most=min(c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)),
            ends=frozenset(ends),
            pad=0 if pad is None else int(pad),
        )

    def choose(self, logits: NDArray[np.float32], written: torch.Tensor, length: int) -> NDArray[np.int64]:
        """A token for each row of logits [rows, vocabulary], which this may change.

        Args:
            written: int64 [rows, tokens], of which the first `length` stand.
        """
        greedy = not self.sampled and not self.processors
        if greedy:
            chosen: NDArray[np.int64] = logits.argmax(1)
            found = chosen.tolist()
            if all(rule.tokens.isdisjoint(found) for rule in self.forbidden):  # as nearly always
                return chosen
        for rule in self.forbidden:
            if length < rule.before:
                logits[:, list(rule.tokens)] = -np.inf
        if greedy:
            return logits.argmax(1)
        scores = torch.from_numpy(logits)
        if self.processors:
            scores = self.processors(written[:, :length], scores.clone())
        if self.sampled:
            return to_array(torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0])
        return to_array(scores.argmax(-1))


def _forbidden(processors: Sequence[Any]) -> tuple[Forbidden, ...] | None:
    """Processors that only keep a text from ending early, as rules; None if there are others among them."""
    rules = []
    for found in processors:
        if type(found) is MinNewTokensLengthLogitsProcessor:
            before = found.prompt_length_to_skip + found.min_new_tokens
        elif type(found) is MinLengthLogitsProcessor:
            before = found.min_length
        else:
            return None
        rules.append(Forbidden(frozenset(found.eos_token_id.reshape(-1).tolist()), before))
    return tuple(rules)


def plain_loop(model: LlamaModel, prompt: torch.Tensor, plain: Plain, mask: torch.Tensor | None) -> torch.Tensor:
    """Continue prompts [rows, tokens] until each row is at its end: int64 [rows, tokens], padded behind a row's end.

    Args:
        model: a `LlamaModel`; its `forward` takes the prompt, its decoder the tokens after it.
    """
    rows, length = prompt.shape
    here = to_host(prompt)
    written = torch.cat([here, here.new_zeros(rows, max(0, plain.most - length))], 1)
    numbers = to_array(written)  # the same memory
    message = model(prompt, attention_mask=mask, logits_to_keep=1)
    past, following = message.past_key_values, model.decoder.following
    logits = to_array(message.logits[:, -1])
    going: NDArray[np.bool_] | None = None  # which rows are not at their end; None as long as all are not
    while True:
        chosen = plain.choose(logits, written, length)
        if going is not None:
            chosen = np.where(going, chosen, plain.pad)
        numbers[:, length] = chosen
        length += 1
        if not plain.ends.isdisjoint(ended := chosen.tolist()):
            still = np.array([token not in plain.ends for token in ended])
            going = still if going is None else going & still
        if length >= plain.most or (going is not None and not going.any()):
            return written[:, :length].to(prompt.device)
        logits = following(chosen, past)
