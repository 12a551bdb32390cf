"""Text generation: a causal language model that transformers' `generate` runs, in torch or in an engine."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.streamers import BaseStreamer

from compress.algorithms.tensors import device_of, finish, to_array
from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.data.items import Item
from compress.machine.devices import AS_STORED, Opening
from compress.model.batching import apart, company
from compress.model.exportable import Batches
from compress.model.hook_settings import loaded_to
from compress.opening.models import Call, Timed
from compress.opening.rows import is_longer, open_tokenizer, read_item
from compress.opening.token_range import be_known
from compress.tasks.text_generation import Writing
from compress.tokenizers.chats import Reading, question_of
from compress.tokenizers.vocabulary import embeddings

if TYPE_CHECKING:
    from compress.recipe.values import EvalSpec

UNLIMITED = 10**9  # a tokenizer that knows no limit gives a number far above this
LONGEST = 2048  # for models that set no limit at all
ROWS = 16  # of a batch, where nobody says; engines are built for so many
CELLS = 2**25  # logits at a time: 128 MiB in float32
TEXT, BEGINNING = "The array of values to sort along the given axis.", "The array of values"


def open_model(artifact: Artifact, opening: Opening) -> TextGeneration:
    return TextGeneration(artifact, opening)


class TextGeneration:
    """A language model with its tokenizer. `model` can be given to `transformers.pipeline` or called by itself."""

    def __init__(self, artifact: Artifact, opening: Opening = AS_STORED) -> None:
        component = artifact.components[LANGUAGE_MODEL]
        engine = importlib.import_module(f"compress.engines.{component.format}.runtime")
        self.artifact = artifact
        self.opening = opening
        self.device = device_of(opening)
        self.company = company(artifact)
        folder, loaded = artifact.folder(LANGUAGE_MODEL), loaded_to(artifact, opening)
        self.model: Any = engine.load_language_model(folder, component.kind, loaded)
        self.tokenizer: Any = open_tokenizer(artifact, opening)
        self.known = embeddings(artifact.known_config(LANGUAGE_MODEL))

    @property
    def stock(self) -> Any:
        return self.model

    @property
    def brief(self) -> Mapping[str, Any]:
        return {}

    @property
    def examples(self) -> Sequence[Item]:
        return (Item("0", TEXT),)

    def probe(self, profile: Batches) -> NDArray[np.float64]:
        """One text scored, as long and as often as the profile takes: no letter makes more than one token."""
        rows, text = profile.nearest("batch", 1), TEXT[: profile.nearest("tokens", len(TEXT) + 1) - 1]
        return self.token_logprobs([text] * rows, rows)[0]

    def first_call(self, **call: object) -> None:
        """Sixteen tokens behind a few. Arguments of `generate` are part of the artifact already."""
        self.generate([self.encode(BEGINNING)], 16)

    def timed(self, items: Sequence[Item], spec: EvalSpec, call: Mapping[str, Any]) -> Timed:
        """One call continues `timing_batch` prompts of one length by exactly as many tokens as the recipe says."""
        own = spec.of(Writing)
        prompts = self._timed_prompts(items, own.prompt_tokens, spec.timing_batch)

        def run() -> tuple[float, float]:
            recorded = _FirstToken()
            finish(self.device)
            began = time.perf_counter()
            written = self.generate(prompts, own.new_tokens, streamer=recorded)
            finish(self.device)
            seconds = time.perf_counter() - began
            if any(len(row) != own.new_tokens for row in written):
                lengths = sorted({len(row) for row in written})
                raise ValueError(f"a side wrote {lengths} tokens where {own.new_tokens} were asked for")
            return seconds, recorded.puts[1] - began

        return Timed(run, own.new_tokens, own.prompt_tokens)

    def _timed_prompts(self, items: Sequence[Item], length: int, batch: int) -> list[list[int]]:
        """Prompts of exactly `length` tokens, out of the evaluation data."""
        stream: list[int] = []
        for item in items:
            stream += self.encode(item)
            if len(stream) >= length * batch:
                break
        stream = stream or self.encode(TEXT)
        needed = length * batch
        stream = (stream * (needed // len(stream) + 1))[:needed]
        return [stream[i : i + length] for i in range(0, needed, length)]

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model has positions for. Where it counts none (BLOOM, Mamba), what its tokenizer says."""
        named = (getattr(self.model.config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        known = next(filter(None, named), self.tokenizer.model_max_length)
        return int(known) if known < UNLIMITED else LONGEST

    def component(self, name: str) -> torch.nn.Module:
        """The language model, a language model's only component."""
        module: torch.nn.Module = self.model
        return module

    def function_of(self, component: str) -> str:
        return "forward"

    def calls_of(
        self, components: Sequence[str], items: Sequence[Item], seed: int, *, batch: int = 1, **call: object
    ) -> Iterator[tuple[str, Call]]:
        """One call for each document that has two tokens or more."""
        for item in items:
            tokens = self.encode(item)
            if len(tokens) > 1:
                yield LANGUAGE_MODEL, {"input_ids": torch.tensor([tokens], device=self.device), "use_cache": False}

    def encode(self, item: Item | str) -> list[int]:
        """The tokens that `read` gives."""
        return self.read(item).tokens

    def read(self, item: Item | str) -> Reading:
        """A document's tokens behind the token that begins one (`bos`, or `eos` where there is none), or what the chat template makes of
        a conversation, cut to the model's length.

        Raises:
            DataError: the model has no embedding for one of them, or no chat template for a conversation.
        """
        return read_item(self.tokenizer, item, self.max_tokens, self.known)

    def cut_short(self, items: Sequence[Item]) -> str:
        """As `LanguageModel.cut_short`."""
        longer = sum(is_longer(self.tokenizer, item, self.max_tokens) for item in items)
        what = "conversations" if any(item.messages for item in items) else "documents"
        behind = "the answers" if what == "conversations" else "the tokens"
        return (
            f"{longer} of {len(items)} {what} are longer than the {self.max_tokens} tokens that the model reads: {behind} behind "
            "those are not scored"
            if longer
            else ""
        )

    def questions_cut(self, items: Sequence[Item], new_tokens: int) -> str:
        """As `LanguageModel.questions_cut`."""
        room = max(1, self.max_tokens - new_tokens)
        longer = sum(bool(item.messages) and len(question_of(self.tokenizer, item)) > room for item in items)
        return (
            f"{longer} of {len(items)} conversations leave no room for {new_tokens} tokens: of each the last {room} tokens are "
            "continued"
            if longer
            else ""
        )

    def prompt(self, item: Item, most: int, new_tokens: int) -> list[int]:
        """What of an item is continued by `new_tokens` tokens: a document's start, `most` tokens or half of it; of a conversation all
        before its last answer, with what begins that, as far as there is room (its end, where there is not)."""
        if item.messages:
            found = question_of(self.tokenizer, item)[-max(1, self.max_tokens - new_tokens) :]
            be_known(self.known, self.tokenizer, item.text, found)
            return found
        tokens = self.encode(item)
        return tokens[: min(most, max(1, len(tokens) // 2))]  # at least half a document is left to write

    def token_logprobs(self, items: Sequence[Item | str], batch: int) -> list[NDArray[np.float64]]:
        """For each document the natural-log probability of each of its tokens, given those before it; of a conversation those of the
        assistant's tokens.

        The softmax runs in float32 whatever the model's dtype. A document longer than the model's positions is cut.
        """
        documents = [self.read(item) for item in items]
        scores: list[NDArray[np.float64]] = []
        for start in range(0, len(documents), batch):
            scores += self._score(documents[start : start + batch])
        return scores

    def generate(self, prompts_tokens: Sequence[Sequence[int]], new_tokens: int, **call: object) -> list[list[int]]:
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
        with torch.no_grad():
            grown: torch.Tensor = self.model.generate(tokens, attention_mask=torch.ones_like(tokens), **arguments)
        return grown

    def logits(self, documents: Sequence[Sequence[int]]) -> torch.Tensor:
        """What the model says behind each token of a batch: [documents, longest, vocabulary], of the model's own dtype.

        Rows behind a document's end mean nothing. What a document's rows say never depends on the others: those that may not
        share a call are read apart.
        """
        lengths = [len(document) for document in documents]
        calls = [rows for rows in apart(self.company, lengths) if max(lengths[row] for row in rows)]
        if not calls or len(calls[0]) == len(documents):
            return self._read(documents)
        found = [self._read([documents[row] for row in rows]) for rows in calls]
        together = found[0].new_zeros(len(documents), max(lengths), found[0].shape[-1])
        for rows, message in zip(calls, found, strict=True):
            together[rows, : message.shape[1]] = message
        return together

    def _read(self, documents: Sequence[Sequence[int]]) -> torch.Tensor:
        """The `logits` of one call."""
        longest = max(map(len, documents))
        # Padding stands behind the text, where a causal model cannot see it.
        tokens = torch.tensor([[*d, *[0] * (longest - len(d))] for d in documents], device=self.device)
        with torch.no_grad():
            message: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return message

    def batches(self, lengths: Sequence[int], rows: int = ROWS) -> Iterator[list[int]]:
        """Indices in batches of like length, longest first, of at most `rows`, and no more than their `logits` fit into `CELLS`, or one by
        itself. A model may tell more tokens apart than its tokenizer has."""
        most, batch = CELLS // max(len(self.tokenizer), self.known or 0), list[int]()
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batch and (len(batch) == rows or (len(batch) + 1) * lengths[batch[0]] > most):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _score(self, documents: list[Reading]) -> list[NDArray[np.float64]]:
        if max(len(document.tokens) for document in documents) < 2:
            return [np.empty(0) for _ in documents]
        logits, scores = self.logits([document.tokens for document in documents]), []
        for row, document in enumerate(documents):
            following = torch.tensor(document.tokens[1:], dtype=torch.long, device=self.device)
            found = logits[row, : len(following)].float().log_softmax(-1).gather(-1, following[:, None])[:, 0]
            score = to_array(found.double())
            scores.append(score if document.counted is None else score[np.array(document.counted[1:], dtype=bool)])
        return scores


class _FirstToken(BaseStreamer):  # type: ignore[misc]
    """Notes when the first written token arrives; what arrives before it is the prompt."""

    def __init__(self) -> None:
        self.puts: list[float] = []

    def put(self, value: object) -> None:
        self.puts.append(time.perf_counter())

    def end(self) -> None:
        return
