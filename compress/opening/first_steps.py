"""What a pipeline tells its denoiser at the first step of a generating, without running it: a stand-in answers that there is nothing, so that
the pipeline sets its scheduler's steps, and whatever it makes of prompts, images and masks is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch

from compress.algorithms.forward_hooks import standing_in
from compress.engines.module import arguments_of

Call = Mapping[str, Any]
# A scheduler's methods that lay noise over images, of diffusions and of flows, and where among the arguments behind the image it is.
LAYING: Mapping[str, int] = {"add_noise": 0, "scale_noise": 1}


@dataclass
class FirstStep:
    """The first step of a generating.

    calls: what the denoiser is given: one call, or one with the prompt and one without.
    latents: what the scheduler steps there, [items, ...]: the latents by themselves, without what a denoiser is given beside them.
    laid: whether these are latents of images that noise was laid over; else they are noise alone.
    run: steps that are run, of those that were asked for.
    kept, noise: of a pipeline that lays its input over what each step gives outside a mask, latents of the input and the noise in them.
    mask: of such a one, 1 where its steps' latents stay, where nothing else was laid over them; of their shape, or one that fits to it.
    """

    calls: list[Call] = field(default_factory=list)
    latents: torch.Tensor | None = None
    laid: bool = False
    run: int = 0
    kept: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @property
    def begun(self) -> torch.Tensor:
        """`latents`, float32.

        Raises:
            AssertionError: nothing was generated.
        """
        assert self.latents is not None
        return self.latents.float()


@contextmanager
def hearing_the_first_step(
    module: torch.nn.Module, scheduler: Any, own: Callable[[dict[str, Any]], Call], *, still: bool
) -> Iterator[FirstStep]:
    """Within: what is generated goes through all steps without the denoiser, and the first is written down.

    Args:
        own: makes a copy of a call that nobody can write into later.
        still: lay no noise over images: the first latents are the images' own. Nothing is laid over what the first step gives, so that
            a mask is seen at the second.
    """
    found, names = FirstStep(), arguments_of(type(module).forward)
    channels = getattr(module.config, "out_channels", None)

    def silent(*args: object, **kwargs: object) -> tuple[torch.Tensor]:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if not found.run:
            found.calls.append(own(given))
        latent = latent_of(given)
        shape = list(latent.shape)
        if latent.dim() == 4 and channels:  # a learned variance doubles them
            shape[1] = channels
        return (latent.new_zeros(shape),)

    step = scheduler.step

    @wraps(step)  # pipelines read from its signature what else it takes
    def nowhere(output: torch.Tensor, time: Any, sample: torch.Tensor, *args: object, **kwargs: object) -> Any:
        if not found.run:
            found.latents = sample.detach().clone()
        found.run += 1
        if still and found.run == 2 and found.kept is not None:
            found.mask = sample.detach().clone()
        stepped = step(torch.zeros_like(sample), time, sample, *args, **kwargs)
        return (torch.ones_like(sample),) if still and found.run == 1 and isinstance(stepped, tuple) else stepped

    with ExitStack() as stack:
        stack.enter_context(standing_in(module, "forward", silent))
        stack.enter_context(standing_in(scheduler, "step", nowhere))
        for name, place in LAYING.items():
            if hasattr(scheduler, name):
                noted = _laying(getattr(scheduler, name), place, found, still)
                stack.enter_context(standing_in(scheduler, name, noted))
        yield found


def _laying(lay: Callable[..., Any], place: int, found: FirstStep, still: bool) -> Callable[..., Any]:
    """What lays noise over images in a scheduler's place: before the first step over what is given, behind it over what a mask keeps."""

    @wraps(lay)
    def noted(image: torch.Tensor, *args: torch.Tensor) -> Any:
        if not found.run:
            found.laid = True
            return image if still else lay(image, *args)
        if found.run == 1:
            found.kept, found.noise = image.detach().clone(), args[place].detach().clone()
            if still:
                return torch.zeros_like(image)
        return lay(image, *args)

    return noted


def latent_of(call: Mapping[str, Any]) -> torch.Tensor:
    """The latent among a denoiser's arguments, with what it is given beside it in the same tensor."""
    latent: torch.Tensor = call[latent_name(call)]
    return latent


def latent_name(call: Mapping[str, Any]) -> str:
    """What a denoiser calls the latent among its arguments."""
    return next(name for name in ("sample", "hidden_states") if name in call)
