"""The ONNX engine: a graph that ONNX Runtime runs, on a processor or on an NVIDIA GPU. One session serves all threads.

A component's folder holds `model.onnx` and its weights in `model.onnx.data`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states

from compress.algorithms.tensors import finish, to_array
from compress.engines.language import Past, TensorPast, device_inputs, foreign_cache, loading, step_inputs
from compress.engines.module import SIZES, read_settings
from compress.engines.onnx import CACHE, GRAPH, WEIGHTS
from compress.errors import ModelError, UserError
from compress.machine.devices import CPU

CACHE_IN, CACHE_OUT = f"input.{CACHE}", f"output.{CACHE}"
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
_NUMPY = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
# Processors without VNNI sum two products of bytes in 16 bits, which overflow, unless ONNX Runtime is reported to be precise.
_SUMS_BYTES = ("int8", "int8_dynamic")
# Workers wait for the next operation without sleeping. By default they go on so long after a call that whatever runs next, such as
# another session, has one core less: a third slower (101 ms instead of 75). So much is enough between operations and tokens.
_SPIN_MICROSECONDS = 500
_QUIET = 3  # errors alone; they reach the caller as exceptions
_USUAL, _SILENT = 2, 4  # of what ONNX Runtime says beside its sessions
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_NO_MEMORY = ("Failed to allocate memory", "out of memory")
_GPU = "see that the GPU's driver works and is as new as ONNX Runtime's CUDA, or use device: cpu"


class Graph:
    """A graph on disk, opened at its first use."""

    def __init__(self, folder: Path, home: torch.device) -> None:
        self.settings = read_settings(folder)
        self.home = home
        for name in (GRAPH, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(f"holds no {name}", place=str(folder), fix=_again(self.settings))
        self.folder = folder
        self._lock = threading.Lock()
        self._session: onnxruntime.InferenceSession | None = None
        self._names: tuple[str, ...] = ()
        self._inputs: tuple[tuple[str, torch.dtype], ...] = ()
        self._outputs: tuple[str, ...] = ()
        self._some: torch.Tensor | None = None
        self.placed: Mapping[str, int] = {}  # on a GPU, how many operators its provider and the processor's took

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
        if not self._here:
            return self.bound(values)
        # Fed by numpy, ONNX Runtime copies nothing in or out, and was as quick as with its own values and bindings.
        feed = {n: to_array(v) for n, v in zip(self._names, values, strict=True)}
        return [torch.from_numpy(result) for result in self.call(None, feed)]

    def call(self, outputs: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs, or all, for inputs by their names in the graph.

        Raises:
            UserError: a size is none that the graph takes.
        """
        with self._explained():
            found: list[Array] = self.open().run(outputs, feed)
        return found

    def bound(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All outputs, on the device of the session, for inputs that lie there: nothing goes by way of the processor.

        Raises:
            UserError: a size is none that the graph takes.
            torch.OutOfMemoryError: the device has no room.
        """
        session, kind, number = self.open(), self.home.type, self.home.index or 0
        binding = session.io_binding()
        for name, value in zip(self._names, values, strict=True):
            element = _NUMPY[value.dtype]
            binding.bind_input(name, kind, number, element, tuple(value.shape), value.data_ptr() or self._nowhere)
        for port in session.get_outputs():
            binding.bind_output(port.name, kind, number)
        finish(self.home)  # ONNX Runtime works in a stream of its own, and does not wait for torch's
        with self._explained():
            session.run_with_iobinding(binding)  # returns when all is done
        return [torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()) for value in binding.get_outputs()]

    @property
    def _here(self) -> bool:
        return self.home.type == "cpu"

    def _judge_memory(self, error: Exception) -> None:
        """Raises torch's own error where a GPU had no memory left: nothing is wrong with the graph or the call then."""
        if not self._here and any(words in str(error) for words in _NO_MEMORY):
            raise torch.OutOfMemoryError(f"ONNX Runtime: {_first_line(error)}") from error

    @property
    def _nowhere(self) -> int:
        """The address of an input without elements, such as a cache of no tokens: torch has none for it."""
        if self._some is None:
            self._some = torch.empty(16, device=self.home)
        return self._some.data_ptr()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (states.InvalidArgument, states.RuntimeException, states.Fail, states.EPFail) as error:
            self._judge_memory(error)
            message = _first_line(error)
            if "CUDA" in message or "CUDNN" in message:
                raise ModelError(
                    f"ONNX Runtime fails on the GPU: {message}", place=str(self.folder), fix=_GPU
                ) from error
            raise UserError(f"the graph refuses this call: {message}", place=str(self.folder), fix=SIZES) from error
        except states.NotImplemented as error:
            what = f"ONNX Runtime {onnxruntime.__version__} has no kernel for what the graph asks: {_first_line(error)}"
            raise ModelError(what, place=str(self.folder), fix="leave this component to torch") from error

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
        if not self._here:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.settings["precision"] in _SUMS_BYTES:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            with _hushed(self.home):
                found = onnxruntime.InferenceSession(
                    str(self.folder / GRAPH), options, providers=self._providers(), enable_fallback=int(self._here)
                )
        except _UNREADABLE as error:
            self._judge_memory(error)
            raise ModelError(
                f"ONNX Runtime {onnxruntime.__version__} cannot open the graph: {_first_line(error)}",
                place=str(self.folder / GRAPH),
                fix=_again(self.settings),
            ) from error
        wanted = _PROVIDERS[self.home.type]
        self.placed = _placed(found, self._here)
        if wanted not in found.get_providers():  # it says so on standard error, and takes the processor
            message = (
                f"ONNX Runtime {onnxruntime.__version__} does not load {wanted} here, and the device is {self.home}"
            )
            built = getattr(onnxruntime, "cuda_version", "") or "the version that it was built with"
            raise UserError(message, fix=f"install CUDA {built} and cuDNN, or use device: cpu")
        return found

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """What computes: the first, and the processor for what of a graph is about shapes."""
        if self._here:
            return [_PROVIDERS["cpu"]]
        # Products as torch's are, in whole float32 unless somebody asks for less; convolutions with them, for which torch has an option apart.
        narrow = torch.get_float32_matmul_precision() != "highest"
        settings = {"device_id": str(self.home.index or 0), "use_tf32": str(int(narrow))}
        return [(_PROVIDERS[self.home.type], settings), _PROVIDERS["cpu"]]


class ArrayPast(Past):
    """A KV cache as the arrays that ONNX Runtime gives, under the names by which it takes them."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__()
        self.arrays = dict(arrays)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        rows = to_array(beam_idx)
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
        return ArrayPast({p.name: to_array(_empty(p, batch, CPU)) for p in ports if p.name.startswith(CACHE_IN)})

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `engines.language.Decoder.step`."""
        if not isinstance(past, ArrayPast):
            raise foreign_cache()
        feed = {**past.arrays, **step_inputs(to_array(tokens), past.seen, self._asked)}
        logits, *grown = self.graph.call(self._given, feed)
        past.arrays = dict(zip(self._caches, grown, strict=True))
        return torch.from_numpy(logits).float()


class BoundDecoder:
    """The same on a GPU, where the cache stays."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def begin(self, batch: int) -> TensorPast:
        ports = (port for port in self.graph.open().get_inputs() if port.name.startswith(CACHE_IN))
        return TensorPast([_empty(port, batch, self.graph.home) for port in ports])

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `engines.language.Decoder.step`."""
        if not isinstance(past, TensorPast):
            raise foreign_cache()
        names, home, caches = [name for name, _ in self.graph.inputs], self.graph.home, iter(past.tensors)
        given = device_inputs(tokens, past.seen, names, home)
        logits, *others = self.graph.bound([given[name] if name in given else next(caches) for name in names])
        grown = dict(zip(self.graph.outputs[1:], others, strict=True))
        past.tensors = tuple(grown[name] for name in names if name not in given)
        return logits.float()


def decoder_of(graph: Graph) -> Decoder | BoundDecoder:
    return Decoder(graph) if graph.home.type == "cpu" else BoundDecoder(graph)


def _placed(session: onnxruntime.InferenceSession, here: bool) -> Mapping[str, int]:
    """How many operators each provider took: what one for GPUs has no kernel for goes to the processor. Older versions do not tell."""
    if here or not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    return Counter(part.ep_name for part in session.get_provider_graph_assignment_info() for _ in part.get_nodes())


@contextmanager
def _hushed(home: torch.device) -> Iterator[None]:
    """Within: why a GPU's part does not load is not printed, for whoever looks afterwards reports it."""
    if home.type != "cpu":
        onnxruntime.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        if home.type != "cpu":
            onnxruntime.set_default_logger_severity(_USUAL)


def _empty(port: onnxruntime.NodeArg, batch: int, home: torch.device | str) -> torch.Tensor:
    """A cache of no tokens: of its axes the first, which is open, is the batch, any other open one that of the tokens."""
    sizes = [size if isinstance(size, int) else 0 for size in port.shape[1:]]
    return torch.empty((batch, *sizes), dtype=_torch_dtype(port), device=home)


def _torch_dtype(port: onnxruntime.NodeArg) -> torch.dtype:
    found: torch.dtype = _DTYPES[port.type]
    return found


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _again(settings: Mapping[str, Any]) -> str:
    return f"build it again with build.onnxruntime or export.onnx: it was made by {settings['engine']} {settings['version']}"


load_component, load_language_model = loading(Graph, decoder_of)
