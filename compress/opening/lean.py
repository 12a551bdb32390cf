"""The lean call: a stock pipeline whose call generates the very same images with less Python around its components.

`lean_class` makes a subclass of the stock pipeline's class, so everything else of it is as it was. A call with arguments that only the
stock call takes, or on a pipeline that was changed meanwhile, is made by the stock call, and a warning says why.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from compress.engines.module import EngineModule
from compress.opening import lean_editors, lean_pipelines
from compress.opening.lean_pipelines import Asked, Begun, Memory
from compress.opening.lean_schedules import Numbers, lean, seen, tensor_of
from compress.pipelines.call_arguments import GUIDANCE, NEGATIVE, STEPS, call_arguments
from compress.pipelines.image_inputs import IMAGE_GUIDANCE, STRENGTH
from compress.pipelines.lean import no_lean_call, unusual

PROCESSOR = "VaeImageProcessor"
# `compress.pipelines.lean.SCHEDULERS` has the same classes.
BEGIN = {**lean_pipelines.BEGIN, **lean_editors.BEGIN}


class LeanCall:
    """Mixed into a pipeline's class, before it. `lean_memory` is set by `lean_pipeline`.

    stock_because: why the last call was the stock one; "" where it was lean.
    """

    lean_memory: Memory
    stock_because: str = ""

    def __call__(self, prompt: Any = None, *others: Any, **given: Any) -> Any:
        self.__dict__["stock_because"] = why = _stock_because(self, prompt, others, given)
        if why:
            warnings.warn(f"this call is the stock pipeline's, not the lean one: {why}", stacklevel=2)
            return super().__call__(prompt, *others, **given)  # type: ignore[misc]
        return _generate(self, _asked(self, prompt, given))


@cache
def lean_class(kind: type) -> type:
    """A pipeline's class with a lean call, by the same name and of the same signature.

    Raises:
        KeyError: there is no lean call for such a pipeline; `compress.pipelines.lean.no_lean_call` tells beforehand.
    """
    if kind.__name__ not in BEGIN:
        raise KeyError(kind.__name__)
    return type(kind.__name__, (LeanCall, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def lean_pipeline(kind: type, parts: Mapping[str, Any], device: torch.device) -> Any:
    """A pipeline made of its parts, all on one device, with a lean call."""
    pipeline = lean_class(kind)(**parts)
    pipeline.lean_memory = Memory(device)
    return pipeline


def _stock_because(pipe: Any, prompt: object, others: tuple[object, ...], given: Mapping[str, Any]) -> str:
    """Why this call must be the stock one, or ""."""
    kind = type(pipe).__name__
    if others:
        return "arguments behind the prompt are given by position"
    texts = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt))
    if not texts:
        return "the prompt is neither a text nor a list of texts"
    if named := unusual(kind, given, call_arguments(kind) or {}):
        return f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} given"
    if not isinstance(given.get(STEPS, 1), int):
        return f"{STEPS} is no whole number"
    if why := no_lean_call(kind, type(pipe.scheduler).__name__, pipe.scheduler.config):
        return why
    if kind in lean_editors.BEGIN and (why := lean_editors.left_to_stock(pipe, _asked(pipe, "", given))):
        return why
    return _changed(pipe)


def _changed(pipe: Any) -> str:
    """What of a pipeline is otherwise than it was opened, and would make a lean call generate something else; or ""."""
    if getattr(pipe, "safety_checker", None) is not None or getattr(pipe, "watermark", None) is not None:
        return "it has a safety checker or a watermark"
    unet = getattr(pipe, "unet", None)
    if unet is not None and unet.config.time_cond_proj_dim is not None:
        return "its denoiser is given the guidance"
    vae = pipe.vae
    if vae.config.get("force_upcast") and hasattr(pipe, "upcast_vae") and vae.dtype == torch.float16:
        return "its VAE decodes in float32, and is float16"
    if type(pipe.image_processor).__name__ != PROCESSOR or not pipe.image_processor.config.do_normalize:
        return "its images are processed in another way"
    modules = (part for part in vars(pipe).values() if isinstance(part, torch.nn.Module))
    for module in modules:
        if _device(module) != pipe.lean_memory.device:
            return "a component was moved to another device"
        if not isinstance(module, EngineModule) and any(map(_hooked, module.modules())):
            return "hooks hang on a component"
    return ""


def _device(module: torch.nn.Module) -> torch.device:
    if isinstance(module, EngineModule):
        return module.device
    return next(module.parameters()).device


def _hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate or diffusers move, cache or cast a module around its call."""
    held = vars(module)
    if "_hf_hook" in held:
        return True
    registry = held.get("_diffusers_hook")  # FLUX's call leaves an empty one
    return registry is not None and bool(registry.hooks)


def _asked(pipe: Any, prompt: str | list[str], given: Mapping[str, Any]) -> Asked:
    usual = call_arguments(type(pipe).__name__) or {}

    def value(name: str) -> Any:
        return given.get(name, usual.get(name))

    return Asked(
        prompt,
        value(NEGATIVE),
        value("height"),
        value("width"),
        value(STEPS),
        value(GUIDANCE),
        value("generator"),
        value("output_type"),
        value("return_dict"),
        value("max_sequence_length"),
        value("image"),
        value("mask_image"),
        *(value(name) if name in usual else 1.0 for name in (STRENGTH, IMAGE_GUIDANCE)),
    )


@torch.no_grad()
def _generate(pipe: Any, asked: Asked) -> Any:
    begun = BEGIN[type(pipe).__name__](pipe, asked, pipe.lean_memory)
    latents = _denoised(begun)
    if asked.output == "latent":
        return _given(pipe, tensor_of(latents), asked)
    return _given(pipe, _finished(pipe, begun.decode(latents), asked.output), asked)


def _denoised(begun: Begun) -> Numbers:
    x, schedule, guidance = begun.latents, begun.schedule, begun.guidance
    # Encoded latents may lie in memory channel by channel, and torch keeps that order where numpy does not: a convolution rounds by it.
    numbers = lean if x.is_contiguous() else tensor_of
    x = numbers(x)
    for index in range(begun.first, len(schedule.times)):
        predicted = numbers(begun.predict(tensor_of(guidance.repeated(x) if guidance else x), index))
        if isinstance(predicted, torch.Tensor):  # autocast lets a denoiser answer in another type
            x = tensor_of(x)
        x = schedule.step(index, guidance.lead(predicted) if guidance else predicted, x)
        x = numbers(begun.behind(tensor_of(x), index)) if begun.behind else x
    return x


def _finished(pipe: Any, image: torch.Tensor, output: str) -> Any:
    """The image as it was asked for."""
    processor = pipe.image_processor
    if output not in ("np", "pil"):
        return processor.postprocess(image, output_type=output)
    found = seen(image)
    return found if output == "np" else processor.numpy_to_pil(found)


def _given(pipe: Any, images: Any, asked: Asked) -> Any:
    """What the stock call gives: its output, or a tuple."""
    checked = {"nsfw_content_detected": None} if hasattr(pipe, "run_safety_checker") else {}
    if not asked.as_dict:
        return (images, *checked.values())
    return _output_of(type(pipe).__mro__[2])(images=images, **checked)


@cache
def _output_of(kind: type) -> Any:
    """The class of what a pipeline gives, as its module imports it."""
    module = inspect.getmodule(kind)
    names = [name for name in vars(module) if name.endswith("PipelineOutput")]
    assert len(names) == 1, names
    return getattr(module, names[0])
