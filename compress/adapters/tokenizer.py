"""The tokenizer that training scripts save beside an adapter: the model's own goes on reading, so it must know the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.adapters.lora import TEMPLATE
from compress.errors import ModelError
from compress.tokenizers.tokens import CONFIG, PAD, Tokens, read_object, read_tokens

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
    mine = read_tokens(adapter)
    numbers = mine.numbers
    if other := sorted(_other(mine, read_tokens(model))):
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        message = ", ".join(f"{token!r} ({numbers[token]})" for token in other[:SHOWN])
        yield f"brings a tokenizer with other tokens than the model's: {message}{more}", FIX


def _other(mine: Tokens, own: Tokens) -> Iterator[str]:
    """Those of an adapter's tokens that the model does not know by the same number, but for what pads, which nothing here does.

    Where the model's vocabulary does not read (tokenizer.model), it is taken to be the adapter's, as it is for every adapter that
    was trained on the model; what was added to it tells.
    """
    pads = {mine.special.get(PAD, ""), ""} - mine.used()
    known, compared = (own.numbers, mine.numbers) if own.base else ({**mine.base, **own.added}, mine.added)
    named = frozenset() if own.base else own.used(PAD)  # tokens of its vocabulary, unless their numbers are reported
    for token, number in compared.items():
        same = known.get(token) == number or (token in named and token not in known)
        if not same and token not in pads:
            yield token


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
    found = read_object(folder / CONFIG).get("chat_template")
    return found if isinstance(found, str) else ""
