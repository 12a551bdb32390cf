"""Weights in 8 or 4 bits as TensorRT knows them: whole numbers behind a standard DequantizeLinear, symmetric, no zero point.
And a graph quantized to int8 turned to 8-bit floating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
from numpy.typing import NDArray

BLOCK = 64  # weights along the input channels that share a scale in 4 bits; TensorRT knows 64 and 128
ROOM = 1024  # the smallest weight that is worth it
OPSET = 21  # of the first ONNX that has 4-bit numbers and blocks
FLOAT8 = ml_dtypes.float8_e4m3fn
LARGEST = 448.0  # that this holds
_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16)
Array = NDArray[Any]


def compress_weights(model: onnx_ir.Model, bits: int) -> int:
    """Round the weights of matrix products, and in 8 bits those of convolutions, in place.

    In 8 bits an output channel has a scale, in 4 bits each block of an output channel; a matrix of which `BLOCK` is no divisor
    stays in 8 bits.

    Args:
        bits: 8 or 4.

    Returns:
        How many weights were rounded.
    """
    done: dict[str, onnx_ir.Value] = {}
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm", "Conv") else None
        if (
            weight is None
            or weight.const_value is None
            or weight.dtype not in _FLOATS
            or weight.const_value.size < ROOM
        ):
            continue
        name = weight.name or ""
        if name not in done:
            done[name] = _dequantized(model.graph, node, weight, bits)
        node.replace_input_with(1, done[name])
        if not weight.uses() and name in model.graph.initializers:
            del model.graph.initializers[name]
    return len(done)


def _dequantized(graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value, bits: int) -> onnx_ir.Value:
    """The value that stands for a weight: its codes times their scales."""
    values: Array = weight.const_value.numpy()
    channels = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) else 1
    along = 1 - channels
    if bits == 4 and values.ndim == 2 and values.shape[along] % BLOCK == 0:
        codes, scales = round_blocks(values, along)
        settings = {"axis": along, "block_size": BLOCK}
    else:
        codes, scales = round_channels(values, channels)
        settings = {"axis": channels}
    inputs = [
        _constant(graph, f"{weight.name}.{kind}", array) for kind, array in (("codes", codes), ("scales", scales))
    ]
    made = onnx_ir.node("DequantizeLinear", inputs, settings)
    wide = made.outputs[0]
    wide.name, wide.dtype, wide.shape = f"{weight.name}.wide", weight.dtype, weight.shape
    graph.insert_before(graph[0], made)
    return wide


def use_float8(quantized: onnx_ir.Model, weights: Mapping[str, onnx_ir.Value]) -> None:
    """Let a graph that was quantized to int8, symmetrically, use 8-bit floating point (E4M3) instead, in place.

    Ranges of activations stay. A weight has one scale, for TensorRT multiplies in float8 with one only, and is rounded anew.

    Args:
        weights: those of the graph before it was quantized, by name.
    """
    done: set[str] = set()
    for node in quantized.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        codes, scale, zero = node.inputs[:3]
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = onnx_ir.DataType.FLOAT8E4M3FN
        node.attributes.pop("axis", None)
        if scale.name in done:
            continue
        done.add(scale.name)
        if codes.const_value is None:
            size = scale.const_value.numpy() * (127 / LARGEST)
        else:
            weight = weights[codes.name.removesuffix("_quantized")].const_value.numpy()
            size = max(np.abs(weight).max() / LARGEST, np.finfo(np.float32).tiny)
            _set(codes, (weight / size).astype(FLOAT8))
        _set(scale, np.asarray(size, np.float32))
        _set(zero, np.zeros((), FLOAT8))


def round_channels(weight: Array, axis: int) -> tuple[Array, Array]:
    """Codes int8 of the weight's shape, and a scale for each index along `axis`: weight is about codes times scale."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = _scales(weight, others, 127)
    codes = np.clip(np.round(weight / scales), -127, 127).astype(np.int8)
    return codes, scales.reshape(-1).astype(weight.dtype)


def round_blocks(weight: Array, axis: int) -> tuple[Array, Array]:
    """Codes int4 of the weight's shape, and scales whose `axis` has one entry for each block of the weight's."""
    blocks = np.moveaxis(weight, axis, 0)
    blocks = blocks.reshape(-1, BLOCK, blocks.shape[1])
    scales = _scales(blocks, (1,), 7)
    codes = np.clip(np.round(blocks / scales), -7, 7).reshape(-1, blocks.shape[2]).astype(ml_dtypes.int4)
    return np.moveaxis(codes, 0, axis), np.moveaxis(scales[:, 0], 0, axis).astype(weight.dtype)


def _scales(weight: Array, axes: tuple[int, ...], most: int) -> Array:
    largest = np.abs(weight.astype(np.float32)).max(axis=axes, keepdims=True)
    return np.maximum(largest / most, 2.0**-14)  # the smallest number that float16 holds in full


def _set(value: onnx_ir.Value, array: Array) -> None:
    value.const_value = onnx_ir.tensor(array, name=value.name)
    value.dtype, value.shape = value.const_value.dtype, onnx_ir.Shape(array.shape)


def _constant(graph: onnx_ir.Graph, name: str, array: Array) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(np.ascontiguousarray(array), name=name)
    value = onnx_ir.Value(name=name, const_value=tensor, shape=onnx_ir.Shape(array.shape))
    value.dtype = tensor.dtype
    graph.initializers[name] = value
    return value
