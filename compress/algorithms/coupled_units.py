"""Units of a model that go together, neurons, heads, channels or experts: where they lie in its parameters, and what is left of those
without some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Shapes = Mapping[str, torch.Size]
ALL = -1  # entries of a first axis


@dataclass(frozen=True, order=True)
class Site:
    """A stretch of one axis of one parameter. It holds `copies` times all units of its group, one behind the other. `entry` is
    the
    only one of the parameter's first axis that it lies in: one expert of those in a tensor; by default it lies in all."""

    parameter: str
    axis: int
    start: int
    length: int
    copies: int = 1
    entry: int = ALL


@dataclass(frozen=True)
class Group:
    """Sites that share one choice: `units` candidates, `keep` of which stay, equally many in each of `blocks` (norm groups,
    heads), so that what a norm or a head looks at stays whole. `even` ones are fed by a fixed code of frequencies, of which a
    narrower model computes fewer over the same range: they are thinned out evenly, whatever their scores. `router` names the
    module that sends tokens to the units, which are experts then, and worth what it sends them."""

    sites: tuple[Site, ...]
    units: int
    keep: int
    blocks: int = 1
    even: bool = False
    router: str = ""

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Rising numbers of the units to keep: the highest scores of each block. `scores`: [units]."""
        if self.even:
            return torch.arange(self.keep, device=scores.device) * self.units // self.keep
        per_block = scores.view(self.blocks, -1)
        best = per_block.topk(self.keep // self.blocks, dim=1).indices.sort(1).values
        first = torch.arange(self.blocks, device=scores.device)[:, None] * per_block.shape[1]
        return (best + first).flatten()


def cut_state(
    state: Mapping[str, torch.Tensor], groups: Sequence[Group], kept: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state of the narrower model: along each axis the kept units' entries. `kept`: one rising index [keep] a group."""
    cut = dict(state)
    for (name, axis), entries in sorted(
        _chosen(groups, kept).items(), key=lambda one: ALL in one[1]
    ):  # single experts, then whole ones
        indices = {e: torch.cat(parts).sort().values.to(cut[name].device) for e, parts in entries.items()}
        if ALL in indices:
            cut[name] = cut[name].index_select(axis, indices[ALL])
        else:
            cut[name] = torch.stack([cut[name][e].index_select(axis - 1, indices[e]) for e in range(len(indices))])
    return cut


def indices(groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[tuple[str, int], torch.Tensor]:
    """By parameter and axis, the rising numbers of the entries that stay; of those that are cut as a whole, and not expert by expert."""
    chosen = _chosen(groups, kept).items()
    return {place: torch.cat(entries[ALL]).sort().values for place, entries in chosen if ALL in entries}


def _chosen(
    groups: Sequence[Group], kept: Sequence[torch.Tensor]
) -> dict[tuple[str, int], dict[int, list[torch.Tensor]]]:
    """By parameter and axis, and by the entry of the first axis that they lie in, where the kept units are."""
    chosen: dict[tuple[str, int], dict[int, list[torch.Tensor]]] = {}
    for group, units in zip(groups, kept, strict=True):
        for site in group.sites:
            entries = chosen.setdefault((site.parameter, site.axis), {})
            entries.setdefault(site.entry, []).append(positions(site, group, units))
    return chosen


def positions(site: Site, group: Group, units: torch.Tensor) -> torch.Tensor:
    """Where on its axis a site holds the given units."""
    size = site.length // (site.copies * group.units)
    within = torch.arange(site.length, device=units.device).view(site.copies, group.units, size)[:, units]
    return site.start + within.flatten()
