"""What a student of trajectories is held to at each batch: where its teacher's short steps land, or what it says itself a step on.

Source: Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models" (2022); Meng et al., "On Distillation of
Guided Diffusion Models" (2022), for guidance; Luo et al., "Latent Consistency Models" (2023). The target of consistency is the
student itself without an average of it, as Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023) found best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from compress.algorithms.trajectories import (
    Course,
    answer,
    boundary,
    landing,
    pseudo_huber,
    split,
    velocity_error,
)
from compress.artifact import SCHEDULER_CONFIG, Artifact, Settings, derive, rewritten, write_manifest
from compress.context import Context
from compress.distillation.few_steps import FewSteps, flows, guiding, image_guidance, last_level, sampler, strength
from compress.engines.torch.runtime import save_component
from compress.errors import ModelError
from compress.model.hook_settings import unhooked
from compress.opening import open_images
from compress.opening.schedulers import made, put
from compress.opening.text_to_image import TextToImage
from compress.pipelines.call_arguments import NEGATIVE, call_arguments
from compress.pipelines.image_inputs import IMAGE_GUIDANCE
from compress.pipelines.index import class_of
from compress.pipelines.schedulers import config_of
from compress.training.loop import teach
from compress.training.replayed import replayed
from compress.training.trajectories import (
    TIME,
    Batch,
    Denoiser,
    check_followed,
    course_of,
    noised,
    prediction_of,
    read_batch,
    record,
)

Target: TypeAlias = Callable[["Classroom", Batch, torch.Tensor], Mapping[str, torch.Tensor]]
LOOKS = 4  # draws of the batch that is held back; steps of a walk that is compared


@dataclass(frozen=True)
class Classroom:
    """A student, its teacher, the course that both go, and the batches: the last is held back.

    first: the first of the course's steps that is run.
    """

    student: Denoiser
    teacher: Denoiser
    course: Course
    files: Sequence[Path]
    target: Target
    device: str
    seed: int
    first: int = 0

    def loss_at(self, number: int) -> Mapping[str, torch.Tensor]:
        """The losses of a batch, drawn by its number; noise and steps from torch's own generator."""
        drawn = np.random.default_rng([self.seed, number]).integers(max(1, len(self.files) - 1))
        return self._losses(self.files[int(drawn)])

    def held_back(self) -> float:
        """The loss on the batch that nothing is taught with, always with the same noise at the same steps."""
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(self.seed)
            return sum(float(sum(self._losses(self.files[-1]).values())) for _ in range(LOOKS)) / LOOKS

    def _losses(self, file: Path) -> Mapping[str, torch.Tensor]:
        batch = read_batch(file, self.device)
        steps = torch.randint(self.first, self.course.steps, (len(batch.latents),), device="cpu")
        return self.target(self, batch, steps)


