"""The TensorRT engine, on an NVIDIA GPU. One engine serves all threads; each thread has an execution context of its own.

A component's folder holds `model.onnx` with `model.onnx.data`, an engine for each target (`SM89.engine`), and in `engine.json` a
record of each. An engine is only opened where its record fits its ONNX, the GPU and the library; else one is built in memory
from the ONNX, for an artifact never changes.

Written where there is no NVIDIA GPU: which engine is taken, and when one is built, is tested; what follows has not been run.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.algorithms.tensors import device_of, to_array
from compress.engines.language import EngineLanguageModel, Past, TensorPast, foreign_cache, step_inputs
from compress.engines.module import EngineModule, read_settings, with_encoder
from compress.engines.onnx.runtime import CACHE_IN
from compress.engines.tensorrt.compile import Network
from compress.engines.tensorrt.record import (
    OPEN,
    Ports,
    Record,
    Target,
    check_record,
    outside,
    read_ports,
    record_from,
)
from compress.errors import ModelError, UserError
from compress.files.hashing import digest_file
from compress.machine.devices import Opening
from compress.machine.gpus import LIBRARIES, gpu_here, targets_of, torch_without_cuda

if TYPE_CHECKING:
    import tensorrt_rtx

log = logging.getLogger(__name__)


def load_component(folder: Path, library: str, kind: str, opening: Opening) -> EngineModule:
    """An engine component of a pipeline. The number type is the engine's own affair: it takes and gives float32, on the opening's device.

    Raises:
        ModelError: the folder holds no engine.
        UserError: there is no GPU here that could run it.
    """
    home = device_of(opening)
    return with_encoder(folder, lambda place: EngineModule(place, library, kind, Engine(place, home), home))


def load_language_model(folder: Path, kind: str, opening: Opening) -> EngineLanguageModel:
    """A language model that transformers' `generate` runs as it runs a torch one.

    Raises:
        ModelError: the folder holds no engine.
        UserError: there is no GPU here that could run it.
    """
    home = device_of(opening)
    return EngineLanguageModel(folder, kind, Decoder(Engine(folder, home)), home)


def read_records(folder: Path) -> tuple[Record, ...]:
    """The engines of a component, as `engine.json` tells of them.

    Raises:
        ModelError: the folder holds no engine.
    """
    settings = read_settings(folder)
    if not settings.get("engines"):
        raise ModelError("holds no TensorRT engine", place=str(folder), fix="build it again with build.tensorrt")
    return tuple(map(record_from, settings["engines"]))


def target_here(folder: Path, records: Sequence[Record]) -> Target:
    """The GPU available here with the library that built these engines.

    Raises:
        UserError: there is no GPU here, or not that library, or one that the library or torch does not know.
    """
    built = ", ".join(str(record.target) for record in records)
    gpu, library = gpu_here(), LIBRARIES[records[0].target.library]
    if gpu is None:
        raise UserError(
            f"there is no NVIDIA GPU here to run TensorRT engines: it was built for {built}",
            place=str(folder),
            fix="run it where there is one, or build another engine: build.openvino, build.onnxruntime",
        )
    if not library.version:
        raise UserError(
            f"{library.name} is not installed; this was built for {built}", place=str(folder), fix=library.install
        )
    if gpu.target not in targets_of(library):
        raise UserError(
            f"{library.name} {library.version} does not know the {gpu.name} here, {gpu.target}; this was built for {built}",
            place=str(folder),
            fix="run it on another GPU, or build it again with library: tensorrt",
        )
    if version := torch_without_cuda():
        raise UserError(
            f"torch {version} is built without CUDA, and engines run on torch's tensors; this was built for {built}",
            place=str(folder),
            fix="install a torch with CUDA: https://pytorch.org/get-started/locally",
        )
    return Target(gpu.target, library.name, library.version)


def fitting(
    records: Sequence[Record], onnx: Ports, target: Target, intact: Callable[[Record], bool]
) -> tuple[Record | None, tuple[str, ...]]:
    """The engine to open on a target, or None and what stands against each that there is.

    Args:
        intact: whether an engine's file is still the one of its record.
    """
    against = []
    for record in records:
        wrong = check_record(record, onnx, target)
        if not wrong and intact(record):
            return record, ()
        against.append(f"{record.file}: {'; '.join(wrong) or 'its file has changed'}")
    return None, tuple(against)


class Engine:
    """An engine, opened at its first use. It computes on the GPU available here, and gives its values on the device of its caller."""

    def __init__(self, folder: Path, home: torch.device) -> None:
        self.folder = folder
        self.home = home
        self.records = read_records(folder)
        self.target = target_here(folder, self.records)
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._engine: Any = None

    @property
    def record(self) -> Record:
        """What the engine takes and gives: all of a folder are of one graph and profile."""
        return self.records[0]

    @property
    def inputs(self) -> Sequence[tuple[str, torch.dtype]]:
        return [(p.name.removeprefix("input."), getattr(torch, p.dtype)) for p in self.record.ports.inputs]

    @property
    def outputs(self) -> Sequence[str]:
        return [p.name.removeprefix("output.") for p in self.record.ports.outputs]

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """As `Runner.run`.

        Raises:
            UserError: a shape lies outside the engine's profile.
        """
        named = dict(zip((p.name for p in self.record.ports.inputs), values, strict=True))
        if wrong := outside(self.record, {name: value.shape for name, value in named.items()}):
            raise UserError(
                f"the engine does not take this call: {'; '.join(wrong)}",
                place=str(self.folder),
                fix="call it with what it was built for, or build it with a wider profile",
            )
        made = self._enqueue(self._context(), {name: value.to("cuda").contiguous() for name, value in named.items()})
        return [value.to(self.home) for value in made]

    def _enqueue(
        self, context: tensorrt_rtx.IExecutionContext, named: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Put a call into the caller's own stream, where torch's reading and freeing of these tensors stays in order."""
        for name, value in named.items():
            context.set_input_shape(name, tuple(value.shape))
        made = [
            torch.empty(tuple(context.get_tensor_shape(p.name)), dtype=getattr(torch, p.dtype), device="cuda")
            for p in self.record.ports.outputs
        ]
        some = torch.empty(16, device="cuda")  # a tensor of no elements has no address, and TensorRT wants one
        bound = {**named, **dict(zip((p.name for p in self.record.ports.outputs), made, strict=True))}
        for name, tensor in bound.items():
            context.set_tensor_address(name, (tensor if tensor.numel() else some).data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise UserError("TensorRT could not run the engine", place=str(self.folder), fix="build it again here")
        return made

    def _context(self) -> Any:
        """This thread's own execution context."""
        if not hasattr(self._threads, "context"):
            self._threads.context = self.open().create_execution_context()
        return self._threads.context

    def open(self) -> Any:
        """The library's engine: the one that was built for this GPU, or one built now from the ONNX beside it.

        Raises:
            ModelError: the library does not read it.
        """
        with self._lock:
            if self._engine is None:
                found, against = fitting(self.records, read_ports(self.folder), self.target, self._intact)
                network = Network(self.folder, LIBRARIES[self.target.library]) if found is None else None
                if network:
                    log.warning("%s: built anew in memory for %s, for %s", self.folder, self.target, "; ".join(against))
                body = network.build(self.target.gpu, self.record.profile) if network else self._read(found)
                self._engine = self._deserialize(body)
            return self._engine

    def _deserialize(self, body: bytes | memoryview) -> Any:
        trt = importlib.import_module(LIBRARIES[self.target.library].module)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # which must outlive its engine
        engine = self._runtime.deserialize_cuda_engine(body)
        if engine is None:
            raise ModelError(
                f"{self.target.library} {self.target.version} does not open the engine for {self.target.gpu}",
                place=str(self.folder),
                fix="build it again on this machine with build.tensorrt",
            )
        return engine

    def _read(self, record: Record | None) -> bytes:
        return (self.folder / record.file).read_bytes() if record else b""

    def _intact(self, record: Record) -> bool:
        file = self.folder / record.file
        return file.is_file() and digest_file(file) == record.digest


class Decoder:
    """A decoder whose engine takes the cache of the tokens seen and gives it back, longer by those of the step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def begin(self, batch: int) -> TensorPast:
        caches = (port for port in self.engine.record.ports.inputs if port.name.startswith(CACHE_IN))
        empty = []
        for port in caches:
            sizes = [0 if size == OPEN else size for size in port.shape[1:]]
            empty.append(torch.empty((batch, *sizes), dtype=getattr(torch, port.dtype), device=self.engine.home))
        return TensorPast(empty)

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `engines.language.Decoder.step`."""
        if not isinstance(past, TensorPast):
            raise foreign_cache()
        caches = iter(past.tensors)
        given = step_inputs(to_array(tokens), past.seen, (name for name, _ in self.engine.inputs))
        values = [torch.from_numpy(given[n]) if n in given else next(caches) for n, _ in self.engine.inputs]
        logits, *grown = self.engine.run(values)
        past.tensors = tuple(grown)
        return logits
