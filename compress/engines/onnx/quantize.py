"""Quantization of ONNX graphs with ONNX Runtime's own tools, and of the weights those pass over."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.engines.builder import Feed
from compress.engines.onnx import GRAPH

BLOCK = 32  # weights that share a scale in a matrix product
INTEGERS = (
    4  # MatMulNBits' accuracy level: it multiplies in 8-bit integers, 8-bit weights 20 times as fast as in float32
)
ROOM = 16  # the smallest matrix whose scales do not outweigh what is saved
ARITHMETIC = ("Conv", "Gemm", "MatMul")
Array = NDArray[Any]


def quantize_activations(graph: Path, feeds: Sequence[Feed], symmetric: bool = False) -> onnx_ir.Model:
    """Weights and activations of 8 bits, the ranges read off `feeds`, each one call's inputs by name.

    Args:
        symmetric: no zero points and no biases in whole numbers, as TensorRT wants it.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    names = [port.name for port in onnx_ir.load(graph).graph.inputs]
    calls = [{name: feed[name.removeprefix("input.")].numpy() for name in names} for feed in feeds]
    kinds: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    if symmetric:
        even = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        kinds |= {"activation_type": QuantType.QInt8, "extra_options": even}
    with _quiet(), tempfile.TemporaryDirectory() as place:
        made = Path(place) / GRAPH
        quantize_static(
            graph, made, _Calls(calls), op_types_to_quantize=list(ARITHMETIC), use_external_data_format=True, **kinds
        )
        return _read(made)


def quantize_while_running(graph: Path) -> onnx_ir.Model:
    """Weights of 8 bits, and activations that get theirs at each call from what they hold then."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), tempfile.TemporaryDirectory() as place:
        made = Path(place) / GRAPH
        quantize_dynamic(
            _turned(graph, place), made, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True
        )
        return _read(made)


def compress_weights(graph: Path, bits: int) -> onnx_ir.Model:
    """Matrices of products in `bits` bits, in blocks along the input channels; all other weights, embeddings and convolutions
    among them, in 8 bits with a scale for each row or output channel."""
    with _quiet(), tempfile.TemporaryDirectory() as place:
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, bits=bits, accuracy_level=INTEGERS)
        quantizer = MatMulNBitsQuantizer(_turned(graph, place), algo_config=config)
        quantizer.process()
        made = Path(place) / GRAPH
        quantizer.model.save_model_to_file(str(made), use_external_data_format=True)
        model = _read(made)
    for node in list(model.graph):
        if node.op_type == "Gather":
            _narrow_rows(model.graph, node)
        elif node.op_type in ("Conv", "Gemm"):
            _narrow_channels(model.graph, node)
    RemoveUnusedNodesPass()(model)
    return model


def count_narrow(graph: onnx_ir.Model) -> int:
    """How many weights a graph holds in 8 bits or fewer."""
    kinds = (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8, onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)
    values = (v.const_value for v in graph.graph.initializers.values())
    return sum(v is not None and v.dtype in kinds and v.size > ROOM for v in values)


class _Calls:
    """Calibration calls, as `quantize_static` asks for them."""

    def __init__(self, calls: Sequence[dict[str, Array]]) -> None:
        self._calls = iter(calls)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._calls, None)


def _narrow_rows(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """An embedding's rows in 8 bits: those asked for are fetched with their scales, and widened."""
    table = node.inputs[0].const_value
    if (
        table is None
        or table.dtype != onnx_ir.DataType.FLOAT
        or len(table.shape) != 2
        or node.attributes.get_int("axis", 0) != 0
    ):
        return
    codes, scales = _round(table.numpy(), axis=0)
    rows = onnx_ir.node("Gather", [_constant(graph, node.inputs[0], "codes", codes), node.inputs[1]], {"axis": 0})
    scale = onnx_ir.node(
        "Gather", [_constant(graph, node.inputs[0], "scales", scales[:, None]), node.inputs[1]], {"axis": 0}
    )
    wide = onnx_ir.node("Cast", rows.outputs, {"to": onnx_ir.DataType.FLOAT})
    product = onnx_ir.node("Mul", [wide.outputs[0], scale.outputs[0]])
    graph.insert_before(node, [rows, scale, wide, product])
    onnx_ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0])
    graph.remove(node, safe=True)


