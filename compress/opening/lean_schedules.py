"""Schedules whose coefficients are known before the first step: DDIM without noise, and Euler's steps along a flow.

Each step does what diffusers' does, operation by operation in the same order, so that it ends in the same bits: on tensors of any type and
device, or on arrays where that is float32 on the processor, for numpy's operations cost a tenth of torch's there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = Any  # a tensor, or an array of float32 in its place; the same expressions stand for both
KEPT = 4  # schedules: of a few numbers of steps, of one pipeline


class Schedule(Protocol):
    """times: what the denoiser is given at each step, 0-dim, as the scheduler's `timesteps` hold it."""

    @property
    def times(self) -> Sequence[torch.Tensor]: ...

    def step(self, index: int, predicted: Numbers, x: Numbers) -> Numbers:
        """The latents behind step `index`, from what the denoiser predicted for latents `x`."""


@dataclass(frozen=True)
class Weights:
    """What each step multiplies with, 0-dim, as tensors and as numpy's numbers: float32, whatever the latents are."""

    tensors: tuple[tuple[torch.Tensor, ...], ...]
    numbers: tuple[tuple[np.float32, ...], ...]

    @classmethod
    def of(cls, steps: Sequence[Sequence[torch.Tensor]]) -> Weights:
        rows = tuple(tuple(step) for step in steps)
        return cls(rows, tuple(tuple(np.float32(one.item()) for one in row) for row in rows))

    def at(self, index: int, x: Numbers) -> tuple[Any, ...]:
        return self.numbers[index] if isinstance(x, np.ndarray) else self.tensors[index]


@dataclass(frozen=True)
class Ddim:
    """Song et al., "Denoising Diffusion Implicit Models" (2020), equation 12 with sigma 0, as diffusers' DDIMScheduler computes it.

    weights: of each step, the square roots of alpha and beta at t, of alpha at t - 1, and of what points back to x.
    """

    times: tuple[torch.Tensor, ...]
    weights: Weights
    predicts: str
    clip: float | None

    @classmethod
    def of(cls, scheduler: Any, steps: int, device: torch.device) -> Ddim:
        scheduler.set_timesteps(steps, device=device)
        config, times = scheduler.config, tuple(scheduler.timesteps)
        weights = []
        for t in times:
            before = t - config.num_train_timesteps // steps
            alpha = scheduler.alphas_cumprod[t]
            alpha_before = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
            sigma = 0.0 * scheduler._get_variance(t, before) ** 0.5  # not a number where there is none: so it is there
            direction = (1 - alpha_before - sigma**2) ** 0.5
            weights.append((alpha**0.5, (1 - alpha) ** 0.5, alpha_before**0.5, direction))
        clip = config.clip_sample_range if config.clip_sample else None
        return cls(times, Weights.of(weights), config.prediction_type, clip)

    def step(self, index: int, predicted: Numbers, x: Numbers) -> Numbers:
        a, b, a_before, direction = self.weights.at(index, x)
        if self.predicts == "epsilon":
            start, noise = (x - b * predicted) / a, predicted
        elif self.predicts == "sample":
            start, noise = predicted, (x - a * predicted) / b
        else:  # v
            start, noise = a * x - b * predicted, a * predicted + b * x
        if self.clip is not None:
            start = start.clip(-self.clip, self.clip)
        return a_before * start + direction * noise


@dataclass(frozen=True)
class Flow:
    """Euler's steps along a flow's velocity, as diffusers' FlowMatchEulerDiscreteScheduler takes them."""

    times: tuple[torch.Tensor, ...]
    weights: Weights

    @classmethod
    def of(cls, scheduler: Any, steps: int, device: torch.device, begins: bool, **how: Any) -> Flow:
        """`begins`: whether the pipeline says that it starts at the first step, and does not look for it."""
        scheduler.set_timesteps(steps, device=device, **how)
        times, sigmas = tuple(scheduler.timesteps), scheduler.sigmas
        first = 0 if begins else scheduler.index_for_timestep(times[0])
        steps_ = range(first, first + len(times))
        return cls(times, Weights.of([(sigmas[i + 1] - sigmas[i],) for i in steps_]))

    def step(self, index: int, predicted: Numbers, x: Numbers) -> Numbers:
        (length,) = self.weights.at(index, x)
        if isinstance(x, np.ndarray):
            return x + length * predicted
        return (x.to(torch.float32) + length * predicted).to(predicted.dtype)


class Kept:
    """The schedules of a pipeline's last few kinds of call, each of the very scheduler and config that it was made from."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tuple[tuple[object, ...], Schedule]] = {}

    def get(self, scheduler: Any, asked: tuple[object, ...], make: Callable[[], Schedule]) -> Schedule:
        """Args:
        asked: all that decides it beside the scheduler.
        """
        parts = (scheduler, *_decides(scheduler))
        held = self._made.get(asked)
        if held is None or any(one is not other for one, other in zip(held[0], parts, strict=True)):
            while len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            held = self._made[asked] = (parts, make())
        return held[1]


def _decides(scheduler: Any) -> tuple[object, ...]:
    """What of a scheduler may be put in another's place without it becoming another object."""
    held: Mapping[str, object] = vars(scheduler)
    return tuple(held.get(name) for name in ("_internal_dict", "alphas_cumprod", "final_alpha_cumprod", "_shift"))


def lean(tensor: torch.Tensor) -> Numbers:
    """The same numbers as an array, where torch's arithmetic is numpy's."""
    plain = tensor.dtype is torch.float32 and tensor.device.type == "cpu" and not tensor.requires_grad
    return tensor.numpy() if plain else tensor


def tensor_of(x: Numbers) -> torch.Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


@dataclass(frozen=True)
class Guidance:
    """times: as often as a denoiser is asked for each latent, in one batch. lead: what its predictions come to."""

    times: int
    lead: Callable[[Numbers], Numbers]

    def repeated(self, x: Numbers) -> Numbers:
        """The latents so often, one below the other."""
        return np.concatenate((x,) * self.times) if isinstance(x, np.ndarray) else torch.cat([x] * self.times)


def classifier_free(scale: float | None) -> Guidance | None:
    """Guidance by the prompt; None without a scale."""
    return None if scale is None else Guidance(2, partial(guided, scale=scale))


def instructed(scale: float, shown: float) -> Guidance:
    """Guidance by an instruction and by the image that it changes, each by its scale."""
    return Guidance(3, partial(_instructed, scale=scale, shown=shown))


def guided(predicted: Numbers, scale: float) -> Numbers:
    """Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022), of predictions [without; with the prompt]."""
    rows = len(predicted) // 2
    without, with_prompt = predicted[:rows], predicted[rows:]
    return without + scale * (with_prompt - without)


def _instructed(predicted: Numbers, scale: float, shown: float) -> Numbers:
    """Brooks et al., "InstructPix2Pix" (2023), equation 3, of predictions [with both; with the image; with neither]."""
    rows = len(predicted) // 3
    both, with_image, neither = predicted[:rows], predicted[rows : 2 * rows], predicted[2 * rows :]
    return neither + scale * (both - with_image) + shown * (with_image - neither)


def seen(image: torch.Tensor) -> NDArray[np.float32]:
    """An image as diffusers' VaeImageProcessor gives it for `np`: [n, h, w, channels], from 0 to 1."""
    x = lean(image) * 0.5 + 0.5
    if isinstance(x, np.ndarray):
        return np.clip(x, 0, 1, out=x).transpose(0, 2, 3, 1)
    found: NDArray[np.float32] = x.clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return found
