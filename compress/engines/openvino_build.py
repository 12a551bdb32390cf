"""Torch to OpenVINO: conversion through transformers' exporter, and the comparison of what came out with what went in."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as opset
from torch.export import Dim
from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter
from transformers.exporters.utils import decompose_for_generation

from compress.engines.openvino import flatten, input_name
from compress.engines.openvino_quantize import silence_telemetry
from compress.engines.torch import silent_libraries


@dataclass(frozen=True)
class Difference:
    """How far an engine's outputs lie from torch's: the largest, and the root mean square over that of torch's own."""

    largest: float
    relative: float


class Traced(torch.nn.Module):
    """A component as the exporter wants it: tensors in by name, tensors out by name, all other arguments fixed."""

    def __init__(self, module: torch.nn.Module, function: str, constants: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function
        self.constants = dict(constants)

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        output = getattr(self.module, self.function)(**inputs, **self.constants, return_dict=True)
        named: dict[str, torch.Tensor] = {}
        for name, value in output.items():
            if isinstance(value, torch.Tensor):
                named[name] = value
            elif isinstance(value, tuple) and all(isinstance(v, torch.Tensor) for v in value):
                named |= {f"{name}.{i}": v for i, v in enumerate(value)}
        return named


def convert(module: torch.nn.Module, function: str, small: dict[str, Any], large: dict[str, Any]) -> openvino.Model:
    """Convert a component from two real calls to it that differ in batch size only: what differs between them is dynamic.

    Args:
        function: the method that is called, `forward` or `decode`.
        small, large: keyword arguments of each call.
    """
    inputs, constants = split(small)
    shapes = _dynamic(inputs, split(large)[0])
    with _quiet(), torch.no_grad():
        traced = Traced(module, function, constants).eval()
        model, _ = OpenVINOExporter().export_program(traced, inputs, OpenVINOConfig(dynamic_shapes=shapes))
    _name_ports(model, set(flatten(inputs)))
    _fix_static(model, flatten(inputs), flatten(split(large)[0]))
    return model


def convert_language_model(model: torch.nn.Module) -> openvino.Model:
    """One stateful graph that takes any number of tokens after any number seen, for any batch size."""
    tokens = torch.arange(14).reshape(2, 7) % int(model.config.vocab_size)  # two rows: a batch of one would be built in
    sample = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with _quiet(), torch.no_grad():
        stages = decompose_for_generation(model, sample, multi_token_decode=True)
        decoder, inputs = stages["decode"]
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


def _before(output: Any, *kinds: str) -> Any:
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


def split(call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call's arguments apart: those with tensors, and the constants worth keeping."""
    inputs = {n: _as_input(n, v) for n, v in call.items() if isinstance(v, torch.Tensor) or _is_tensors(v)}
    kept = {
        n: v
        for n, v in call.items()
        if n not in inputs and isinstance(v, bool | int | float | str) and n != "return_dict"
    }
    return inputs, kept


def compare_calls(module: torch.nn.Module, engine: torch.nn.Module, function: str, call: dict[str, Any]) -> Difference:
    """Compare a torch component, which is left in float32, with its engine on one real call."""
    inputs, constants = split(call)
    inputs = {n: _in_float32(v) for n, v in inputs.items()}
    with silent_libraries():
        reference = getattr(module.float(), function)
    return compare(
        lambda: reference(**inputs, **constants, return_dict=True), lambda: getattr(engine, function)(**inputs)
    )


def compare(reference: Callable[[], Any], engine: Callable[[], Any]) -> Difference:
    """Call both and compare every tensor they give, by name."""
    with torch.no_grad():
        ours, theirs = flatten(_named(engine())), flatten(_named(reference()))
    largest, error, scale = 0.0, 0.0, 0.0
    for name, tensor in theirs.items():
        expected = tensor.double().numpy()
        difference = ours[name].double().numpy() - expected
        largest = max(largest, float(np.abs(difference).max()))
        error, scale = error + float(np.square(difference).sum()), scale + float(np.square(expected).sum())
    relative = float(np.sqrt(error / max(scale, 1e-30)))
    return Difference(largest, relative if np.isfinite(largest) else float("inf"))


def _named(output: Any) -> dict[str, Any]:
    values = output if isinstance(output, Mapping) else {"logits": output}
    named: dict[str, Any] = {}
    for name, value in values.items():
        named |= {f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return named


def _in_float32(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {n: _in_float32(v) for n, v in value.items()}
    return value.float() if value.is_floating_point() else value


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, torch.Tensor) for v in value.values())


def _as_input(name: str, value: Any) -> Any:
    # Some schedulers count timesteps in whole numbers and some do not; the engine must serve both.
    if name == "timestep" and not value.is_floating_point():
        return value.to(torch.float32)
    return {n: v.clone() for n, v in value.items()} if isinstance(value, Mapping) else value.clone()


def _dynamic(small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, value in small.items():
        if isinstance(value, Mapping):
            shapes[name] = _dynamic(value, large[name])
        else:
            pairs = zip(value.shape, large[name].shape, strict=True)
            shapes[name] = {i: Dim.AUTO for i, (a, b) in enumerate(pairs) if a != b} or None
    return shapes


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


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer and the exporter warn about their own insides, to people who cannot change them."""
    silence_telemetry()
    before = logging.root.manager.disable
    with silent_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
