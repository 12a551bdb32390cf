"""Models that are only a config and headers: what plans read. Their tensors' bytes are zeros."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.model.describing import describe

WIDE, FFN, KEYS, WORDS = 64, 128, 32, 258
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDE,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
}


def llama(folder: Path, *, keys: int = KEYS, ffn: int = FFN) -> Artifact:
    """A Llama that is only headers: its tensors' bytes are zeros."""
    shapes = {"model.embed_tokens.weight": (WORDS, WIDE), "lm_head.weight": (WORDS, WIDE)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.{n}_proj.weight": (size, WIDE) for n, size in (("q", WIDE), ("k", keys), ("v", keys))
        }
        shapes |= {f"{at}.self_attn.o_proj.weight": (WIDE, WIDE), f"{at}.input_layernorm.weight": (WIDE,)}
        shapes |= {f"{at}.mlp.{n}_proj.weight": (ffn, WIDE) for n in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (WIDE, ffn)}
    return headed(folder, {**LLAMA, "intermediate_size": ffn}, shapes)


def headed(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Artifact:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    message, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        message[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(message).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return describe(folder)
