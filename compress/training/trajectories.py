"""Teaching a denoiser by trajectories: what its pipeline tells it, what its teacher makes of a noisy latent, and what it then has to
say itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.algorithms.tensors import moved, to_host
from compress.algorithms.trajectories import Course, Levels, Prediction, move, split
from compress.context import Context
from compress.data.items import Item
from compress.distillation.few_steps import FewSteps, flows
from compress.engines.torch.runtime import first_tensor
from compress.errors import ModelError
from compress.machine.devices import CPU
from compress.opening.first_steps import FirstStep, latent_name
from compress.opening.latents import encoded
from compress.opening.text_to_image import TextToImage
from compress.training.recordings import Call, count_calls, read_call, write_calls

TIME = "timestep"
ROWS = "rows"  # stands in the place of a recorded latent
BESIDE, AXIS = (
    "beside",
    "axis",
)  # what a denoiser is given with the latent in one tensor, as a mask is, and along which axis
ANY = 2  # steps that are run of a call of which the first is looked at, and what a mask leaves of what it gives
FOLLOWED = 2e-2  # of a latent's size: how far our own walk may be from the pipeline's


@dataclass(frozen=True)
class Kept:
    """What a pipeline lays over each step's latents outside a mask: latents of its input, with always the same noise.

    mask: 1 where the step's own latents stay.
    """

    mask: torch.Tensor
    image: torch.Tensor
    noise: torch.Tensor

    def over(self, latent: torch.Tensor, levels: Levels) -> torch.Tensor:
        """Latents with the input laid over them, as noisy as these levels say."""
        alpha, sigma = levels.of(latent)
        return (1 - self.mask) * (alpha * self.image + sigma * self.noise) + self.mask * latent


@dataclass(frozen=True)
class Denoiser:
    """A denoiser and how it is asked.

    scale: by which the answers with and without the prompt are joined, where a call asks for both.
    call: what is called in the module's place, and gives the same sooner.
    image_scale: by which those with and without the image are joined, where it asks for that too.
    """

    module: torch.nn.Module
    prediction: Prediction
    scale: float
    call: Callable[..., Any] | None = None
    image_scale: float = 1.0

    def answer(self, calls: Sequence[Call], latent: torch.Tensor, levels: Levels) -> torch.Tensor:
        """What it says of a latent, float32 of its shape, guided where the calls ask for both."""
        message = [self._ask(call, latent, levels.time.to(latent.device)) for call in calls]
        if len(message) == 2:  # as pipelines ask that do it one by one: first with the prompt
            return message[1] + self.scale * (message[0] - message[1])
        if len(message[0]) == 2 * len(latent):
            without, prompted = message[0].chunk(2)
            return without + self.scale * (prompted - without)
        if len(message[0]) == 3 * len(latent):  # as pipelines ask that edit by an instruction
            prompted, shown, without = message[0].chunk(3)
            return without + self.scale * (prompted - shown) + self.image_scale * (shown - without)
        return message[0]

    def _ask(self, call: Call, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        copies = call[ROWS] // len(latent)
        given = {key: value for key, value in call.items() if key not in (ROWS, BESIDE, AXIS)}
        rows = torch.cat([latent] * copies)
        given[given.pop("latent")] = torch.cat([rows, call[BESIDE]], call[AXIS]) if BESIDE in call else rows
        output = first_tensor((self.call or self.module)(**given, **{TIME: torch.cat([time] * copies)})).float()
        return output[
            :, : latent.shape[1]
        ]  # without a variance that is learned, or what is said of the image beside it

    def walk(
        self,
        calls: Sequence[Call],
        latent: torch.Tensor,
        course: Course,
        steps: torch.Tensor,
        kept: Kept | None = None,
    ) -> torch.Tensor:
        """Where a latent gets along all parts of one step of the course; `steps` says which, row by row."""
        for part in range(course.substeps):
            here, there = course.at(steps, part), course.at(steps, part + 1)
            message = split(self.answer(calls, latent, here), latent, here, self.prediction)
            latent = move(message, there) if kept is None else kept.over(move(message, there), there)
        return latent


def prediction_of(config: Mapping[str, Any]) -> Prediction:
    """What a pipeline's denoiser predicts, by its scheduler's config."""
    kind: Prediction = "flow" if flows(config) else config.get("prediction_type", "epsilon")
    return kind


# ---------------------------------------------------------------- the course


def course_of(scheduler: Any, steps: int, substeps: int, scale: float) -> Course:
    """The course of a scheduler whose steps are set: of DDIM by its training schedule, or of a flow.

    Args:
        scale: of time, as the denoiser is given it, beside the scheduler's own.
    """
    kind = {**scheduler.config, "_class_name": type(scheduler).__name__}
    legs = _flow_legs if flows(kind) else _diffusion_legs
    rows = [legs(scheduler, number, steps, substeps) for number in range(steps)]
    times, alphas, sigmas = (torch.tensor([[level[i] for level in row] for row in rows], device=CPU) for i in range(3))
    return Course(times * scale, alphas, sigmas)


def _flow_legs(scheduler: Any, number: int, steps: int, substeps: int) -> list[tuple[float, float, float]]:
    begin, end = (float(scheduler.sigmas[number + i]) for i in range(2))
    sigmas = [begin + (end - begin) * part / substeps for part in range(substeps + 1)]
    return [(sigma * scheduler.config.num_train_timesteps, 1.0 - sigma, sigma) for sigma in sigmas]


def _diffusion_legs(scheduler: Any, number: int, steps: int, substeps: int) -> list[tuple[float, float, float]]:
    length = scheduler.config.num_train_timesteps // steps  # as DDIM's own step finds where it ends
    begin = int(scheduler.timesteps[number])
    times = [begin - round(length * part / substeps) for part in range(substeps + 1)]
    return [(float(time), *_parts(scheduler, time)) for time in times]


def _parts(scheduler: Any, time: int) -> tuple[float, float]:
    """Of image and of noise, at a time of the training schedule; below its first there is no noise."""
    signal = float(scheduler.alphas_cumprod[time]) if time >= 0 else float(scheduler.final_alpha_cumprod)
    return signal**0.5, (1.0 - signal) ** 0.5


# ---------------------------------------------------------------- what is recorded


def record(
    student: TextToImage,
    teacher: TextToImage,
    guided: Mapping[str, Any],
    alone: Mapping[str, Any],
    params: FewSteps,
    context: Context,
) -> tuple[list[Path], str]:
    """Batches on disk: latents, what the student's denoiser is given of their captions, and what the teacher's is; and where the
    latents are from, in words. A batch that a crashed run recorded is kept."""
    folder = context.scratch / "batches"
    folder.mkdir(exist_ok=True)
    items = context.data["train"].first(params.captions)
    size = min(params.batch, max(1, len(items) // 2))  # two at least: one is held back
    order = np.random.default_rng([context.seed, len(items)]).permutation(len(items))
    starts = range(0, len(items) - size + 1, size)
    files, origins = [], set[str]()
    for start in context.progress(starts, "recording batches", len(starts)):
        path = folder / f"{start:07d}.safetensors"
        some = [items[i] for i in order[start : start + size]]
        if not count_calls(path):
            own, taught = (
                task.first_step(some, context.seed, task.asking(ANY, call), still=True, **call)
                for task, call in ((student, alone), (teacher, guided))
            )
            latents, origin = _latents(teacher, some, own.begun.shape[1:], guided, params, context.seed)
            first = {"latents": latents, "from": origin, **_given(taught)}
            write_calls(path, [first, *_reported(own), *_reported(taught)])
        origins.add(str(read_call(path, 0)["from"]))
        files.append(path)
    return files, " and ".join(sorted(origins))


def _reported(first: FirstStep) -> list[dict[str, Any]]:
    """Recorded calls without their latent and time, which come anew."""
    return [_without_latent(call, first.begun.shape[1:]) for call in first.calls]


def _without_latent(call: Call, shape: Sequence[int]) -> dict[str, Any]:
    name = latent_name(call)
    kept = {k: v for k, v in call.items() if k not in (name, TIME)}
    return {**kept, "latent": name, ROWS: len(call[name]), **_beside(call[name], shape)}


def _beside(given: torch.Tensor, shape: Sequence[int]) -> dict[str, Any]:
    """What a denoiser is given behind a latent of this shape, in the same tensor; {} where that is the latent alone."""
    axes = [axis for axis, (whole, own) in enumerate(zip(given.shape[1:], shape, strict=True), 1) if whole != own]
    if not axes:
        return {}
    (axis,) = axes
    own = shape[axis - 1]
    return {BESIDE: given.narrow(axis, own, given.shape[axis] - own).clone(), AXIS: axis}


def _given(first: FirstStep) -> dict[str, torch.Tensor]:
    """Latents of the images that a pipeline is given: those that it begins with, and those that it keeps outside a mask."""
    found = {"given": first.begun} if first.laid else {}
    if first.kept is not None and first.mask is not None:
        found |= {"kept": first.kept, "mask": first.mask}
    return {name: to_host(value.float()) for name, value in found.items()}


def _latents(
    teacher: TextToImage,
    items: Sequence[Item],
    shape: Sequence[int],
    guided: Mapping[str, object],
    params: FewSteps,
    seed: int,
) -> tuple[torch.Tensor, str]:
    """What noise is added to, and where it is from.

    Raises:
        ModelError: images are asked for, and this pipeline's latents of them are not known, or there are none.
    """
    makers = [item.image for item in items]
    if params.latents != "teacher" and all(makers):
        call = {**teacher.artifact.settings.call, **guided}
        found = encoded(teacher.pipeline, [make() for make in makers if make], shape, call)
        if found is not None:
            return to_host(found), "the data's images"
    if params.latents == "pictures":
        message = "the training data has no images" if not all(makers) else "its latents of images are not known"
        raise ModelError(message, place=str(teacher.artifact.path), fix="set latents: teacher")
    generated = teacher.latents(items, seed, **guided, num_inference_steps=params.teacher_steps)
    return to_host(generated.float()), "what the teacher generates"


@dataclass(frozen=True)
class Batch:
    """Latents without noise, and the calls of the student's and of the teacher's denoiser for their captions.

    given: latents of the images that the pipeline is given, of the shape of `latents`; None where images begin as noise alone.
    kept, mask: as `Kept` has them; None of a pipeline that keeps nothing.
    """

    latents: torch.Tensor
    own: tuple[Call, ...]
    taught: tuple[Call, ...]
    given: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def keeps(self, noise: torch.Tensor) -> Kept | None:
        """What is laid over each step's latents, with this noise in it."""
        return None if self.kept is None or self.mask is None else Kept(self.mask, self.kept, noise)

    def made(self, found: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is said of those parts of the latents that are not laid over: of the others it does not count, and is 0."""
        return (found, wanted) if self.mask is None else (self.mask * found, self.mask * wanted)


def read_batch(path: Path, device: str) -> Batch:
    """A recorded batch. The student is asked once a step, so that the first call is its own and all others the teacher's."""
    calls = [moved(read_call(path, number), device) for number in range(count_calls(path))]
    first = calls[0]
    found = Batch(
        first["latents"], (calls[1],), tuple(calls[2:]), *(first.get(name) for name in ("given", "kept", "mask"))
    )
    if found.kept is None or found.mask is None:
        return found
    return replace(found, latents=(1 - found.mask) * found.kept + found.mask * found.latents)


@dataclass(frozen=True)
class Noisy:
    """Latents on their way, and the noise in them, of one shape."""

    latent: torch.Tensor
    noise: torch.Tensor


def noised(batch: Batch, course: Course, steps: torch.Tensor, first: int) -> Noisy:
    """Noisy latents at the beginning of some steps. At the first that is run they are what an image begins with: noise alone, or an image
    that is given with noise over it; and an image as it comes out behind that.

    Args:
        first: the first of the course's steps that is run: 0, or as far down as the strength says.
    """
    noise = torch.randn(batch.latents.shape, device=CPU).to(batch.latents.device)
    alpha, sigma = course.at(steps, 0).of(noise)
    begins = (steps == first).to(noise.device).view(alpha.shape)
    beginning = noise if batch.given is None else alpha * batch.given + sigma * noise
    return Noisy(torch.where(begins, beginning, alpha * batch.latents + sigma * noise), noise)


# ---------------------------------------------------------------- is it followed?


def check_followed(
    task: TextToImage, reported: Mapping[str, Any], course: Course, asked: Callable[[torch.nn.Module], Denoiser]
) -> None:
    """Whether the pipeline, left to itself, gets where our own walk gets: nothing else shows that its denoiser's calls, its
    guidance and its steps are what we take them for.

    Args:
        asked: how a module is asked.

    Raises:
        ModelError: it gets elsewhere.
    """
    items, steps = task.examples[:2], course.steps
    begun = task.first_step(items, 0, steps, **reported)
    calls, latent, kept = _reported(begun), begun.begun, _kept(task, items, begun, reported)
    denoiser = asked(task.component(task.artifact.main))
    with torch.no_grad():
        for step in range(steps - begun.run, steps):
            latent = denoiser.walk(calls, latent, course, torch.full((len(items),), step, device=CPU), kept)
    reached = task.latents(items, 0, **reported, num_inference_steps=steps).float()
    away = float((reached - latent).norm() / reached.norm())
    if not away <= FOLLOWED:
        kind = type(task.pipeline).__name__
        message = (
            f"{kind} steps in a way that is not known here: its latents differ by {away:.1%} from those of plain steps"
        )
        raise ModelError(message, place=str(task.artifact.path), fix="teach it by distill.features")


def _kept(task: TextToImage, items: Sequence[Item], begun: FirstStep, reported: Mapping[str, Any]) -> Kept | None:
    """What the pipeline lays over each step's latents, with the noise that it drew; None where it lays nothing over them."""
    if begun.kept is None or begun.noise is None:
        return None
    still = task.first_step(items, 0, task.asking(ANY, reported), still=True, **reported)
    return None if still.mask is None else Kept(still.mask.float(), begun.kept.float(), begun.noise.float())
