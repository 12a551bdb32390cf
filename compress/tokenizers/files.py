"""Whether a tokenizer's folder holds what its library makes it of, read from file names and JSON: without its vocabulary some
classes open all the same, and read every word as unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.errors import ModelError, Problem
from compress.pipelines.index import INDEX, named_parts

WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
KEPT = (WHOLE, "*.model", "vocab*", "*.tiktoken", "*.vocab", "*.spm")  # a vocabulary is in one of these
PAIRED = ("vocab.json", "merges.txt")  # one is nothing without the other
CLIP = "CLIPTokenizer"
BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")  # need none
FIX = "fetch the tokenizer's files again, or save it beside the model with save_pretrained"


def tokenizer_problems(artifact: Artifact) -> Iterator[Problem]:
    """Tokenizers, a language model's or each of a pipeline's, that lack their vocabulary, or the length that texts are cut to."""
    if LANGUAGE_MODEL in artifact.components:
        yield from _vocabulary(artifact.path)
    index = read_json(artifact.path / INDEX) if (artifact.path / INDEX).is_file() else {}
    for name, (_, kind) in named_parts(index).items():
        folder = artifact.path / name
        if not name.startswith("tokenizer") or not folder.is_dir():
            continue
        if not any(found for kept in KEPT for found in folder.glob(kept)) and not kind.startswith(BYTES):
            message = f"`{name}` holds no vocabulary, and {kind} would read every word as unknown"
            yield Problem(str(folder), message, FIX)
            continue
        yield from _vocabulary(folder)
        if kind.startswith(CLIP):
            yield from _length(artifact, name, folder)


def _vocabulary(folder: Path) -> Iterator[Problem]:
    """What a tokenizer's own files lack."""
    if (folder / WHOLE).is_file():
        message = _readable(folder / WHOLE)
        model = message.get("model") if message is not None else None
        vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
        missing = [
            name
            for name, there in (("model.vocab", vocabulary), ("added_tokens", "added_tokens" in (message or {})))
            if not there
        ]
        if message is not None and missing:
            yield Problem(str(folder / WHOLE), f"is no tokenizer: it has no {' and no '.join(missing)}", FIX)
        return
    there = [name for name in PAIRED if (folder / name).is_file()]
    if len(there) == 1 and not any(folder.glob("*.model")):
        other = next(name for name in PAIRED if name not in there)
        yield Problem(str(folder), f"has {there[0]} and no {other}, and a tokenizer needs both", FIX)
    elif there and _readable(folder / PAIRED[0]) == {}:
        yield Problem(str(folder / PAIRED[0]), "is an empty vocabulary", FIX)


def _length(artifact: Artifact, name: str, folder: Path) -> Iterator[Problem]:
    """CLIP reads texts of as many tokens as it has positions, and its pipelines ask the tokenizer how many that are."""
    encoder = name.replace("tokenizer", "text_encoder", 1)
    positions = (
        artifact.known_config(encoder).get("max_position_embeddings") if encoder in artifact.components else None
    )
    message = _readable(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if message is None or not isinstance(positions, int):
        return
    length = message.get("model_max_length")
    if not isinstance(length, int) or length > positions:
        says = f"says model_max_length {length}" if "model_max_length" in message else "says no model_max_length"
        whole = f"`{name}` {says}, and `{encoder}` reads {positions} tokens (max_position_embeddings)"
        yield Problem(str(folder / CONFIG), whole, f'write "model_max_length": {positions} into it')


def _readable(file: Path) -> Mapping[str, Any] | None:
    """A JSON object; None of a file that is none, which vocabulary.py tells."""
    try:
        return read_json(file)
    except ModelError:
        return None
