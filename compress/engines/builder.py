"""How an engine is made: what each one is given, and the two methods it has to have."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compress.artifact import Format
from compress.engines.module import PLAIN, EngineModule, arguments_of, flatten
from compress.engines.torch.runtime import silent_libraries
from compress.engines.tracing import Call, Traced, dynamic_shapes, in_float32, split
from compress.machine.devices import AS_STORED, Opening
from compress.model.exportable import ANY_SIZE, Batches

Feed = dict[str, torch.Tensor]
POSITIONS = ("wpe", "embed_positions", "position_embeddings")  # what models call the table of their learned positions


@dataclass(frozen=True)
class Example:
    """A component with two real calls to it that differ in batch alone: what an engine is built from.

    `small` and `large` are keyword arguments; `feeds` are the tensors of calibration calls, by dotted name, in float32;
    `fitting` is a call of a size that the engine takes, where it does not take `large`.
    """

    module: torch.nn.Module
    function: str
    small: Call
    large: Call
    feeds: Sequence[Feed] = ()
    fitting: Call | None = None

    @property
    def held(self) -> Call:
        """The call in which the engine is compared with torch."""
        return self.large if self.fitting is None else self.fitting

    @property
    def called(self) -> dict[str, Any]:
        """What an engine must know of how it is called: the method, its arguments in order, the tensors that it was given by
        dotted name, and the values built into the graph."""
        function = getattr(type(self.module), self.function)
        inputs, given = split(self.small)
        kept = {n: p.default for n, p in inspect.signature(function).parameters.items() if isinstance(p.default, PLAIN)}
        return {
            "function": self.function,
            "arguments": arguments_of(function),
            "tensors": sorted(flatten(inputs)),
            "constants": {**kept, **given},
        }

    def in_float32(self) -> Example:
        """The same with all numbers in float32, for engines that know no other. The component itself is widened, as it is for
        the comparison."""
        with silent_libraries():
            module = self.module.float()
        return replace(self, module=module, small=in_float32(self.small), large=in_float32(self.large))

    def trace(self, watched: tuple[str, ...] = (), kind: type[Traced] = Traced) -> tuple[Traced, Call, dict[str, Any]]:
        """What an exporter is given: the module, its inputs, and which of their axes stay open."""
        inputs, constants = split(self.small)
        open_axes = dynamic_shapes(inputs, split(self.large)[0])
        return kind(self.module, self.function, constants, watched).eval(), inputs, open_axes


def positions_of(model: PreTrainedModel) -> int | None:
    """The longest text that a language model has learned positions for; None where positions are worked out."""
    tables = [
        part
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Embedding) and name.rpartition(".")[2] in POSITIONS
    ]
    most: int = model.config.max_position_embeddings if tables else 0
    return min([most, *(t.num_embeddings - (t.padding_idx or -1) - 1 for t in tables)]) if tables else None


class Builder(ABC):
    """How one engine makes and opens its files.

    Args:
        precision: what the engine computes in, of those that its record has.
        opening: the device on which it is compared with torch.
    """

    format: Format
    profile: Batches = ANY_SIZE

    def __init__(self, precision: str, opening: Opening = AS_STORED) -> None:
        self.precision = precision
        self.opening = opening

    @abstractmethod
    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        """Write an engine of a pipeline's component into its folder, where `config.json` already lies.

        Args:
            watched: submodules whose outputs the engine gives too, as `layer.NAME`.
        """

    @abstractmethod
    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        """Write an engine of a causal language model."""

    def open_component(self, folder: Path, library: str, kind: str) -> EngineModule:
        """What is compared with torch: the engine itself, where it runs on this machine."""
        found: EngineModule = self._engine().load_component(folder, library, kind, self.opening)
        return found

    def open_language_model(self, folder: Path, kind: str) -> Any:
        return self._engine().load_language_model(folder, kind, self.opening)

    def _engine(self) -> Any:
        return importlib.import_module(f"compress.engines.{self.format}.runtime")
