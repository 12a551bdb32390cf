"""Which weights must go together when a width shrinks, and which of them to keep.

Three sources, each for what it knows: the two configs say which axes shrink and to what, torch-pruning's dependency graph
says which axes share one choice, saliency says which entries are worth least.
Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch
import torch_pruning
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.algorithms import expert_groups
from compress.algorithms.coupled_units import Group, Shapes, Site
from compress.errors import StageFailed

ROOTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
INSIDE_ATTENTION = ("q_proj", "k_proj", "v_proj", "to_q", "to_k", "to_v", "query", "key", "value", "c_attn")
FED_BY_FREQUENCIES = ("time_embedding.linear_1.weight",)
NORMS = (".q_norm.weight", ".k_norm.weight")
TRACED = "pare_traced"


def find_groups(
    module: nn.Module, example: Mapping[str, Any], targets: Shapes, whole_heads: int = 0
) -> tuple[Group, ...]:
    """The groups of everything whose shape differs from `targets`.

    Args:
        example: arguments of one call, by name.
        targets: parameter name to its shape after the cut.
        whole_heads: number of key heads, if heads go as a whole; 0: every head stays and gets narrower.

    Raises:
        StageFailed: an axis shrinks that no group covers, or two groups claim one.
    """
    shapes = parameter_shapes(module)
    traced, flipped = _traceable(module)
    with _traced_attention(traced), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning's, of norms that are no torch module: `_sites` knows their axis
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(traced, example_inputs=dict(example))
    names = {m: name for name, m in traced.named_modules()}
    coupled: list[set[Site]] = []
    staying: list[set[Site]] = []
    for found in graph.get_all_groups(root_module_types=ROOTS):
        sites = {_clip(s, shapes) for s in _sites(found, graph, names, flipped)}
        shrinking = {s for s in sites if shapes[s.parameter][s.axis] != targets[s.parameter][s.axis]}
        _merge(staying if _stays(sites, shrinking, shapes) else coupled, shrinking)
    inside = {s for sites in coupled for s in sites if _inside_attention(s, flipped)}
    fed = {Site(name, 1, 0, shapes[name][1]) for name in FED_BY_FREQUENCIES if name in shapes}
    for name in _per_head(shapes, targets):
        _merge(coupled, {Site(name, 0, 0, shapes[name][0]), _query_of(name, shapes)})
    if hidden := expert_groups.hidden_sites(module, shapes, targets):
        _merge(coupled, {_embedding(module, shapes), *hidden})
    for site in fed:  # alone, or with what is added to the frequencies (a guidance embedding)
        _merge(coupled, {site})
    groups = [
        _thinned(sorted(sites), shapes, targets)
        if sites & fed
        else _group(sorted(sites), inside, shapes, targets, traced, whole_heads)
        for sites in coupled
        if sites
    ]
    groups = [g for g in groups if g.keep < g.units] + [_whole(sorted(sites)) for sites in staying if sites]
    groups += expert_groups.of_experts(module, shapes, targets)
    _check_closed(groups, shapes, targets)
    return tuple(groups)


def parameter_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Every parameter's shape under every name it has in the state, tied ones included."""
    return {name: p.shape for name, p in module.named_parameters(remove_duplicate=False)}


def _per_head(shapes: Shapes, targets: Shapes) -> list[str]:
    """The parameters of attention that hold one entry, or one row, for each head, where heads go: Cohere's norms of queries and keys,
    GPT-OSS's sinks."""
    found = [n for n, shape in shapes.items() if n.endswith(".sinks") or (n.endswith(NORMS) and len(shape) == 2)]
    return [name for name in found if shapes[name][0] != targets[name][0]]


def _query_of(name: str, shapes: Shapes) -> Site:
    """What the queries' projection beside a parameter of attention gives."""
    query = f"{name[: name.index('.self_attn.')]}.self_attn.q_proj.weight"
    return Site(query, 0, 0, shapes[query][0])


def _embedding(module: nn.Module, shapes: Shapes) -> Site:
    """The hidden size, where tokens enter with it."""
    embedding = cast("PreTrainedModel", module).get_input_embeddings()
    name = next(n for n, one in module.named_modules() if one is embedding)
    return Site(f"{name}.weight", 1, 0, shapes[f"{name}.weight"][1])


def _stays(sites: set[Site], shrinking: set[Site], shapes: Shapes) -> bool:
    """Whether a group keeps all its units, and only stands beside others that shrink, on an axis behind a concatenation."""
    return any(_fills(s, shapes) for s in sites - shrinking) and not any(_fills(s, shapes) for s in shrinking)


def _fills(site: Site, shapes: Shapes) -> bool:
    return site.length == shapes[site.parameter][site.axis]


