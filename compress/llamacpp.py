"""What llama.cpp can read, told from a model's own JSON files, so that a plan can refuse: shapes, rotary positions and
how a tokenizer splits text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

# By model_type, llama.cpp's name of the architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
# What llama.cpp computes whatever the config says; a field left out has the first of these values.
_FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",)},
    "mistral": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
}
_ROTARY = {"llama": ("default", "linear", "llama3"), "qwen2": ("default", "linear"), "qwen3": ("default", "linear")}

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
    return _refuse_window(family, config) or _refuse_rotary(family, config)


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


def rotary(config: Config) -> dict[str, Any]:
    """How positions turn queries and keys, as any transformers wrote it: with `rope_type` and `rope_theta`."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    known = {"rope_theta": config.get("rope_theta", 10000.0), **said}
    return {**known, "rope_type": said.get("rope_type", said.get("type", "default"))}


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how this `tokenizer.json` cuts text into the words whose bytes it merges.

    Returns "" where it has none: the tokenizer is no byte-level BPE, or cuts in a way of its own.
    """
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {"type": "NFC"}
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") or normalizer["type"] != "NFC":
        return ""
    cut = tokenizer.get("pre_tokenizer") or {"type": ""}
    parts = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    if parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return ""
    found = _SPLITS.get(tuple(filter(None, map(_cut, parts))), "")
    merges_whole_words = bool(model.get("ignore_merges"))
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
