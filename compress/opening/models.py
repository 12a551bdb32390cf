"""What every opened model can do, and those of images and of text beside that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from compress.artifact import Artifact
from compress.machine.devices import Opening

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from compress.data.items import Item
    from compress.model.exportable import Batches
    from compress.recipe.values import EvalSpec
    from compress.tokenizers.chats import Reading


T = TypeVar("T")
Call = dict[str, Any]  # arguments by name


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
    """A model that yields images."""

    def images(
        self, items: Sequence[Item], seed: int, **call: object
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """One image for each item, as one batch: uint8 [items, height, width, 3]; and what the autoencoder was given to
        decode, float32 [items, channels, height, width], or None for a pipeline that decodes nothing.

        An image's initial noise depends on the seed and its item's id, and on nothing else.
        """

    def shapes_of(self, components: Sequence[str], keep: Callable[[str, Call], T], **call: object) -> list[T]:
        """What `keep` makes of every call to these components while one image is generated."""

    def watch(
        self, component: str, recorded: Callable[[tuple[Any, ...], dict[str, Any]], None], function: str = ""
    ) -> AbstractContextManager[None]:
        """Within: tells `recorded` of every call to a component."""

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

    def encode(self, item: Item | str) -> list[int]: ...

    def read(self, item: Item | str) -> Reading: ...

    def cut_short(self, items: Sequence[Item]) -> str:
        """How many of the items are longer than the model reads, in words; "" where none."""

    def questions_cut(self, items: Sequence[Item], new_tokens: int) -> str:
        """Of how many conversations the end alone is continued, for that leaves no room for so many new tokens; "" where none."""

    def prompt(self, item: Item, most: int, new_tokens: int) -> list[int]: ...

    def token_logprobs(self, items: Sequence[Item | str], batch: int) -> list[NDArray[np.float64]]: ...

    def generate(self, prompts_tokens: Sequence[Sequence[int]], new_tokens: int, **call: object) -> list[list[int]]: ...

    def complete(self, prompt: Sequence[int], most: int) -> list[int]: ...

    def logits(self, documents: Sequence[Sequence[int]]) -> torch.Tensor: ...

    def batches(self, lengths: Sequence[int], rows: int = ...) -> Iterator[list[int]]: ...
