"""What each pipeline class with a lean call does before, between and behind the steps that `lean.py` walks: as its stock call does it,
with the same arguments to every component, and without what the stock call asks again each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from compress.engines.module import EngineModule
from compress.opening.lean_schedules import Ddim, Flow, Guidance, Kept, Numbers, Schedule, classifier_free, tensor_of
from compress.opening.lean_texts import Reader

NEGATIVES = 4  # sets of negative prompts whose embeddings are kept


@dataclass(frozen=True)
class Asked:
    """A call's arguments."""

    prompt: str | list[str]
    negative: str | list[str] | None
    height: int | None
    width: int | None
    steps: int
    guidance: float
    generator: torch.Generator | list[torch.Generator] | None
    output: str
    as_dict: bool
    longest: int | None  # tokens of a prompt, for pipelines that are reported
    image: Any = None  # what is made another of
    mask: Any = None
    strength: Any = 1.0  # as it was given: the stock call says what is wrong with it
    image_guidance: Any = 1.0

    @property
    def count(self) -> int:
        return 1 if isinstance(self.prompt, str) else len(self.prompt)


@dataclass(frozen=True)
class Begun:
    """A call of which all is ready but the steps.

    guidance: how several predictions of each row become one; None where there is one.
    predict: what the denoiser gives at a step for latents, each as often as the guidance takes it.
    decode: the image of the latents behind the last step.
    first: the step of the schedule at which the latents are.
    behind: what else becomes of the latents behind a step.
    """

    latents: torch.Tensor
    schedule: Schedule
    guidance: Guidance | None
    predict: Callable[[torch.Tensor, int], torch.Tensor]
    decode: Callable[[Numbers], torch.Tensor]
    first: int = 0
    behind: Callable[[torch.Tensor, int], torch.Tensor] | None = None


@dataclass
class Memory:
    """What a pipeline's next lean call need not work out anew. None of it depends on what a caller may ask but its key says so."""

    device: torch.device
    schedules: Kept = field(default_factory=Kept)
    readers: dict[str, Reader] = field(default_factory=dict)
    negatives: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
    encoder: object = None  # whose embeddings `negatives` are


def stable_diffusion(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusionPipeline."""
    size = pipe.unet.config.sample_size
    height, width = asked.height, asked.width
    if not height or not width:
        sides = (size, size) if isinstance(size, int) else size
        height, width = (side * pipe.vae_scale_factor for side in sides)
    pipe.check_inputs(asked.prompt, height, width, None, asked.negative)
    scale = asked.guidance if asked.guidance > 1 else None
    embeds = clip_embeds(pipe, asked, scale is not None, memory)
    schedule = ddim(pipe, asked, memory)
    latents = _noise(pipe, pipe.unet, asked, (height, width), embeds.dtype, memory)
    predict = unet_of(pipe.unet, schedule, embeds)
    return Begun(latents, schedule, classifier_free(scale), predict, decoding(pipe, asked.generator))


def stable_diffusion_xl(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusionXLPipeline: two text encoders, and the image's size beside the pooled text."""
    height, width = _sides(pipe, asked)
    pipe.check_inputs(asked.prompt, None, height, width, None, asked.negative)
    scale = asked.guidance if asked.guidance > 1 else None
    embeds, without, pooled, pooled_without = pipe.encode_prompt(
        prompt=asked.prompt,
        device=memory.device,
        do_classifier_free_guidance=scale is not None,
        negative_prompt=asked.negative,
    )
    schedule = ddim(pipe, asked, memory)
    latents = _noise(pipe, pipe.unet, asked, (height, width), embeds.dtype, memory)
    projected = pipe.text_encoder_2.config.projection_dim if pipe.text_encoder_2 is not None else int(pooled.shape[-1])
    sizes = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), dtype=embeds.dtype, text_encoder_projection_dim=projected
    )
    if scale is not None:
        embeds, pooled = torch.cat([without, embeds]), torch.cat([pooled_without, pooled])
        sizes = torch.cat([sizes, sizes])
    added = {"text_embeds": pooled.to(memory.device), "time_ids": sizes.to(memory.device).repeat(asked.count, 1)}
    predict = unet_of(pipe.unet, schedule, embeds.to(memory.device), added)
    return Begun(latents, schedule, classifier_free(scale), predict, lambda x: _decode_xl(pipe, x))


