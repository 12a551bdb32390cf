"""What tests of quantizers share: tiny models wide enough for all of them, texts to calibrate on, and how far apart two outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.artifact import Artifact
from compress.data.items import Data, Item
from compress.model.describing import describe
from tests.families import MODELS, TEXT, tiny_text

# Wide enough for what packs 64 inputs and 32 outputs together, and for groups of 32.
WIDTH = {
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
}
HEADED = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "moe_intermediate_size": 64}
EVEN = {"initializer_range": 0.14, "init_std": 0.14}  # or layers as wide amplify what rounding changes
LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
OTHER: Mapping[str, Mapping[str, Any]] = {
    "phi3": {"rope_scaling": LONG_ROPE},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32},
    "dynamic-rope": {"rope_scaling": None},
    "mamba2": {"head_dim": 16},  # heads of which make the hidden size twice over
}
WORDS = ("array", "axis", "value", "sorted", "shape", "index", "matrix", "order")
TEXTS = tuple(" ".join(WORDS[(3 * i + j) % 8] for j in range(8)) for i in range(24))
DATA = Data("sentences", "texts", "digest", len(TEXTS), lambda i: Item(str(i), TEXTS[i]))
TOKENS = torch.arange(5, 25)[None]
TAUGHT = {"steps": 20, "tokens": 16, "batch": 4, "group_size": 32, "precision": "float32", "warmup": 1}


def tiny(family: str, folder: Path, **changes: Any) -> Artifact:
    """A model of the family, wide enough for every way, its config with `changes`."""
    if family not in ("llama", *TEXT):
        return describe(MODELS[family](folder))
    known = "dynamic-rope" if family == "llama" else family
    has = TEXT[known][2]
    wanted = {k: v for k, v in {**WIDTH, **HEADED, **EVEN}.items() if k in has} | dict(OTHER.get(known, {})) | changes
    return describe(tiny_text(folder, known, **wanted))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart, as a share of the first's size; not a number where either is none."""
    return float((one - other).norm() / one.norm())
