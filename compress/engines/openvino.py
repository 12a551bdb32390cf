"""The OpenVINO engine: a component compiled for the CPU, called as the torch one is.

A component folder holds `openvino_model.xml`, `openvino_model.bin`, the torch component's `config.json` and `engine.json`,
which says how to compile and call it. One compiled model serves all threads; each thread has an infer request of its own.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from compress.artifact import read_json
from compress.engines.torch import find_class
from compress.errors import ModelError, UserError

Precision = Literal["float32", "bfloat16"]
MODEL, WEIGHTS, ENGINE = "openvino_model.xml", "openvino_model.bin", "engine.json"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def write_engine(
    model: openvino.Model,
    folder: Path,
    precision: Precision,
    function: str = "forward",
    arguments: tuple[str, ...] = (),
) -> None:
    """Write a converted model and how to call it into a component's folder, weights as they are."""
    save_graph(model, folder)
    body = {"precision": precision, "function": function, "arguments": arguments}
    (folder / ENGINE).write_text(json.dumps(body, indent=2) + "\n")


def save_graph(model: openvino.Model, folder: Path) -> None:
    """Write a graph, its weights as they are, so that equal graphs give equal bytes.

    OpenVINO names what nobody named by a counter that runs on through the process; those are counted anew here.
    """
    model.set_friendly_name("model")
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z]\w*_\d+", operation.get_friendly_name()):  # a folded constant keeps its source's kind
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    openvino.save_model(model, str(folder / MODEL), compress_to_fp16=False)


def load_component(folder: Path, library: str, kind: str, dtype: torch.dtype | None, device: str) -> OpenVINOModule:
    """An engine component of a pipeline. `dtype` is the engine's own affair: it takes and gives float32.

    Raises:
        ModelError: the folder holds no engine.
    """
    return OpenVINOModule(folder, _config(folder, library, kind))


def load_language_model(folder: Path, kind: str, dtype: torch.dtype | None, device: str) -> OpenVINOLanguageModel:
    """A stateful language model that transformers' `generate` runs as it runs a torch one.

    Raises:
        ModelError: the folder holds no engine.
    """
    return OpenVINOLanguageModel(folder, _config(folder, "transformers", kind))


Shapes: TypeAlias = tuple[tuple[int, ...], ...]
ANY_SHAPES: Shapes = ()
OWN_SHAPES = 2  # compiled models cost memory and seconds


class Graph:
    """A graph on disk, compiled at its first use, with infer requests of each thread's own.

    Compiled for one shape it works out nothing at a call: a small denoiser's takes 2.0 ms instead of 3.2 ms. So the first
    shapes that are called for get compiled models of their own, and any further one the model for all shapes.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / MODEL).is_file() or not (folder / ENGINE).is_file():
            raise ModelError(
                f"holds no {MODEL} with {ENGINE}", place=str(folder), fix="build it again with build.openvino"
            )
        self.folder = folder
        self.settings: dict[str, Any] = read_json(folder / ENGINE)
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._compiled: dict[Shapes, openvino.CompiledModel] = {}

    @property
    def compiled(self) -> openvino.CompiledModel:
        """The model for all shapes."""
        return self._compile(ANY_SHAPES)[1]

    @property
    def request(self) -> openvino.InferRequest:
        """This thread's own infer request, for any shapes."""
        return self.request_for(ANY_SHAPES)

    def request_for(self, shapes: Shapes) -> openvino.InferRequest:
        """This thread's own infer request for inputs of these shapes, in the graph's order."""
        requests: dict[Shapes, openvino.InferRequest] = self._threads.__dict__.setdefault("requests", {})
        if shapes not in requests:
            known, compiled = self._compile(shapes)
            requests.setdefault(known, compiled.create_infer_request())
            requests[shapes] = requests[known]
        return requests[shapes]

    def read(self) -> openvino.Model:
        return openvino.Core().read_model(str(self.folder / MODEL))

    def _compile(self, shapes: Shapes) -> tuple[Shapes, openvino.CompiledModel]:
        """The compiled model to use, and the shapes it stands under."""
        with self._lock:
            if shapes not in self._compiled and len(self._compiled.keys() - {ANY_SHAPES}) >= OWN_SHAPES:
                shapes = ANY_SHAPES
            if shapes not in self._compiled:
                hint = _HINTS[self.settings["precision"]]
                options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "KV_CACHE_PRECISION": hint}
                model = self.read()
                if shapes != ANY_SHAPES:
                    model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
                self._compiled[shapes] = openvino.Core().compile_model(model, "CPU", options)
            return shapes, self._compiled[shapes]


