"""A module's forward, replayed from CUDA graphs: one for each signature of its calls, taken at the first."""

from __future__ import annotations

import copy
import functools
import threading
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StaticCache

from compress.engines.module import arguments_of
from compress.opening.call_signature import Untaken, copied, refilled, spelt, weakly
from compress.opening.graph_guards import Unchanged
from compress.opening.static_caches import between_steps, is_step

DEVICES = ("cuda",)
WARM_UP = 3  # calls on a stream of their own: libraries choose kernels, make workspaces, compile
KEPT = 8  # signatures; each holds its inputs, and all of a module share the memory of what lies between
MOVES = 2  # times that a module's weights may move before it is taken for one that is moved at every call
NUMBER = "timestep"  # given as a plain number by some pipelines, another at each step: a tensor to a graph
Call = Mapping[str, Any]


@dataclass
class Ran:
    """What a module's calls were, counted as they ran.

    captured: graphs that were taken. replayed: calls that a graph answered.
    eager: the other calls, by why. prompts: a language model's calls on more than one token, which are never captured.
    """

    captured: int = 0
    replayed: int = 0
    eager: Counter[str] = field(default_factory=Counter)
    prompts: int = 0


@dataclass(frozen=True)
class Replay:
    """A graph with the tensors that it reads and writes; `cache` is what it writes beside them, if that is still there."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: Any
    device: torch.device
    cache: weakref.ref[StaticCache] | None

    def __call__(self, tensors: list[torch.Tensor]) -> Any:
        for static, given in zip(self.inputs, tensors, strict=True):
            static.copy_(given, non_blocking=True)
        self.graph.replay()
        return copied(self.output, self.device)

    @property
    def gone(self) -> bool:
        return self.cache is not None and self.cache() is None


class Graphed:
    """Stands where a module's `forward` stood. One call at a time: a graph has one set of inputs.

    Args:
        steps: whether only a language model's steps are captured: calls on one token, and on a cache of fixed size.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, *, steps: bool = False) -> None:
        self.module, self.device, self.steps = module, device, steps
        self.eager: Callable[..., Any] = module.forward
        self.ran = Ran()
        self._names = arguments_of(type(module).forward)
        self._graphs: dict[Hashable, Replay | str] = {}
        self._unchanged = Unchanged(module)
        self._moves = 0
        self._pool: Any = None
        self._stream: Any = None
        self._lock = threading.Lock()
        functools.update_wrapper(self, self.eager)  # libraries read a forward's signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if len(args) > len(self._names) or torch.cuda.is_current_stream_capturing():
            return self.eager(*args, **kwargs)
        if self.steps and not is_step(call):
            self.ran.prompts += 1
            return self.eager(*args, **kwargs)
        with self._lock:
            found, tensors = self._found(call)
            if not isinstance(found, str):
                self.ran.replayed += 1
                return self._replayed(found, tensors)
        self._reported(found)
        return self.eager(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphed:
        """A copied module takes graphs of its own."""
        module = copy.deepcopy(self.module, memo)
        other = Graphed(module, self.device, steps=self.steps)
        other.eager = types.MethodType(type(module).forward, module)
        return other

    def _found(self, call: Call) -> tuple[Replay | str, list[torch.Tensor]]:
        """The graph for a call, taken now if there is none, and the tensors it is given; or why there is none."""
        tensors: list[torch.Tensor] = []
        if why := self._not_now():
            return why, tensors
        call = self._numbered(call)
        try:
            key = spelt(dict(call), tensors)
        except Untaken as error:
            return str(error), tensors
        self._graphs = {k: one for k, one in self._graphs.items() if isinstance(one, str) or not one.gone}
        if key not in self._graphs:
            if len(self._graphs) >= KEPT:  # those of which no graph could be taken count too: each try takes some calls
                return f"it was called in more than {KEPT} ways", tensors
            self._graphs[key] = self._taken(call, tensors)
        return self._graphs[key], tensors

    def _not_now(self) -> str:
        """Why no graph may answer at this time, whatever the call; or ""."""
        if torch.is_grad_enabled():
            return "it was called with gradients"
        if self.module.training:
            return "it is in training mode"
        if torch.is_autocast_enabled(self.device.type):  # whose casts of weights are gone when it ends
            return "it was called under autocast"
        if self._unchanged.changes():
            self._graphs.clear()
            self._moves += 1
        if self._unchanged.hooked:
            return "hooks hang on its parts"
        return "its weights are moved or exchanged between calls" if self._moves > MOVES else ""

    def _numbered(self, call: Call) -> Call:
        number = call.get(NUMBER)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return call
        # As UNets do it themselves.
        kind = torch.int64 if isinstance(number, int) else torch.float64
        return {**call, NUMBER: torch.tensor(number, dtype=kind, device=self.device)}

    def _taken(self, call: Call, tensors: list[torch.Tensor]) -> Replay | str:
        """A graph of one call, or why it could not be taken."""
        with torch.cuda.device(self.device), torch.inference_mode(False), torch.no_grad():
            inputs = tuple(torch.empty_like(one, device=self.device).copy_(one) for one in tensors)
            cache = next((one for one in call.values() if isinstance(one, StaticCache)), None)
            arguments = refilled(dict(call), iter(inputs))
            try:
                self._warm_up(arguments, inputs, cache)
                graph = torch.cuda.CUDAGraph()
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                with torch.cuda.graph(graph, pool=self._pool):
                    output = self.eager(**arguments)
                copied(output, self.device)  # or say now that it cannot be
            except Untaken as error:
                return str(error)
            except RuntimeError as error:  # what CUDA forbids while it captures, and want of memory
                return f"it cannot be captured: {str(error).strip().partition(chr(10))[0]}"
        self.ran.captured += 1
        return Replay(graph, inputs, weakly(output), self.device, None if cache is None else weakref.ref(cache))

    def _warm_up(self, arguments: Call, inputs: tuple[torch.Tensor, ...], cache: StaticCache | None) -> None:
        versions = [one._version for one in inputs]
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                with between_steps(cache):
                    self.eager(**arguments)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        if versions != [one._version for one in inputs]:
            raise Untaken("it writes into what it is given")

    def _replayed(self, found: Replay, tensors: list[torch.Tensor]) -> Any:
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None and self._stream != stream:  # whose copies may not be done yet
            stream.wait_stream(self._stream)
        self._stream = stream
        return found(tensors)

    def _reported(self, why: str) -> None:
        if why not in self.ran.eager:
            name = type(self.module).__name__
            warnings.warn(f"{name} is called without a CUDA graph: {why}", stacklevel=3)
        self.ran.eager[why] += 1
