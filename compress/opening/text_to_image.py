"""Text to image: a stock diffusers pipeline, with engine modules where the torch components were."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from compress.algorithms.tensors import device_of, dtype_of, finish, to_array
from compress.artifact import SCHEDULER, Artifact
from compress.data.items import Item
from compress.engines.torch.runtime import find_class, silent_libraries
from compress.errors import StageFailed, UserError
from compress.machine.devices import AS_STORED, CPU, Opening
from compress.model.exportable import Batches
from compress.model.hook_settings import offloaded
from compress.opening.captions import cut_short, uncounted
from compress.opening.first_steps import FirstStep, hearing_the_first_step
from compress.opening.models import Call, Timed
from compress.opening.pipeline_parts import assembled, natural_dtype
from compress.opening.recorded_calls import Recorded, by_name, copies, listening, listening_before
from compress.opening.token_range import captions_known, larger_tokenizers
from compress.pipelines.call_arguments import NEGATIVE, STEPS
from compress.pipelines.index import INDEX
from compress.pipelines.lean import FIX
from compress.pipelines.schedulers import changes, config_of

if TYPE_CHECKING:
    from compress.recipe.values import EvalSpec

T = TypeVar("T")
LOOKS = 8  # timesteps at which a denoiser is looked at
PROMPT, OTHER = "a red three on white paper", "a blue seven"
EXAMPLES = (Item("0", "a red three"), Item("1", OTHER), Item("2", "a green one"))


def open_model(artifact: Artifact, opening: Opening) -> TextToImage:
    return TextToImage(artifact, opening)


class TextToImage:
    """A pipeline ready to generate. `pipeline` is the library's own class and can be called by itself."""

    def __init__(self, artifact: Artifact, opening: Opening = AS_STORED) -> None:
        self.artifact = artifact
        self.opening = opening
        self.dtype = dtype_of(opening) or natural_dtype(artifact)
        self.device = device_of(opening)
        self.pipeline: Any = assembled(artifact, opening.of(str(self.dtype).removeprefix("torch.")))
        self.pipeline.set_progress_bar_config(disable=True)
        self._larger = larger_tokenizers(artifact, self.pipeline)
        self._schedulers: dict[str | None, Any] = {None: getattr(self.pipeline, SCHEDULER, None)}

    @property
    def stock(self) -> Any:
        return self.pipeline

    @property
    def brief(self) -> Mapping[str, Any]:
        """A few steps, at timesteps spread evenly."""
        return {"num_inference_steps": LOOKS}

    def asking(self, run: int, call: Mapping[str, Any]) -> int:
        """How many steps must be asked for, so that so many run."""
        return run

    @property
    def examples(self) -> Sequence[Item]:
        return tuple(self.example(one.id, one.text) for one in EXAMPLES)

    def example(self, id: str, text: str) -> Item:
        """An item of no data, to look at the model on."""
        return Item(id, text)

    def probe(self, profile: Batches) -> NDArray[np.float64]:
        """Two prompts generated in two steps, or as near to that as the profile takes."""
        steps = min(2, self.artifact.settings.call.get("num_inference_steps", 2))
        items = [self.example(str(i), (PROMPT, OTHER)[i % 2]) for i in range(profile.nearest("batch", 2))]
        return self.images(items, 0, num_inference_steps=steps)[0].astype(np.float64)

    def first_call(self, **call: object) -> None:
        self.generate_items((self.example("0", PROMPT),), 0, **call)

    def timed(self, items: Sequence[Item], spec: EvalSpec, call: Mapping[str, Any]) -> Timed:
        """One call generates as many prompts as `timing_batch` says, as one batch; its work is counted, not assumed.

        Raises:
            UserError: the model is meant to be called the lean way, and this call is not one.
        """
        timed = self.held(_timed_items(items or (self.example("0", PROMPT),), spec.timing_batch), **call)
        evaluations: list[None] = []
        with self.watch(self.artifact.main, lambda args, kwargs: evaluations.append(None)):
            self.first_call(**call)
        self._be_lean()

        def run() -> tuple[float, float]:
            finish(self.device)
            began = time.perf_counter()
            self.generate_items(timed, 0, **call)
            finish(self.device)
            return time.perf_counter() - began, 0.0

        return Timed(run, len(evaluations))

    def images(
        self, items: Sequence[Item], seed: int, **call: object
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """As `ImageModel.images`."""
        if getattr(self.pipeline, "vae", None) is None:
            return self.generate_items(items, seed, **call), None
        decoded: list[torch.Tensor] = []
        with self.watch("vae", lambda args, kwargs: decoded.append(args[0] if args else kwargs["z"])):
            generated = self.generate_items(items, seed, **call)
        if not decoded:
            return generated, None
        latents = to_array(torch.cat(decoded).float())
        if not np.isfinite(latents).all():  # which some decoders turn into an image
            raise _no_numbers(items, "the latents of an image")
        return generated, latents

    def generate(
        self, prompts: Sequence[str], noise_ids: Sequence[str], seed: int, **call: object
    ) -> NDArray[np.uint8]:
        """As `generate_items`, of captions alone.

        Args:
            noise_ids: one for each prompt; an image's initial noise depends on (seed, noise id) and on nothing else.
        """
        items = [self.example(name, prompt) for name, prompt in zip(noise_ids, prompts, strict=True)]
        return self.generate_items(items, seed, **call)

    def generate_items(self, items: Sequence[Item], seed: int, **call: object) -> NDArray[np.uint8]:
        """Generate one image for each item, as one batch.

        Args:
            call: arguments of the pipeline, over those the artifact is meant to be called with; `scheduler` names the one that
                generates in place of its own.

        Returns:
            uint8 [items, height, width, 3].

        Raises:
            StageFailed: a value is not finite.
        """
        images = self._run(items, seed, "np", call)
        if not np.isfinite(images).all():
            raise _no_numbers(items, "an image")
        return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)

    def _be_lean(self) -> None:
        """Raises a UserError where the stock call was made last, of a model that is meant to be called the lean way: its time would be
        reported as the other's."""
        if self.artifact.settings.lean and (why := self.pipeline.stock_because):
            raise UserError(f"the lean call was not taken: {why}", place=str(self.artifact.path), fix=FIX)

    def given(self, items: Sequence[Item]) -> Call:
        """What the pipeline is given of the items: their captions."""
        return {"prompt": [item.text for item in items]}

    def held(self, items: Sequence[Item], **call: object) -> list[Item]:
        """The items with all that the pipeline is given of them in memory, so that a timed call reads no file."""
        return list(items)

    def cut_short(self, items: Sequence[Item], **call: object) -> str:
        """As `ImageModel.cut_short`."""
        captions = list(dict.fromkeys(item.text for item in items))
        return cut_short(self.pipeline, captions, {**self.artifact.settings.call, **call})

    def watch(self, component: str, recorded: Recorded, function: str = "") -> AbstractContextManager[None]:
        """Within: tells `recorded` of every call to a component that is computed, with its real arguments.

        Args:
            function: the method that is called, where it is another than `function_of` says.
        """
        module = self.component(component)
        name = function or self.function_of(component)
        if name == "forward" and offloaded(self.artifact):  # what offloads puts other functions there while a call runs
            return listening_before(module, recorded)
        return listening(module, name, recorded)

    def component(self, name: str) -> torch.nn.Module:
        """The module that stands for a component."""
        module: torch.nn.Module = getattr(self.pipeline, name)
        return module

    def function_of(self, component: str) -> str:
        """The method a pipeline calls a component by."""
        return "decode" if component == "vae" else "forward"

    def calls_of(
        self, components: Sequence[str], items: Sequence[Item], seed: int, *, batch: int = 4, **call: object
    ) -> Iterator[tuple[str, Call]]:
        """As `OpenModel.calls_of`. A call holds a batch as the pipeline makes it: with guidance, two rows an image."""
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            # Yielded out of the pipeline's context, which would change the caller's gradient mode.
            yield from self._recorded(components, some, seed, copies(), call)

    def first_step(
        self, items: Sequence[Item], seed: int, steps: int, *, still: bool = False, **call: object
    ) -> FirstStep:
        """What happens at the first of `steps` steps. The denoiser does not run, and the scheduler's steps are set.

        Args:
            still: lay no noise over what the pipeline is given, so that the latents are its own.
        """
        self._schedule({**self.artifact.settings.call, **call}.get(SCHEDULER))
        main = self.artifact.main

        def copied(given: Call) -> Call:
            return copies()(main, given)[1]

        with hearing_the_first_step(self.component(main), self.pipeline.scheduler, copied, still=still) as found:
            self._run(items, seed, "latent", {**call, STEPS: steps})
        return found

    def latents(self, items: Sequence[Item], seed: int, **call: object) -> torch.Tensor:
        """What is generated for the items before it is decoded, in the form that the denoiser takes."""
        latents: torch.Tensor = self._run(items, seed, "latent", call)
        return latents

    def step_with(self, scheduler: Any) -> None:
        """Let another scheduler than the model's own generate from now on."""
        self._schedulers[None] = scheduler

    def shapes_of(self, components: Sequence[str], keep: Callable[[str, Call], T], **call: object) -> list[T]:
        """As `ImageModel.shapes_of`: what is kept may be no more than the shapes."""
        return self._recorded(components, (self.example("0", PROMPT),), 0, keep, call)

    def _recorded(
        self, components: Sequence[str], items: Sequence[Item], seed: int, keep: Callable[[str, Call], T], call: Call
    ) -> list[T]:
        """The one recorder: what `keep` makes of each call, arguments by name, while one batch is generated."""
        found: list[T] = []
        with ExitStack() as watching:
            for name in components:
                kept = by_name(self.component(name), self.function_of(name), partial(keep, name), found)
                watching.enter_context(self.watch(name, kept))
            kind = "np" if "vae" in components else "latent"  # what nobody looks at need not be decoded
            self._run(items, seed, kind, call)
        return found

    def _run(self, items: Sequence[Item], seed: int, output: str, call: Mapping[str, object]) -> Any:
        generators = [noise_source(seed, item.id) for item in items]
        arguments = {**self.artifact.settings.call, **call}
        self._schedule(arguments.pop(SCHEDULER, None))
        if isinstance(away := arguments.get(NEGATIVE), str):
            arguments[NEGATIVE] = [away] * len(items)  # as many as there are prompts
        captions_known(self._larger, [*(item.text for item in items), *(arguments.get(NEGATIVE) or ())])
        # Without gradients, as diffusers itself runs; inference mode would leave tensors behind that nothing can train or trace:
        # SDXL casts its VAE's weights for the time of a call, some positions are buffers that a longer text replaces.
        with torch.no_grad(), uncounted(self.pipeline):
            return self.call(items, generators, output, arguments)

    def call(self, items: Sequence[Item], generators: list[torch.Generator], output: str, arguments: Call) -> Any:
        """The pipeline's images or latents of the items, each with its own source of noise, as one batch."""
        return self.pipeline(**self.given(items), generator=generators, output_type=output, **arguments).images

    def _schedule(self, name: Any) -> None:
        """Let the named scheduler generate, made of the model's own one's training schedule; without a name, the model's own."""
        if name not in self._schedulers:
            changed = changes(config_of(self.artifact), name)
            kind = find_class("diffusers", changed.pop("_class_name"), self.artifact.path / INDEX)
            with silent_libraries():
                self._schedulers[name] = kind.from_config(self._schedulers[None].config, **changed)
        if getattr(self.pipeline, SCHEDULER, None) is not self._schedulers[name]:
            self.pipeline.scheduler = self._schedulers[name]


def noise_source(seed: int, noise_id: str) -> torch.Generator:
    """A generator seeded by both, so that an image's noise is independent of batch size and position; on the processor, so that
    it is the same on every device."""
    digest = hashlib.sha256(f"{seed}:{noise_id}".encode()).digest()
    return torch.Generator(CPU).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _no_numbers(items: Sequence[Item], what: str) -> StageFailed:
    return StageFailed(
        f"{what} for {items[0].text!r} or those beside it holds values that are no numbers",
        place=items[0].id,
        fix="the model is broken: look at the last stage, or use a higher precision",
    )


def _timed_items(items: Sequence[Item], batch: int) -> list[Item]:
    some = items[:batch]
    return [replace(some[i % len(some)], id=f"timing/{i}") for i in range(batch)]
