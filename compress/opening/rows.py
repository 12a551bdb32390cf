"""Texts as rows of tokens, for whatever is calibrated on them: read one document at a time and cut to a length, so that memory is
bounded by rows × length, and no model need be open."""

from __future__ import annotations

from itertools import islice
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.context import Context
from compress.data.items import Item
from compress.errors import DataError, ModelError
from compress.machine.devices import Opening
from compress.opening.token_range import be_known
from compress.tokenizers.chats import Reading, reading_of, tokens_of_chat
from compress.tokenizers.vocabulary import embeddings, positions


def calibration_rows(artifact: Artifact, samples: int, length: int, context: Context) -> list[list[int]]:
    """The tokens of the first calibration documents, each behind the token that begins one and cut to `length`: those of two or more.

    Args:
        samples: documents at most.

    Raises:
        DataError: there is none of two tokens, or one has a token that the model has no embedding for.
        ModelError: no tokenizer loads.
    """
    tokenizer = open_tokenizer(artifact, context.opening)
    config = artifact.known_config(LANGUAGE_MODEL)
    longest = min(length, positions(config) or length)
    known = embeddings(config)
    data = context.data["calibration"]
    total = samples if data.count < 0 else min(samples, data.count)
    items = context.progress(islice(data.each(), samples), "calibration texts", total)
    rows = [row for item in items if len(row := tokens_of(tokenizer, item, longest, known)) > 1]
    if not rows:
        raise DataError("no calibration document has two tokens", fix="give longer ones")
    return rows


def tokens_of(tokenizer: Any, item: Item | str, longest: int, known: int | None) -> list[int]:
    """The tokens that `read_item` gives; of a conversation, whether or not anything tells which of them are the assistant's."""
    if isinstance(item, Item) and item.messages:
        found = tokens_of_chat(tokenizer, item)[:longest]
        be_known(known, tokenizer, item.text, found)
        return found
    return read_item(tokenizer, item, longest, known).tokens


def read_item(tokenizer: Any, item: Item | str, longest: int, known: int | None) -> Reading:
    """A document's tokens behind the token that begins one (`bos`, or `eos` where there is none), or what the chat template makes of a
    conversation; at most `longest`.

    Args:
        known: how many embeddings the model has; None where nobody knows.

    Raises:
        DataError: the model has no embedding for one of them, or no chat template for a conversation.
    """
    if isinstance(item, Item) and item.messages:
        found = reading_of(tokenizer, item).cut(longest)
        be_known(known, tokenizer, item.text, found.tokens)
        return found
    text = item.text if isinstance(item, Item) else item
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    room = longest - (start is not None)
    tokens: list[int] = tokenizer(text, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
    be_known(known, tokenizer, text, tokens)
    return Reading(([] if start is None else [int(start)]) + tokens)


def is_longer(tokenizer: Any, item: Item | str, longest: int) -> bool:
    """Whether an item has more tokens than `read_item` gives."""
    if isinstance(item, Item) and item.messages:
        return len(tokens_of_chat(tokenizer, item)) > longest
    text = item.text if isinstance(item, Item) else item
    begun = (tokenizer.bos_token_id, tokenizer.eos_token_id) != (None, None)
    room = longest - begun
    found = tokenizer(text, add_special_tokens=False, truncation=True, max_length=room + 1)["input_ids"]
    return len(found) > room


def open_tokenizer(artifact: Artifact, opening: Opening) -> Any:
    """A language model's tokenizer.

    Raises:
        ModelError: none loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(artifact.path), trust_remote_code=opening.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"has no tokenizer that loads: {error}",
            place=str(artifact.path),
            fix="save the tokenizer into the model's folder",
        ) from error
