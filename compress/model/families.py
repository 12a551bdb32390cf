"""What each model family's own config can say: its widths, its stacks of blocks, and the values they may take.

A structured cut is loaded by stock libraries only if the config describes it, so this table decides what can be cut, and
snaps what was asked for to what can be granted. Of a decoder that it does not name, the source of its class says where its blocks
lie, and its widths stay. Pure: configs in, configs out, no model library is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.errors import UserError
from compress.machine.block_sources import blocks_of

Config = Mapping[str, Any]
Divisions = Collection[tuple[str, str]]  # fields of which the first must be a multiple of the second
OF_CLASSES = re.compile(r"(ForCausalLM|LMHeadModel|2DConditionModel|TextModel(WithProjection)?|Transformer2DModel)$")
DECODERS = ("ForCausalLM", "LMHeadModel")  # how the names of classes end that write text
FAR = 2  # so many times the share asked for, what goes is reported as more than was meant
PARTS = ("ffn", "heads", "experts", "hidden", "channels")


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

    def reported(self, ratio: float) -> str:
        """Requested against granted, in words."""
        parts = ", ".join(f"{g.field} {g.before} → {g.after} (−{g.ratio:.1%})" for g in self.granted)
        return f"requested −{ratio:.1%}, granted {parts}"

    def far(self, ratio: float) -> str:
        """That at least `FAR` times as much goes as was asked for, which lay nearer to nothing; or ""."""
        much = Cut(self.config, tuple(g for g in self.granted if g.ratio >= FAR * ratio))
        if not much.granted:
            return ""
        return f"{much.reported(ratio)}, and its config comes no nearer: leave the stage out if that is too much"


@dataclass(frozen=True)
class Width:
    """A width that `fields` set together; its values are multiples of what `multiple` reads off the config.

    `explicit` names fields that must be written down with their present value, for else they would follow the cut one. `aliases`
    are other names of the first field, which give way to it. `least` is what must be left.
    """

    fields: tuple[str, ...]
    multiple: Callable[[Config], int] = lambda config: 1
    present: Callable[[Config], int] | None = None  # the width, where the field may be empty
    explicit: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    least: Callable[[Config], int] = lambda config: 1


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind: where they lie in the model, the field that counts them, and the fields that list one value a block.

    `spelled` gives fields that say the same of each block by its number, of those that say it by a period: a period does not
    outlast a block's going.
    """

    path: str
    field: str
    lists: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()  # fields that list block numbers
    pinned: tuple[int, ...] = ()  # blocks that differ from the others and stay: 0 the first, -1 the last
    spelled: Callable[[Config], Mapping[str, Any]] = lambda config: {}


@dataclass(frozen=True)
class Family:
    """What a config says. `unstated` tells, by part, which field is lacking and what to do instead."""

    widths: Mapping[str, Width] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    unsaid: Mapping[str, str] = field(default_factory=dict)
    default: tuple[str, ...] = ("ffn", "heads")


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _heads(config: Config) -> int:
    return int(config.get("num_attention_heads") or config.get("n_head") or 1)


def _experts(config: Config) -> int:
    return int(config.get("num_local_experts") or config["num_experts"])


def _sparse_one_by_one(config: Config) -> Mapping[str, Any]:
    """Which blocks have no experts, by their numbers alone."""
    step, dense = int(config.get("decoder_sparse_step") or 1), config.get("mlp_only_layers") or []
    blocks = range(int(config["num_hidden_layers"]))
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i in blocks if i in dense or (i + 1) % step]}