class OpenVINOModule(torch.nn.Module):
    """A pipeline component. Takes and gives float32 tensors; any batch size, the other sizes as they were built."""

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.graph = Graph(folder)
        self._arguments: tuple[str, ...] = tuple(self.graph.settings["arguments"])
        self._ports: list[tuple[str, torch.dtype]] | None = None
        self._outputs: list[str] = []
        width = getattr(config, "projection_class_embeddings_input_dim", None)
        # SDXL's pipeline reads the width of its size embedding off this layer, not off the config.
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width)) if width else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the torch component's `forward` gives: an output with named tensors, or a tuple if `return_dict` is off."""
        return self._call(args, kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """A VAE's decoder. The encoder is not part of the engine: text-to-image never calls it."""
        return self._call(args, kwargs)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """FLUX's pipeline names each of its calls for diffusers' cache hooks, which an engine does not have."""
        return nullcontext()

    def feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The arrays, by port name, that a call with these arguments puts into the graph. They share the tensors' memory.

        Raises:
            UserError: an argument that the graph was built with is missing.
        """
        ports = self._ports or self._read_ports()
        leaves = flatten({**dict(zip(self._arguments, args, strict=False)), **kwargs})
        missing = [name for name, _ in ports if name not in leaves]
        if missing:
            raise UserError(
                f"the engine needs {', '.join(missing)}, which this call does not give",
                place=str(self.graph.folder),
                fix="call it as the pipeline it was built for does",
            )
        return {name: leaves[name].detach().to(dtype).contiguous().numpy() for name, dtype in ports}

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        feed = list(self.feed(args, kwargs).values())
        results = self.graph.request_for(tuple(a.shape for a in feed)).infer(
            feed, share_inputs=True, share_outputs=True
        )
        # Cloned, for multistep schedulers keep outputs while the next call overwrites the request's memory.
        tensors = {n: torch.from_numpy(results[i]).clone() for i, n in enumerate(self._outputs)}
        values = _regroup(tensors)
        return tuple(values.values()) if kwargs.get("return_dict") is False else ModelOutput(values)

    def _read_ports(self) -> list[tuple[str, torch.dtype]]:
        model = self.graph.read()
        self._outputs = [_name(port, "output.") for port in model.outputs]
        # Assigned last: a second thread that sees it must find the outputs there.
        self._ports = [(input_name(p), _torch_dtype(p)) for p in model.inputs]
        return self._ports


class State:
    """What generation carries from token to token: the KV cache inside an infer request, and the tokens it has seen."""

    is_compileable = False

    def __init__(self, request: openvino.InferRequest, batch: int) -> None:
        self.request = request
        self.seen = 0
        self.beams: NDArray[np.int32] = np.arange(batch, dtype=np.int32)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.beams = beam_idx.to(torch.int32).numpy()


class OpenVINOLanguageModel(torch.nn.Module, GenerationMixin):
    """A causal language model whose KV cache lives in the engine. A batch has prompts of one length: no padding."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__()
        self.config = config
        given = (folder / "generation_config.json").is_file()
        self.generation_config = (
            GenerationConfig.from_pretrained(str(folder)) if given else GenerationConfig.from_model_config(config)
        )
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.graph = Graph(folder)
        self._threads = threading.local()
        self._ports: tuple[str, ...] = ()

    def can_generate(self) -> bool:
        return True

    def _supports_default_dynamic_cache(self) -> bool:
        return False  # so that `generate` makes none, and passes on the `State` that `forward` returns

    def get_experts_implementation(self) -> dict[str, str]:
        return {}  # `generate` asks, to switch torch kernels that an engine does not have

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: State | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # Phi-3 turns keys by another scale beyond this length, so those in the cache no longer fit: transformers begins anew.
        switch = getattr(self.config, "original_max_position_embeddings", None)
        if past_key_values is not None and switch and past_key_values.seen <= switch < input_ids.shape[1]:
            past_key_values = None
        mask = kwargs.get("attention_mask") if past_key_values is None else None
        seen = past_key_values.seen if past_key_values is not None else 0
        return {"input_ids": input_ids[:, seen:], "past_key_values": past_key_values, "attention_mask": mask}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: State | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, tokens, vocabulary] of the given tokens, after those that `past_key_values` has seen.

        Raises:
            UserError: the batch is padded on the left, or the state was overtaken by a later call in this thread.
        """
        # Padding behind the text is harmless, for no token looks ahead; before it, it would shift every position.
        if attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all()):
            raise UserError(
                "the engine takes no left-padded batch", fix="generate from prompts of one length at a time"
            )
        state = past_key_values or self._begin(input_ids.shape[0])
        if getattr(self._threads, "state", None) is not state:
            raise UserError("this generation's cache is gone: another began in this thread", fix="finish one at a time")
        values = language_inputs(input_ids.contiguous().numpy(), state.seen, state.beams, self._ports)
        results = state.request.infer(list(values.values()), share_inputs=True, share_outputs=True)
        state.seen += input_ids.shape[1]
        state.beams = np.arange(input_ids.shape[0], dtype=np.int32)
        return CausalLMOutputWithPast(logits=torch.from_numpy(results[0]).clone(), past_key_values=state)

    def _begin(self, batch: int) -> State:
        request = self.graph.request
        if not self._ports:
            self._ports = tuple(map(input_name, self.graph.compiled.inputs))
        request.reset_state()
        self._threads.state = State(request, batch)
        return self._threads.state


def language_inputs(
    tokens: NDArray[np.int64], seen: int, beams: NDArray[np.int32], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """What a language model's graph asks for by `names`, for tokens [batch, tokens] that follow `seen` others."""
    position = np.arange(seen, seen + tokens.shape[1], dtype=np.int64)
    made: dict[str, Callable[[], NDArray[Any]]] = {
        "input_ids": lambda: tokens,
        "position_ids": lambda: np.broadcast_to(position, tokens.shape).copy(),
        "cache_position": lambda: position,
        "attention_mask": lambda: np.ones((tokens.shape[0], seen + tokens.shape[1]), dtype=np.int64),
        "beam_idx": lambda: beams,
    }
    return {name: made[name]() for name in names}


