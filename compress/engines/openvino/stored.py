"""How many weights a graph holds in each number type, read from its XML alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from xml.etree import ElementTree

from compress.engines.openvino import MODEL

TYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
    "nf4": "int4",
}
SCALED = (
    "Multiply",
    "Subtract",
    "Add",
    "FakeQuantize",
)  # whose second input and those behind it scale or shift a weight


@dataclass(frozen=True)
class _Layer:
    kind: str
    element: str
    shape: tuple[int, ...]


def stored(folder: Path) -> Mapping[str, int]:
    """By number type, the weights of all constants with rows and columns that an operation reads as such."""
    net = ElementTree.parse(folder / MODEL).getroot()
    layers = {layer.get("id", ""): _read(layer) for layer in net.iterfind("./layers/layer")}
    reads: dict[str, tuple[str, int]] = {}
    for edge in net.iterfind("./edges/edge"):
        # Of a constant's readers any is as good: what shifts or scales is made for one place.
        reads.setdefault(edge.get("from-layer", ""), (edge.get("to-layer", ""), int(edge.get("to-port", "0"))))
    found: Counter[str] = Counter()
    for name, layer in layers.items():
        if (
            layer.element in TYPES
            and prod(layer.shape) > max(layer.shape, default=0)
            and _is_weight(name, layers, reads)
        ):
            found[TYPES[layer.element]] += prod(layer.shape)
    return found


def _read(layer: ElementTree.Element) -> _Layer:
    data = layer.find("data")
    constant = layer.get("type") == "Const" and data is not None
    shape = (data.get("shape") or "") if constant and data is not None else ""
    sizes = tuple(int(size) for size in shape.split(",") if size.strip())
    element = (data.get("element_type") or "") if constant and data is not None else ""
    return _Layer(layer.get("type", ""), element, sizes)


def _is_weight(name: str, layers: Mapping[str, _Layer], reads: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a constant is more than a scale or a zero point of another."""
    while name in reads:
        name, port = reads[name]
        if layers[name].kind != "Convert":
            return not (layers[name].kind in SCALED and port > 0)
    return True
