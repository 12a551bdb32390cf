"""What stands where a torch component stood: called as that one is, whatever engine runs its graph.

An engine's folder holds its files, the torch component's `config.json`, and `engine.json`: which engine and version made
them, in what precision, and which method of the component it stands for.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import ModelOutput

from compress.artifact import read_json
from compress.engines import ENCODER, SETTINGS
from compress.engines.torch.runtime import find_class, silent_libraries
from compress.errors import ModelError, UserError

ENGINE = SETTINGS
MOMENTS = "moments"  # of a latent's distribution: mean and log variance, one behind the other
SIZES = "call it at the sizes it was built for: only the batch, and a language model's text, may vary"
PLAIN = (bool, int, float, str)  # arguments that become part of a graph
FORM = ("return_dict", "generator")  # how the output comes, and what no decoder draws from
CPU = torch.device("cpu")


class Runner(Protocol):
    """A component's graph, ready to run for any thread."""

    @property
    def inputs(self) -> Sequence[tuple[str, torch.dtype]]:
        """Each input's dotted name and the type it takes, in the order `run` wants them."""

    @property
    def outputs(self) -> Sequence[str]:
        """Each output's dotted name, in the order `run` gives them."""

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The outputs for contiguous inputs. They are the caller's own: no later call writes over them."""


class EngineModule(torch.nn.Module):
    """A pipeline component. It takes float32 (or whatever the caller has) and gives what its graph gives, on its device."""

    def __init__(self, folder: Path, library: str, kind: str, runner: Runner, device: torch.device = CPU) -> None:
        super().__init__()
        self.folder = folder
        self.settings = read_settings(folder)
        self.config = config_of(folder, library, kind)
        self.dtype = torch.float32
        self.device = device
        self.runner = runner
        self._twin = Twin(library, kind, folder)
        self.arguments: tuple[str, ...] = tuple(self.settings["arguments"])
        self._tensors = frozenset(self.settings["tensors"])
        self._constants: dict[str, Any] = self.settings["constants"]

    def __getattr__(self, name: str) -> Any:
        """What a stock pipeline reads of the torch component beside calling it, such as the width of a layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_twin" not in self.__dict__:
                raise
        return self.__dict__["_twin"].read(name)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """What the torch component gives: an output with named tensors, or a tuple if `return_dict` is off."""
        leaves = self.feed(args, kwargs)
        values = self.runner.run(list(leaves.values()))
        if len(values) == 1 and kwargs.get("return_dict") is False:
            return tuple(values)
        grouped = regroup(dict(zip(self.runner.outputs, values, strict=True)))
        return tuple(grouped.values()) if kwargs.get("return_dict") is False else ModelOutput(grouped)

    def decode(self, *args: object, **kwargs: object) -> Any:
        """A VAE's decoder."""
        return self.forward(*args, **kwargs)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """FLUX's pipeline names each of its calls for diffusers' cache hooks, which an engine does not have."""
        return nullcontext()

    def feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors, by input name, that a call with these arguments puts into the graph; shared where nothing changes.

        Raises:
            UserError: an argument that the graph was built with is missing, or one is given that the graph does not know.
        """
        call = {**dict(zip(self.arguments, args, strict=False)), **kwargs} if args else kwargs
        leaves = flatten(call)
        inputs, device = self.runner.inputs, self.device
        others = [name for name, v in call.items() if v is not None and name not in leaves and name not in FORM]
        if leaves.keys() != self._tensors or (others and any(self._matters(name, call[name]) for name in others)):
            self._refuse(call, leaves)
        return {name: _fitting(leaves[name], device, dtype) for name, dtype in inputs}

    def _refuse(self, call: Mapping[str, Any], leaves: Mapping[str, torch.Tensor]) -> None:
        """Raises a UserError where a call lacks what the graph needs, or gives what it does not know."""
        if missing := [name for name, _ in self.runner.inputs if name not in leaves]:
            raise UserError(
                f"the engine needs {', '.join(missing)}, which this call does not give",
                place=str(self.folder),
                fix="call it as the pipeline it was built for does",
            )
        if foreign := [*(leaves.keys() - self._tensors), *(name for name, v in call.items() if self._matters(name, v))]:
            raise UserError(
                f"the engine's graph has no {', '.join(sorted(foreign))}: it was built from calls that gave none, or another value",
                place=str(self.folder),
                fix="call it as the pipeline it was built for does, or leave this component in torch",
            )

    def _matters(self, name: str, value: object) -> bool:
        """Whether an argument that is no tensor would change what the torch component computes, and not what the graph does."""
        if value is None or isinstance(value, torch.Tensor) or name in FORM:
            return False
        if isinstance(value, PLAIN):
            return bool(self._constants.get(name) != value)
        if isinstance(value, Mapping):
            return any(self._matters(f"{name}.{key}", inner) for key, inner in value.items())
        return bool(value)


class Encoding(torch.nn.Module):
    """A VAE's encoder as a component that an engine can stand for: images [n, 3, height, width] to mean and log variance of their latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor, return_dict: bool = True) -> dict[str, torch.Tensor]:
        return {MOMENTS: self.vae.encode(x).latent_dist.parameters}


