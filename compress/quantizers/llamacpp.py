"""llama.cpp's quantizer at work. It ends its process where a file is not as it expects, so that is none of ours.

python -m compress.quantizers.llamacpp   (its order comes on standard input; see `Order`)
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from compress.quantizers.own_process import Tell, peak_bytes, serve


class Order(TypedDict):
    """model: the GGUF file; out: the file to write; type: in llama.cpp's name of it; importance: a safetensors file with, by the name of a
    tensor, the mean square of each of its inputs, or ""; embeddings: the type of their table, or auto."""

    model: str
    out: str
    type: str
    importance: str
    embeddings: str


def work(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Quantize one file into another.

    Returns:
        this process's highest resident set (`peak_bytes`).

    Raises:
        RuntimeError: llama.cpp did not do it, and its log says why.
    """
    import llama_cpp
    from gguf import GGMLQuantizationType

    tell("files", 0, 1)
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{order['type'].upper()}")
    if order["embeddings"] != "auto":
        options.token_embedding_type = int(GGMLQuantizationType[order["embeddings"].upper()])
    entries = _entries(llama_cpp, order["importance"]) if order["importance"] else None
    if entries is not None:
        options.imatrix = entries
    code = llama_cpp.llama_model_quantize(order["model"].encode(), order["out"].encode(), ctypes.byref(options))
    if code:
        Path(order["out"]).unlink(missing_ok=True)
        raise RuntimeError(f"its quantizer ended with {code}")
    return {"peak_bytes": peak_bytes()}


def _entries(library: Any, file: str) -> Any:
    """The importance matrix as llama.cpp takes it: an array that ends with an entry of no name."""
    from safetensors.numpy import load_file

    found = load_file(file)
    entries = (library.llama_model_imatrix_data * (len(found) + 1))()
    entries.kept = found  # the numbers live as long as what points at them
    for entry, (name, values) in zip(entries, sorted(found.items()), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


if __name__ == "__main__":
    serve(work)