def start_of_text(tokens: list[int], graph: Graph) -> dict[str, NDArray[Any]]:
    """The inputs of a graph that reads one text from its beginning."""
    names = tuple(map(input_name, graph.compiled.inputs))
    return language_inputs(np.array([tokens], dtype=np.int64), 0, np.zeros(1, dtype=np.int32), names)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors among a call's arguments, those in dictionaries under dotted names; everything else is left out."""
    leaves: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            leaves[prefix + name] = value
        elif isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
    return leaves


def input_name(port: Any) -> str:
    """The argument that a port takes: compiling merges names of the optimiser's own into those that were given."""
    return _name(port, "input.")


def _name(port: Any, prefix: str) -> str:
    return next(n.removeprefix(prefix) for n in sorted(port.get_names()) if n.startswith(prefix))


def _regroup(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Undo the flattening of outputs: `hidden_states.0`, `hidden_states.1` become the tuple `hidden_states`."""
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, dot, _ = name.partition(".")
        values[head] = (*values.get(head, ()), tensor) if dot else tensor
    return values


def _torch_dtype(port: Any) -> torch.dtype:
    found: torch.dtype = torch.from_numpy(np.empty(0, port.get_element_type().to_dtype())).dtype
    return found


def _config(folder: Path, library: str, kind: str) -> Any:
    known = find_class(library, kind, folder)
    if library == "transformers":
        return known.config_class.from_pretrained(str(folder))
    from diffusers.configuration_utils import FrozenDict

    defaults = {
        n: p.default for n, p in inspect.signature(known.__init__).parameters.items() if p.default is not p.empty
    }
    return FrozenDict({**defaults, **read_json(folder / "config.json")})
