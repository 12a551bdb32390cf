"""The tokenizer of both image models: a CLIP byte-level BPE in which every word of the caption grammar is one token."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from compress.zoo import scenes

LENGTH = 16  # the longest caption has eleven words, and two marks are added
WORDS = (*scenes.WORDS, *scenes.INKS, *scenes.PAPERS, "a", "left", "of", "above", "on", "paper")


def new_tokenizer() -> CLIPTokenizer:
    """Bytes, their word-final forms, the merges that make each word one token, and the two marks."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([" ".join(WORDS)], trainer)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(learner)
    tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    import json

    found = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in found]
