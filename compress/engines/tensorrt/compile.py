"""ONNX to TensorRT engines, by either of its libraries: they share their interface, and differ in whose GPU they build for."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.engines.onnx import GRAPH
from compress.engines.tensorrt.record import OPEN, Port, Range, dtype_name
from compress.errors import StageFailed
from compress.machine.gpus import RTX, Library

if TYPE_CHECKING:
    import tensorrt_rtx

TIMINGS = "timings.cache"


class Network:
    """An ONNX graph as TensorRT has read it, strongly typed: each layer computes in the types that the graph gives it.

    Args:
        folder: where the graph and its weights lie.

    Raises:
        StageFailed: TensorRT does not know an operator; the message names it with its node.
    """

    def __init__(self, folder: Path, library: Library) -> None:
        self.library = library
        self.trt = importlib.import_module(library.module)
        self._recorded = _listener(self.trt)
        self._builder = self.trt.Builder(self._recorded)
        typed = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = self.trt.OnnxParser(self._network, self._recorded)
        if not self._parser.parse_from_file(str(folder / GRAPH)):
            raise self._unparsed(folder)

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(self._network.get_input(i)) for i in range(self._network.num_inputs))

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(self._network.get_output(i)) for i in range(self._network.num_outputs))

    @property
    def layers(self) -> dict[str, int]:
        """How many layers give values of each type."""
        layers = (self._network.get_layer(i) for i in range(self._network.num_layers))
        counts = Counter(dtype_name(layer.get_output(0).dtype.name) for layer in layers if layer.num_outputs)
        return dict(sorted(counts.items()))

    def build(self, gpu: str, profile: Mapping[str, Range], scratch: Path | None = None) -> Any:
        """An engine for a compute capability: a buffer of bytes, which may differ from build to build.

        Args:
            profile: for each input its shapes: fewest, usual, most.
            scratch: a folder where the data-centre library keeps its kernels' timings from build to build; the RTX library
                has none, for it times nothing.

        Raises:
            StageFailed: TensorRT makes no engine of it; the message says what it stated.
        """
        config = self._builder.create_builder_config()
        if self.library is RTX:  # the other library builds for the GPU available here, and has no such setting
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.trt.ComputeCapability.__members__[gpu], 0)
        sizes = self._builder.create_optimization_profile()
        for name, (low, usual, high) in profile.items():
            sizes.set_shape(name, low, usual, high)
        config.add_optimization_profile(sizes)
        timings = scratch / TIMINGS if scratch and self.library is not RTX else None
        if timings:
            known = timings.read_bytes() if timings.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), False)
        self._recorded.errors.clear()
        engine = self._builder.build_serialized_network(self._network, config)
        if engine is None:
            raise self._failed(gpu)
        if timings:
            timings.write_bytes(config.get_timing_cache().serialize())
        return memoryview(engine)

    def _unparsed(self, folder: Path) -> StageFailed:
        errors = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
        named = [f"the operator {e.node_operator()} of the node `{e.node_name()}`" for e in errors if e.node_operator()]
        message = ", ".join(dict.fromkeys(named)) or "; ".join(e.desc() for e in errors) or "the graph"
        return StageFailed(
            f"{self.library.name} {self.library.version} cannot read {message}",
            place=str(folder / GRAPH),
            fix="leave this component out of `components`, or try another version of the library",
        )

    def _failed(self, gpu: str) -> StageFailed:
        message = self._recorded.errors[-1] if self._recorded.errors else "it does not say why"
        return StageFailed(
            f"{self.library.name} {self.library.version} made no engine for {gpu}: {message}",
            fix="narrow the profile, choose another precision, or leave this component out of `components`",
        )


def _listener(trt: Any) -> Any:
    """A logger that keeps what went wrong, and prints nothing: errors reach the caller as exceptions."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: tensorrt_rtx.ILogger.Severity, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Listener()


def _port(tensor: tensorrt_rtx.ITensor) -> Port:
    return Port(tensor.name, dtype_name(tensor.dtype.name), tuple(n if n >= 0 else OPEN for n in tensor.shape))
