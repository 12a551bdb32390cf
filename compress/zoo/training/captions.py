"""The tokenizer of both image models: a CLIP byte-level BPE in which every word of the caption grammar is one token."""

from __future__ import annotations

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from compress.zoo import scenes

LENGTH = 16  # the longest caption has eleven words, and two marks are added
WORDS = (*scenes.WORDS, *scenes.INKS, *scenes.PAPERS, "a", "left", "of", "above", "on", "paper")

# Learnt once from WORDS and written down: the learner breaks ties differently from run to run, and a text encoder knows
# a word by its number alone.
MERGES = """
    r e, b l, e n</w>, g re, i n, v e</w>, a b, a c, a n, a p, e f, e i, e l, e r, e v, e r</w>, f i, f o, g h,
    g e</w>, h i, h re, i x</w>, l o, l e</w>, l ef, n e</w>, n in, o r, o f</w>, o n</w>, o ve</w>, o ne</w>,
    p u, p in, p ap, p le</w>, r ple</w>, s ev, s ix</w>, t w, t e</w>, t hre, u r</w>, u e</w>, w hi, y el,
    z er, re d</w>, bl ac, bl ue</w>, gre y</w>, gre en</w>, ab ove</w>, an ge</w>, ei gh, fi ve</w>, fo ur</w>,
    lo w</w>, lef t</w>, nin e</w>, or ange</w>, pu rple</w>, pin k</w>, pap er</w>, sev en</w>, tw o</w>,
    thre e</w>, whi te</w>, yel low</w>, zer o</w>, blac k</w>, eigh t</w>
"""


def new_tokenizer() -> CLIPTokenizer:
    """Bytes, their word-final forms, the merges that make each word one token, and the two marks."""
    merges = [(first, second) for first, second in (merge.split() for merge in MERGES.split(","))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *("".join(m) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
