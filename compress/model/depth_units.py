"""What a model can do without by whole blocks: units that only go together, how many a ratio takes, and the config left over.

Pure, as `families.py`, whose table says where the blocks lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compress.errors import UserError
from compress.model.families import Config, Family, Granted, Stack, family


@dataclass(frozen=True)
class Unit:
    """Blocks that can only go together. `removes` are their modules, `blocks` the residual ones among them, which count."""

    removes: tuple[str, ...]
    blocks: tuple[str, ...]
    edit: Callable[[dict[str, Any]], None]  # takes the unit out of a config


@dataclass(frozen=True)
class Pool:
    """`units` that may go, out of `count` residual blocks in all; `field` names what counts them."""

    field: str
    count: int
    units: tuple[Unit, ...]

    def removable(self, ratio: float) -> int:
        """How many blocks go: the total of whole units nearest to the share asked for, the smaller of two as near; one unit
        at least, and never all blocks."""
        sums = {0}
        for unit in self.units:
            sums |= {s + len(unit.blocks) for s in sums}
        possible = [s for s in sums if 0 < s < self.count]
        return min(possible, key=lambda s: (abs(s - ratio * self.count), s), default=0)


def depth_pools(kind: str, config: Config) -> tuple[Pool, ...]:
    """What can be taken out of a model by whole blocks.

    Raises:
        UserError: nothing can.
    """
    record = family(kind, config)
    pools = tuple(_stack_pool(stack, config) for stack in record.stacks)
    if kind == "UNet2DConditionModel":
        pools = (_unet_pool(config),)
    if not any(pool.units for pool in pools):
        counted = f" ({', '.join(f'{p.field} {p.count}' for p in pools)})" if pools else ""
        raise UserError(f"{kind} has no block that its config can do without{counted}", fix=_instead_of_depth(record))
    return pools


def cut_depth(kind: str, config: Config, ratio: float) -> tuple[Granted, ...]:
    """How many residual blocks a ratio takes out; which ones is for their influence to say.

    Raises:
        UserError: nothing can be taken out.
    """
    granted = tuple(Granted(p.field, p.count, p.count - p.removable(ratio)) for p in depth_pools(kind, config))
    if all(g.before == g.after for g in granted):
        raise UserError(f"{kind} would be left without a block", fix=_instead_of_depth(family(kind, config)))
    return granted


def _instead_of_depth(record: Family) -> str:
    return (
        "use prune.width"
        if record.widths
        else "leave this stage out: its widths have no field either, so it can only be quantized"
    )


def least_missed(costs: Sequence[int], scores: Sequence[float], total: int) -> tuple[int, ...]:
    """The set of units whose costs make exactly `total` and whose scores sum to least; () if no set does.

    Args:
        costs: blocks in each unit; a unit goes as a whole.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for unit, (cost, score) in enumerate(zip(costs, scores, strict=True)):
        for reached, (worth, chosen) in sorted(best.items(), reverse=True):
            more = reached + cost, (worth + score, (*chosen, unit))
            if more[0] <= total and more[1] < best.get(more[0], (float("inf"), ())):
                best[more[0]] = more[1]
    return best.get(total, (0.0, ()))[1]


def without(config: Config, units: tuple[Unit, ...]) -> dict[str, Any]:
    """The config of the model without these units."""
    changed = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in config.items()}
    for unit in reversed(units):  # the last first, so that block numbers stay true
        unit.edit(changed)
    return changed


def unsettled(kind: str, config: Config) -> frozenset[str]:
    """The fields that depend on which units go: all but those to which every unit that may go does the same.

    Raises:
        UserError: nothing can be taken out.
    """
    found: set[str] = set()
    for pool in depth_pools(kind, config):
        left = [without(config, (unit,)) for unit in pool.units]
        alike = len({len(unit.blocks) for unit in pool.units}) == 1  # else how many units go is open too
        touched = {name for one in left for name in one if one[name] != without(config, ()).get(name)}
        found |= {name for name in touched if not (alike and all(one[name] == left[0][name] for one in left))}
    return frozenset(found)


def renamed(name: str, removed: frozenset[str]) -> str | None:
    """Where a parameter is found once modules are removed: None with them, else renumbered behind them in a list."""
    parts = name.split(".")
    found: list[str] = []
    for position, part in enumerate(parts):
        parent = ".".join(parts[:position])
        if ".".join(filter(None, (parent, part))) in removed:
            return None
        before = sum(f"{parent}.{i}" in removed for i in range(int(part))) if part.isdigit() else 0
        found.append(str(int(part) - before) if part.isdigit() else part)
    return ".".join(found)