def _whole(sites: Sequence[Site]) -> Group:
    """A group that keeps all its units."""
    units = min(s.length for s in sites)
    return Group(tuple(replace(s, copies=s.length // units) for s in sites), units, units)


def _merge(coupled: list[set[Site]], sites: set[Site]) -> None:
    """Add a group, one with all those it shares a site with: what one field governs is chosen once."""
    touching = [other for other in coupled if other & sites]
    for other in touching:
        coupled.remove(other)
    coupled.append(sites.union(*touching))


def _thinned(sites: Sequence[Site], shapes: Shapes, targets: Shapes) -> Group:
    """What meets sinusoidal timesteps: a half of sines, a half of cosines."""
    first, units = sites[0], sites[0].length // 2
    keep = units * targets[first.parameter][first.axis] // shapes[first.parameter][first.axis]
    return Group(tuple(replace(s, copies=2) for s in sites), units, keep, even=True)


def _sites(
    found: torch_pruning.Group,
    graph: torch_pruning.DependencyGraph,
    names: Mapping[nn.Module, str],
    flipped: frozenset[str],
) -> set[Site]:
    """What of a torch-pruning group is a parameter's axis."""
    sites = set()
    for item in found:
        module, indices = item.dep.target.module, item.idxs
        if isinstance(module, nn.Parameter):
            sites.add(Site(graph._param_to_name[module], module.dim() - 1, 0, module.shape[-1]))
            continue
        if module not in names or not hasattr(module, "weight") or module.weight is None:
            continue
        name, start, length = names[module], min(indices), max(indices) - min(indices) + 1
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        axis = _axis(module, out)
        sites.add(Site(f"{name}.weight", 1 - axis if name in flipped else axis, start, length))
        if (out or module.weight.dim() == 1) and getattr(module, "bias", None) is not None:
            sites.add(Site(f"{name}.bias", 0, start, length))
    return sites


def _axis(module: nn.Module, out: bool) -> int:
    if isinstance(module, nn.Embedding):
        return 1
    weight: Any = module.weight
    depthwise = getattr(module, "groups", 1) > 1
    return 0 if out or weight.dim() == 1 or depthwise else 1


def _group(
    sites: list[Site], inside: set[Site], shapes: Shapes, targets: Shapes, module: nn.Module, whole_heads: int
) -> Group:
    attention = next((s for s in sites if s in inside), None)
    heads = _heads(attention.parameter, module) if attention else 0
    whole = heads and whole_heads
    # Keys may be fewer than queries: then a unit is a key head with its queries. Else a gate beside its value, or a fused
    # projection, holds the same units several times.
    units = whole_heads if whole else min(s.length for s in sites)
    copied = tuple(s if whole else Site(s.parameter, s.axis, s.start, s.length, s.length // units) for s in sites)
    # Behind a concatenation an axis holds several groups, which may shrink by different shares.
    site = next((s for s in copied if _fills(s, shapes)), copied[0])
    keep = units * targets[site.parameter][site.axis] // shapes[site.parameter][site.axis]
    blocks = 1 if whole else heads or _norm_groups(copied, module)
    return Group(copied, units, keep, blocks if units % blocks == 0 and keep % blocks == 0 else 1)


def _clip(site: Site, shapes: Shapes) -> Site:
    """Where keys are fewer than queries, torch-pruning's indices run past the end of their axis."""
    size = shapes[site.parameter][site.axis]
    return Site(site.parameter, site.axis, site.start, min(site.length, size - site.start))


def _inside_attention(site: Site, flipped: frozenset[str]) -> bool:
    """Whether a site is what a query, key or value projection gives."""
    layer = site.parameter.rpartition(".")[0]
    return layer.rpartition(".")[2] in INSIDE_ATTENTION and site.axis == int(
        layer in flipped and site.parameter.endswith("weight")
    )


def _heads(parameter: str, module: nn.Module) -> int:
    """The number of heads, as diffusers' attention says itself, or as the config of a transformers model."""
    parent = module.get_submodule(parameter.rsplit(".", 2)[0])
    config: Any = getattr(module, "config", {})
    return int(getattr(parent, "heads", 0) or getattr(config, "num_attention_heads", 0) or 1)


def _norm_groups(sites: Sequence[Site], module: nn.Module) -> int:
    """The number of groups of a norm that sees this group alone (behind a concatenation none does)."""
    for site in sites:
        owner = module.get_submodule(site.parameter.rsplit(".", 1)[0]) if "." in site.parameter else module
        if isinstance(owner, nn.GroupNorm) and owner.num_channels == site.length and site.copies == 1:
            return int(owner.num_groups)
    return 1


def _check_closed(groups: Sequence[Group], shapes: Shapes, targets: Shapes) -> None:
    """Every axis that shrinks is covered once, from end to end."""
    covered: dict[tuple[str, int], int] = {}
    for group in groups:
        for site in group.sites:
            if site.entry <= 0:  # what lies in one expert lies as well in each other one
                key = (site.parameter, site.axis)
                covered[key] = covered.get(key, 0) + site.length
    for name, shape in shapes.items():
        for axis, (before, after) in enumerate(zip(shape, targets[name], strict=True)):
            if before != after and covered.get((name, axis)) != before:
                raise StageFailed(
                    f"axis {axis} of {name} shrinks from {before} to {after}, and {covered.get((name, axis), 0)} of its "
                    "entries were found to be coupled",
                    fix="this family cannot be cut in width yet: use prune.depth, and report it",
                )


def _traceable(module: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A copy that torch-pruning can follow, and the names of the layers whose weight is stored transposed (GPT-2's)."""
    traced = copy.deepcopy(module).float().eval()
    flipped = []
    for name, layer in list(traced.named_modules()):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], device=layer.weight.device)
            parent, _, attribute = name.rpartition(".")
            setattr(traced.get_submodule(parent), attribute, linear)
            flipped.append(name)
    expert_groups.pass_over(traced)
    traced.requires_grad_(True)
    return traced, frozenset(flipped)


@contextlib.contextmanager
def _traced_attention(module: nn.Module) -> Iterator[None]:
    """Rotary positions and attention masks off, which move no channel to another head and which torch-pruning cannot follow."""
    if not hasattr(module, "set_attn_implementation"):
        yield
        return
    AttentionInterface.register(TRACED, _attend)
    cast("PreTrainedModel", module).set_attn_implementation(TRACED)
    source = sys.modules[type(module).__module__]
    with mock.patch.object(source, "apply_rotary_pos_emb", lambda q, k, *rest, **named: (q, k), create=True):
        yield


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **named: object,
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous(), None
