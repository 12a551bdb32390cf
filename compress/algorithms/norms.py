"""Norms that see fewer channels: what they give of those that stay is kept as it was.

A norm divides by a statistic of all its channels. Where the ones that a cut takes away are weaker than the others, as they are
chosen to be, the statistic of the rest is larger, and all that the norm gives shrinks. Its gains make up for that: by
√(old ÷ new channels) where those that went held nothing, by 1 where they were like the others, and in between as measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from compress.algorithms.coupled_units import Group, positions
from compress.algorithms.forward_hooks import hearing

Kept = Mapping[str, torch.Tensor]  # by the name of a norm, the rising numbers of its channels that stay


@dataclass
class _Fit:
    """The gains' factors by least squares, one a block of channels that share a statistic: `met` ÷ `square`."""

    met: torch.Tensor
    square: torch.Tensor

    @property
    def factors(self) -> torch.Tensor:
        """[blocks]; 1 where the norm gave nothing at all."""
        return torch.where(self.square > 0, self.met / self.square.clamp(min=torch.finfo(torch.float32).tiny), 1.0)


def keep_statistics(
    module: nn.Module,
    smaller: nn.Module,
    groups: Sequence[Group],
    kept: Sequence[torch.Tensor],
    calls: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
    """Scale the gains of `smaller`'s norms so that on `calls`, arguments by name, each gives what that of `module` gave.

    Returns: by a norm's name, the mean factor.
    """
    channels = {name: found for name, found in _channels(module, groups, kept).items() if _is_norm(module, name)}
    fits: dict[str, _Fit] = {}

    def hear(name: str, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(named.values()))
        _add(fits, name, smaller.get_submodule(name), given, output, channels[name])

    with hearing(module, channels, hear), torch.no_grad():
        for call in calls:
            module(**call)
        for name, fit in fits.items():
            _scale(smaller.get_submodule(name), fit.factors)
        _keep_embeddings(module, smaller)
    return {name: float(fit.factors.mean()) for name, fit in fits.items()}


def _keep_embeddings(module: nn.Module, smaller: nn.Module) -> None:
    """Gemma multiplies its embeddings by √hidden size: what a narrower one multiplies by less, the weights make up for. Where the
    output layer shares them, the last norm takes it back."""
    if not isinstance(module, PreTrainedModel) or not isinstance(smaller, PreTrainedModel):
        return
    large, small = module.get_input_embeddings(), smaller.get_input_embeddings()
    ratio = float(getattr(large, "scalar_embed_scale", 1.0)) / float(getattr(small, "scalar_embed_scale", 1.0))
    if ratio == 1:
        return
    weight: torch.Tensor = small.get_parameter("weight")
    weight.mul_(ratio)
    head = smaller.get_output_embeddings()
    if head is not None and head.get_parameter("weight") is weight:
        _scale(smaller.base_model.get_submodule("norm"), torch.tensor([1 / ratio], device=weight.device))


def _channels(module: nn.Module, groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> Kept:
    """By the name of each layer with one gain a channel, the channels that stay."""
    found: dict[str, list[torch.Tensor]] = {}
    for group, units in zip(groups, kept, strict=True):
        for site in group.sites:
            name, _, last = site.parameter.rpartition(".")
            if last == "weight" and module.get_parameter(site.parameter).dim() == 1:
                found.setdefault(name, []).append(positions(site, group, units))
    return {name: torch.cat(parts).sort().values for name, parts in found.items()}


def _is_norm(module: nn.Module, name: str) -> bool:
    return "norm" in type(module.get_submodule(name)).__name__.lower()


def _add(
    fits: dict[str, _Fit], name: str, norm: nn.Module, given: torch.Tensor, gave: torch.Tensor, stay: torch.Tensor
) -> None:
    """Hold what a norm gives of the channels that stay against what the narrower one would."""
    axis = 1 if isinstance(norm, nn.GroupNorm) else -1
    stay = stay.to(given.device)
    bias = getattr(norm, "bias", None)
    wanted = gave.index_select(axis, stay).movedim(axis, -1)
    found = norm(given.index_select(axis, stay)).movedim(axis, -1)
    if bias is not None:
        wanted, found = wanted - bias, found - bias
    blocks = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
    met, square = (
        (found.float() * side.float()).flatten(0, -2).sum(0).view(blocks, -1).sum(1) for side in (wanted, found)
    )
    fit = fits.setdefault(name, _Fit(torch.zeros_like(met), torch.zeros_like(square)))
    fit.met += met
    fit.square += square


def _scale(norm: nn.Module, factors: torch.Tensor) -> None:
    """Multiply a norm's gains. Gemma's weights say how far each is from 1."""
    weight: torch.Tensor = norm.get_parameter("weight")
    each = factors.repeat_interleave(len(weight) // len(factors))
    nought = _gain_of_nought(norm, weight)
    weight.copy_((nought + weight) * each - nought)


def _gain_of_nought(norm: nn.Module, weight: torch.Tensor) -> float:
    """The gain that a weight of 0 is."""
    shape = (1, len(weight), 1, 2) if isinstance(norm, nn.GroupNorm) else (1, len(weight))  # a group may be one channel
    ramp = torch.linspace(-1, 1, prod(shape), device=weight.device, dtype=weight.dtype).view(shape)
    weights = {name: torch.zeros_like(p) for name, p in norm.named_parameters()}
    return float(bool(functional_call(norm, weights, (ramp,)).any()))
