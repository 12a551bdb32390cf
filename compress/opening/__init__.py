"""Artifacts opened for use: one file a task, under the task's own name. It knows the library's pipeline or model; engines know
the formats.

This file says what every opened model can do, and opens it. It imports torch only when something is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.catalogue import find_engine, find_task
from compress.devices import AS_STORED, CPU, Opening, kind_of
from compress.errors import UserError
from compress.hooks import unknown_hooks
from compress.pipelines import library_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from compress.data import Item
    from compress.graphs import Batches
    from compress.recipe import EvalSpec
    from compress.tasks import Observable

Call = dict[str, Any]  # arguments by name
T = TypeVar("T")


@dataclass(frozen=True)
class Timed:
    """A call to be timed.

    run: makes one; gives its seconds and those until its first token, 0 where there is none.
    work: denoiser evaluations or tokens of one call. prompt_tokens: of each prompt, for text.
    """

    run: Callable[[], tuple[float, float]]
    work: int
    prompt_tokens: int = 0


class OpenModel(Protocol):
    """A model of any task, ready to run."""

    artifact: Artifact
    opening: Opening

    @property
    def stock(self) -> Any:
        """The library's own object, a pipeline or a model, which can be called by itself."""

    @property
    def brief(self) -> Mapping[str, Any]:
        """Arguments that make a call run just far enough for its components to be looked at."""

    @property
    def examples(self) -> Sequence[Item]:
        """Something to run it on where no data is."""

    def component(self, name: str) -> torch.nn.Module:
        """The module that stands for a component."""

    def function_of(self, component: str) -> str:
        """The method that a component is called by."""

    def calls_of(
        self, components: Sequence[str], items: Sequence[Item], seed: int, *, batch: int = 4, **call: object
    ) -> Iterator[tuple[str, Call]]:
        """Every call to these components while the model runs on the items, in order: the component, and the arguments by name.

        They are copies, which later calls leave alone and through which gradients may flow.
        """

    def probe(self, profile: Batches) -> NDArray[np.float64]:
        """What it gives on a fixed input, as near to two items as `profile` takes."""

    def first_call(self, **call: object) -> None:
        """One whole call on a fixed input, as a fresh process makes it."""

    def timed(self, items: Sequence[Item], spec: EvalSpec, call: Mapping[str, Any]) -> Timed:
        """The call that an evaluation times."""


class ImageModel(OpenModel, Protocol):
    """A model that yields pictures."""

    def pictures(
        self, items: Sequence[Item], seed: int, **call: object
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """One picture for each item, as one batch: uint8 [items, height, width, 3]; and what the autoencoder was given to
        decode, float32 [items, channels, height, width], or None for a pipeline that decodes nothing.

        A picture's initial noise depends on the seed and its item's id, and on nothing else.
        """

    def shapes_of(self, components: Sequence[str], keep: Callable[[str, Call], T], **call: object) -> list[T]:
        """What `keep` makes of every call to these components while one picture is painted."""

    def cut_short(self, items: Sequence[Item], **call: object) -> str:
        """How many of the items' captions are longer than the model reads, in words; "" where none."""


class LanguageModel(OpenModel, Protocol):
    """A model that continues text."""

    model: Any
    tokenizer: Any
    known: int | None  # tokens that it has embeddings for, as far as its config says

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model has positions for."""

    def encode(self, text: str) -> list[int]: ...

    def token_logprobs(self, texts: Sequence[str], batch: int) -> list[NDArray[np.float64]]: ...

    def generate(self, prompts_tokens: Sequence[Sequence[int]], new_tokens: int, **call: object) -> list[list[int]]: ...

    def complete(self, prompt: Sequence[int], most: int) -> list[int]: ...

    def logits(self, documents: Sequence[Sequence[int]]) -> torch.Tensor: ...

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]: ...


def open_task(artifact: Artifact, opening: Opening = AS_STORED) -> OpenModel:
    """Load an artifact, each component with the engine of its format.

    Raises:
        ModelError: a component does not load.
        UserError: the dtype has no such name, torch has no such device here, an engine does not run there, or the artifact has
            settings that this pare cannot apply.
    """
    _refuse(artifact, opening)
    opened: OpenModel = importlib.import_module(f"compress.opening.{artifact.task}").open_model(artifact, opening)
    if artifact.settings.hook:
        from compress.opening.hooks import apply_hooks

        apply_hooks(opened)
    return opened


def open_images(artifact: Artifact, opening: Opening = AS_STORED) -> ImageModel:
    """As `open_task`, of a task that yields pictures."""
    _expect(artifact, "pictures")
    return cast("ImageModel", open_task(artifact, opening))


def open_language(artifact: Artifact, opening: Opening = AS_STORED) -> LanguageModel:
    """As `open_task`, of a task that yields a language model."""
    _expect(artifact, "language_model")
    return cast("LanguageModel", open_task(artifact, opening))


def open_component(artifact: Artifact, name: str, opening: Opening = AS_STORED) -> torch.nn.Module:
    """One component by itself, with the engine of its format.

    Raises:
        ModelError: it does not load.
        UserError: as `open_task`.
    """
    _refuse(artifact, opening)
    part, folder = artifact.components[name], artifact.folder(name)
    engine = importlib.import_module(f"compress.engines.{part.format}.runtime")
    if name == LANGUAGE_MODEL:
        module: torch.nn.Module = engine.load_language_model(folder, part.kind, opening)
    else:
        module = engine.load_component(folder, library_of(artifact.path, name), part.kind, opening)
    return module


def _expect(artifact: Artifact, need: Observable) -> None:
    if find_task(artifact.task).fits((need,)):
        raise UserError(
            f"a model of {artifact.task} gives no {need}", place=str(artifact.path), fix="give another model"
        )


def _refuse(artifact: Artifact, opening: Opening) -> None:
    """Raises a UserError where an artifact cannot be opened so, told before anything is loaded."""
    if unknown := unknown_hooks(artifact):
        raise UserError(
            f"it is meant to run with {', '.join(unknown)}, which this pare does not apply",
            place=str(artifact.path),
            fix="upgrade pare, or build it without that stage",
        )
    if opening.device == CPU:
        return
    for name, part in artifact.components.items():
        if kind_of(opening.device) not in (engine := find_engine(part.format)).devices:
            raise UserError(
                f"`{name}` is for {engine.title}, which runs on {', '.join(sorted(engine.devices))}, not on `{opening.device}`",
                place=str(artifact.path),
                fix="load the model on cpu, or build another engine",
            )
