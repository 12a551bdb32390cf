"""How many weights a component's safetensors hold in each number type, read from their headers and the config beside them: packed
ones too, as GPTQ, AWQ, compressed-tensors, bitsandbytes and torchao lay them out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from compress.artifact import read_json
from compress.engines.torch import weights
from compress.files.safetensors_headers import Stored, read_header
from compress.model.describing import bits_by_layer, quantization_of

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "I8": "int8"}
WORD = 32  # bits of the integers that codes lie in side by side
PACKED = ("qweight", "weight_packed")  # of GPTQ and AWQ, and of compressed-tensors
BESIDE = ("scales", "qzeros", "g_idx", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
BESIDE_QDATA = re.compile(
    r"_\w+?_(scale|zero_point|scale_and_zero|per_tensor_scale|act_pre_scale)"
)  # as torchao names it
QDATA = "_qdata"  # ends torchao's names of codes, whose integers hold 4 bits each where they are wider than a byte
STATE = ".quant_state.bitsandbytes__"  # names the code of a weight that bitsandbytes keeps two to a byte


def stored(folder: Path) -> Mapping[str, int]:
    """By number type, the weights of all tensors with rows and columns."""
    tensors: dict[str, Stored] = {}
    for file in weights(folder):
        if file.suffix == ".safetensors":
            tensors |= read_header(file).tensors
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    packed = quantization_of(config)
    found: Counter[str] = Counter()
    for kind, count in _counted(tensors, packed.bits if packed else 0, bits_by_layer(config)):
        found[kind] += count
    return found


def _counted(tensors: Mapping[str, Stored], bits: int, own: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Each tensor's number type and how many weights it holds.

    Args:
        bits: of a packed weight, where no tensor beside it says so itself. own: of layers that have bits of their own.
    """
    codes = {name.partition(STATE)[0]: name.partition(STATE)[2] for name in tensors if STATE in name}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if name in codes:
            yield codes[name], 2 * tensor.count
        elif last in PACKED and tensor.dtype == "I32" and (wide := _bits(tensors, module, last, own.get(module, bits))):
            yield f"int{wide}", tensor.count * WORD // wide
        elif last.endswith(QDATA) and tensor.dtype == "I32":
            yield "int4", tensor.count * WORD // 4
        elif BESIDE_QDATA.fullmatch(last):
            continue
        elif len(tensor.shape) > 1 and tensor.dtype in TYPES and last not in BESIDE:
            yield TYPES[tensor.dtype], tensor.count


def _bits(tensors: Mapping[str, Stored], module: str, last: str, message: int) -> int:
    """How many bits a weight of this module has: known from its shape where its inputs are known, for modules may differ."""
    inputs = tensors.get(f"{module}.g_idx")
    if last == "qweight" and inputs and inputs.count:
        return tensors[f"{module}.{last}"].shape[0] * WORD // inputs.count
    return message