def halve(room: Classroom, batch: Batch, steps: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """One step of the student's lands where all the parts of it take its teacher."""
    begun, here = noised(batch, room.course, steps, room.first), room.course.at(steps, 0)
    latent = begun.latent
    with torch.no_grad():
        reached = room.teacher.walk(batch.taught, latent, room.course, steps, batch.keeps(begun.noise))
        image = landing(latent, here, reached, room.course.at(steps, room.course.substeps))
        wanted = answer(image, latent, here, room.student.prediction)
    found = room.student.answer(batch.own, latent, here)
    return {"landing": velocity_error(*batch.made(found, wanted), here, room.student.prediction)}


def agree(room: Classroom, batch: Batch, steps: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The student sees the same image in a latent and in where one step of its teacher's takes it."""
    begun = noised(batch, room.course, steps, room.first)
    latent, there = begun.latent, room.course.at(steps, 1)
    with torch.no_grad():
        nearer = room.teacher.walk(batch.taught, latent, room.course, steps, batch.keeps(begun.noise))
        clean = (there.sigma == 0).to(nearer.device).view(-1, *[1] * (nearer.dim() - 1))
        wanted = torch.where(clean, nearer, _consistent(room.student, batch, nearer, room, steps, 1))
    found = _consistent(room.student, batch, latent, room, steps, 0)
    return {"agreement": pseudo_huber(*batch.made(found, wanted))}


def _consistent(
    student: Denoiser, batch: Batch, latent: torch.Tensor, room: Classroom, steps: torch.Tensor, part: int
) -> torch.Tensor:
    """What a consistency function gives: the image, and the latent itself where no noise is left in it."""
    levels = room.course.at(steps, part)
    image, _ = split(student.answer(batch.own, latent, levels), latent, levels, student.prediction)
    skip, out = boundary(levels, latent)
    return skip * latent + out * image


def imitate(room: Classroom, batch: Batch, steps: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The student says without guidance what its teacher says with it."""
    latent, here = noised(_either(batch), room.course, steps, room.first).latent, room.course.at(steps, 0)
    with torch.no_grad():
        wanted = room.teacher.answer(batch.taught, latent, here)
    found = room.student.answer(batch.own, latent, here)
    return {"guided": velocity_error(*batch.made(found, wanted), here, room.student.prediction)}


def _either(batch: Batch) -> Batch:
    """A batch in which half of the images that noise is added to are those that are given: with any strength some level is the first."""
    if batch.given is None:
        return batch
    chosen = torch.rand(len(batch.latents), device="cpu") < 0.5
    shape = (-1, *[1] * (batch.latents.dim() - 1))
    return replace(batch, latents=torch.where(chosen.to(batch.latents.device).view(shape), batch.given, batch.latents))


def teach_denoiser(
    artifact: Artifact,
    params: FewSteps,
    context: Context,
    steps: int,
    substeps: int,
    target: Target,
    last: float | None = None,
    called: int | None = None,
) -> torch.nn.Module:
    """Teach an artifact's denoiser along a course of `steps` steps, each of `substeps` of its teacher's.

    Args:
        last: where along a flow the last of them begins, where the pipeline does not see to it.
        called: steps that the student will be asked for, if not as many as the course has.

    Raises:
        ModelError: the teacher is an engine, or its pipeline is not followed.
    """
    room, sentence = _classroom(artifact, params, context, (steps, substeps, last, called or steps), target)
    student = room.student.module.requires_grad_(True)
    curve = teach(student, room.loss_at, params.training(), context, held_back=room.held_back)
    message = f"loss {curve[0][1]:.4g} → {curve[-1][1]:.4g} on {sentence}"
    context.note(message, component=artifact.main, loss=curve)
    return student


def leave_taught(
    artifact: Artifact, student: torch.nn.Module, called: Settings | None, context: Context, scheduler: Any = None
) -> None:
    """What a stage leaves whose student was taught: its weights, how it is called, and the scheduler that samples from it, if
    another does."""
    name, replaced = artifact.main, () if scheduler is None else (SCHEDULER_CONFIG,)
    left = derive(artifact, context.out, without=(*rewritten(artifact, (name,)), *replaced), link=context.link)
    save_component(student, artifact.folder(name), left.folder(name))
    if scheduler is not None:
        put(scheduler, left.path)
    write_manifest(left if called is None else replace(left, settings=called))


def _classroom(
    artifact: Artifact,
    params: FewSteps,
    context: Context,
    way: tuple[int, int, float | None, int],
    target: Target,
) -> tuple[Classroom, str]:
    """Student and teacher with all that they are taught by; their pipelines' other parts need no memory from here on."""
    source, name, opening = context.inputs["teacher"], artifact.main, context.opening.of("float32")
    if name not in source.components or source.components[name].format != "torch":
        raise ModelError(f"the teacher has no torch `{name}`", place=str(source.path), fix="name an earlier step")
    reported, scales = _guided(source, params)
    # Hooks are for calls that are not trained with.
    tasks = [cast("TextToImage", open_images(unhooked(side), opening)) for side in (artifact, source)]
    steps, substeps, last, called = way
    for task in tasks:
        _step_as(task, artifact, last)
    alone = {**guiding(artifact).student(params.guidance), **strength(params), **_unled(artifact)}
    course, first = _course(tasks[1], reported, steps, substeps), _first(tasks[1], reported, steps, called)
    asked = (_asked(artifact, 1.0), _asked(source, *scales))
    few = min(steps, LOOKS)
    check_followed(tasks[1], reported, _course(tasks[1], reported, few, 1), asked[1])
    check_followed(tasks[0], alone, _course(tasks[0], alone, few, 1), asked[0])
    _step_as(tasks[1], artifact, last_level(artifact, 1))  # which generates in as many steps as it likes
    files, origin = record(tasks[0], tasks[1], reported, alone, params, context)
    student, teacher = (
        make(task.component(name).requires_grad_(False)) for make, task in zip(asked, tasks, strict=True)
    )
    teacher = replace(teacher, call=replayed(teacher.module, opening.device, params.precision))
    room = Classroom(student, teacher, course, files, target, opening.device, context.seed, first)
    guided = ", ".join(f"{what} {scale:g}" for what, scale in zip(("guidance", "of the image"), scales, strict=False))
    return room, f"{origin}, {len(files)} batches, {guided}"


def _asked(side: Artifact, scale: float, image_scale: float = 1.0) -> Callable[[torch.nn.Module], Denoiser]:
    """How the denoiser of one side is asked; the scales as `Denoiser` has them."""
    prediction = prediction_of(config_of(side))
    return lambda module: Denoiser(module, prediction, scale, image_scale=image_scale)


def _step_as(task: TextToImage, artifact: Artifact, last: float | None) -> None:
    """Let student and teacher go one course, each taken at its own word of what it predicts."""
    config, own = config_of(artifact), config_of(task.artifact)
    says = {} if flows(config) else {"prediction_type": own.get("prediction_type", "epsilon")}
    task.step_with(made({**config, **says}, sampler(config, "progressive", 0, last), artifact.path))


def _guided(source: Artifact, params: FewSteps) -> tuple[dict[str, object], tuple[float, ...]]:
    """The arguments by which a teacher is called, and the scales by which its answers are joined."""
    how, shown = guiding(source), image_guidance(source, params)
    scale = params.guidance if params.guidance is not None else how.scale
    number = 1.0 if scale is None else scale
    call = {**how.call(number if how.argument else None, params.negative_prompt), **strength(params)}
    if shown is None:
        return call, (number,)
    return {**call, IMAGE_GUIDANCE: shown}, (number, shown)


def _unled(artifact: Artifact) -> dict[str, object]:
    """The argument by which a pipeline is led away from nothing, whatever its own call says; {} of one that takes none."""
    return {NEGATIVE: None} if NEGATIVE in (call_arguments(class_of(artifact.path)) or {}) else {}


def _course(task: TextToImage, reported: Mapping[str, Any], steps: int, substeps: int) -> Course:
    """The course of a pipeline, whose steps depend on its own way to set them, so it is let do that. Where a strength would leave none of so
    few it has more."""
    begun, scheduler = task.first_step(task.examples[:1], 0, steps, **reported), task.pipeline.scheduler
    time, all_steps = begun.calls[0][TIME], len(scheduler.timesteps)
    reported_time = float(time.flatten()[0]) if torch.is_tensor(time) else float(time)
    scale = reported_time / float(scheduler.timesteps[all_steps - begun.run])
    return course_of(scheduler, all_steps, substeps, scale)


def _first(task: TextToImage, reported: Mapping[str, Any], steps: int, called: int) -> int:
    """The first of a course's steps that is run, where the pipeline is asked for `called`: none before it, by its strength."""
    run = task.first_step(task.examples[:1], 0, called, **reported).run
    return (called - run) * steps // called
