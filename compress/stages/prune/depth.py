"""Take out the blocks that change least of what passes through them.

Use it when latency matters at every batch size: a removed block is time saved in full. Recover with `distill.logits` or
`distill.features`. Transformers lose whole layers; a UNet loses, as far as its config can say it, its middle, layers that a
level has twice, layers of deep attention, or the attention of a block. The plan prints how many blocks go. A decoder that
`pare explain models` does not list is cut too where the source of its class shows that each block feeds the next and nothing else.
Source: Men et al., "ShortGPT" (2024), block influence; Kim et al., "BK-SDM" (2023), for the UNet.

    - prune.depth: {ratio: 0.25}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress.artifact import Artifact, derive, rewritten, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import DataError, StageFailed
from compress.model.depth_units import Pool, Unit, cut_depth, depth_pools, least_missed, renamed, unsettled, without
from compress.model.families import FAMILIES, Cut, Granted, derived_fields
from compress.params import Params, Share
from compress.planning.resources import opened_bytes

if TYPE_CHECKING:
    from compress.opening.models import OpenModel


SAME = 1e-5  # as a share of an output's size: how far off a shorter model may be that only source code tells of


class PruneDepth(Params):
    ratio: Share = Field(0.25, description="share of the blocks to remove")
    samples: int = Field(16, ge=1, description="calibration items that the blocks' influence is measured on")
    components: tuple[str, ...] = Field((), description="what to cut; none named: the denoiser, or the language model")


def forecast(artifact: Artifact, params: PruneDepth) -> Forecast:
    reported, far, configs, open_ = [], [], {}, {}
    for name in artifact.choose(params.components, bool):
        granted = _granted(artifact, name, params)
        config = artifact.config(name)
        cut = Cut(config, granted)
        reported.append(f"{name}: {cut.reported(params.ratio)}")
        far += [f"{name}: {much}"] if (much := cut.far(params.ratio)) else []
        # Which blocks go is not known yet, how many is: any as many tell a later stage what it has to know.
        gone = (u for pool in depth_pools(artifact.components[name].kind, config) for u in _worst(pool, {}, params))
        configs[name] = without(config, tuple(gone))
        open_[name] = unsettled(artifact.components[name].kind, config)
    memory = opened_bytes(artifact) + opened_bytes(replace(artifact, planned={**artifact.planned, **configs}))
    return Forecast(configs, "; ".join(reported), unsettled=open_, warnings=tuple(far), memory_bytes=memory)


@stage(
    version=2,
    params=PruneDepth,
    formats={"torch": "torch"},
    effects=("weights",),
    carries=True,
    reproducible="bytes",
    bound_to=("isa",),  # influence is a sum of rounded numbers: another processor may rank two blocks the other way
    libraries=("torch", "transformers", "diffusers"),
    data=lambda params: ("calibration",),
    forecast=forecast,
)
def run(artifact: Artifact, params: PruneDepth, context: Context) -> None:
    from compress.adapters.keeping import recut, renaming
    from compress.engines.torch.runtime import blank, save_component, shares_kept
    from compress.opening import open_task

    wanted = artifact.choose(params.components, bool)
    made = derive(artifact, context.out, without=rewritten(artifact, wanted), link=context.link)
    task = open_task(artifact, context.opening.of("float32"))
    for name in wanted:
        module, kind = task.component(name), artifact.components[name].kind
        written = {f: getattr(module.config, f, None) for f in derived_fields(kind, artifact.config(name))}
        config = {**artifact.config(name), **{f: value for f, value in written.items() if value}}
        gone, example = _least_missed(task, name, params, context)
        removed = frozenset(path for unit in gone for path in unit.removes)
        left = without(config, gone)
        shorter = blank(module, left)
        names = {key: renamed(key, removed) for key in module.state_dict()}
        shorter.load_state_dict({new: v for k, v in module.state_dict().items() if (new := names[k])})
        if kind not in FAMILIES:
            _be_the_same(kind, module, removed, shorter, {f: left[f] for f in written if f in left}, example)
        reported = Cut(config, _granted(artifact, name, params)).reported(params.ratio)
        context.note(
            f"without {', '.join(sorted(removed))}; {reported}",
            component=name,
            granted=reported,
            removed=", ".join(sorted(removed)),
            **shares_kept(module, shorter, example),
        )
        save_component(shorter, artifact.folder(name), made.folder(name))
        made = recut(made, name, tuple(names), renaming(names), context)
    write_manifest(made)


def _granted(artifact: Artifact, name: str, params: PruneDepth) -> tuple[Granted, ...]:
    return cut_depth(artifact.components[name].kind, artifact.config(name), params.ratio)


def _be_the_same(
    kind: str,
    module: Any,
    removed: frozenset[str],
    shorter: Any,
    listed: Mapping[str, Any],
    example: Mapping[str, Any],
) -> None:
    """Raises a StageFailed where a shorter model is not the whole one with those blocks passed over. Of a short example a block's kind may
    not show: so what is `listed` of the blocks must have been taken up too."""
    from compress.algorithms.block_importance import off_without

    fix = "this family cannot be cut in depth yet: leave this stage out, and report it"
    if lost := [field for field, value in listed.items() if getattr(shorter.config, field, None) != value]:
        raise StageFailed(f"the config class of a {kind} works out {lost[0]} though it is given", fix=fix)
    if (off := off_without(module, removed, shorter, example)) > SAME:
        gone = ", ".join(sorted(removed))
        message = f"a {kind} without {gone} gives something else ({off:.2g} of its size) than with them passed over"
        raise StageFailed(message, fix=fix)


def _least_missed(
    task: OpenModel, name: str, params: PruneDepth, context: Context
) -> tuple[tuple[Unit, ...], Mapping[str, Any]]:
    """Of every pool the units to take out, in their order; and one of the calls they were judged by."""
    from compress.algorithms import block_importance

    module = task.component(name)
    pools = depth_pools(task.artifact.components[name].kind, task.artifact.config(name))
    blocks = [block for pool in pools for unit in pool.units for block in unit.blocks]
    items = context.data["calibration"].first(params.samples)
    calls = (call for _, call in task.calls_of((name,), items, context.seed, **task.brief))
    example = next(calls, None)
    if example is None:
        raise DataError("no calibration document has two tokens", fix="give longer ones")
    scores = block_importance.of_blocks(module, blocks, context.progress(chain([example], calls), f"{name} calls", 0))
    return tuple(unit for pool in pools for unit in _worst(pool, scores, params)), example


def _worst(pool: Pool, scores: Mapping[str, float], params: PruneDepth) -> tuple[Unit, ...]:
    """The units of a pool to take out, in their order: as many blocks as are granted, of the least influence."""
    costs = [len(unit.blocks) for unit in pool.units]
    worth = [sum(scores.get(block, 0.0) for block in unit.blocks) for unit in pool.units]
    return tuple(pool.units[i] for i in sorted(least_missed(costs, worth, pool.removable(params.ratio))))
