"""How many weights a GGUF file holds in each number type, read from its header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from compress.engines.gguf import MODEL
from compress.machine.deps import need

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "int8", "Q4_0": "int4"}


def stored(folder: Path) -> Mapping[str, int]:
    """By number type, the weights of all tensors with rows and columns."""
    found: Counter[str] = Counter()
    for tensor in need("gguf").GGUFReader(folder / MODEL).tensors:
        if len(tensor.shape) > 1:
            kind = tensor.tensor_type.name
            found[TYPES.get(kind, kind)] += int(tensor.n_elements)
    return found
