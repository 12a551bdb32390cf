"""Teach a denoiser to do what its teacher does: give the same output, and the same features block by block.

Use it after a cut. The teacher generates captions of the training data with step counts between a quarter and all of
`denoising_steps`, and every call to its denoiser is written down: the student learns on the inputs, timesteps and guidance it
will meet, for any pipeline, and no images are needed. Where guidance joins two rows into one, the joined output is held to
the teacher's too, for guidance multiplies what they differ in. Where widths differ, a learned projection stands between. A teacher
of its own is of the student's class, and has its latents, texts and noise.
Source: Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion" (2023); Romero et al., "FitNets" (2015).

    - prune.width: {ratio: 0.25}
    - distill.features: {teacher: source, steps: 600}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress.artifact import Artifact, derive, rewritten, write_manifest
from compress.catalogue import Forecast, Misfit, stage
from compress.context import Context
from compress.distillation.compatibility import reported_misfits
from compress.distillation.conditioning import caption_values
from compress.distillation.few_steps import guiding
from compress.distillation.students import recorded_otherwise
from compress.errors import ModelError
from compress.model.families import feature_stacks
from compress.params import TRAINED, Training
from compress.pipelines.call_arguments import MOST_GUIDANCE

if TYPE_CHECKING:
    import torch

    from compress.algorithms.losses import Projections
    from compress.opening.models import OpenModel

IMAGES_A_BATCH = 8


class DistillFeatures(Training):
    learning_rate: float = Field(5e-4, gt=0, description="peak of the learning rate, which then falls to a twentieth")
    accumulate: int = Field(4, ge=1, description="recorded calls whose gradients make one step; each is one timestep")
    prompts: int = Field(
        512, ge=1, multiple_of=8, description="captions of the training data that the teacher generates"
    )
    denoising_steps: int = Field(20, ge=1, le=1000, description="steps of the finest generating that is recorded")
    guidance: float | None = Field(
        None, ge=0, le=MOST_GUIDANCE, description="guidance scale while generating; default: the pipeline's own"
    )
    block_weight: float = Field(0.5, ge=0, description="weight of the blocks' features beside the output's")


def forecast(artifact: Artifact, params: DistillFeatures) -> Forecast:
    """Checkpoints hold the weights, their average and two moments; a recorded call its latents, each caption its embedding."""
    from compress.sources.models import parameter_count

    _stacks(artifact, artifact.main)  # a family whose blocks are not known is refused here
    config, weights = artifact.config(artifact.main), 4 * parameter_count(artifact.folder(artifact.main))
    checkpoints = 2 * 4 * weights  # an old one goes once the new one is whole
    side = config.get("sample_size") or 128
    latent = config.get("in_channels", 4) * (side if isinstance(side, int) else max(side)) ** 2
    recorded = 2 * 4 * (latent * params.denoising_steps + caption_values(artifact))
    otherwise = recorded_otherwise(artifact, params.denoising_steps)
    return Forecast(
        scratch_bytes=checkpoints,
        item_bytes={"prompts": recorded},
        memory_bytes=TRAINED * weights,
        warnings=(otherwise,) if otherwise else (),
    )


def unfit(artifact: Artifact, params: DistillFeatures, inputs: Mapping[str, Artifact]) -> Iterable[Misfit]:
    return reported_misfits(artifact, inputs["teacher"], params.guidance)


@stage(
    version=2,
    params=DistillFeatures,
    needs=("denoising",),
    formats={"torch": "torch"},
    effects=("weights",),
    carries=True,
    reproducible="bytes",
    bound_to=("isa",),
    data=lambda params: ("train",),
    inputs=("teacher",),
    libraries=("accelerate", "torch", "transformers", "diffusers"),
    forecast=forecast,
    unfit=unfit,
)
def run(artifact: Artifact, params: DistillFeatures, context: Context) -> None:
    from compress.engines.torch.runtime import save_component
    from compress.opening import open_component, open_task
    from compress.training.loop import teach
    from compress.training.recordings import read_call

    name, source = artifact.main, context.inputs["teacher"]
    if source.components.get(name, artifact.components[name]).format != "torch" or name not in source.components:
        raise ModelError(f"the teacher has no torch `{name}`", place=str(source.path), fix="name an earlier step")
    opening = context.opening.of("float32")
    generator = open_task(source, opening)
    calls = _record(generator, name, params, context)
    guidance = _guidance(generator, read_call(*calls[0]), params, context)
    teacher = generator.component(name).requires_grad_(False)
    del generator  # its text encoders and VAE need no memory from here on
    student = open_component(artifact, name, opening)
    stacks = _stacks(artifact, name), _stacks(source, name)
    learner, loss_at = _target(student, teacher, stacks, calls, guidance, params, context)
    curve = teach(learner, loss_at, params, context)
    made = derive(artifact, context.out, without=rewritten(artifact, (name,)), link=context.link)
    save_component(student, artifact.folder(name), made.folder(name))
    write_manifest(made)
    context.note(
        f"loss {curve[0][1]:.4g} → {curve[-1][1]:.4g} on {len(calls)} recorded calls", component=name, loss=curve
    )


def _stacks(artifact: Artifact, name: str) -> tuple[tuple[str, ...], ...]:
    return feature_stacks(artifact.components[name].kind, artifact.config(name))


def _record(generator: OpenModel, name: str, params: DistillFeatures, context: Context) -> list[tuple[Path, int]]:
    """(file, number) of every call, recorded batch by batch; a batch that a crashed run recorded is kept."""
    import numpy as np

    from compress.training.recordings import count_calls, write_calls

    folder = context.scratch / "calls"
    folder.mkdir(exist_ok=True)
    items = context.data["train"].first(params.prompts)
    guided = guiding(generator.artifact).call(params.guidance)
    found = []
    starts = range(0, len(items), IMAGES_A_BATCH)
    for start in context.progress(starts, "recording the teacher", len(starts)):
        path = folder / f"{start:06d}.safetensors"
        if not count_calls(path):
            random = np.random.default_rng([context.seed, start])
            steps = int(random.integers(max(1, params.denoising_steps // 4), params.denoising_steps + 1))
            some = items[start : start + IMAGES_A_BATCH]
            recorded = generator.calls_of(
                (name,), some, context.seed, batch=len(some), num_inference_steps=steps, **guided
            )
            write_calls(path, (call for _, call in recorded))
        found += [(path, number) for number in range(count_calls(path))]
    return found


def _guidance(generator: OpenModel, call: Mapping[str, Any], params: DistillFeatures, context: Context) -> float:
    """The scale by which the pipeline joins the two halves of a call's rows, without and with the prompt; 0 if it does not.

    Read off a recorded call, not off the pipeline's state, which a resumed run does not have.
    """
    rows = len(next(call[n] for n in ("sample", "hidden_states") if n in call))
    if rows != 2 * len(context.data["train"].first(min(IMAGES_A_BATCH, params.prompts))):
        return 0.0
    scale = guiding(generator.artifact).scale if params.guidance is None else params.guidance
    return scale or 0.0


def _guided(output: torch.Tensor, scale: float) -> torch.Tensor:
    without, reported = output.chunk(2)
    return without + scale * (reported - without)


def _target(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    stacks: tuple[tuple[tuple[str, ...], ...], ...],
    calls: list[tuple[Path, int]],
    guidance: float,
    params: DistillFeatures,
    context: Context,
) -> tuple[Any, Callable[[int], Mapping[str, Any]]]:
    """What learns (the student and its projections), and its losses by the number of the batch."""
    import numpy as np
    import torch

    from compress.algorithms.losses import Projections, listening, match_blocks, relative_error
    from compress.algorithms.tensors import moved
    from compress.engines.torch.runtime import first_tensor
    from compress.training.recordings import read_call

    pairs = [p for a, b in zip(*stacks, strict=True) for p in match_blocks(a, b)]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]

    def compare(recorded: Mapping[str, Any], projections: Projections | None) -> Any:
        call = moved(recorded, context.opening.device)
        with torch.no_grad(), listening(teacher, theirs) as taught:
            wanted = first_tensor(teacher(**call))
        with listening(student, ours) as learnt:
            found = first_tensor(student(**call))
        features = [learnt[n] for n in ours], [taught[n] for n in theirs]
        if projections is None:
            return [(a.shape[-1], b.shape[-1]) for a, b in zip(*features, strict=True)]
        blocks = params.block_weight * projections.errors(*features)
        losses = {"output": relative_error(found, wanted), "blocks": blocks}
        if guidance:
            losses["guided"] = relative_error(_guided(found, guidance), _guided(wanted, guidance))
        return losses

    torch.manual_seed(context.seed)
    with torch.no_grad():
        projections = Projections(compare(read_call(*calls[0]), None)).to(context.opening.device)
    student.requires_grad_(True)
    learner = torch.nn.ModuleDict({"student": student, "projections": projections})

    def loss_at(number: int) -> Mapping[str, Any]:
        drawn = np.random.default_rng([context.seed, number]).integers(len(calls))
        losses: Mapping[str, Any] = compare(read_call(*calls[drawn]), projections)
        return losses

    return learner, loss_at
