"""How noise becomes an image, step by step: what a denoiser's output says, and what one long step would have to say to land where
several short ones do.

A latent on the way is z = alpha x + sigma noise. A denoiser says both parts in one of four ways (`Prediction`); between two levels
of noise the deterministic step is z' = alpha' x + sigma' noise, which is DDIM for diffusions and Euler's for flows.

Source: Song et al., "Denoising Diffusion Implicit Models" (2020); Salimans & Ho, "Progressive Distillation for Fast Sampling of
Diffusion Models" (2022), equation 8 for where a step lands; Lipman et al., "Flow Matching for Generative Modeling" (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
Split: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # the image and the noise that an output says are in a latent


@dataclass(frozen=True)
class Levels:
    """One level of noise for each row of a batch: float32 [rows].

    time: as the denoiser is given it.
    """

    time: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    def of(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma, on a latent's device and with its number of axes."""
        shape = (-1, *[1] * (latent.dim() - 1))
        return self.alpha.to(latent.device).view(shape), self.sigma.to(latent.device).view(shape)


@dataclass(frozen=True)
class Course:
    """Where a sampler's steps begin and end, and stops in between: float32 [steps, substeps + 1], noise first.

    A step ends where the next begins, or as near to it as a sampler's rounding puts it.
    """

    times: torch.Tensor
    alphas: torch.Tensor
    sigmas: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def substeps(self) -> int:
        return self.times.shape[1] - 1

    def at(self, steps: torch.Tensor, part: int) -> Levels:
        """The levels after `part` of the parts of some steps, one a row. steps: int64 [rows]."""
        return Levels(self.times[steps, part], self.alphas[steps, part], self.sigmas[steps, part])


def split(output: torch.Tensor, latent: torch.Tensor, levels: Levels, prediction: Prediction) -> Split:
    """The image and the noise that a denoiser's output says are in a latent, both float32 and of its shape."""
    alpha, sigma = levels.of(latent)
    output = output.float()
    if prediction == "epsilon":
        return (latent - sigma * output) / alpha, output
    if prediction == "v_prediction":
        return alpha * latent - sigma * output, sigma * latent + alpha * output
    if prediction == "sample":
        return output, (latent - alpha * output) / sigma
    return (
        latent - sigma * output,
        latent + alpha * output,
    )  # a flow's output is noise minus image, and alpha 1 - sigma


def answer(image: torch.Tensor, latent: torch.Tensor, levels: Levels, prediction: Prediction) -> torch.Tensor:
    """The output by which a denoiser would say that this image is in the latent: `split`'s inverse. Needs noise in the latent."""
    alpha, sigma = levels.of(latent)
    if prediction == "sample":
        return image
    noise = (latent - alpha * image) / sigma
    if prediction == "epsilon":
        return noise
    return alpha * noise - sigma * image if prediction == "v_prediction" else noise - image


def move(message: Split, to: Levels) -> torch.Tensor:
    """The latent at another level of noise that holds the same image and the same noise."""
    image, noise = message
    alpha, sigma = to.of(image)
    return alpha * image + sigma * noise


def landing(latent: torch.Tensor, at: Levels, reached: torch.Tensor, to: Levels) -> torch.Tensor:
    """The image that takes `latent` to `reached` in one step (Salimans & Ho, equation 8). `to` must hold less noise than `at`."""
    (alpha, sigma), (alpha_to, sigma_to) = at.of(latent), to.of(latent)
    share = sigma_to / sigma
    return (reached - share * latent) / (alpha_to - share * alpha)


def velocity_error(found: torch.Tensor, wanted: torch.Tensor, levels: Levels, prediction: Prediction) -> torch.Tensor:
    """Mean squared difference of two outputs, as velocities: in the image's own terms the weight is 1 + signal-to-noise."""
    alpha, sigma = levels.of(found)
    scale = {"epsilon": alpha, "sample": sigma}.get(prediction)
    difference = found.float() - wanted.float()
    return (difference if scale is None else difference / scale).pow(2).mean()


def pseudo_huber(found: torch.Tensor, wanted: torch.Tensor, width: float = 0.001) -> torch.Tensor:
    """Mean of sqrt(d² + width²) - width over all numbers (Luo et al. 2023): as a distance far off, as its square near by."""
    return ((found.float() - wanted.float()).pow(2) + width**2).sqrt().mean() - width


def boundary(levels: Levels, latent: torch.Tensor, scaling: float = 10.0, data: float = 0.5) -> Split:
    """c_skip and c_out of a consistency function (Song et al. 2023), by which it gives back a latent that holds no noise; in the
    numbers of diffusers' LCMScheduler, that time is counted in training steps times `scaling`."""
    time = (levels.time.to(latent.device) * scaling).view(-1, *[1] * (latent.dim() - 1))
    whole = time**2 + data**2
    return data**2 / whole, time / whole.sqrt()
