"""Whether a tokenizer fits the model that reads its tokens, read from their JSON: a token beyond the embeddings ends in an IndexError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.errors import ModelError, Problem
from compress.tokenizers.tokens import PAD, Tokens, read_tokens

# A tokenizer is in one of these: the first as fast tokenizers are kept, the others as slow ones.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
FETCH = "fetch the tokenizer's files, or save it beside the model: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
FIX = "give the tokenizer that came with the model, or save the model with its embeddings resized to the tokenizer's length"


def vocabulary_problems(artifact: Artifact) -> Iterator[Problem]:
    """Tokenizers that are not there, or are no JSON objects, or with tokens that the model reading them has no embedding for."""
    if LANGUAGE_MODEL in artifact.components and not any((artifact.path / file).is_file() for file in FILES):
        yield Problem(str(artifact.path), f"has no tokenizer: none of {', '.join(FILES[:4])} …", FETCH)
    for name in artifact.components:
        if (folder := _tokenizer_of(artifact, name)) is not None:
            yield from _garbled(folder)
    for name, part in artifact.components.items():
        known = embeddings(artifact.config(name)) if part.format == "torch" else None
        folder = _tokenizer_of(artifact, name)
        if known is None or folder is None:
            continue
        whose = "the model" if name == LANGUAGE_MODEL else f"`{name}`"
        if message := _beyond(read_tokens(folder), known, padded=name != LANGUAGE_MODEL):
            yield Problem(str(folder), f"{message}, and {whose} has embeddings for {known} (vocab_size)", FIX)


def _beyond(tokens: Tokens, known: int, *, padded: bool) -> str:
    """The token without an embedding that texts will have; "" where there is none. Other added tokens may have none, as Gemma 3's
    for images: a text that has one is refused when it is read (opening/known_tokens.py)."""
    if (largest := max((n for t, n in tokens.base.items() if t not in tokens.added), default=-1)) >= known:
        return f"the tokenizer counts to token {largest}"
    used = sorted(tokens.used(*((PAD,) if padded else ())))
    return next((f"the tokenizer writes {t!r}, token {n}" for t in used if (n := tokens.added.get(t, -1)) >= known), "")


def _garbled(folder: Path) -> Iterator[Problem]:
    """The JSON files beside a model that must be objects, and do not read as such."""
    for file in OBJECTS:
        try:
            read_json(folder / file) if (folder / file).is_file() else None
        except ModelError as error:
            yield from error.problems


def embeddings(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model has embeddings for; None where its config does not say."""
    nested = config.get("text_config")
    found = config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, Mapping) else None)
    return found if isinstance(found, int) else None


def positions(config: Mapping[str, Any]) -> int:
    """How many tokens a language model has positions for; 0 where its config does not say."""
    found = next(
        (config[name] for name in ("max_position_embeddings", "n_positions", "max_seq_len") if config.get(name)), 0
    )
    return found if isinstance(found, int) else 0


def _tokenizer_of(artifact: Artifact, name: str) -> Path | None:
    """The folder of the tokenizer whose tokens a component reads; None of a component that reads none."""
    if name == LANGUAGE_MODEL:
        return artifact.path
    folder = artifact.path / name.replace("text_encoder", "tokenizer", 1)
    return folder if name.startswith("text_encoder") and folder.is_dir() else None
