"""What each pipeline class that is given images has of a lean call, as `lean_pipelines.py` has it of those that are given texts alone: of Stable
Diffusion 1 and 2, image to image, inpainting and InstructPix2Pix. Images and masks are processed, encoded and noised by the stock pipeline's own
methods, in their order, so that a generator gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from compress.opening.lean_pipelines import Asked, Begun, Memory, clip_embeds, ddim, decoding, known_embeds, unet_of
from compress.opening.lean_schedules import classifier_free, instructed

BY_MASK = "AsymmetricAutoencoderKL"  # decodes with the mask and what lies outside


def left_to_stock(pipe: Any, asked: Asked) -> str:
    """Why such a call must be the stock one, beside what holds for all pipelines; or ""."""
    kind = type(pipe).__name__
    if asked.image is None or (kind == INPAINTING and asked.mask is None):
        return "it is given no image" if asked.image is None else "it is given no mask"
    if not isinstance(asked.strength, int | float) or not isinstance(asked.image_guidance, int | float):
        return "strength and image guidance are numbers"
    if _first(asked) >= asked.steps:
        return f"none of {asked.steps} steps is run" + (f" at strength {asked.strength:g}" if asked.steps else "")
    if type(pipe.vae).__name__ == BY_MASK:
        return "its VAE decodes by the mask"
    latent, takes = pipe.vae.config.latent_channels, pipe.unet.config.in_channels
    fitting = {IMAGE_TO_IMAGE: (takes,), INPAINTING: (4, 9) if latent == 4 else (4,), INSTRUCTION: (2 * latent,)}
    return "" if takes in fitting[kind] else f"its denoiser takes {takes} channels"


def _first(asked: Asked) -> int:
    """The first of the steps that a strength leaves."""
    return max(asked.steps - min(int(asked.steps * asked.strength), asked.steps), 0)


def image_to_image(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusionImg2ImgPipeline."""
    pipe.check_inputs(asked.prompt, asked.strength, None, asked.negative)
    scale = asked.guidance if asked.guidance > 1 else None
    embeds = clip_embeds(pipe, asked, scale is not None, memory)
    image = pipe.image_processor.preprocess(asked.image)
    first = _first(asked)
    times = ddim(pipe, asked, memory).times[first].reshape(1).repeat(asked.count)
    latents = pipe.prepare_latents(image, times, asked.count, 1, embeds.dtype, memory.device, asked.generator)
    schedule = ddim(pipe, asked, memory)  # laying noise over them moves the scheduler's numbers to their device
    predict = unet_of(pipe.unet, schedule, embeds)
    return Begun(latents, schedule, classifier_free(scale), predict, decoding(pipe, asked.generator), first)


def inpainting(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusionInpaintPipeline: with a denoiser that is shown mask and masked image, or one that is not, and outside the mask is given the
    image at each step."""
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    height, width = asked.height or own, asked.width or own
    pipe.check_inputs(
        asked.prompt, asked.image, asked.mask, height, width, asked.strength, None, asked.output, asked.negative
    )
    scale = asked.guidance if asked.guidance > 1 else None
    embeds = clip_embeds(pipe, asked, scale is not None, memory)
    first = _first(asked)
    times = ddim(pipe, asked, memory).times[first].reshape(1).repeat(asked.count)
    image = pipe.image_processor.preprocess(asked.image, height=height, width=width).to(dtype=torch.float32)
    shown = pipe.unet.config.in_channels != 4
    latents, noise, *kept = pipe.prepare_latents(
        asked.count,
        pipe.vae.config.latent_channels,
        height,
        width,
        embeds.dtype,
        memory.device,
        asked.generator,
        image=image,
        timestep=times,
        is_strength_max=asked.strength == 1.0,
        return_noise=True,
        return_image_latents=not shown,
    )
    schedule = ddim(pipe, asked, memory)  # laying noise over them moves the scheduler's numbers to their device
    covered = pipe.mask_processor.preprocess(asked.mask, height=height, width=width)
    mask, masked = pipe.prepare_mask_latents(
        covered,
        image * (covered < 0.5),
        asked.count,
        height,
        width,
        embeds.dtype,
        memory.device,
        asked.generator,
        scale is not None,
    )
    predict = unet_of(pipe.unet, schedule, embeds, beside=(mask, masked) if shown else ())
    decode = decoding(pipe, asked.generator)
    if shown:
        return Begun(latents, schedule, classifier_free(scale), predict, decode, first)
    inside = mask.chunk(2)[0] if scale is not None else mask

    def behind(x: torch.Tensor, index: int) -> torch.Tensor:
        outside = kept[0]
        if index + 1 < len(schedule.times):
            outside = pipe.scheduler.add_noise(outside, noise, torch.tensor([schedule.times[index + 1]]))
        found: torch.Tensor = (1 - inside) * outside + inside * x
        return found

    return Begun(latents, schedule, classifier_free(scale), predict, decode, first, behind)


def instruction(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusionInstructPix2PixPipeline: guided by the text and by the image, or by neither."""
    pipe.check_inputs(asked.prompt, None, asked.negative)
    led = asked.guidance > 1 and asked.image_guidance >= 1
    embeds = _instructing(pipe, asked, led, memory)
    image = pipe.image_processor.preprocess(asked.image)
    schedule = ddim(pipe, asked, memory)
    shown = pipe.prepare_image_latents(image, asked.count, 1, embeds.dtype, memory.device, led)
    height, width = (side * pipe.vae_scale_factor for side in shown.shape[-2:])
    channels = pipe.vae.config.latent_channels
    latents = pipe.prepare_latents(
        asked.count, channels, height, width, embeds.dtype, memory.device, asked.generator, None
    )
    guidance = instructed(asked.guidance, asked.image_guidance) if led else None
    return Begun(latents, schedule, guidance, unet_of(pipe.unet, schedule, embeds, beside=(shown,)), decoding(pipe))


def _instructing(pipe: Any, asked: Asked, led: bool, memory: Memory) -> torch.Tensor:
    """A CLIP encoder's states for the instructions, before those without where there is guidance, one for the image and one for neither."""
    found = known_embeds(pipe, asked, led, memory)
    if found is None:
        made: torch.Tensor = pipe._encode_prompt(asked.prompt, memory.device, 1, led, asked.negative)
        return made
    embeds, without = found
    return embeds if without is None else torch.cat([embeds, without, without])


IMAGE_TO_IMAGE, INPAINTING = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
INSTRUCTION = "StableDiffusionInstructPix2PixPipeline"
# By the pipeline's class, its lean call.
BEGIN: Mapping[str, Callable[[Any, Asked, Memory], Begun]] = {
    IMAGE_TO_IMAGE: image_to_image,
    INPAINTING: inpainting,
    INSTRUCTION: instruction,
}
