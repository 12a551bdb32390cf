"""The layers of a graph and their weights, read from its XML, and what its weights are, by a digest that torch's own share.

The exporter forgets what torch called a layer: a graph has `linear_3` and `convolution_0`. Weights tell which of torch's it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from compress.engines.openvino import MODEL, WEIGHTS
from compress.quantization.sensitivity import fingerprint

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
KINDS = ("MatMul", "Gather", *CONVOLUTIONS)
THROUGH = ("Convert", "Reshape", "Transpose")  # operations between weights as they are stored and their layer
FLOATS = {"f32": 4, "f16": 2, "bf16": 2}  # bytes of a weight


@dataclass(frozen=True)
class GraphLayer:
    """One matrix of weights that is not quantized yet.

    names: what the graph calls the layers that read it, several where it is shared. nodes: the operations, by their full names.
    kind: of the first of them. flipped: whether its input channels come first.
    """

    names: tuple[str, ...]
    nodes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    element: str
    offset: int
    flipped: bool = False

    @property
    def weights(self) -> int:
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes as they are."""
        return self.weights * FLOATS[self.element]

    @property
    def convolves(self) -> bool:
        return self.kind in CONVOLUTIONS

    @property
    def row(self) -> int:
        """Weights of one output channel."""
        if self.convolves:
            return prod(self.shape[1:]) if self.kind == "Convolution" else prod(self.shape[2:])
        return self.shape[-2] if self.flipped else self.shape[-1]


def layers(folder: Path) -> tuple[GraphLayer, ...]:
    """The layers with weights in floats of the graph in an engine's folder, in the graph's order.

    Raises:
        OSError, ElementTree.ParseError: there is none that reads.
    """
    net = ElementTree.parse(folder / MODEL).getroot()
    operations = {one.get("id", ""): one for one in net.iterfind("./layers/layer")}
    readers: dict[str, list[str]] = {}
    for edge in net.iterfind("./edges/edge"):
        readers.setdefault(edge.get("from-layer", ""), []).append(edge.get("to-layer", ""))
    found = (_layer(one, operations, readers) for one in operations.values() if one.get("type") == "Const")
    return tuple(layer for layer in found if layer)


def _layer(
    constant: ElementTree.Element,
    operations: Mapping[str, ElementTree.Element],
    readers: Mapping[str, list[str]],
) -> GraphLayer | None:
    """The layer that a constant is the weights of; None of any other."""
    data = constant.find("data")
    assert data is not None
    shape = tuple(int(size) for size in data.get("shape", "").split(",") if size.strip())
    element = data.get("element_type", "")
    if element not in FLOATS or prod(shape) <= max(shape, default=0):
        return None
    reading = list(_reading(constant.get("id", ""), operations, readers))
    if not reading:
        return None
    nodes = tuple(one.get("name", "") for one in reading)
    names = tuple(dict.fromkeys(node.partition("/")[0] for node in nodes))
    kind = reading[0].get("type", "")
    how = reading[0].find("data")
    flipped = kind == "MatMul" and how is not None and how.get("transpose_b") == "false"
    return GraphLayer(names, nodes, kind, shape, element, int(data.get("offset", 0)), flipped)


def _reading(
    name: str, operations: Mapping[str, ElementTree.Element], readers: Mapping[str, list[str]]
) -> Iterator[ElementTree.Element]:
    for reader in readers.get(name, ()):
        one = operations[reader]
        if one.get("type") in KINDS:
            yield one
        elif one.get("type") in THROUGH:
            yield from _reading(reader, operations, readers)


def digests(folder: Path, found: tuple[GraphLayer, ...]) -> dict[str, GraphLayer]:
    """Each layer by the digest of its weights; of equal ones, the first."""
    by_digest: dict[str, GraphLayer] = {}
    with (folder / WEIGHTS).open("rb") as stream:
        for layer in found:
            stream.seek(layer.offset)
            by_digest.setdefault(fingerprint(_rows(stream.read(layer.size), layer)), layer)
    return by_digest


def _rows(data: bytes, layer: GraphLayer) -> NDArray[np.float32]:
    """Weights in float32, output channels first."""
    if layer.element == "bf16":  # the upper half of a float32
        numbers = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, np.float32 if layer.element == "f32" else np.float16).astype(np.float32)
    table = numbers.reshape(layer.shape)
    return table.swapaxes(-1, -2) if layer.flipped else table
