"""What llama.cpp can read, read from a model's own JSON files, so that a plan can refuse: shapes, rotary positions and
how a tokenizer splits text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

# By model_type, llama.cpp's name of the architecture.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
}
_GEMMA: Mapping[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, False),
}
# What llama.cpp computes whatever the config says; a field left out has the first of these values.
_FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",)},
    "mistral": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
    "gemma2": {**_GEMMA, "tie_word_embeddings": (True,)},
    "gemma3_text": {**_GEMMA, "attn_logit_softcapping": (None,)},
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
}
_LINEAR = ("default", "linear")
_ROTARY = {"llama": (*_LINEAR, "llama3"), "qwen2": _LINEAR, "qwen3": _LINEAR, "gemma3": _LINEAR}
# Gemma's largest models scale attention by their width, and llama.cpp knows them by their number of layers.
_LARGEST = {"gemma2": 46, "gemma3_text": 62}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_DIGITS = "digits one by one"
# How a tokenizer cuts text before it merges bytes, and llama.cpp's name for that.
_SPLITS: Mapping[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}",): "qwen2",
}
KNOWN_SPLITS = tuple(_SPLITS.values())


def refuse_config(config: Config) -> str:
    """Why llama.cpp cannot run a model with this `config.json`, or ""."""
    family = config.get("model_type", "")
    if family not in ARCHITECTURES:
        return f"pare writes GGUF files of {', '.join(ARCHITECTURES)}, and this model is of {family or 'no named type'}"
    for field, values in _FIXED[family].items():
        if (found := config.get(field, values[0])) not in values:
            return f"llama.cpp computes {family} with {field} {values[0]}, and this model's is {found}"
    return _refuse_window(family, config) or _refuse_rotary(family, config) or _refuse_scale(family, config)


def _refuse_window(family: str, config: Config) -> str:
    if family != "mistral":
        return ""
    window = config.get("sliding_window", 4096)  # transformers' own default
    positions = config.get("max_position_embeddings", 131072)
    if window is None or window >= positions:
        return ""
    return f"llama.cpp lets Mistral see its whole past, and this model sees {window} of {positions} tokens"


def _refuse_rotary(family: str, config: Config) -> str:
    rope = rotary(config)
    known = _ROTARY.get(ARCHITECTURES[family], ("default",))
    if rope["rope_type"] not in known:
        return (
            f"its rotary positions are scaled as {rope['rope_type']}, and pare writes {', '.join(known)} for {family}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of each head turns with its position, and llama.cpp turns all of it"
    return ""


def _refuse_scale(family: str, config: Config) -> str:
    if family not in _LARGEST:
        return ""
    scale, size = config.get("query_pre_attn_scalar", 256), config.get("head_dim", 256)
    if config.get("num_hidden_layers") == _LARGEST[family]:
        size = config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if scale == size:
        return ""
    return f"llama.cpp scales its attention by {size}, and this model has query_pre_attn_scalar {scale}"


def rotary(config: Config, attention: str = "full_attention") -> dict[str, Any]:
    """How positions turn queries and keys, as any transformers wrote it: with `rope_type` and `rope_theta`.

    Args:
        attention: of which layers, in a model that has several kinds.
    """
    given: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    message: dict[str, Any] = given.get(attention, given)
    known = {"rope_theta": config.get("rope_theta", 10000.0), **message}
    return {**known, "rope_type": message.get("rope_type", message.get("type", "default"))}


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp makes of a tokenizer.

    Attributes:
        model: "gpt2" for a byte-level BPE, "llama" for pieces in the manner of SentencePiece.
        cut: llama.cpp's name for how text is cut before it is joined to tokens.
        space_first: a space goes before each text.
    """

    model: str
    cut: str
    space_first: bool = False


def vocabulary(tokenizer: Mapping[str, Any]) -> Vocabulary | None:
    """What llama.cpp makes of this `tokenizer.json`; None where it would cut text in another way."""
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    if not model.get("byte_fallback"):
        cut = _bytewise_cut(tokenizer)
        return Vocabulary("gpt2", cut) if cut else None
    all_bytes = all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))  # llama.cpp ends the process at others
    first = _space_first(tokenizer)
    return Vocabulary("llama", "default", first) if all_bytes and first is not None else None


_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}


def _space_first(tokenizer: Mapping[str, Any]) -> bool | None:
    """Whether a tokenizer, which writes ▁ for a space, puts one before a text; None if it does something else as well.

    With "first" none goes before what follows a special token inside a text, where llama.cpp has one.
    """
    steps = list(_steps(tokenizer.get("normalizer"), "normalizers"))
    cuts = list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if not steps and len(cuts) == 1 and cuts[0]["type"] == "Metaspace" and not cuts[0].get("split", True):
        return bool(cuts[0].get("prepend_scheme", "always") != "never")
    # Gemma's cuts at spaces, of which there are none left.
    if any(c["type"] != "Split" or c["pattern"] != {"String": " "} for c in cuts) or _SPACES not in steps:
        return None
    others = [step for step in steps if step != _SPACES]
    return bool(others) if others in ([], [{"type": "Prepend", "prepend": "\u2581"}]) else None


def _steps(found: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    if found and found["type"] == "Sequence":
        yield from found[inside]
    elif found:
        yield found


def _bytewise_cut(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level BPE cuts text into the words whose bytes it merges, or ""."""
    if any(step["type"] != "NFC" for step in _steps(tokenizer.get("normalizer"), "normalizers")):
        return ""
    parts = list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return ""
    found = _SPLITS.get(tuple(filter(None, map(_cut, parts))), "")
    merges_whole_words = bool(tokenizer["model"].get("ignore_merges"))
    return found if merges_whole_words == (found == "llama-bpe") else ""


def _cut(part: Mapping[str, Any]) -> str:
    """What one step of a pre-tokenizer cuts at; "" if it only spells bytes."""
    if part["type"] == "ByteLevel":
        return _GPT2 if part.get("use_regex", True) else ""
    if part["type"] == "Digits" and part.get("individual_digits"):
        return _DIGITS
    if part["type"] == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return str(part["pattern"].get("Regex", part["pattern"]))
    return str(part["type"])
