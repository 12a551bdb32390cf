"""Teach a small autoencoder to generate what a pipeline's own does: where few steps are left, decoding is most of an image's time.

`kind: tiny` puts a new AutoencoderTiny in the VAE's place, whose latents are the pipeline's own, unscaled; `kind: own` goes on with
the VAE that the model has by then, such as one that `prune.width` made narrower. The pipeline generates the training captions as it will
be called, and what it hands its VAE is written down with what the teacher's VAE makes of it: the decoder learns on the latents that it
will meet, for any pipeline. The encoder, which generating from images and filling in call, learns the latents that the teacher has for
those images. Errors are of pixels and, if asked for, of what the teacher's own encoder sees. Plain diffusers loads and calls what
comes of it.
Source: Bohan, "TAESD: Tiny AutoEncoder for Stable Diffusion" (2023); Johnson et al., "Perceptual Losses for Real-Time Style
Transfer and Super-Resolution" (2016).

    - distill.decoder: {width: 32, steps: 1500}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, rewritten, write_manifest
from compress.catalogue import Forecast, Misfit, stage
from compress.context import Context
from compress.distillation.compatibility import decoding_misfits
from compress.distillation.few_steps import guiding, ill_guided
from compress.distillation.students import recorded_otherwise
from compress.errors import ModelError, Refusal
from compress.params import TRAINED, Training
from compress.pipelines.autoencoders import (
    TEACHERS,
    TINY,
    UNSCALED,
    VAE,
    Shape,
    levels_of,
    reads_more,
    scaling_of,
    tiny_config,
    tiny_parameters,
    usual_blocks,
)
from compress.pipelines.call_arguments import MOST_GUIDANCE, STEPS
from compress.pipelines.image_sizes import SIDES, own_size
from compress.pipelines.index import class_of, name_part

if TYPE_CHECKING:
    import torch

    from compress.algorithms.decoder_losses import Autoencoder
    from compress.data.items import Item
    from compress.opening.models import OpenModel

Count = Annotated[int, Field(ge=0)]
Row = tuple[Path, int]  # where an image's tensors are written down: the file, and the number in it
IMAGES_A_BATCH = 4
NEW = {"width", "blocks", "encoder_width", "encoder_blocks"}  # parameters of a new autoencoder alone
HELD_OUT = (
    16  # of so many recorded images one is not learnt from: by those it is reported how near the new decoder comes
)


class DistillDecoder(Training):
    kind: Literal["tiny", "own"] = Field("tiny", description="a new AutoencoderTiny, or the VAE that the model has")
    steps: int = Field(1500, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the learning rate, which then falls to a twentieth")
    batch: int = Field(8, ge=1, description="images in a batch")
    width: int = Field(64, ge=1, description="channels of the new decoder, the same at each of its sizes")
    blocks: tuple[Count, ...] = Field(
        (), description="its blocks at each size, from the latent's up; none named: three at each, one at the image's"
    )
    encoder_width: int = Field(32, ge=1, description="channels of the new encoder, the same at each of its sizes")
    encoder_blocks: tuple[Count, ...] = Field(
        (), description="its blocks at each size, from the image's down; none named: one at that, three at each other"
    )
    prompts: int = Field(512, ge=4, multiple_of=4, description="captions of the training data that are generated")
    denoising_steps: int | None = Field(
        None, ge=1, le=1000, description="steps of each generating; default: as the model is meant to be called"
    )
    guidance: float | None = Field(
        None, ge=0, le=MOST_GUIDANCE, description="guidance scale while generating; default: the pipeline's own"
    )
    pictures: int = Field(
        512, ge=0, multiple_of=4, description="images of the training data that are learnt from too, where it has any"
    )
    crop: int = Field(
        64, ge=8, description="side of what is decoded at a time in training, in latents; more of an image is left out"
    )
    feature_weight: float = Field(
        0.0,
        ge=0,
        description="weight of what the teacher's encoder sees, beside the pixels; a step then takes twice as long or more",
    )
    encoder_weight: float = Field(0.25, gt=0, description="weight of the new encoder's latents, beside the pixels")


def refuse(artifact: Artifact, params: DistillDecoder) -> str:
    kind = artifact.components[VAE].kind
    if kind not in TEACHERS:
        return f"its `vae` is a {kind}, and this stage knows {', '.join(TEACHERS)}"
    if why := ill_guided(artifact, params.guidance):
        return Refusal(why, "leave `guidance` out")
    if params.kind == "own":
        given = sorted(NEW & params.model_fields_set)
        fix = f"leave out {', '.join(given)}, or give kind: tiny"
        return Refusal("kind: own keeps the VAE's sizes", fix) if given else ""
    if more := reads_more(artifact):
        return f"{class_of(artifact.path)} reads `{more}` of its VAE, which an {TINY} does not have"
    levels = levels_of(artifact.config(VAE))
    for name in ("blocks", "encoder_blocks"):
        counts = getattr(params, name)
        if counts and len(counts) != levels:
            count = f"{len(counts)} number{'s' * (len(counts) != 1)}"
            return Refusal(f"{name} has {count}, and this VAE works at {levels} sizes", f"give {levels}, one for each")
    return ""


def unfit(artifact: Artifact, params: DistillDecoder, inputs: Mapping[str, Artifact]) -> Iterable[Misfit]:
    return decoding_misfits(artifact, inputs["teacher"])


def _config(artifact: Artifact, params: DistillDecoder) -> dict[str, Any]:
    """The config of the VAE that there will be."""
    config = artifact.config(VAE)
    if params.kind == "own":
        return dict(config)
    usual = usual_blocks(levels_of(config))
    blocks, encoder_blocks = params.blocks or usual, params.encoder_blocks or usual[::-1]
    return tiny_config(config, Shape(params.width, blocks, params.encoder_width, encoder_blocks))


def forecast(artifact: Artifact, params: DistillDecoder) -> Forecast:
    """Checkpoints hold the weights, their average and two moments, an old one too while the new one is written; a recorded image
    is in half precision."""
    from compress.sources.models import parameter_count

    config, before = _config(artifact, params), parameter_count(artifact.folder(VAE))
    tiny = params.kind == "tiny"
    after = tiny_parameters(config) if tiny else before
    side = max(int(artifact.settings.call.get(name) or 0) or own_size(artifact) or 1024 for name in SIDES)
    latent = int(config["latent_channels"]) * (side >> levels_of(config) - 1) ** 2
    each = {"prompts": 2 * (3 * side**2 + 3 * latent), "pictures": 2 * (2 * 3 * side**2 + 3 * latent)}
    instead = f" in place of {before / 1e6:.2f} M" if before else ""
    otherwise = recorded_otherwise(artifact, params.denoising_steps)
    return Forecast(
        configs={VAE: config},
        kinds={VAE: TINY} if tiny else {},
        reported=f"{after / 1e6:.2f} M parameters{instead}" if tiny else "",
        scratch_bytes=2 * 4 * 4 * after + max(0, 4 * (after - before)),
        item_bytes=each,
        memory_bytes=4 * TRAINED * (before + after),
        warnings=(otherwise,) if otherwise else (),
    )


@stage(
    version=2,
    params=DistillDecoder,
    needs=("denoising",),
    formats={"torch": "torch"},
    components=(VAE,),
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),
    data=lambda params: ("train",),
    images=lambda params: params.pictures,
    inputs=("teacher",),
    libraries=("accelerate", "torch", "transformers", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    unfit=unfit,
)
def run(artifact: Artifact, params: DistillDecoder, context: Context) -> None:
    from compress.algorithms.decoder_losses import Autoencoder
    from compress.engines.torch.runtime import save_component
    from compress.opening import open_component, open_task
    from compress.training.loop import teach

    source, opening = context.inputs["teacher"], context.opening.of("float32")
    if VAE not in source.components or source.components[VAE].format != "torch":
        raise ModelError("the teacher has no torch `vae`", place=str(source.path), fix="name an earlier step")
    teacher = Autoencoder.of(
        open_component(source, VAE, opening).requires_grad_(False), scaling_of(source), opening.device
    )
    rows = _record(open_task(artifact, opening), teacher, params, context)
    held, learnt = rows[::HELD_OUT], [row for number, row in enumerate(rows) if number % HELD_OUT]
    student = _student(artifact, params, context)
    curve = teach(student.vae, _target(student, teacher, learnt or rows, params, context), params, context)
    near = _nearness(student, held, context)
    made = derive(artifact, context.out, without=rewritten(artifact, (VAE,)), link=context.link)
    save_component(student.vae, artifact.folder(VAE), made.folder(VAE))
    if params.kind == "tiny":
        made = made.becoming({VAE: TINY})
        name_part(made.path, VAE, TINY)
    write_manifest(made)
    message = f"{near:.1f} dB from what the teacher's VAE generates, on {len(held)} images that were not learnt from"
    context.note(message, component=VAE, loss=curve, psnr=near, images=len(rows))


def _student(artifact: Artifact, params: DistillDecoder, context: Context) -> Autoencoder:
    import diffusers
    import torch

    from compress.algorithms.decoder_losses import Autoencoder
    from compress.engines.torch.runtime import silent_libraries
    from compress.opening import open_component

    device = context.opening.device
    if params.kind == "own":
        own = open_component(artifact, VAE, context.opening.of("float32")).requires_grad_(True)
        return Autoencoder.of(own, scaling_of(artifact), device)
    torch.manual_seed(context.seed)
    with silent_libraries():
        made = diffusers.AutoencoderTiny.from_config(_config(artifact, params))
    with torch.no_grad():
        made.decoder.layers[-1].bias.fill_(0.5)  # it gives 0..1: begin at grey
    return Autoencoder.of(made, UNSCALED, device)


def _record(generator: OpenModel, teacher: Autoencoder, params: DistillDecoder, context: Context) -> list[Row]:
    """Every image that is learnt from, as the teacher's VAE has it; what a crashed run wrote down is kept."""
    from compress.algorithms.decoder_losses import Autoencoder
    from compress.training.recordings import read_call

    generating = Autoencoder.of(generator.component(VAE), scaling_of(generator.artifact), context.opening.device)

    def generated(some: Sequence[Item]) -> Iterator[Mapping[str, torch.Tensor]]:
        return _rows(teacher, generating.unscaled(_handed(generator, some, params, context)))

    def given(some: Sequence[Item]) -> Iterator[Mapping[str, torch.Tensor]]:
        seen = _fitted(some, size, context)
        return _rows(teacher, teacher.encode(seen)[:, : teacher.vae.config.latent_channels], seen)

    data = context.data["train"]
    found = _write("generated", data.first(params.prompts), generated, context)
    size = read_call(*found[0])["image"].shape[-2:]
    return found + _write("given", [item for item in data.first(params.pictures) if item.image], given, context)


