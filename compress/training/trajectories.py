"""Teaching a denoiser by trajectories: what its pipeline tells it, what its teacher makes of a noisy latent, and what it then has to
say itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from compress.opening.latents import encoded
from compress.opening.text_to_image import TextToImage, latent_name, latent_of
from compress.training.recordings import Call, count_calls, read_call, write_calls

TIME = "timestep"
ROWS = "rows"  # stands in the place of a recorded latent
ANY = 2  # steps of a call of which only the first is looked at
FOLLOWED = 2e-2  # of a latent's size: how far our own walk may be from the pipeline's


@dataclass(frozen=True)
class Denoiser:
    """A denoiser and how it is asked.

    scale: by which the answers with and without the prompt are joined, where a call asks for both.
    call: what is called in the module's place, and gives the same sooner.
    """

    module: torch.nn.Module
    prediction: Prediction
    scale: float
    call: Callable[..., Any] | None = None

    def answer(self, calls: Sequence[Call], latent: torch.Tensor, levels: Levels) -> torch.Tensor:
        """What it says of a latent, float32 of its shape, guided where the calls ask for both."""
        message = [self._ask(call, latent, levels.time.to(latent.device)) for call in calls]
        if len(message) == 2:  # as pipelines ask that do it one by one: first with the prompt
            return message[1] + self.scale * (message[0] - message[1])
        if len(message[0]) == 2 * len(latent):
            without, prompted = message[0].chunk(2)
            return without + self.scale * (prompted - without)
        return message[0]

    def _ask(self, call: Call, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        copies = call[ROWS] // len(latent)
        given = {key: value for key, value in call.items() if key != ROWS}
        given[given.pop("latent")] = torch.cat([latent] * copies)
        output = first_tensor((self.call or self.module)(**given, **{TIME: torch.cat([time] * copies)})).float()
        return output[:, : latent.shape[1]] if latent.dim() == 4 else output  # without a variance that is learned

    def walk(self, calls: Sequence[Call], latent: torch.Tensor, course: Course, steps: torch.Tensor) -> torch.Tensor:
        """Where a latent gets along all parts of one step of the course; `steps` says which, row by row."""
        for part in range(course.substeps):
            here = course.at(steps, part)
            message = split(self.answer(calls, latent, here), latent, here, self.prediction)
            latent = move(message, course.at(steps, part + 1))
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
    guided: Mapping[str, object],
    alone: Mapping[str, object],
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
            own = student.first_step(some, context.seed, ANY, **alone)
            taught = teacher.first_step(some, context.seed, ANY, **guided)
            latents, origin = _latents(teacher, some, latent_of(own[0]).shape[1:], guided, params, context.seed)
            write_calls(path, [{"latents": latents, "from": origin}, *map(_reported, own), *map(_reported, taught)])
        origins.add(str(read_call(path, 0)["from"]))
        files.append(path)
    return files, " and ".join(sorted(origins))


def _reported(call: Call) -> dict[str, Any]:
    """A recorded call without its latent and time, which come anew."""
    name = latent_name(call)
    return {**{k: v for k, v in call.items() if k not in (name, TIME)}, "latent": name, ROWS: len(call[name])}


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
    """Latents without noise, and the calls of the student's and of the teacher's denoiser for their captions."""

    latents: torch.Tensor
    own: tuple[Call, ...]
    taught: tuple[Call, ...]


def read_batch(path: Path, device: str) -> Batch:
    """A recorded batch. The student is asked once a step, so that the first call is its own and all others the teacher's."""
    calls = [moved(read_call(path, number), device) for number in range(count_calls(path))]
    return Batch(calls[0]["latents"], (calls[1],), tuple(calls[2:]))


def noised(batch: Batch, course: Course, steps: torch.Tensor) -> torch.Tensor:
    """Noisy latents at the beginning of some steps: noise alone at the first, which is where images begin."""
    noise = torch.randn(batch.latents.shape, device=CPU).to(batch.latents.device)
    alpha, sigma = course.at(steps, 0).of(noise)
    first = (steps == 0).to(noise.device).view(alpha.shape)
    return torch.where(first, noise, alpha * batch.latents + sigma * noise)


# ---------------------------------------------------------------- is it followed?


def check_followed(
    task: TextToImage, reported: Mapping[str, object], course: Course, prediction: Prediction, scale: float
) -> None:
    """Whether the pipeline, left to itself, gets where our own walk gets: nothing else shows that its denoiser's calls, its
    guidance and its steps are what we take them for.

    Raises:
        ModelError: it gets elsewhere.
    """
    items, steps = task.examples[:2], course.steps
    calls = task.first_step(items, 0, steps, **reported)
    latent = latent_of(calls[0])[: len(items)].float()
    denoiser = Denoiser(task.component(task.artifact.main), prediction, scale)
    with torch.no_grad():
        for step in range(steps):
            latent = denoiser.walk(
                [_reported(c) for c in calls], latent, course, torch.full((len(items),), step, device=CPU)
            )
    reached = task.latents(items, 0, **reported, num_inference_steps=steps).float()
    away = float((reached - latent).norm() / reached.norm())
    if not away <= FOLLOWED:
        kind = type(task.pipeline).__name__
        message = (
            f"{kind} steps in a way that is not known here: its latents differ by {away:.1%} from those of plain steps"
        )
        raise ModelError(message, place=str(task.artifact.path), fix="teach it by distill.features")
