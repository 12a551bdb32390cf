"""The OpenVINO engine: a graph compiled for the CPU. One compiled model serves all threads; each thread has an infer request
of its own.

A component's folder holds `openvino_model.xml` and `openvino_model.bin`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from compress.engines.language import Past, loading, step_inputs
from compress.engines.module import ENGINE, SIZES, read_settings
from compress.engines.openvino import MODEL, WEIGHTS
from compress.engines.openvino.core import core
from compress.errors import ModelError, UserError

Precision = Literal["float32", "bfloat16"]
FILES = (MODEL, WEIGHTS, ENGINE)
AGAIN = "build it again with build.openvino"
PLAIN = "build it here with build.openvino and precision: float32"
_HINTS = {"bfloat16": "bf16"}  # fewer bits are in the graph, and what is left of it computes in float32


def save_graph(model: openvino.Model, folder: Path) -> None:
    """Write a graph, its weights as they are, so that equal graphs give equal bytes.

    OpenVINO names what nobody named by a counter that runs on through the process; those are counted anew here.
    """
    model.set_friendly_name("model")
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z]\w*_\d+", operation.get_friendly_name()):  # a folded constant keeps its source's kind
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    openvino.save_model(model, str(folder / MODEL), compress_to_fp16=False)


class Ports(NamedTuple):
    """What goes into a graph, by dotted name, its shapes, open axes with them, and what comes out."""

    inputs: tuple[tuple[str, torch.dtype], ...]
    shapes: tuple[openvino.PartialShape, ...]
    outputs: tuple[str, ...]


Shapes: TypeAlias = tuple[tuple[int, ...], ...]
ANY_SHAPES: Shapes = ()
OWN_SHAPES = 2  # compiled models cost memory and seconds


class Request:
    """An infer request, called with arrays in the graph's order. It gives the outputs by number, in memory that its next call
    writes over.

    Arrays that need no conversion are handed over as they are: OpenVINO's own look at each takes a tenth of a small model's token.
    """

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.own = compiled.create_infer_request()
        self._types = [_numpy_type(port) for port in compiled.inputs]
        self._outputs = range(len(compiled.outputs))
        self._held: list[openvino.Tensor] = []  # as long as the request may read them

    def __call__(self, feed: Sequence[NDArray[Any]]) -> Any:
        if not all(map(_as_it_is, feed, self._types)):
            return self.own.infer(feed, share_inputs=True, share_outputs=True)
        self._held = [openvino.Tensor(array, shared_memory=True) for array in feed]
        for place, tensor in enumerate(self._held):
            self.own.set_input_tensor(place, tensor)
        self.own.infer(share_outputs=True)
        return [self.own.get_output_tensor(place).data for place in self._outputs]


def _numpy_type(port: openvino.ConstOutput) -> np.dtype[Any] | None:
    """The numpy type of a port's own numbers; None where there is none, and what is given is converted."""
    kind = port.get_element_type()
    return None if kind == openvino.Type.bf16 else np.dtype(kind.to_dtype())


def _as_it_is(array: NDArray[Any], kind: np.dtype[Any] | None) -> bool:
    return array.dtype == kind and array.ndim > 0 and array.flags.c_contiguous and array.flags.writeable


