"""Torch to OpenVINO, through transformers' exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as opset
from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

from compress.engines.builder import Builder, Example, Feed, positions_of
from compress.engines.module import flatten, write_settings
from compress.engines.openvino.quantize import Compression, compress_weights, quantize_activations, silence_telemetry
from compress.engines.openvino.runtime import input_name, language_inputs, save_graph
from compress.engines.tracing import decoding_step, quiet_export, split

GROUP = 64  # weights that share a scale in 4 bits


class OpenVINOBuilder(Builder):
    """Graphs in float32; bfloat16 is a hint to the compiler, and fewer bits are NNCF's work on the graph."""

    format = "openvino"

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        graph = self._quantized(convert(example, watched), [_arrays(feed) for feed in example.feeds])
        self._write(graph, folder, **example.called)

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        graph = convert_language_model(model)
        names = tuple(map(input_name, graph.inputs))
        first = np.zeros(1, dtype=np.int32)
        texts = [language_inputs(feed["input_ids"].numpy(), 0, first, names) for feed in feeds]
        self._write(self._quantized(graph, texts), folder, positions=positions_of(model))

    def _quantized(self, graph: openvino.Model, feeds: list[Any]) -> openvino.Model:
        if self.precision == "int8":
            return quantize_activations(graph, feeds)
        if self.precision in ("int8_weights", "int4_weights"):
            return compress_weights(
                graph, Compression(4 if self.precision == "int4_weights" else 8, GROUP, symmetric=False)
            )
        return graph

    def _write(self, graph: openvino.Model, folder: Path, **more: object) -> None:
        save_graph(graph, folder)
        write_settings(folder, "openvino", openvino.__version__.split("-")[0], self.precision, **more)


def convert(example: Example, watched: tuple[str, ...] = ()) -> openvino.Model:
    """Convert a component from two real calls to it that differ in batch size only: what differs between them is dynamic."""
    traced, inputs, shapes = example.trace(watched)
    silence_telemetry()
    with quiet_export():
        model, _ = OpenVINOExporter().export_program(traced, inputs, OpenVINOConfig(dynamic_shapes=shapes))
    _name_ports(model, set(flatten(inputs)))
    _fix_static(model, flatten(inputs), flatten(split(example.large)[0]))
    return model


def convert_language_model(model: torch.nn.Module) -> openvino.Model:
    """One stateful graph that takes any number of tokens after any number seen, for any batch size."""
    silence_telemetry()
    with quiet_export():
        decoder, inputs = decoding_step(model)
        converted, _ = OpenVINOExporter().export_program(decoder, inputs, OpenVINOConfig(dynamic=True))
    _name_ports(converted, {"input_ids", "position_ids", "cache_position", "attention_mask", "beam_idx"})
    _repeat_keys_plainly(converted)
    return converted


def _repeat_keys_plainly(model: openvino.Model) -> None:
    """Where key heads are fewer than query heads, spell their repetition as OpenVINO knows it.

    torch's `expand` becomes a Broadcast whose shape is computed, which hides from OpenVINO that attention and KV cache are one
    operation: a token of a small model then takes 1.6 times as long (588 operations instead of 405 for five layers).
    """
    for attention in model.get_ordered_ops():
        if attention.get_type_name() != "ScaledDotProductAttention":
            continue
        for port in (1, 2):
            repeated = attention.input_value(port)
            cache = _before(repeated, "Reshape", "Broadcast", "Unsqueeze")
            if cache is None:
                continue
            _, heads, _, size = repeated.get_partial_shape()
            copies = heads.get_length() // cache.get_partial_shape()[1].get_length()
            apart = opset.unsqueeze(cache, np.array(2, np.int64))
            side_by_side = opset.broadcast(
                apart, np.array([1, 1, copies, 1, 1], np.int64), broadcast_spec="BIDIRECTIONAL"
            )
            shape = np.array([0, heads.get_length(), -1, size.get_length()], np.int64)
            plain = opset.reshape(side_by_side, shape, special_zero=True)
            attention.input(port).replace_source_output(plain.output(0))
    model.validate_nodes_and_infer_types()


def _before(output: openvino.Output, *kinds: str) -> openvino.Output | None:
    """What goes into a chain of operations that ends in `output`; None where they are others, or the heads not fixed."""
    shape = output.get_partial_shape()
    if shape.rank.get_length() != 4 or shape[1].is_dynamic or shape[3].is_dynamic:
        return None
    for kind in kinds:
        node = output.get_node()
        if node.get_type_name() != kind:
            return None
        if kind == "Unsqueeze" and int(node.input_value(1).get_node().get_data().item()) not in (2, -3):
            return None  # not each key head beside its copies
        output = node.input_value(0)
    shape = output.get_partial_shape()
    return None if shape.rank.get_length() != 4 or shape[1].is_dynamic else output


def _arrays(feed: Feed) -> dict[str, Any]:
    return {name: value.numpy() for name, value in feed.items()}


def _name_ports(model: openvino.Model, known: set[str]) -> None:
    """Give each port the one name it is called by, behind a prefix: the tracer adds names, and an input may share an output's."""
    for port in model.inputs:
        found = {n.removeprefix("input.") for n in port.get_names()} & known
        port.get_tensor().set_names({f"input.{min(found)}"})
    for port in model.outputs:
        found = {n.removeprefix("output.") for n in port.get_names()}
        port.get_tensor().set_names({f"output.{min(found, key=lambda n: (n[0].isdigit() or ':' in n, n))}"})


def _fix_static(model: openvino.Model, small: Mapping[str, torch.Tensor], large: Mapping[str, torch.Tensor]) -> None:
    """Give every axis but the batch its size: faster, and another size is refused rather than computed wrongly."""
    shapes = {}
    for port in model.inputs:
        name = input_name(port)
        sizes = [a if a == b else -1 for a, b in zip(small[name].shape, large[name].shape, strict=True)]
        shapes[port] = openvino.PartialShape(sizes)
    model.reshape(shapes)