def _stack_pool(stack: Stack, config: Config) -> Pool:
    count = int(config[stack.field])
    pinned = {p % count for p in stack.pinned}
    units = tuple(
        Unit((f"{stack.path}.{i}",), (f"{stack.path}.{i}",), partial(_drop_block, stack, i))
        for i in range(count)
        if i not in pinned
    )
    return Pool(stack.field, count, units if count > 1 else ())


def _drop_block(stack: Stack, index: int, config: dict[str, Any]) -> None:
    config.update(stack.spelled(config))
    config[stack.field] -= 1
    for name in stack.lists:
        if isinstance(config.get(name), list) and config[name]:  # some may be one value for all
            del config[name][index]
    for name in stack.indices:
        if config.get(name):
            config[name] = [i - (i > index) for i in config[name] if i != index]


PLAIN = {"CrossAttnDownBlock2D": "DownBlock2D", "CrossAttnUpBlock2D": "UpBlock2D"}


def _unet_pool(config: Config) -> Pool:
    """Units of a UNet: where attention is deep, one layer of it at a whole level; else, where a level has several layers, one
    of them on the way down and one on the way up, with their attention; else the attention of one block; and the middle.

    Source: Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion" (2023), for the layers and the middle.
    """
    levels = len(config["block_out_channels"])
    deep = config.get("transformer_layers_per_block", 1)
    if config.get("reverse_transformer_layers_per_block") or any(
        isinstance(d, (list, tuple)) for d in _per_level(deep, 1)
    ):
        raise UserError("its attention is not as deep on the way up as on the way down", fix="use prune.width")
    layers = _per_level(config.get("layers_per_block", 2), levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    units: list[Unit] = []
    count = 0
    for i in range(levels):
        down, up = f"down_blocks.{i}", f"up_blocks.{levels - 1 - i}"
        sides = [(down, "down_block_types", i, layers[i]), (up, "up_block_types", levels - 1 - i, layers[i] + 1)]
        with_attention = [side for side in sides if config[side[1]][side[2]] in PLAIN]
        count += 2 * layers[i] + 1 + sum(n * depths[i] for *_, n in with_attention)
        if any(config[side[1]][side[2]] not in {*PLAIN, *PLAIN.values()} for side in sides):
            continue  # blocks of another make, of which it is not known what they hold
        if depths[i] > 1 and with_attention:
            units += [_attention_layer(i, k, config, levels, with_attention) for k in range(1, depths[i])]
        elif layers[i] > 1:
            units += [_layer(i, k, levels, sides, with_attention, depths[i]) for k in range(1, layers[i])]
        else:
            units += [_attention(*side) for side in with_attention]
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if middle == "UNetMidBlock2DCrossAttn":
        count += 2 + depths[-1]
        if depths[-1] == 1:
            units.append(
                Unit(
                    ("mid_block",), ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"), _no_middle
                )
            )
    return Pool("blocks", count, tuple(units))


def _per_level(value: int | list[int] | tuple[int, ...], levels: int) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def _no_middle(config: dict[str, Any]) -> None:
    config["mid_block_type"] = None


def _attention(path: str, field: str, index: int, layers: int) -> Unit:
    def edit(config: dict[str, Any]) -> None:
        config[field][index] = PLAIN[config[field][index]]

    return Unit((f"{path}.attentions",), tuple(f"{path}.attentions.{j}" for j in range(layers)), edit)


def _layer(level: int, k: int, levels: int, sides: list[Any], with_attention: list[Any], depth: int) -> Unit:
    """Layer `k` of a level on both ways; the first on the way up and the last differ in shape and stay."""

    def edit(config: dict[str, Any]) -> None:
        config["layers_per_block"] = _per_level(config.get("layers_per_block", 2), levels)
        config["layers_per_block"][level] -= 1

    removes = [f"{path}.resnets.{k}" for path, *_ in sides] + [f"{path}.attentions.{k}" for path, *_ in with_attention]
    return Unit(tuple(removes), tuple(removes), edit)


def _attention_layer(level: int, k: int, config: Config, levels: int, with_attention: list[Any]) -> Unit:
    def edit(config: dict[str, Any]) -> None:
        config["transformer_layers_per_block"] = _per_level(config["transformer_layers_per_block"], levels)
        config["transformer_layers_per_block"][level] -= 1

    places = [f"{path}.attentions.{j}" for path, _, _, layers in with_attention for j in range(layers)]
    if level == levels - 1 and config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        places.append("mid_block.attentions.0")
    blocks = tuple(f"{place}.transformer_blocks.{k}" for place in places)
    return Unit(blocks, blocks, edit)
