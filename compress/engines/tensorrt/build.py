"""Torch to TensorRT: an ONNX graph in the precision asked for, which is kept, and an engine of it for each target."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from transformers import PreTrainedConfig

from compress.artifact import DENOISERS
from compress.engines.builder import Builder, Example, Feed, positions_of
from compress.engines.language import EngineLanguageModel
from compress.engines.module import EngineModule, flatten, write_settings
from compress.engines.onnx import GRAPH
from compress.engines.onnx import runtime as onnx
from compress.engines.onnx.build import export_component, export_language_model, save_graph
from compress.engines.onnx.quantize import quantize_activations
from compress.engines.onnx.runtime import CACHE_IN, CACHE_OUT
from compress.engines.tensorrt import runtime as tensorrt
from compress.engines.tensorrt.compile import Network
from compress.engines.tensorrt.quantize import OPSET, compress_weights, use_float8
from compress.engines.tensorrt.record import OPEN, Port, Ports, Range, Record, Target, digest_onnx
from compress.engines.tracing import Narrowed, Traced, narrowed, split
from compress.files.hashing import digest_file
from compress.machine.devices import AS_STORED
from compress.machine.gpus import Library, gpu_here, why_unavailable
from compress.model.exportable import Profile

GUIDED = 2  # rows of a denoiser for each prompt, where guidance is on
COMPUTES = {"int8": "float32", "float8": "float32", "int8_weights": "float16", "int4_weights": "float16"}
BITS = {"int8_weights": 8, "int4_weights": 4}
_HALVES = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


class TensorRTBuilder(Builder):
    """Strongly typed networks: the precision is that of the torch module when its graph is taken, so that what its authors
    compute in float32 (norms, timesteps) stays so. Ports are float32, but for a language model's cache.

    Args:
        targets: compute capabilities, an engine for each.
        scratch: where the library keeps kernels' timings from build to build.
    """

    format = "tensorrt"
    profile: Profile

    def __init__(
        self, precision: str, library: Library, targets: tuple[str, ...], profile: Profile, scratch: Path
    ) -> None:
        super().__init__(precision)
        self.library = library
        self.targets = targets
        self.profile = profile
        self.scratch = scratch

    @property
    def here(self) -> tuple[str, ...]:
        """The target whose engine can be compared with torch on this machine; none without such a GPU."""
        gpu = gpu_here()
        runs = gpu and gpu.target in self.targets and not why_unavailable(self.library, self.targets)
        return (gpu.target,) if gpu and runs else ()

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        graph = export_component(
            replace(example.in_float32(), module=self._cast(example.module)),
            Traced if self.dtype == torch.float32 else Narrowed,
            opset=self.opset,
            watched=watched,
        )
        self._keep(graph, folder, example.feeds)
        rows = _rows(example, self.profile.batch, folder.name in DENOISERS)
        self._build(folder, rows, bool(watched), **example.called)

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        self._keep(export_language_model(self._cast(model), opset=self.opset), folder, feeds)
        self._build(folder, _texts(model.config, self.profile), False, positions=positions_of(model))

    def _cast(self, module: torch.nn.Module) -> Any:
        """The module in the type that it computes in; a copy, where rounding its weights would change what parity compares the engine with."""
        return module.float() if self.dtype == torch.float32 else narrowed(module, self.dtype)

    def open_component(self, folder: Path, library: str, kind: str) -> EngineModule:
        """The engine, where a GPU it was built for is available here, else the ONNX it was built from, in ONNX Runtime."""
        if self.here:
            return tensorrt.load_component(folder, library, kind, AS_STORED)
        return onnx.load_component(self._runnable(folder), library, kind, AS_STORED)

    def open_language_model(self, folder: Path, kind: str) -> EngineLanguageModel:
        if self.here:
            return tensorrt.load_language_model(folder, kind, AS_STORED)
        return onnx.load_language_model(self._runnable(folder), kind, AS_STORED)

    def _runnable(self, folder: Path) -> Path:
        """Where the ONNX lies as a processor runs it: in bfloat16 a copy that computes in float32, with the weights as rounded."""
        if self.precision != "bfloat16":
            return folder
        place = self.scratch / "float32"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for file in folder.glob("*.json"):
            shutil.copyfile(file, place / file.name)
        graph = onnx_ir.load(str(folder / GRAPH))
        compute_in_float32(graph)
        save_graph(graph, place)
        return place

    @property
    def dtype(self) -> torch.dtype:
        """What the graph computes in where it is not quantized. Calls that ranges are read off are listened to in float32."""
        return getattr(torch, COMPUTES.get(self.precision, self.precision))

    @property
    def opset(self) -> int | None:
        return OPSET if self.precision == "int4_weights" else None

    def _keep(self, graph: onnx_ir.Model, folder: Path, feeds: Sequence[Feed]) -> None:
        """Write the ONNX that the engines are built from."""
        widen_ports(graph)
        if self.precision in BITS:
            compress_weights(graph, BITS[self.precision])
        save_graph(graph, folder)
        if self.precision in ("int8", "float8"):
            narrow = quantize_activations(folder / GRAPH, feeds, symmetric=True)
            if self.precision == "float8":
                use_float8(narrow, graph.graph.initializers)
            save_graph(narrow, folder)

    def _build(self, folder: Path, sizes: Mapping[str, Any], watched: bool, **more: object) -> None:
        network = Network(folder, self.library)
        profile = {port.name: _range(port, sizes[port.name.removeprefix("input.")]) for port in network.inputs}
        ports = Ports(digest_onnx(folder), network.inputs, network.outputs)
        targets = self.here if watched else self.targets
        records = [self._engine_for(folder, network, target, ports, profile).to_json() for target in targets]
        write_settings(
            folder, "tensorrt", self.library.version, self.precision, library=self.library.name, engines=records, **more
        )

    def _engine_for(
        self, folder: Path, network: Network, gpu: str, ports: Ports, profile: Mapping[str, Range]
    ) -> Record:
        file = folder / f"{gpu}.engine"
        file.write_bytes(network.build(gpu, profile, self.scratch))
        target = Target(gpu, self.library.name, self.library.version)
        return Record(file.name, digest_file(file), target, self.precision, network.layers, ports, profile)


Sizes = Mapping[int, tuple[int, int, int]]  # by axis, where it varies: fewest, usual, most


def _rows(example: Example, batch: tuple[int, int, int], denoiser: bool) -> dict[str, Sizes]:
    """The axes of a component's inputs that vary with the number of prompts, two and three in the example's calls.

    A denoiser has a row for each prompt, or two: whoever builds it with guidance may leave that out later, and the reverse.
    """
    small, large = (flatten(split(call)[0]) for call in (example.small, example.large))
    fewest, usual, most = batch
    found: dict[str, Sizes] = {}
    for name, value in small.items():
        each = {i: b - a for i, (a, b) in enumerate(zip(value.shape, large[name].shape, strict=True)) if a != b}
        found[name] = {
            i: (fewest, usual * n, most * GUIDED) if denoiser else (fewest * n, usual * n, most * n)
            for i, n in each.items()
        }
    return found


class _Texts(dict[str, Sizes]):
    """The axes of a language model's inputs. Those of its cache are looked up by how they begin."""

    def __missing__(self, name: str) -> Sizes:
        return self[CACHE_IN]


