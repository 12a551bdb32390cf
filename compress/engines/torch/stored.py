"""How many weights a component's safetensors hold in each number type, read from their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from compress.engines.torch import weights
from compress.files.safetensors_headers import read_header

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "I8": "int8"}


def stored(folder: Path) -> Mapping[str, int]:
    """By number type, the weights of all tensors with rows and columns."""
    found: Counter[str] = Counter()
    for file in weights(folder):
        if file.suffix != ".safetensors":
            continue
        for tensor in read_header(file).tensors.values():
            if len(tensor.shape) > 1 and tensor.dtype in TYPES:
                found[TYPES[tensor.dtype]] += tensor.count
    return found