def stable_diffusion_3(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """StableDiffusion3Pipeline: three text encoders, and a transformer along a flow."""
    height, width = _sides(pipe, asked)
    more = {} if asked.longest is None else {"max_sequence_length": asked.longest}
    pipe.check_inputs(asked.prompt, None, None, height, width, negative_prompt=asked.negative, **more)
    scale = asked.guidance if asked.guidance > 1 else None
    embeds, without, pooled, pooled_without = pipe.encode_prompt(
        prompt=asked.prompt,
        prompt_2=None,
        prompt_3=None,
        negative_prompt=asked.negative,
        do_classifier_free_guidance=scale is not None,
        device=memory.device,
        **more,
    )
    if scale is not None:
        embeds, pooled = torch.cat([without, embeds]), torch.cat([pooled_without, pooled])
    latents = _noise(pipe, pipe.transformer, asked, (height, width), embeds.dtype, memory)
    side = pipe.transformer.config.patch_size
    tokens = (latents.shape[2] // side) * (latents.shape[3] // side)
    schedule = _flow(pipe, asked, memory, tokens, most=1.16, reported=False)
    rows = len(embeds)

    def predict(x: torch.Tensor, index: int) -> torch.Tensor:
        found: torch.Tensor = pipe.transformer(
            hidden_states=x,
            timestep=schedule.times[index].expand(rows),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        return found

    return Begun(latents, schedule, classifier_free(scale), predict, lambda x: _decode_shifted(pipe, x))


def flux(pipe: Any, asked: Asked, memory: Memory) -> Begun:
    """FluxPipeline: latents two by two in a token, and guidance that the transformer is given."""
    height, width = _sides(pipe, asked)
    more = {} if asked.longest is None else {"max_sequence_length": asked.longest}
    pipe.check_inputs(asked.prompt, None, height, width, negative_prompt=asked.negative, **more)
    embeds, pooled, text_ids = pipe.encode_prompt(prompt=asked.prompt, prompt_2=None, device=memory.device, **more)
    config = pipe.transformer.config
    latents, image_ids = pipe.prepare_latents(
        asked.count, config.in_channels // 4, height, width, embeds.dtype, memory.device, asked.generator, None
    )
    schedule = _flow(pipe, asked, memory, latents.shape[1], most=1.15, reported=True)
    scale = None
    if config.guidance_embeds:
        scale = torch.full([1], asked.guidance, device=memory.device, dtype=torch.float32).expand(latents.shape[0])
    times = [time.expand(latents.shape[0]).to(latents.dtype) / 1000 for time in schedule.times]

    def predict(x: torch.Tensor, index: int) -> torch.Tensor:
        with pipe.transformer.cache_context("cond"):
            found: torch.Tensor = pipe.transformer(
                hidden_states=x,
                timestep=times[index],
                guidance=scale,
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=image_ids,
                joint_attention_kwargs={},
                return_dict=False,
            )[0]
        return found

    def decode(x: Numbers) -> torch.Tensor:
        return _decode_shifted(pipe, pipe._unpack_latents(tensor_of(x), height, width, pipe.vae_scale_factor))

    return Begun(latents, schedule, None, predict, decode)


# By the pipeline's class, its lean call.
BEGIN: Mapping[str, Callable[[Any, Asked, Memory], Begun]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
}


def _sides(pipe: Any, asked: Asked) -> tuple[int, int]:
    own: int = pipe.default_sample_size * pipe.vae_scale_factor
    return asked.height or own, asked.width or own


def _noise(
    pipe: Any, denoiser: Any, asked: Asked, sides: tuple[int, int], dtype: torch.dtype, memory: Memory
) -> torch.Tensor:
    channels = denoiser.config.in_channels
    found: torch.Tensor = pipe.prepare_latents(
        asked.count, channels, *sides, dtype, memory.device, asked.generator, None
    )
    return found


def ddim(pipe: Any, asked: Asked, memory: Memory) -> Schedule:
    make = lambda: Ddim.of(pipe.scheduler, asked.steps, memory.device)  # noqa: E731
    return memory.schedules.get(pipe.scheduler, (asked.steps, memory.device), make)


def _flow(pipe: Any, asked: Asked, memory: Memory, tokens: int, most: float, reported: bool) -> Schedule:
    """Args:
    tokens: of an image, by which a schedule may be shifted; `most` is the shift of 4096 where its config has none.
    reported: whether the pipeline gives the scheduler its noise levels, a shift in any case, and the step it starts at.
    """
    config = pipe.scheduler.config
    ends = (
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", most),
    )
    how: dict[str, Any] = {"mu": _shift(tokens, *ends)} if reported or config.get("use_dynamic_shifting") else {}
    if reported:
        how["sigmas"] = np.linspace(1.0, 1 / asked.steps, asked.steps)
    make = lambda: Flow.of(pipe.scheduler, asked.steps, memory.device, reported, **how)  # noqa: E731
    return memory.schedules.get(pipe.scheduler, (asked.steps, memory.device, tokens), make)


def _shift(tokens: int, low: int, high: int, base: float, most: float) -> float:
    """How far a schedule is shifted for an image of so many tokens: on a line between two sizes."""
    slope = (most - base) / (high - low)
    return tokens * slope + (base - slope * low)


def unet_of(
    unet: Any,
    schedule: Schedule,
    embeds: torch.Tensor,
    added: Mapping[str, torch.Tensor] | None = None,
    beside: Sequence[torch.Tensor] = (),
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """beside: what stands behind the latents in its input's channels."""

    def predict(x: torch.Tensor, index: int) -> torch.Tensor:
        found: torch.Tensor = unet(
            torch.cat([x, *beside], dim=1) if beside else x,
            schedule.times[index],
            encoder_hidden_states=embeds,
            timestep_cond=None,
            cross_attention_kwargs=None,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return found

    return predict


def decoding(pipe: Any, generator: Any = None) -> Callable[[Numbers], torch.Tensor]:
    """How Stable Diffusion 1 and 2 make an image of latents."""

    def decode(x: Numbers) -> torch.Tensor:
        z = tensor_of(x / pipe.vae.config.scaling_factor)
        given = {} if generator is None else {"generator": generator}
        image: torch.Tensor = pipe.vae.decode(z, return_dict=False, **given)[0]
        return image

    return decode


def _decode_xl(pipe: Any, x: Numbers) -> torch.Tensor:
    vae, z = pipe.vae, tensor_of(x)
    mean, deviation = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        mean, deviation = (torch.tensor(v).view(1, 4, 1, 1).to(z.device, z.dtype) for v in (mean, deviation))
        z = z * deviation / vae.config.scaling_factor + mean
    else:
        z = z / vae.config.scaling_factor
    image: torch.Tensor = vae.decode(z, return_dict=False)[0]
    return image


def _decode_shifted(pipe: Any, x: Numbers) -> torch.Tensor:
    config = pipe.vae.config
    image: torch.Tensor = pipe.vae.decode(
        tensor_of(x / config.scaling_factor + config.shift_factor), return_dict=False
    )[0]
    return image


def clip_embeds(pipe: Any, asked: Asked, guided: bool, memory: Memory) -> torch.Tensor:
    """A CLIP encoder's states for the prompts, behind those of the negative prompts where there is guidance."""
    embeds, without = known_embeds(pipe, asked, guided, memory) or pipe.encode_prompt(
        asked.prompt, memory.device, 1, guided, asked.negative
    )
    return embeds if without is None else torch.cat([without, embeds])


def known_embeds(
    pipe: Any, asked: Asked, guided: bool, memory: Memory
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """A CLIP encoder's states for the prompts, and for the negative prompts where there is guidance; None where the stock pipeline has more to
    do, or to say."""
    tokens = _tokens(pipe, asked.prompt, memory)
    negative = _negatives(asked) if guided else ()
    if tokens is None or negative is None:
        return None
    embeds = _encoded(pipe, tokens, memory)
    without = _negative_embeds(pipe, negative, memory) if guided else None
    return None if guided and without is None else (embeds, without)


def _negatives(asked: Asked) -> tuple[str, ...] | None:
    """A negative prompt for each prompt; None where the stock pipeline has something to say of those that were given."""
    if not asked.negative:
        return ("",) * asked.count if asked.negative is None else None
    given = (asked.negative,) if isinstance(asked.negative, str) else tuple(asked.negative)
    return given if type(asked.negative) is type(asked.prompt) and len(given) == asked.count else None


def _negative_embeds(pipe: Any, negative: tuple[str, ...], memory: Memory) -> torch.Tensor | None:
    """None where the stock pipeline has more to do, or to say. Kept where an engine made them, whose weights nobody changes: few callers have more than one negative prompt."""
    encoder = pipe.text_encoder
    if memory.encoder is not encoder:
        memory.negatives.clear()
        memory.encoder = encoder
    if negative in memory.negatives:
        return memory.negatives[negative]
    tokens = _tokens(pipe, list(negative), memory)
    if tokens is None:
        return None
    found = _encoded(pipe, tokens, memory)
    if isinstance(encoder, EngineModule):
        while len(memory.negatives) >= NEGATIVES:
            del memory.negatives[next(iter(memory.negatives))]
        memory.negatives[negative] = found
    return found


def _tokens(pipe: Any, texts: str | list[str], memory: Memory) -> torch.Tensor | None:
    """What the tokenizer makes of texts, padded to its length; None where the stock pipeline has more to do, or to say."""
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    if encoder is None or getattr(encoder.config, "use_attention_mask", False):
        return None
    reader = memory.readers.get("tokenizer")
    if reader is None or not reader.reads_as(tokenizer):
        reader = memory.readers["tokenizer"] = Reader.of(tokenizer)
    return reader.read([texts] if isinstance(texts, str) else texts)


def _encoded(pipe: Any, tokens: torch.Tensor, memory: Memory) -> torch.Tensor:
    found: torch.Tensor = pipe.text_encoder(tokens.to(memory.device), attention_mask=None)[0]
    return found.to(dtype=pipe.text_encoder.dtype, device=memory.device)