def _write(
    what: str,
    items: Sequence[Item],
    make: Callable[[Sequence[Item]], Iterator[Mapping[str, torch.Tensor]]],
    context: Context,
) -> list[Row]:
    from compress.training.recordings import count_calls, write_calls

    folder = context.scratch / "images"
    folder.mkdir(exist_ok=True)
    found: list[Row] = []
    starts = range(0, len(items), IMAGES_A_BATCH)
    for start in context.progress(starts, f"recording {what} images", len(starts)):
        path = folder / f"{what}-{start:06d}.safetensors"
        if not count_calls(path):
            write_calls(path, make(items[start : start + IMAGES_A_BATCH]))
        found += [(path, number) for number in range(count_calls(path))]
    return found


def _handed(generator: OpenModel, some: Sequence[Item], params: DistillDecoder, context: Context) -> torch.Tensor:
    """What the pipeline hands its VAE while it generates these captions."""
    import torch

    call = guiding(generator.artifact).call(params.guidance)
    if params.denoising_steps is not None:
        call[STEPS] = params.denoising_steps
    recorded = generator.calls_of((VAE,), some, context.seed, batch=len(some), **call)
    return torch.cat([next(iter(one.values())) for _, one in recorded])  # latents are a decoder's first argument


def _fitted(some: Sequence[Item], size: Sequence[int], context: Context) -> torch.Tensor:
    """The items' own images, scaled and cut at two sides to the size that the pipeline generates: [n, 3, height, width] in -1..1."""
    import torch
    from torch.nn import functional

    found = []
    for item in some:
        assert item.image is not None
        image = torch.tensor(item.image(), device=context.opening.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        share = max(want / have for want, have in zip(size, image.shape[-2:], strict=True))
        sides = [max(want, round(share * have)) for want, have in zip(size, image.shape[-2:], strict=True)]
        scaled = functional.interpolate(image, sides, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = ((have - want) // 2 for want, have in zip(size, sides, strict=True))
        found.append(scaled[..., top : top + size[0], left : left + size[1]])
    return torch.cat(found)


def _rows(
    teacher: Autoencoder, latents: torch.Tensor, seen: torch.Tensor | None = None
) -> Iterator[Mapping[str, torch.Tensor]]:
    """One an image: a latent, as the pipeline has it before it scales it, and the image that the VAE makes of it; an image, or
    that one, and the latent that the VAE makes of it."""
    import torch

    from compress.algorithms.tensors import to_host

    with torch.no_grad():
        images = teacher.decode(latents).clamp(-1, 1)
        seen = images if seen is None else seen
        columns = {"latent": latents, "image": images, "seen": seen, "code": teacher.encode(seen)}
    half = {name: to_host(value, torch.float16) for name, value in columns.items()}
    return ({name: value[row] for name, value in half.items()} for row in range(len(images)))


def _target(
    student: Autoencoder, teacher: Autoencoder, rows: Sequence[Row], params: DistillDecoder, context: Context
) -> Callable[[int], Mapping[str, torch.Tensor]]:
    """A student's losses by the number of the batch."""
    import numpy as np

    from compress.algorithms.decoder_losses import draw_window, feature_errors, image_errors
    from compress.algorithms.losses import relative_error

    def loss_at(number: int) -> Mapping[str, torch.Tensor]:
        random = np.random.default_rng([context.seed, number])
        batch = _batch([rows[one] for one in random.integers(len(rows), size=params.batch)], context)
        latents, scale = batch["latent"], batch["image"].shape[-1] // batch["latent"].shape[-1]
        window = draw_window(latents.shape[2], latents.shape[3], params.crop, random.random(2).tolist())
        generated = student.decode(window.of(latents, 1))
        found, wanted = (window.judged(one, scale) for one in (generated, window.of(batch["image"], scale)))
        coded = student.encode(window.of(batch["seen"], scale))
        ours, theirs = (window.judged(one, 1) for one in (coded, window.of(batch["code"], 1)))
        both = min(ours.shape[1], theirs.shape[1])  # an AutoencoderTiny tells no deviation
        losses = {
            "pixels": image_errors(found, wanted),
            "latents": params.encoder_weight * relative_error(ours[:, :both], theirs[:, :both]),
        }
        if params.feature_weight:
            losses["features"] = params.feature_weight * feature_errors(teacher.vae, found, wanted)
        return losses

    return loss_at


def _batch(rows: Sequence[Row], context: Context) -> dict[str, torch.Tensor]:
    import torch

    from compress.training.recordings import read_call

    read = [read_call(*row) for row in rows]
    device = context.opening.device
    # Each by itself: autocast in another half precision does not stack float16.
    return {name: torch.stack([one[name].to(device).float() for one in read]) for name in read[0]}


def _nearness(student: Autoencoder, rows: Sequence[Row], context: Context) -> float:
    """Peak signal-to-noise ratio of what a decoder generates against what the teacher's does, dB, the mean over recorded images."""
    import torch

    from compress.algorithms.decoder_losses import peak_ratio

    found = []
    for row in rows:
        batch = _batch([row], context)
        with torch.no_grad():
            found.append(peak_ratio(student.decode(batch["latent"]), batch["image"]))
    return sum(found) / len(found)
