"""How many weights a graph holds in each number type, read from the graph alone and not from the file of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import onnx

from compress.engines.onnx import GRAPH

TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
    onnx.TensorProto.FLOAT8E4M3FN: "float8",
}
SCALED = ("DequantizeLinear", "QuantizeLinear")  # whose second input and those behind it scale or shift the first


def stored(folder: Path) -> Mapping[str, int]:
    """By number type, the weights of all initializers with rows and columns, scales left out."""
    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    nodes = list(_nodes(graph))
    packed = {n.input[1]: _attributes(n) for n in nodes if n.op_type == "MatMulNBits"}
    scales = {name for node in nodes for name in _scales(node)}
    found: Counter[str] = Counter()
    for tensor in _tensors(graph):
        count = prod(tensor.dims)
        if tensor.name in packed:
            how = packed[tensor.name]
            found[f"int{how['bits']}"] += how["K"] * how["N"]
        elif tensor.data_type in TYPES and tensor.name not in scales and count > max(tensor.dims, default=0):
            found[TYPES[tensor.data_type]] += count
    return found


def _scales(node: onnx.NodeProto) -> Iterator[str]:
    """The inputs of a node that scale or shift another of them."""
    if node.op_type in SCALED:
        yield from node.input[1:]
    elif node.op_type == "MatMulNBits":
        yield from node.input[2:]


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those inside its nodes: loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in _graphs(graph):
        yield from each.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in _graphs(graph):
        yield from each.initializer
