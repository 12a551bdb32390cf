"""The tokenizer that training scripts save beside an adapter: the model's own goes on reading, so it must know the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from compress.adapters import TEMPLATE, TOKENIZER_CONFIG
from compress.errors import ModelError

SHOWN = 3
FIX = (
    "if the model has embeddings for them, put the adapter's tokenizer into a copy of the model's folder, and give that; else merge "
    "adapter, tokenizer and resized embeddings with peft, and give the merged model"
)


def tokenizer_problems(adapter: Path, model: Path) -> Iterator[tuple[str, str]]:
    """What an adapter's tokenizer has that the model's has not: message and remedy. Files of weights, or none, say nothing."""
    try:
        chat_template(adapter)
    except ModelError as error:
        yield from ((f"has a template of conversations that {p.message}", p.fix) for p in error.problems)
    mine, own = tokens(adapter), tokens(model)
    if not mine:
        return
    if other := sorted(token for token, number in mine.items() if own.get(token) != number):
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        said = ", ".join(f"{token!r} ({mine[token]})" for token in other[:SHOWN])
        yield f"brings a tokenizer with other tokens than the model's: {said}{more}", FIX


def chat_template(folder: Path) -> str:
    """The template that a tokenizer's folder has for conversations; "" where it has none, or several by name.

    Raises:
        ModelError: it does not read as text.
    """
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"does not read: {error}", place=str(folder / TEMPLATE), fix="save it as UTF-8") from error
    found = _read(folder / TOKENIZER_CONFIG).get("chat_template")
    return found if isinstance(found, str) else ""


def tokens(folder: Path) -> dict[str, int]:
    """The numbers of a tokenizer's tokens, of its files that are JSON."""
    whole = _read(folder / "tokenizer.json")
    model = whole.get("model")
    found = _numbers(model.get("vocab") if isinstance(model, Mapping) else _read(folder / "vocab.json"))
    added = whole.get("added_tokens")
    for one in added if isinstance(added, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("id"), int):
            found[str(one.get("content"))] = one["id"]
    found |= _numbers(_read(folder / "added_tokens.json"))
    named = _read(folder / TOKENIZER_CONFIG).get("added_tokens_decoder")
    for number, one in named.items() if isinstance(named, Mapping) else ():
        if str(number).isdecimal() and isinstance(one, Mapping):
            found[str(one.get("content"))] = int(number)
    return found


def _numbers(vocabulary: object) -> dict[str, int]:
    if isinstance(vocabulary, Mapping):
        return {str(token): number for token, number in vocabulary.items() if isinstance(number, int)}
    pieces = vocabulary if isinstance(vocabulary, list) else ()  # with their scores, in order
    return {str(piece[0]): number for number, piece in enumerate(pieces) if isinstance(piece, list) and piece}


def _read(file: Path) -> Mapping[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