def _texts(config: PreTrainedConfig, profile: Profile) -> Mapping[str, Sizes]:
    """Usual is one more token after `tokens` others, which is what a model does most; the three sizes of each axis go together,
    for TensorRT tries the graph at all fewest, all usual and all most ones."""
    known = getattr(config, "max_position_embeddings", None) or profile.tokens[2]
    most = min(profile.tokens[2], known)
    usual = min(profile.tokens[1], most - 1)
    new, seen = (1, 1, most), (0, usual, most - 1)
    whole = (new[0] + seen[0], new[1] + seen[1], new[2] + seen[2])
    return _Texts(
        {
            "input_ids": {0: profile.batch, 1: new},
            "position_ids": {0: profile.batch, 1: new},
            "cache_position": {0: new},
            "attention_mask": {0: profile.batch, 1: whole},
            CACHE_IN: {0: profile.batch, 2: seen},
        }
    )


def _range(port: Port, sizes: Sizes) -> Range:
    """Shapes of an input: fewest, usual, most."""
    axes = [sizes[i] if size == OPEN else (size, size, size) for i, size in enumerate(port.shape)]
    low, usual, high = tuple(zip(*axes, strict=True)) if axes else ((), (), ())
    return low, usual, high


def widen_ports(model: onnx_ir.Model) -> None:
    """Let a graph take and give float32 whatever it computes in. A language model's cache stays as it is: only it reads that."""
    graph = model.graph
    for port in [p for p in graph.inputs if p.dtype in _HALVES and not p.name.startswith(CACHE_IN)]:
        users = list(port.uses())
        node = onnx_ir.node("Cast", [port], {"to": int(port.dtype)})
        narrow = _like(node.outputs[0], port, f"{port.name}.narrow")
        for user, index in users:
            user.replace_input_with(index, narrow)
        port.dtype = onnx_ir.DataType.FLOAT
        graph.insert_before(graph[0], node)
    for index, port in enumerate(graph.outputs):
        if port.dtype in _HALVES and not port.name.startswith(CACHE_OUT):
            node = onnx_ir.node("Cast", [port], {"to": int(onnx_ir.DataType.FLOAT)})
            wide = _like(node.outputs[0], port, port.name)
            wide.dtype, port.name = onnx_ir.DataType.FLOAT, f"{port.name}.narrow"
            graph.append(node)
            graph.outputs[index] = wide


def compute_in_float32(model: onnx_ir.Model) -> None:
    """Let a bfloat16 graph compute in float32, its weights as they were rounded: no processor's ONNX Runtime computes in bfloat16."""
    for value in model.graph.initializers.values():
        value.const_value = _wide(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == onnx_ir.AttributeType.TENSOR:
                node.attributes[name] = onnx_ir.AttrTensor(name, _wide(attribute.value))
            elif name in ("to", "dtype") and attribute.value == onnx_ir.DataType.BFLOAT16:
                node.attributes[name] = onnx_ir.AttrInt64(name, int(onnx_ir.DataType.FLOAT))
        for value in node.outputs:
            _widen(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _widen(value)


def _like(value: onnx_ir.Value, other: onnx_ir.Value, name: str | None) -> onnx_ir.Value:
    value.name, value.dtype, value.shape = name, other.dtype, other.shape
    return value


def _wide(tensor: onnx_ir.TensorProtocol | None) -> onnx_ir.TensorProtocol | None:
    if tensor is None or tensor.dtype != onnx_ir.DataType.BFLOAT16:
        return tensor
    return onnx_ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)


def _widen(value: onnx_ir.Value) -> None:
    if value.dtype == onnx_ir.DataType.BFLOAT16:
        value.dtype = onnx_ir.DataType.FLOAT