def _narrow_channels(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """A layer's weights in 8 bits, widened before they are used."""
    weight = node.inputs[1].const_value
    if weight is None or weight.dtype != onnx_ir.DataType.FLOAT:
        return
    axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) else 1
    codes, scales = _round(weight.numpy(), axis)
    inputs = [_constant(graph, node.inputs[1], n, v) for n, v in (("codes", codes), ("scales", scales))]
    wide = onnx_ir.node("DequantizeLinear", inputs, {"axis": axis})
    graph.insert_before(node, wide)
    node.replace_input_with(1, wide.outputs[0])


def _round(weight: Array, axis: int) -> tuple[Array, Array]:
    """Codes int8 of the weight's shape and one scale for each index along `axis`: weight = codes * scale."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
    codes = np.round(weight / scales).astype(np.int8)
    return codes, scales.reshape(-1).astype(np.float32)


def _turned(graph: Path, place: str) -> onnx.ModelProto:
    """A graph with its weights as matrix products take them: an output layer that shares the embedding's table turns it at each
    call, which hides from a quantizer that it is a weight, and experts that share one table are taken from it one by one."""
    model = onnx_ir.load(graph)
    for node in [n for n in model.graph if n.op_type == "Split"]:
        _part(model.graph, node)
    for node in list(model.graph):
        turning = _turns(node)
        if turning is None or turning.const_value is None or len(turning.shape) != 2:
            continue
        turned = _constant(model.graph, turning, "turned", np.ascontiguousarray(turning.const_value.numpy().T))
        if node.op_type == "Transpose":
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], turned)
        else:
            product = onnx_ir.node("MatMul", [node.inputs[0], turned], name=node.name)
            model.graph.insert_before(node, product)
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0], replace_graph_outputs=True)
            product.outputs[0].name, product.outputs[0].shape = node.outputs[0].name, node.outputs[0].shape
            product.outputs[0].type = node.outputs[0].type
        model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)
    plain = Path(place) / "plain.onnx"
    onnx_ir.save(model, plain, external_data="plain.data")
    return onnx.load(plain)


def _part(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """A table of matrices that is split into them at each call becomes as many weights."""
    table, parts = node.inputs[0], node.outputs
    users = [[use.node for use in part.uses()] for part in parts]
    plain = all(user.op_type == "Squeeze" for ones in users for user in ones)
    if table is None or table.const_value is None or node.attributes.get_int("axis", 0) != 0 or not plain:
        return
    if len(table.const_value.shape) != 3 or table.const_value.shape[0] != len(parts):
        return
    for number, ones in enumerate(users):
        matrix = _constant(graph, table, f"part{number}", np.ascontiguousarray(table.const_value.numpy()[number]))
        for user in ones:
            onnx_ir.convenience.replace_all_uses_with(user.outputs[0], matrix)
            graph.remove(user, safe=True)
    graph.remove(node, safe=True)


def _turns(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """What an operation transposes before anything else, if that is all it adds to a matrix product."""
    if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == [1, 0]:
        return node.inputs[0]
    set_to = {name: attribute.value for name, attribute in node.attributes.items() if attribute.value}
    plain = node.op_type == "FusedMatMul" and set_to.pop("alpha", 1.0) == 1.0 and set_to == {"transB": 1}
    return node.inputs[1] if plain else None


def _constant(graph: onnx_ir.Graph, source: onnx_ir.Value, what: str, values: Array) -> onnx_ir.Value:
    """A weight that was made of another, found again where several operations use that."""
    name = f"{source.name}.{what}"
    if name not in graph.initializers:
        tensor = onnx_ir.tensor(values, name=name)
        graph.register_initializer(
            onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _read(graph: Path) -> onnx_ir.Model:
    """A graph with its weights in memory, for its files are about to go."""
    model = onnx_ir.load(graph)
    onnx_ir.external_data.load_to_model(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizers print, log, and set up logging for the whole process when they are imported."""
    handlers, level, disabled = logging.root.handlers[:], logging.root.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        logging.disable(disabled)
