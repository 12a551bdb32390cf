"""What goes together in a mixture of experts whose weights lie side by side in tensors of three axes, as transformers keeps them: the
neurons of each expert, the experts of each block, and the hidden size that they read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from compress.algorithms.coupled_units import Group, Shapes, Site
from compress.algorithms.forward_hooks import hearing
from compress.machine.devices import CPU

UP, DOWN, BIAS = "gate_up_proj", "down_proj", "_bias"


@dataclass(frozen=True)
class Experts:
    """The experts of one block, by the names of their parameters.

    flipped: whether each weight is kept as [inputs, outputs]; interleaved: whether gates and values take turns.
    """

    up: str
    down: str
    router: str
    flipped: bool
    interleaved: bool


def experts_of(module: nn.Module) -> tuple[Experts, ...]:
    """The mixtures of a model, in their order."""
    found = []
    for name, layer in module.named_modules():
        if not _holds_experts(layer):
            continue
        owner = name.rpartition(".")[0]
        routers = (
            n for n, one in module.get_submodule(owner).named_children() if one is not layer and _chooses(one, layer)
        )
        flipped = bool(getattr(layer, "is_transposed", False))
        interleaved = not getattr(layer, "is_concatenated", not flipped)
        found.append(Experts(f"{name}.{UP}", f"{name}.{DOWN}", f"{owner}.{next(routers)}", flipped, interleaved))
    return tuple(found)


def pass_over(module: nn.Module) -> None:
    """Make the experts of a model give back what they are given: which of them runs depends on the tokens, and no graph follows that."""
    for layer in module.modules():
        if _holds_experts(layer):
            layer.forward = _as_given


def hidden_sites(module: nn.Module, shapes: Shapes, targets: Shapes) -> set[Site]:
    """Where the experts and their routers meet the hidden size; none where it stays."""
    found = set()
    for one in experts_of(module):
        axes = (1, 2) if one.flipped else (2, 1)
        places = [(one.up, axes[0]), (one.down, axes[1]), (f"{one.router}.weight", 1), (f"{one.down}{BIAS}", 1)]
        found |= {Site(name, axis, 0, shapes[name][axis]) for name, axis in places if name in shapes}
    return {s for s in found if shapes[s.parameter][s.axis] != targets[s.parameter][s.axis]}


def of_experts(module: nn.Module, shapes: Shapes, targets: Shapes) -> tuple[Group, ...]:
    """The groups of neurons, one an expert, and of experts, one a block, where they shrink."""
    return tuple(
        g for one in experts_of(module) for g in (*_neurons(one, shapes, targets), *_whole(one, shapes, targets))
    )


def sent(module: nn.Module, groups: Sequence[Group], calls: Iterable[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """How many tokens the routers of these groups send to each expert, by the router's name: [experts], on the processor."""
    counts = {group.router: torch.zeros(group.units, device=CPU) for group in groups if group.router}

    def hear(name: str, args: tuple[Any, ...], named: Mapping[str, Any], output: tuple[torch.Tensor, ...]) -> None:
        chosen = output[-1]  # behind the logits and the shares of each
        counts[name] += torch.bincount(chosen.flatten().cpu(), minlength=len(counts[name]))

    with hearing(module, counts, hear), torch.no_grad():
        for call in calls if counts else ():
            module(**call)
    return counts


def _neurons(one: Experts, shapes: Shapes, targets: Shapes) -> Iterator[Group]:
    out, inner = (2, 1) if one.flipped else (1, 2)
    units, keep = shapes[one.down][inner], targets[one.down][inner]
    if keep == units:
        return
    copies = 1 if one.interleaved else 2
    sites = [Site(one.up, out, 0, 2 * units, copies), Site(one.down, inner, 0, units)]
    if (bias := f"{one.up}{BIAS}") in shapes:
        sites.append(Site(bias, 1, 0, 2 * units, copies))
    for entry in range(shapes[one.up][0]):
        yield Group(tuple(replace(site, entry=entry) for site in sites), units, keep)


def _whole(one: Experts, shapes: Shapes, targets: Shapes) -> Iterator[Group]:
    units, keep = shapes[one.up][0], targets[one.up][0]
    names = [one.up, one.down, f"{one.up}{BIAS}", f"{one.down}{BIAS}", f"{one.router}.weight", f"{one.router}.bias"]
    if keep < units:
        yield Group(tuple(Site(n, 0, 0, units) for n in names if n in shapes), units, keep, router=one.router)


def _holds_experts(layer: nn.Module) -> bool:
    weights = [getattr(layer, name, None) for name in (UP, DOWN)]
    return all(isinstance(w, nn.Parameter) and w.dim() == 3 for w in weights)


def _chooses(layer: nn.Module, experts: nn.Module) -> bool:
    """Whether a layer has a row for each expert."""
    weight, first = getattr(layer, "weight", None), experts.get_parameter(UP)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and len(weight) == len(first)


def _as_given(hidden_states: torch.Tensor, *rest: object) -> torch.Tensor:
    return hidden_states
