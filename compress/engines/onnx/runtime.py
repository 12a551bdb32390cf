"""The ONNX engine: a graph that ONNX Runtime runs on the CPU. One session serves all threads.

A component's folder holds `model.onnx` and its weights in `model.onnx.data`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states

from compress.engines.language import Past, foreign_cache, loading, step_inputs
from compress.engines.module import SIZES, read_settings
from compress.engines.onnx import GRAPH, WEIGHTS
from compress.errors import ModelError, UserError
from compress.machine.devices import CPU

CACHE_IN, CACHE_OUT = "input.past_key_values.", "output.past_key_values."
_UNREADABLE = (
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
    RuntimeError,
)
Array: TypeAlias = NDArray[np.generic]
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
# Processors without VNNI sum two products of bytes in 16 bits, which overflow, unless ONNX Runtime is reported to be precise.
_SUMS_BYTES = ("int8", "int8_dynamic")
# Workers wait for the next operation without sleeping. By default they go on so long after a call that whatever runs next, such as
# another session, has one core less: a third slower (101 ms instead of 75). So much is enough between operations and tokens.
_SPIN_MICROSECONDS = 500
_QUIET = 3  # errors alone; they reach the caller as exceptions


class Graph:
    """A graph on disk, opened at its first use."""

    def __init__(self, folder: Path) -> None:
        self.settings = read_settings(folder)
        for name in (GRAPH, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(f"holds no {name}", place=str(folder), fix=_again(self.settings))
        self.folder = folder
        self._lock = threading.Lock()
        self._session: onnxruntime.InferenceSession | None = None
        self._names: tuple[str, ...] = ()
        self._inputs: tuple[tuple[str, torch.dtype], ...] = ()
        self._outputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> Sequence[tuple[str, torch.dtype]]:
        self.open()
        return self._inputs

    @property
    def outputs(self) -> Sequence[str]:
        self.open()
        return self._outputs

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        self.open()
        # Fed by numpy, ONNX Runtime copies nothing in or out, and was as quick as with its own values and bindings.
        feed = {n: v.numpy() for n, v in zip(self._names, values, strict=True)}
        return [torch.from_numpy(result) for result in self.call(None, feed)]

    def call(self, outputs: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs, or all, for inputs by their names in the graph.

        Raises:
            UserError: a size is none that the graph takes.
        """
        try:
            found: list[Array] = self.open().run(outputs, feed)
        except (states.InvalidArgument, states.RuntimeException) as error:
            raise UserError(
                f"the graph refuses this call: {_first_line(error)}", place=str(self.folder), fix=SIZES
            ) from error
        return found

    def open(self) -> onnxruntime.InferenceSession:
        """The session. As many threads as torch's take part in a call: the physical cores, unless the user chose.

        Raises:
            ModelError: the graph or its weights do not read, or hold what this version of ONNX Runtime does not know.
        """
        if self._session is not None:  # set when all else is
            return self._session
        with self._lock:
            if self._session is None:
                session = self._read()
                names = tuple(port.name for port in session.get_inputs())
                kinds = map(_torch_dtype, session.get_inputs())
                self._names = names
                self._inputs = tuple(zip((n.removeprefix("input.") for n in names), kinds, strict=True))
                self._outputs = tuple(port.name.removeprefix("output.") for port in session.get_outputs())
                self._session = session
            return self._session

    def _read(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _QUIET
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
        if self.settings["precision"] in _SUMS_BYTES:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(str(self.folder / GRAPH), options, providers=["CPUExecutionProvider"])
        except _UNREADABLE as error:
            raise ModelError(
                f"ONNX Runtime {onnxruntime.__version__} cannot open the graph: {_first_line(error)}",
                place=str(self.folder / GRAPH),
                fix=_again(self.settings),
            ) from error


class ArrayPast(Past):
    """A KV cache as the arrays that ONNX Runtime gives, under the names by which it takes them."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__()
        self.arrays = dict(arrays)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        rows = beam_idx.numpy()
        self.arrays = {name: array[rows] for name, array in self.arrays.items()}


class Decoder:
    """A decoder whose graph takes the cache of the tokens seen and gives it back longer. Between two steps of a small model every
    line counts, and nothing is converted."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._asked: tuple[str, ...] = ()
        self._given: tuple[str, ...] = ()
        self._caches: tuple[str, ...] = ()

    def begin(self, batch: int) -> ArrayPast:
        session = self.graph.open()
        ports = session.get_inputs()
        if not self._given:
            self._asked = tuple(port.name for port in ports if not port.name.startswith(CACHE_IN))
            given = tuple(port.name for port in session.get_outputs())
            self._caches = tuple(CACHE_IN + name.removeprefix(CACHE_OUT) for name in given[1:])
            self._given = given
        return ArrayPast({p.name: _empty(p, batch).numpy() for p in ports if p.name.startswith(CACHE_IN)})

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `engines.language.Decoder.step`."""
        if not isinstance(past, ArrayPast):
            raise foreign_cache()
        feed = {**past.arrays, **step_inputs(tokens.numpy(), past.seen, self._asked)}
        logits, *grown = self.graph.call(self._given, feed)
        past.arrays = dict(zip(self._caches, grown, strict=True))
        return torch.from_numpy(logits)


def _empty(port: onnxruntime.NodeArg, batch: int) -> torch.Tensor:
    """A cache of no tokens: of its axes the first, which is open, is the batch, any other open one that of the tokens."""
    sizes = [size if isinstance(size, int) else 0 for size in port.shape[1:]]
    return torch.empty((batch, *sizes), dtype=_torch_dtype(port), device=CPU)


def _torch_dtype(port: onnxruntime.NodeArg) -> torch.dtype:
    found: torch.dtype = _DTYPES[port.type]
    return found


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _again(settings: Mapping[str, Any]) -> str:
    return f"build it again with build.onnxruntime or export.onnx: it was made by {settings['engine']} {settings['version']}"


load_component, load_language_model = loading(Graph, Decoder)
