"""What each model family's own config can say: its widths, its stacks of blocks, and the values they may take.

A structured cut is loaded by stock libraries only if the config describes it, so this table decides what can be cut, and
snaps what was asked for to what can be granted. Pure: configs in, configs out, no model library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from compress.errors import UserError

Config = Mapping[str, Any]
PARTS = ("ffn", "heads", "hidden", "channels")


@dataclass(frozen=True)
class Granted:
    """One field before and after a cut."""

    field: str
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The share that goes."""
        return 1 - self.after / self.before


@dataclass(frozen=True)
class Cut:
    """A config made narrower or shorter, and what of the request it grants."""

    config: Config
    granted: tuple[Granted, ...]

    def told(self, ratio: float) -> str:
        """Requested against granted, in words."""
        parts = ", ".join(f"{g.field} {g.before} → {g.after} (−{g.ratio:.1%})" for g in self.granted)
        return f"requested −{ratio:.1%}, granted {parts}"


@dataclass(frozen=True)
class Width:
    """A width that `fields` set together; its values are multiples of what `multiple` reads off the config.

    `explicit` names fields that must be written down with their present value, for else they would follow the cut one.
    """

    fields: tuple[str, ...]
    multiple: Callable[[Config], int] = lambda config: 1
    present: Callable[[Config], int] | None = None  # the width, where the field may be empty
    explicit: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind: where they lie in the model, the field that counts them, and the fields that list one value a block."""

    path: str
    field: str
    lists: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()  # fields that list block numbers
    pinned: tuple[int, ...] = ()  # blocks that differ from the others and stay: 0 the first, -1 the last


@dataclass(frozen=True)
class Family:
    """What a config says. `unsaid` tells, by part, which field is lacking and what to do instead."""

    widths: Mapping[str, Width] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    unsaid: Mapping[str, str] = field(default_factory=dict)
    default: tuple[str, ...] = ("ffn", "heads")


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _heads(config: Config) -> int:
    return int(config.get("num_attention_heads") or config.get("n_head") or 1)


_EXPLICIT = {"head_dim": _head_dim}
_FFN = Width(("intermediate_size",))
_KV_HEADS = Width(("num_key_value_heads", "num_attention_heads"), explicit=_EXPLICIT)
_DECODER = Family(
    {"ffn": _FFN, "heads": _KV_HEADS, "hidden": Width(("hidden_size",), explicit=_EXPLICIT)},
    (Stack("model.layers", "num_hidden_layers", lists=("layer_types",)),),
)
# These read the size of a head from hidden_size ÷ num_attention_heads alone.
_NO_HEAD_DIM = "has no field head_dim (a head is hidden size ÷ heads wide)"
_HEADS_OR_HIDDEN = f"{_NO_HEAD_DIM}, so heads cannot go by themselves: cut ffn or hidden, or use prune.depth"
_NO_WIDTH = "has no field for its feed-forward width, and heads make its hidden size: use prune.depth"
_CLIP_HIDDEN = "must keep the hidden size that the denoiser reads (cross_attention_dim): cut ffn, or use prune.depth"
_CLIP = Family(
    {"ffn": _FFN},
    (Stack("encoder.layers", "num_hidden_layers", pinned=(-1,)),),  # SDXL reads what the last but one gives
    {"heads": f"{_NO_HEAD_DIM}, and {_CLIP_HIDDEN}", "hidden": _CLIP_HIDDEN},
    ("ffn",),
)
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"), _DECODER
    ),
    "Phi3ForCausalLM": Family(
        {"ffn": _FFN},
        _DECODER.stacks,
        {
            "heads": "keeps queries, keys and values in one matrix (qkv_proj): cut ffn, or use prune.depth",
            "hidden": f"{_NO_HEAD_DIM}, and heads are in one matrix (qkv_proj): cut ffn, or use prune.depth",
        },
        ("ffn",),
    ),
    **dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), _DECODER),
    "GPT2LMHeadModel": Family(
        {
            "ffn": Width(("n_inner",), present=lambda c: int(c.get("n_inner") or 4 * c["n_embd"])),
            "hidden": Width(
                ("n_embd",), _heads, explicit={"n_inner": lambda c: int(c.get("n_inner") or 4 * c["n_embd"])}
            ),
        },
        (Stack("transformer.h", "n_layer"),),
        {"heads": _HEADS_OR_HIDDEN},
        ("ffn",),
    ),
    "OPTForCausalLM": Family(
        {"ffn": Width(("ffn_dim",)), "hidden": Width(("hidden_size", "word_embed_proj_dim"), _heads)},
        (Stack("model.decoder.layers", "num_hidden_layers"),),
        {"heads": _HEADS_OR_HIDDEN},
        ("ffn",),
    ),
    "BertLMHeadModel": Family(
        {"ffn": _FFN, "hidden": Width(("hidden_size",), _heads)},
        (Stack("bert.encoder.layer", "num_hidden_layers"),),
        {"heads": _HEADS_OR_HIDDEN},
        ("ffn",),
    ),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": replace(_CLIP, stacks=(Stack("text_model.encoder.layers", "num_hidden_layers"),)),
    "UNet2DConditionModel": Family(
        {"channels": Width(("block_out_channels",))},
        unsaid=dict.fromkeys(("ffn", "heads", "hidden"), "has one width a level (block_out_channels): cut channels"),
        default=("channels",),
    ),
    "SanaTransformer2DModel": Family(
        {"ffn": Width(("mlp_ratio",))},
        (Stack("transformer_blocks", "num_layers"),),
        dict.fromkeys(
            ("heads", "hidden"), "has no field for its hidden size but its heads: cut ffn, or use prune.depth"
        ),
        ("ffn",),
    ),
    "PixArtTransformer2DModel": Family(
        stacks=(Stack("transformer_blocks", "num_layers"),), unsaid=dict.fromkeys(("ffn", "heads", "hidden"), _NO_WIDTH)
    ),
    "SD3Transformer2DModel": Family(
        stacks=(Stack("transformer_blocks", "num_layers", indices=("dual_attention_layers",), pinned=(-1,)),),
        unsaid=dict.fromkeys(("ffn", "heads", "hidden"), _NO_WIDTH),
    ),
    "FluxTransformer2DModel": Family(
        stacks=(Stack("transformer_blocks", "num_layers"), Stack("single_transformer_blocks", "num_single_layers")),
        unsaid=dict.fromkeys(("ffn", "heads", "hidden"), _NO_WIDTH),
    ),
}


def family(kind: str) -> Family:
    """The record of a model class.

    Raises:
        UserError: its config is not known here.
    """
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"it is not known what the config of {kind} can say", fix=f"known: {known}")
    return FAMILIES[kind]


def cut_width(kind: str, config: Config, ratio: float, parts: tuple[str, ...], align: int) -> Cut:
    """A narrower config: every part as near to `1 - ratio` of its width as its multiple and `align` allow, never zero.

    Raises:
        UserError: the config has no field for a part, or nothing can be granted.
    """
    record = family(kind)
    changed: dict[str, Any] = {}
    granted: list[Granted] = []
    for part in dict.fromkeys(parts or record.default):  # a part named twice is cut once
        if part not in record.widths:
            why = record.unsaid.get(part, f"has no {part}: use {' or '.join(record.widths) or 'prune.depth'}")
            raise UserError(f"{part}: {kind} {why}")
        more, rows = _narrow(part, record.widths[part], {**config, **changed}, ratio, align)
        changed |= more
        granted += rows
    if all(g.before == g.after for g in granted):
        told = Cut(config, tuple(granted)).told(ratio)
        raise UserError(f"{told}: nothing to cut at this ratio; ask for more, or use prune.depth")
    return Cut({**config, **changed}, tuple(granted))


def _narrow(part: str, width: Width, config: Config, ratio: float, align: int) -> tuple[dict[str, Any], list[Granted]]:
    name = width.fields[0]
    if part == "channels":
        return _narrow_levels(config, ratio, align)
    if name == "mlp_ratio":
        return _narrow_mixing(config, ratio, align)
    present = width.present(config) if width.present else int(config.get(name) or config[width.fields[-1]])
    multiple = 1 if part == "heads" else math.lcm(align, width.multiple(config))
    after = snap(present, ratio, multiple)
    rows = [Granted(name, present, after)]
    changed = {name: after, **{key: read(config) for key, read in width.explicit.items()}}
    for other in width.fields[1:]:  # queries follow their keys, an embedding its hidden size
        changed[other] = config[other] * after // present
        rows.append(Granted(other, config[other], changed[other]))
    return changed, rows[:1] if part == "hidden" else rows


def _narrow_levels(config: Config, ratio: float, align: int) -> tuple[dict[str, Any], list[Granted]]:
    """Every level of a UNet holds whole norm groups and whole heads."""
    levels = list(config["block_out_channels"])
    heads = config.get("num_attention_heads") or config.get(
        "attention_head_dim", 8
    )  # the latter is how diffusers names it
    heads = list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(levels)
    groups = config.get("norm_num_groups") or 1
    after = [snap(c, ratio, math.lcm(groups, h, align)) for c, h in zip(levels, heads, strict=True)]
    rows = [Granted(f"block_out_channels[{i}]", a, b) for i, (a, b) in enumerate(zip(levels, after, strict=True))]
    return {"block_out_channels": after}, rows


def _narrow_mixing(config: Config, ratio: float, align: int) -> tuple[dict[str, Any], list[Granted]]:
    """A feed-forward width that the config gives as a multiple of the hidden size."""
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    before = int(config["mlp_ratio"] * hidden)
    after = snap(before, ratio, align)
    return {"mlp_ratio": (after + 0.5) / hidden}, [Granted("mlp_ratio × hidden size", before, after)]


def snap(width: int, ratio: float, multiple: int) -> int:
    """The multiple nearest to `(1 - ratio) * width`, at least one and at most `width` itself."""
    nearest = multiple * round((1 - ratio) * width / multiple)
    return min(width, max(multiple, nearest))


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


def derived_fields(kind: str) -> tuple[str, ...]:
    """Fields that list one value a block, and that a library works out from the blocks' numbers where a config leaves them
    out: they must be written down before a block goes, or those behind it change their kind."""
    return tuple(name for stack in family(kind).stacks for name in stack.lists)


def depth_pools(kind: str, config: Config) -> tuple[Pool, ...]:
    """What can be taken out of a model by whole blocks.

    Raises:
        UserError: nothing can.
    """
    record = family(kind)
    pools = tuple(_stack_pool(stack, config) for stack in record.stacks)
    if kind == "UNet2DConditionModel":
        pools = (_unet_pool(config),)
    if not any(pool.units for pool in pools):
        counted = ", ".join(f"{p.field} {p.count}" for p in pools)
        raise UserError(f"{kind} has no block that its config can do without ({counted}): {_instead_of_depth(record)}")
    return pools


def cut_depth(kind: str, config: Config, ratio: float) -> tuple[Granted, ...]:
    """How many residual blocks a ratio takes out; which ones is for their influence to say.

    Raises:
        UserError: nothing can be taken out.
    """
    granted = tuple(Granted(p.field, p.count, p.count - p.removable(ratio)) for p in depth_pools(kind, config))
    if all(g.before == g.after for g in granted):
        raise UserError(f"{kind} would be left without a block: {_instead_of_depth(family(kind))}")
    return granted


def _instead_of_depth(record: Family) -> str:
    return "use prune.width" if record.widths else "its widths have no field either, so it can only be quantized"


def feature_stacks(kind: str, config: Config) -> tuple[tuple[str, ...], ...]:
    """The blocks whose outputs a student and its teacher may be compared at, stack by stack, in the order they run.

    Raises:
        UserError: the family is not known.
    """
    record = family(kind)
    if kind == "UNet2DConditionModel":
        levels = range(len(config["block_out_channels"]))
        middle = ("mid_block",) if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else ()
        return (*((f"down_blocks.{i}",) for i in levels), middle, *((f"up_blocks.{i}",) for i in levels))
    return tuple(tuple(f"{s.path}.{i}" for i in range(int(config[s.field]))) for s in record.stacks)


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
    config[stack.field] -= 1
    for name in stack.lists:
        if config.get(name):
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
        raise UserError("its attention is not as deep on the way up as on the way down: use prune.width")
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


def _per_level(value: Any, levels: int) -> list[int]:
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