def with_encoder(folder: Path, opened: Callable[[Path], EngineModule]) -> EngineModule:
    """A component's engine; where that of its encoder lies beside it, it encodes, too."""
    found = opened(folder)
    if (folder / ENCODER / ENGINE).is_file():
        found.encode = partial(_encoded, opened(folder / ENCODER))  # type: ignore[assignment]
    return found


def _encoded(encoder: EngineModule, x: torch.Tensor, return_dict: bool = True) -> Any:
    """What a VAE's `encode` gives: the distribution of the latents of images [n, 3, height, width]."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    found = DiagonalGaussianDistribution(encoder(x=x)[MOMENTS])
    return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)


class Twin:
    """The torch component an engine stands for, without its weights: made when somebody asks what it looks like."""

    def __init__(self, library: str, kind: str, folder: Path) -> None:
        self._made: torch.nn.Module | None = None
        self._lock = threading.Lock()
        self._kind = (library, kind, folder)

    def read(self, name: str) -> Any:
        """An attribute of the component that is no method: an engine has methods of its own, and no others."""
        value = getattr(self._module(), name)
        if inspect.ismethod(value):
            raise AttributeError(f"the engine of {self._kind[1]} has no method {name}")
        return value

    def _module(self) -> torch.nn.Module:
        with self._lock:
            if self._made is None:
                library, kind, folder = self._kind
                known, config = find_class(library, kind, folder), config_of(folder, library, kind)
                with torch.device("meta"), silent_libraries():
                    self._made = known(config) if library == "transformers" else known.from_config(config)
            return self._made


def write_settings(folder: Path, engine: str, version: str, precision: str, **more: object) -> None:
    """Say in `engine.json` what made an engine and how it is called.

    Args:
        more: what `Example.called` gives of a pipeline's component or `positions` of a language model, and what else the
            engine must know to be opened.
    """
    body = {"engine": engine, "version": version, "precision": precision, **more}
    (folder / ENGINE).write_text(json.dumps(body, indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """What `engine.json` says.

    Raises:
        ModelError: the folder holds no engine.
    """
    if not (folder / ENGINE).is_file():
        raise ModelError(f"holds no {ENGINE}", place=str(folder), fix="run the recipe again: it builds the engine")
    found: dict[str, Any] = read_json(folder / ENGINE)
    return found


def _fitting(value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A value as a graph takes it. Between two calls of an engine torch's operations cost more than they do in a row: none is called in vain."""
    if value.dtype is dtype and value.device == device and value.is_contiguous() and not value.requires_grad:
        return value
    return value.detach().to(device, dtype).contiguous()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors among a call's arguments, those in dictionaries under dotted names; everything else is left out."""
    leaves: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            leaves[prefix + name] = value
        elif isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
    return leaves


def regroup(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Undo the flattening of outputs: `hidden_states.0`, `hidden_states.1` become the tuple `hidden_states`."""
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, dot, _ = name.partition(".")
        values[head] = (*values.get(head, ()), tensor) if dot else tensor
    return values


def arguments_of(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of a method's arguments, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds and n != "self")


def config_of(folder: Path, library: str, kind: str) -> Any:
    """A component's config as its own library reads it, its defaults filled in."""
    known = find_class(library, kind, folder)
    if library == "transformers":
        return known.config_class.from_pretrained(str(folder))
    from diffusers.configuration_utils import FrozenDict

    defaults = {
        n: p.default for n, p in inspect.signature(known.__init__).parameters.items() if p.default is not p.empty
    }
    return FrozenDict({**defaults, **read_json(folder / "config.json")})
