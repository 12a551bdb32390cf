"""What a weight is worth, and from that what a channel, a head or a neuron is worth.

Source: magnitude: Han et al., "Learning both Weights and Connections" (2015); Taylor: Molchanov et al., "Importance Estimation
for Neural Network Pruning" (2019); activation: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models"
(Wanda, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.algorithms.coupled_units import ALL, Group, Site
from compress.algorithms.forward_hooks import hearing
from compress.algorithms.tensors import to_host
from compress.machine.devices import CPU

Saliency = Mapping[str, torch.Tensor]
Call = Mapping[str, Any]  # arguments by name


def magnitude(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight squared, under every name it has."""
    return {n: p.detach().float() ** 2 for n, p in module.named_parameters(remove_duplicate=False)}


def taylor(
    module: nn.Module, calls: Iterable[Call], loss_of: Callable[[Call], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """(weight x gradient) squared, summed over the calls: to first order how much each one's loss moves without the weight."""
    found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in module.named_parameters(remove_duplicate=False)}
    for call in calls:
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss_of(call).backward()  # type: ignore[no-untyped-call]
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if parameter.grad is not None:
                found[name] += (parameter.detach() * parameter.grad).float() ** 2
    module.zero_grad(set_to_none=True)
    return found


def activation(module: nn.Module, calls: Iterable[Call]) -> dict[str, torch.Tensor]:
    """Every weight squared times the mean square of the input it meets; those of other layers than linear ones as in `magnitude`."""
    energy: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, Conv1D))}

    def hear(name: str, args: tuple[torch.Tensor, ...], named: Mapping[str, object], output: object) -> None:
        axis = 1 if isinstance(layers[name], nn.Conv2d) else -1  # channels second, or features last
        seen = args[0].detach().float().movedim(axis, -1).flatten(0, -2)
        energy[name] = energy.get(name, 0) + (seen**2).sum(0)
        counts[name] = counts.get(name, 0) + len(seen)

    with hearing(module, layers, hear), torch.no_grad():
        for call in calls:
            module(**call)
    found = magnitude(module)
    for name, total in energy.items():
        weight, mean = found[f"{name}.weight"], total / counts[name]
        if isinstance(module.get_submodule(name), Conv1D):  # GPT-2's, stored transposed
            found[f"{name}.weight"] = weight * mean[:, None]
        elif weight.shape[1] == len(total):  # a depthwise convolution has one input channel a filter
            found[f"{name}.weight"] = weight * mean.view(1, -1, *[1] * (weight.dim() - 2))
    return found


def of_units(group: Group, saliency: Saliency) -> torch.Tensor:
    """The worth of each unit of a group, [units], on the processor: at every site its share of the site's whole, summed over the sites.

    Shares, because sites differ in scale: a norm's weights would drown those of a convolution, or be drowned.
    """
    total = torch.zeros(group.units, device=CPU)
    for site in group.sites:
        worth = _at(site, group, saliency[site.parameter])
        total += worth / worth.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return total


def _at(site: Site, group: Group, saliency: torch.Tensor) -> torch.Tensor:
    """[units]: the saliency of a site's entries, summed over all that belongs to one unit."""
    here, axis = (saliency, site.axis) if site.entry == ALL else (saliency[site.entry], site.axis - 1)
    stretch = here.narrow(axis, site.start, site.length).movedim(axis, 0)
    return to_host(stretch.reshape(site.copies, group.units, -1).sum((0, 2)))
