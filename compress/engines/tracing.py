"""Torch's side of an export: real calls to a component become what an exporter wants, and back."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.exporters.utils import decompose_for_generation

from compress.algorithms.forward_hooks import hearing
from compress.engines.module import PLAIN, flatten
from compress.engines.torch.runtime import silent_libraries
from compress.machine.devices import CPU

Call = dict[str, Any]
TIMESTEP = "timestep"  # what denoisers call it


class Traced(torch.nn.Module):
    """A component as an exporter wants it: tensors in by name, tensors out by name, all other arguments fixed.

    Args:
        watched: submodules whose outputs come out too, as `layer.NAME`.
    """

    def __init__(
        self, module: torch.nn.Module, function: str, constants: Mapping[str, Any], watched: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.function = function
        self.constants = dict(constants)
        self.watched = tuple(watched)

    def forward(self, **inputs: object) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str, args: object, named: object, output: object) -> None:
            many = tuple(output.values()) if isinstance(output, Mapping) else output
            first = many[0] if isinstance(many, tuple) and many else many
            if isinstance(first, torch.Tensor):
                # A layer that runs again counts once; one more operation, for an exporter merges outputs that are one tensor.
                seen.setdefault(f"layer.{name}", first * 1.0)

        with hearing(self.module, self.watched, keep):
            output = getattr(self.module, self.function)(**inputs, **self.constants, return_dict=True)
        return {**named_tensors(output), **seen}


class Narrowed(Traced):
    """The same of a component in bfloat16 or float16, which takes and gives float32. A timestep stays float32 until the component itself rounds
    what it makes of it, as in torch: bfloat16 cannot count a thousand steps, and float16 tells no fractions of them apart.
    """

    def __init__(
        self, module: torch.nn.Module, function: str, constants: Mapping[str, Any], watched: Sequence[str] = ()
    ) -> None:
        super().__init__(module, function, constants, watched)
        self.dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
        # The exporter casts inputs to the type of the first parameter, and a module's own come before its parts'.
        self.anchor = torch.nn.Parameter(torch.zeros((), device=CPU), requires_grad=False)

    def forward(self, **inputs: object) -> dict[str, torch.Tensor]:
        given = {name: value if name == TIMESTEP else _cast(value, self.dtype) for name, value in inputs.items()}
        return {name: in_float32(value) for name, value in super().forward(**given).items()}


def narrowed(module: torch.nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a module in a number type, as its library opens it in that: transformers leaves what it works out when a model is made, such
    as the frequencies of rotary positions, in float32, and half as many digits of those turn a long text's positions into others."""
    made = copy.deepcopy(module)
    kept = _worked_out(made) if isinstance(made, PreTrainedModel) else {}
    made.to(dtype)
    for (part, name), value in kept.items():
        part._buffers[name] = value
    return made


def _worked_out(module: torch.nn.Module) -> dict[tuple[torch.nn.Module, str], torch.Tensor]:
    """The buffers of numbers that no checkpoint holds."""
    own = (
        (part, name, part._buffers.get(name)) for part in module.modules() for name in part._non_persistent_buffers_set
    )
    return {(part, name): value for part, name, value in own if value is not None and value.is_floating_point()}


def named_tensors(output: object) -> dict[str, torch.Tensor]:
    """The tensors a component gives, by name; those of a tuple as `name.0`, `name.1`."""
    named: dict[str, torch.Tensor] = {}
    for name, value in (output if isinstance(output, Mapping) else {"logits": output}).items():
        if isinstance(value, torch.Tensor):
            named[name] = value
        elif isinstance(value, tuple) and all(isinstance(v, torch.Tensor) for v in value):
            named |= {f"{name}.{i}": v for i, v in enumerate(value)}
    return named


def split(call: Mapping[str, Any]) -> tuple[Call, Call]:
    """A call's arguments apart: those with tensors, and the constants worth keeping."""
    inputs = {n: _as_input(n, v) for n, v in call.items() if isinstance(v, torch.Tensor) or _is_tensors(v)}
    kept = {n: v for n, v in call.items() if n not in inputs and isinstance(v, PLAIN) and n != "return_dict"}
    return inputs, kept


def outline(call: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a graph is bound to in a call: the shapes of its tensors, and its constants."""
    inputs, constants = split(call)
    return {name: tuple(value.shape) for name, value in flatten(inputs).items()}, constants


def dynamic_shapes(small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, Any]:
    """For each input its axes that differ between two calls, which the graph must leave open."""
    shapes: dict[str, Any] = {}
    for name, value in small.items():
        if isinstance(value, Mapping):
            shapes[name] = dynamic_shapes(value, large[name])
        else:
            pairs = zip(value.shape, large[name].shape, strict=True)
            shapes[name] = {i: Dim.AUTO for i, (a, b) in enumerate(pairs) if a != b} or None
    return shapes


def decoding_step(model: PreTrainedModel) -> tuple[torch.nn.Module, Call]:
    """A language model as one step that takes any number of tokens after any number seen, with an example of its inputs."""
    tokens = torch.arange(14, device=_home(model)).reshape(2, 7) % int(
        model.config.vocab_size
    )  # two rows: a batch of one would be built in
    sample = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    decoder, inputs = decompose_for_generation(model, sample, multi_token_decode=True)["decode"]
    return decoder, inputs


def _home(model: torch.nn.Module) -> torch.device:
    """The device that a model lies on."""
    return next(model.parameters()).device


def in_float32(value: object) -> Any:
    """A tensor of numbers, or a mapping of them, in float32; whole numbers and what is no tensor as they are."""
    return _cast(value, torch.float32)


def _cast(value: object, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {n: _cast(v, dtype) for n, v in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@contextmanager
def quiet_export() -> Iterator[None]:
    """The tracer and the exporters warn about their own insides, to people who cannot change them."""
    before = logging.root.manager.disable
    with silent_libraries(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _is_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, torch.Tensor) for v in value.values())


def _as_input(name: str, value: torch.Tensor | Mapping[str, torch.Tensor]) -> Any:
    # Some schedulers count timesteps in whole numbers and some do not; the engine must serve both.
    if name == TIMESTEP and isinstance(value, torch.Tensor) and not value.is_floating_point():
        return value.to(torch.float32)
    return {n: v.clone() for n, v in value.items()} if isinstance(value, Mapping) else value.clone()
