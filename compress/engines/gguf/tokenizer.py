"""A tokenizer as llama.cpp reads it from a GGUF file: tokens and their kinds, and what joins them, merges or scores."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from compress.errors import ModelError
from compress.machine.llama_cpp import KNOWN_SPLITS, Vocabulary, vocabulary

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_NO_PIECE = -1e9  # the score of a token that is no join of two others


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Write a tokenizer of transformers.

    Args:
        rows: of the model's embeddings.

    Raises:
        ModelError: llama.cpp would cut text in another way, or the tokenizer has a token that the model has no row for.
    """
    place = str(tokenizer.name_or_path)
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    if (known := vocabulary(backend)) is None:
        raise ModelError(
            "llama.cpp does not know how this model's tokenizer cuts text",
            place=place,
            fix="leave build.gguf out, or use a byte-level BPE that cuts as one of "
            f"{', '.join(KNOWN_SPLITS)}, or pieces of SentencePiece",
        )
    tokens, types = _tokens(tokenizer, rows, known)
    writer.add_tokenizer_model(known.model)
    writer.add_tokenizer_pre(known.cut)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_joins(writer, known, tokens, backend, place)
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None and number < rows:
            getattr(writer, f"add_{name}_token_id")(number)
    begun: list[int] = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begun[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int, known: Vocabulary) -> tuple[list[str], list[TokenType]]:
    """Each row's token and kind. Rows that the tokenizer does not use get a name all the same; added tokens without a
    row, which the model could not read anyway, are left out."""
    added = tokenizer.added_tokens_decoder
    spelt = {number: token for token, number in tokenizer.get_vocab().items() if number < rows or number not in added}
    if max(spelt) >= rows:
        raise ModelError(
            f"the tokenizer has token {max(spelt)}, and the model only {rows} rows",
            place=str(tokenizer.name_or_path),
            fix="give the model its own tokenizer",
        )
    kinds = {n: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for n, token in added.items()}
    if known.model == "llama":
        kinds |= {n: TokenType.BYTE for n, token in spelt.items() if _BYTE.fullmatch(token)}
        kinds |= {n: TokenType.UNKNOWN for n in (tokenizer.unk_token_id,) if n is not None}
    tokens = [spelt.get(row, f"[PAD{row}]") for row in range(rows)]
    types = [kinds.get(row, TokenType.NORMAL if row in spelt else TokenType.UNUSED) for row in range(rows)]
    return tokens, types


def _add_joins(
    writer: GGUFWriter, known: Vocabulary, tokens: Sequence[str], backend: Mapping[str, Any], place: str
) -> None:
    model = backend["model"]
    merges = [(left, right) for left, right in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])]
    if known.model == "gpt2":
        # llama.cpp wants a list, and the writer takes none that is empty.
        writer.add_token_merges([" ".join(m) for m in merges] or [""])
        return
    added = (token["content"] for token in backend["added_tokens"])
    pieces = frozenset(model["vocab"]).difference(added)
    scores = piece_scores({p for p in pieces if not _BYTE.fullmatch(p)}, merges)
    if scores is None:
        raise ModelError(
            "its tokenizer joins pieces in an order that llama.cpp cannot follow",
            place=place,
            fix="leave build.gguf out: the merges of a piece must stand together, and lack no way to write it",
        )
    writer.add_token_scores([scores.get(token, _NO_PIECE) for token in tokens])
    writer.add_add_space_prefix(known.space_first)


def piece_scores(pieces: Collection[str], merges: Sequence[tuple[str, str]]) -> dict[str, float] | None:
    """Scores by which llama.cpp joins pieces as these merges do: it joins any two whose join is a piece, best score first.

    Returns None if there are none: two pieces that are no merge join to a piece, or a piece's merges stand apart.
    """
    scores: dict[str, float] = {}
    last = ""
    for left, right in merges:
        if (joined := left + right) != last and joined in scores:
            return None
        last = joined
        scores.setdefault(joined, -float(len(scores)))
    wanted = set(merges)
    for piece in pieces:
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if any(left in pieces and right in pieces and (left, right) not in wanted for left, right in halves):
            return None
    return scores
