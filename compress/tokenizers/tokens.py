"""The tokens of a tokenizer and their numbers, as far as its files are JSON: no tokenizer is opened for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONFIG = "tokenizer_config.json"
# What a tokenizer puts into texts by itself. Padding is not among them: whoever pads says so.
WRITTEN = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token")
PAD = "pad_token"


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's tokens with their numbers.

    base: of the vocabulary that texts are cut into; empty where it is kept otherwise than as JSON (tokenizer.model, vocab.txt).
    added: each found in a text only where the text has it letter by letter; some may be of the vocabulary too.
    special: by what it is for (bos_token, pad_token …), the token.
    """

    base: Mapping[str, int]
    added: Mapping[str, int]
    special: Mapping[str, str]

    @property
    def numbers(self) -> Mapping[str, int]:
        """All tokens that are known with their numbers."""
        return {**self.base, **self.added}

    def used(self, *more: str) -> frozenset[str]:
        """Those that it puts into texts by itself, for the uses in `WRITTEN` and in `more`."""
        return frozenset(self.special[use] for use in (*WRITTEN, *more) if use in self.special)


def read_tokens(folder: Path) -> Tokens:
    """What the tokenizer's files in a folder say; nothing of files that are not there or do not read: loading it tells of those."""
    whole, config = read_object(folder / "tokenizer.json"), read_object(folder / CONFIG)
    model = whole.get("model")
    model = model if isinstance(model, Mapping) else {"vocab": read_object(folder / "vocab.json")}
    added = dict(_added(whole.get("added_tokens"), folder, config.get("added_tokens_decoder")))
    special = {"unk_token": model.get("unk_token")} | read_object(folder / "special_tokens_map.json") | config
    named = {use: _text(special.get(use)) for use in (*WRITTEN, PAD)}
    return Tokens(_numbers(model.get("vocab")), added, {use: token for use, token in named.items() if token})


def _added(listed: object, folder: Path, decoder: object) -> Iterator[tuple[str, int]]:
    """The tokens beside the vocabulary, of each of the three places that libraries keep them in."""
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("id"), int):
            yield _text(one), one["id"]
    yield from _numbers(read_object(folder / "added_tokens.json")).items()
    for number, one in decoder.items() if isinstance(decoder, Mapping) else ():
        if str(number).isdecimal():
            yield _text(one), int(number)


def _text(message: object) -> str:
    """A token, which is kept as text or as an object with its text and how it is matched."""
    found = message.get("content") if isinstance(message, Mapping) else message
    return found if isinstance(found, str) else ""


def _numbers(vocabulary: object) -> dict[str, int]:
    if isinstance(vocabulary, Mapping):
        return {str(token): number for token, number in vocabulary.items() if isinstance(number, int)}
    pieces = vocabulary if isinstance(vocabulary, list) else ()  # with their scores, in order
    return {str(piece[0]): number for number, piece in enumerate(pieces) if isinstance(piece, list) and piece}


def read_object(file: Path) -> dict[str, object]:
    """A JSON object; an empty one where there is no such file, or it is something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