class FixedRequest(Request):
    """A request for one shape, in whose memory values are laid and found: to hand arrays over and to get a dictionary back takes
    0.3 ms more of a small denoiser's 5 ms."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        super().__init__(compiled)
        self._places = [self.own.get_input_tensor(i).data for i in range(len(compiled.inputs))]
        self._found = [self.own.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    def __call__(self, feed: Sequence[NDArray[Any]]) -> Any:
        for place, value in zip(self._places, feed, strict=True):
            place[...] = value
        self.own.infer(share_outputs=True)
        return self._found


class Graph:
    """A graph on disk, compiled at its first use, with infer requests of each thread's own.

    Compiled for one shape it works out nothing at a call: a small denoiser's takes 2.0 ms instead of 3.2 ms. So the first
    shapes that are called for get compiled models of their own, and any further one the model for all shapes.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = read_settings(folder)
        for name in (MODEL, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(f"holds no {name}", place=str(folder), fix=AGAIN)
        self.folder = folder
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._compiled: dict[Shapes, openvino.CompiledModel] = {}
        self._ports: Ports | None = None

    @property
    def inputs(self) -> Sequence[tuple[str, torch.dtype]]:
        return self._read_ports().inputs

    @property
    def outputs(self) -> Sequence[str]:
        return self._read_ports().outputs

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        feed = [value.numpy() for value in values]
        request = self.request_for(tuple(array.shape for array in feed))
        found = self.call(request, feed)
        # Copied, for multistep schedulers keep outputs; by numpy, for torch's first operation after an engine's takes 0.1 ms.
        return [torch.from_numpy(found[i].copy()) for i in range(len(self.outputs))]

    def call(self, request: Request, feed: list[NDArray[Any]]) -> Any:
        """What a request gives.

        Raises:
            UserError: the graph does not take these values.
        """
        try:
            return request(feed)
        except RuntimeError as error:
            what, place = _last_line(error), str(self.folder)
            if "primitive descriptor" in what:  # OpenVINO's words for an operation that has no code for this processor
                raise UserError(f"this processor cannot run the graph: {what}", place=place, fix=PLAIN) from error
            raise UserError(f"the graph refuses this call: {what}", place=place, fix=SIZES) from error

    @property
    def compiled(self) -> openvino.CompiledModel:
        """The model for all shapes."""
        return self._compile(ANY_SHAPES)[1]

    @property
    def request(self) -> Request:
        """This thread's own request, for any shapes."""
        return self.request_for(ANY_SHAPES)

    def request_for(self, shapes: Shapes) -> Request:
        """This thread's own request for inputs of these shapes, in the graph's order.

        Raises:
            UserError: the graph does not take such shapes.
        """
        requests: dict[Shapes, Request] = self._threads.__dict__.setdefault("requests", {})
        if shapes not in requests:
            self._refuse_foreign(shapes)
            known, compiled = self._compile(shapes)
            if known not in requests:
                requests[known] = Request(compiled) if known == ANY_SHAPES else FixedRequest(compiled)
            requests[shapes] = requests[known]
        return requests[shapes]

    def read(self) -> openvino.Model:
        """The graph.

        Raises:
            ModelError: a file is cut short, garbled, or of another version.
        """
        try:
            return core().read_model(str(self.folder / MODEL))
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO does not read the graph: {_last_line(error)}", place=str(self.folder / MODEL), fix=AGAIN
            ) from error

    def _read_ports(self) -> Ports:
        if self._ports is None:
            model = self.read()
            inputs = tuple((input_name(port), _torch_dtype(port)) for port in model.inputs)
            shapes = tuple(port.get_partial_shape() for port in model.inputs)
            self._ports = Ports(inputs, shapes, tuple(_name(port, "output.") for port in model.outputs))
        return self._ports

    def _refuse_foreign(self, shapes: Shapes) -> None:
        """A graph made over for another size of image would compute something, and nobody has held that against torch."""
        for (name, _), taken, given in zip(self.inputs, self._read_ports().shapes, shapes, strict=shapes != ANY_SHAPES):
            if not taken.compatible(openvino.PartialShape(list(given))):
                raise UserError(
                    f"the graph takes `{name}` of {taken}, and this call gives {list(given)}",
                    place=str(self.folder),
                    fix=SIZES,
                )

    def _compile(self, shapes: Shapes) -> tuple[Shapes, openvino.CompiledModel]:
        """The compiled model to use, and the shapes it stands under."""
        with self._lock:
            if shapes not in self._compiled and len(self._compiled.keys() - {ANY_SHAPES}) >= OWN_SHAPES:
                shapes = ANY_SHAPES
            if shapes not in self._compiled:
                hint = _HINTS.get(self.settings["precision"], "f32")
                options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "KV_CACHE_PRECISION": hint}
                model = self.read()
                if model.get_variables():  # kept kernels of a graph with a cache outlive it: 0.4 MB at each loading
                    options["CPU_RUNTIME_CACHE_CAPACITY"] = "0"
                if shapes != ANY_SHAPES:
                    model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
                self._compiled[shapes] = core().compile_model(model, "CPU", options)
            return shapes, self._compiled[shapes]


class RequestPast(Past):
    """A KV cache that lives inside an infer request."""

    def __init__(self, request: Request, batch: int) -> None:
        super().__init__()
        self.request = request
        self.beams: NDArray[np.int32] = np.arange(batch, dtype=np.int32)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.beams = beam_idx.to(torch.int32).numpy()


class Stateful:
    """A decoder whose graph holds its cache: one generation at a time in each thread."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._threads = threading.local()
        self._names: tuple[str, ...] = ()

    def begin(self, batch: int) -> RequestPast:
        request = self.graph.request
        if not self._names:
            self._names = tuple(map(input_name, self.graph.compiled.inputs))
        request.own.reset_state()
        self._threads.past = RequestPast(request, batch)
        return self._threads.past

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `Decoder.step`.

        Raises:
            UserError: the past was overtaken by a later generation in this thread.
        """
        if getattr(self._threads, "past", None) is not past or not isinstance(past, RequestPast):
            raise UserError("this generation's cache is gone: another began in this thread", fix="finish one at a time")
        values = language_inputs(tokens.numpy(), past.seen, past.beams, self._names)
        found = self.graph.call(past.request, list(values.values()))
        past.beams = np.arange(tokens.shape[0], dtype=np.int32)
        return torch.from_numpy(found[0].copy())


def language_inputs(
    tokens: NDArray[np.int64], seen: int, beams: NDArray[np.int32], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """What a language model's graph asks for by `names`, for tokens [batch, tokens] that follow `seen` others."""
    given = {**step_inputs(tokens, seen, names), "beam_idx": beams}
    return {name: given[name] for name in names}


def start_of_text(tokens: list[int], graph: Graph) -> dict[str, NDArray[Any]]:
    """The inputs of a graph that reads one text from its beginning. Nothing is compiled for it."""
    names = tuple(name for name, _ in graph.inputs)
    return language_inputs(np.array([tokens], dtype=np.int64), 0, np.zeros(1, dtype=np.int32), names)


def input_name(port: openvino.ConstOutput | openvino.Output) -> str:
    """The argument that a port takes: compiling merges names of the optimiser's own into those that were given."""
    return _name(port, "input.")


def _name(port: openvino.ConstOutput | openvino.Output, prefix: str) -> str:
    return next(n.removeprefix(prefix) for n in sorted(port.get_names()) if n.startswith(prefix))


def _last_line(error: Exception) -> str:
    """OpenVINO tells first where in its own source something happened, and last what."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _torch_dtype(port: openvino.ConstOutput | openvino.Output) -> torch.dtype:
    found: torch.dtype = torch.from_numpy(np.empty(0, port.get_element_type().to_dtype())).dtype
    return found


load_component, load_language_model = loading(lambda folder, home: Graph(folder), Stateful)
