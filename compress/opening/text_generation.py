"""Text generation: a causal language model that transformers' `generate` runs, in torch or in an engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.data import Item
from compress.errors import ModelError

UNLIMITED = 10**9  # a tokenizer that knows no limit gives a number far above this
LONGEST = 2048  # for models that set no limit at all
CELLS = 2**25  # logits at a time: 128 MiB in float32


class TextGeneration:
    """A language model with its tokenizer. `model` can be given to `transformers.pipeline` or called by itself."""

    def __init__(self, artifact: Artifact, *, dtype: torch.dtype | None = None, device: str = "cpu") -> None:
        component = artifact.components[LANGUAGE_MODEL]
        engine = importlib.import_module(f"compress.engines.{component.format}.runtime")
        self.artifact = artifact
        self.device = device
        self.model: Any = engine.load_language_model(artifact.folder(LANGUAGE_MODEL), component.kind, dtype, device)
        self.tokenizer: Any = _tokenizer(artifact)

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model has positions for. Where it counts none (BLOOM, Mamba), what its tokenizer says."""
        known = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(known) if known < UNLIMITED else LONGEST

    def component(self, name: str) -> Any:
        """The language model, a language model's only component."""
        return self.model

    def record(
        self, component: str, items: Sequence[Item], seed: int, batch: int = 1, **call: Any
    ) -> Iterator[dict[str, Any]]:
        """One call for each document that has two tokens or more, its arguments by name."""
        for item in items:
            tokens = self.encode(item.text)
            if len(tokens) > 1:
                yield {"input_ids": torch.tensor([tokens], device=self.device), "use_cache": False}

    def encode(self, text: str) -> list[int]:
        """A document's tokens behind the token that begins one (`bos`, or `eos` where there is none), cut to the model's length."""
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        room = self.max_tokens - (start is not None)
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=room)[
            "input_ids"
        ]
        return ([] if start is None else [int(start)]) + tokens

    def token_logprobs(self, texts: Sequence[str], batch: int) -> list[NDArray[np.float64]]:
        """For each document the natural-log probability of each of its tokens, given those before it.

        The softmax runs in float32 whatever the model's dtype. A document longer than the model's positions is cut.
        """
        documents = [self.encode(text) for text in texts]
        scores: list[NDArray[np.float64]] = []
        for start in range(0, len(documents), batch):
            scores += self._score(documents[start : start + batch])
        return scores

    def generate(self, prompts_tokens: Sequence[Sequence[int]], new_tokens: int, **call: Any) -> list[list[int]]:
        """Continue each prompt greedily by exactly `new_tokens` tokens, and return only those.

        Prompts of one length run as one batch, so no prompt is ever padded and no position shifted.
        """
        answers: dict[int, list[int]] = {}
        lengths = [len(p) for p in prompts_tokens]
        for length in sorted(set(lengths)):
            rows = [i for i, n in enumerate(lengths) if n == length]
            tokens = torch.tensor([list(prompts_tokens[i]) for i in rows], device=self.device)
            grown = self._continue(tokens, new_tokens, call)
            answers |= {row: grown[i, length:].tolist() for i, row in enumerate(rows)}
        return [answers[i] for i in range(len(lengths))]

    def complete(self, prompt: Sequence[int], most: int) -> list[int]:
        """Continue one prompt greedily until the model ends its text, which is the last token then, or `most` tokens stand."""
        tokens = torch.tensor([list(prompt)], device=self.device)
        written: list[int] = self._continue(tokens, most, {"min_new_tokens": 0})[0, len(prompt) :].tolist()
        return written

    def _continue(self, tokens: torch.Tensor, new_tokens: int, call: dict[str, Any]) -> torch.Tensor:
        exact = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "num_beams": 1}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        arguments = {**self.artifact.settings.call, **exact, "pad_token_id": pad, **call}
        with torch.inference_mode():
            grown: torch.Tensor = self.model.generate(tokens, attention_mask=torch.ones_like(tokens), **arguments)
        return grown

    def logits(self, documents: Sequence[Sequence[int]]) -> torch.Tensor:
        """What the model says behind each token of a batch: [documents, longest, vocabulary], of the model's own dtype.

        Rows behind a document's end mean nothing.
        """
        longest = max(map(len, documents))
        # Padding stands behind the text, where a causal model cannot see it.
        tokens = torch.tensor([[*d, *[0] * (longest - len(d))] for d in documents], device=self.device)
        with torch.inference_mode():
            said: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return said

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of like length, longest first, so many that their `logits` fit into `CELLS`, or one by itself."""
        most, batch = CELLS // len(self.tokenizer), list[int]()
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > most:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _score(self, documents: list[list[int]]) -> list[NDArray[np.float64]]:
        if max(map(len, documents)) < 2:
            return [np.empty(0) for _ in documents]
        logits, scores = self.logits(documents), []
        for row, document in enumerate(documents):
            following = torch.tensor(document[1:], dtype=torch.long, device=self.device)
            found = logits[row, : len(following)].float().log_softmax(-1).gather(-1, following[:, None])[:, 0]
            scores.append(found.cpu().double().numpy())
        return scores


def _tokenizer(artifact: Artifact) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(artifact.path))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"has no tokenizer that loads: {error}",
            place=str(artifact.path),
            fix="save the tokenizer into the model's folder",
        ) from error