_EXPLICIT = {"head_dim": _head_dim}
_FFN = Width(("intermediate_size",))
_KV_HEADS = Width(("num_key_value_heads", "num_attention_heads"), explicit=_EXPLICIT)
_DECODER = Family(
    {"ffn": _FFN, "heads": _KV_HEADS, "hidden": Width(("hidden_size",), explicit=_EXPLICIT)},
    (Stack("model.layers", "num_hidden_layers", lists=("layer_types",)),),
)
_STACK = "model.layers"
_EXPERTS = Width(
    ("num_local_experts",), present=_experts, aliases=("num_experts",), least=lambda c: int(c["num_experts_per_tok"])
)
_MIXTURE = Family({**_DECODER.widths, "experts": _EXPERTS}, _DECODER.stacks)
# These read the size of a head from hidden_size ÷ num_attention_heads alone.
_NO_HEAD_DIM = "has no field head_dim (a head is hidden size ÷ heads wide)"
_HEADS_OR_HIDDEN = f"{_NO_HEAD_DIM}, so heads cannot go by themselves: cut ffn or hidden, or use prune.depth"
_NOT_KNOWN = "is no class whose widths pare knows: use prune.depth"
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
    **dict.fromkeys(("GraniteForCausalLM", "Olmo2ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM"), _DECODER),
    "SmolLM3ForCausalLM": replace(
        _DECODER, stacks=(Stack(_STACK, "num_hidden_layers", lists=("layer_types", "no_rope_layers")),)
    ),
    **dict.fromkeys(("MixtralForCausalLM", "GptOssForCausalLM"), _MIXTURE),
    "Qwen3MoeForCausalLM": Family(
        {
            **_MIXTURE.widths,
            "ffn": Width(("moe_intermediate_size",)),
        },  # of the experts: blocks without any stay as they are
        (
            Stack(
                _STACK,
                "num_hidden_layers",
                lists=("layer_types",),
                indices=("mlp_only_layers",),
                spelled=_sparse_one_by_one,
            ),
        ),
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
    "AutoencoderKL": Family(
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


def family(kind: str, config: Config) -> Family:
    """The record of a model class: from the table, or, of any other decoder of transformers, what the source of its class says.

    Raises:
        UserError: neither says it.
    """
    if kind in FAMILIES:
        return FAMILIES[kind]
    found = _derived(kind, config)
    if isinstance(found, Family):
        return found
    known = ", ".join(dict.fromkeys(map(common_name, FAMILIES)))
    message = f"models of the class {kind} cannot be cut or compared block by block: {found}"
    raise UserError(message, fix=f"leave this stage out; the families it knows are {known} (`pare explain models`)")


def stacks_of(kind: str, config: Config) -> tuple[Stack, ...]:
    """As `family` has them; () of a class that neither the table nor its source tells of."""
    found = FAMILIES.get(kind) or _derived(kind, config)
    return found.stacks if isinstance(found, Family) else ()


def _derived(kind: str, config: Config) -> Family | str:
    """What the source of a decoder's class says of its blocks, or why that is not enough."""
    if not kind.endswith(DECODERS) or not config.get("model_type"):
        return "pare does not know their family"
    blocks = blocks_of(kind, str(config["model_type"]))
    if isinstance(blocks, str):
        return f"pare does not know their family, and the class {blocks}"
    counts = [name for name in blocks.fields if isinstance(config.get(name), int)]
    if not counts:
        return f"their config.json does not say how many blocks they have ({blocks.fields[0]})"
    if len(counts) > 1:
        return f"their config.json counts the blocks more than once ({' and '.join(counts)})"
    return Family(stacks=(Stack(blocks.path, counts[0], blocks.lists),), unsaid=dict.fromkeys(PARTS, _NOT_KNOWN))


def common_name(kind: str) -> str:
    """What people call a family, from its class's name: GPT2 of GPT2LMHeadModel."""
    return OF_CLASSES.sub("", kind)


def cut_width(
    kind: str, config: Config, ratio: float, parts: tuple[str, ...], align: int, divisions: Divisions = ()
) -> Cut:
    """A narrower config: every part as near to `1 - ratio` of its width as its multiple and `align` allow, never zero.

    Args:
        divisions: what the library's config class asks of two fields together.

    Raises:
        UserError: the config has no field for a part, or nothing can be granted.
    """
    record = family(kind, config)
    changed: dict[str, Any] = {}
    granted: list[Granted] = []
    for part in dict.fromkeys(parts or record.default):  # a part named twice is cut once
        if part not in record.widths:
            why = record.unsaid.get(part, f"has no {part}: use {' or '.join(record.widths) or 'prune.depth'}")
            message, fix = why.rsplit(": ", 1)
            raise UserError(f"{part}: {kind} {message}", fix=fix)
        more, rows = _narrow(part, record.widths[part], {**config, **changed}, ratio, align, divisions)
        changed |= more
        granted += rows
    if all(g.before == g.after for g in granted):
        reported = Cut(config, tuple(granted)).reported(ratio)
        raise UserError(f"{reported}: nothing to cut at this ratio", fix="ask for more, or use prune.depth")
    former = {alias for part in parts or record.default for alias in record.widths[part].aliases}
    kept = {key: value for key, value in config.items() if key not in former}
    return Cut({**kept, **changed}, tuple(granted))


def _narrow(
    part: str, width: Width, config: Config, ratio: float, align: int, divisions: Divisions
) -> tuple[dict[str, Any], list[Granted]]:
    name = width.fields[0]
    if part == "channels":
        return _narrow_levels(config, ratio, align)
    if name == "mlp_ratio":
        return _narrow_mixing(config, ratio, align)
    present = width.present(config) if width.present else int(config.get(name) or config[width.fields[-1]])
    multiple = 1 if part in ("heads", "experts") else math.lcm(align, width.multiple(config))

    def cut_to(after: int) -> dict[str, Any]:
        # Queries follow their keys, an embedding its hidden size.
        return {name: after, **{other: config[other] * after // present for other in width.fields[1:]}}

    least = min(width.least(config), present)
    nearest = max(snap(present, ratio, multiple), least)
    possible = [present, *range(multiple * (present // multiple), least - 1, -multiple)]
    by_distance = sorted(possible, key=lambda size: abs(size - (1 - ratio) * present))
    fitting = (size for size in (nearest, *by_distance) if _divides({**config, **cut_to(size)}, divisions))
    changed = cut_to(next(fitting, present))
    rows = [Granted(field, int(config.get(field) or present), changed[field]) for field in width.fields]
    changed |= {key: read(config) for key, read in width.explicit.items()}
    return changed, rows[:1] if part == "hidden" else rows


def _divides(config: Config, divisions: Divisions) -> bool:
    """Whether every first field is a multiple of its second, as far as the config has both."""
    pairs = ((config.get(first), config.get(second)) for first, second in divisions)
    return not any(isinstance(a, int) and isinstance(b, int) and b and a % b for a, b in pairs)


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


def derived_fields(kind: str, config: Config) -> tuple[str, ...]:
    """Fields that list one value a block, and that a library works out from the blocks' numbers where a config leaves them
    out: they must be written down before a block goes, or those behind it change their kind."""
    return tuple(name for stack in family(kind, config).stacks for name in stack.lists)


def feature_stacks(kind: str, config: Config) -> tuple[tuple[str, ...], ...]:
    """The blocks whose outputs a student and its teacher may be compared at, stack by stack, in the order they run.

    Raises:
        UserError: the family is not known.
    """
    record = family(kind, config)
    if kind == "UNet2DConditionModel":
        levels = range(len(config["block_out_channels"]))
        middle = ("mid_block",) if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else ()
        return (*((f"down_blocks.{i}",) for i in levels), middle, *((f"up_blocks.{i}",) for i in levels))
    return tuple(tuple(f"{s.path}.{i}" for i in range(int(config[s.field]))) for s in record.stacks)
