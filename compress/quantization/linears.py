"""The linear layers of a component, read from the headers of its safetensors and its config: what a quantizer of weights works on,
what a recipe's `ignore:` names among them, and which of them a group size does not divide.

A layer is a tensor of two axes called `….weight` that no embedding owns, or one of three axes that holds the experts of a mixture side
by side. Convolutions have four axes and norms one, so names and ranks tell them apart in denoisers and text encoders too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.errors import ManyProblems, Problem
from compress.files.safetensors_headers import Stored, read_header
from compress.model.families import Stack, stacks_of
from compress.model.weight_files import loaded_files
from compress.params import Fault
from compress.quantization.patterns import matches, pattern_faults

HEAD = "lm_head"
HEADS = (HEAD, "embed_out", "cls.predictions.decoder")  # what libraries call the layer that gives the logits
# Tables that rows are looked up in: as much a matrix as a linear layer's weight.
TABLES = frozenset(
    [
        "embed_tokens",
        "embed_positions",
        "wte",
        "wpe",
        "embed_in",
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
        "embeddings",
        "shared",
        "relative_attention_bias",
        "token_embedding",
        "position_embedding",
        "class_embedding",
        "embedding",
    ]
)
NORMS = ("q_norm", "k_norm")  # Cohere's have a row for each head
TRANSPOSED = frozenset(
    ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
)  # model types made of Conv1D: [in, out]
STACKED_TRANSPOSED = frozenset(
    ("gpt_oss", "llama4_text", "llama4")
)  # model types whose stacked experts are [experts, in, out]
ROUTERS = (
    "gate",
    "router",
    "shared_expert_gate",
)  # which token goes to which expert: few weights, and each error moves tokens
# What the libraries that quantize leave as it is by default, by a component's class ("" any), as patterns: GPTQModel, AutoRound, torchao
# and bitsandbytes leave the head; GPTQModel and AutoRound the routers of a mixture; transformers keeps T5's `wo` in float32, for
# its activations overflow.
LEFT_ALONE: Mapping[str, tuple[str, ...]] = {
    "": (*HEADS, *(f"*.{router}" for router in ROUTERS)),
    "T5EncoderModel": ("*.wo",),
    "UMT5EncoderModel": ("*.wo",),
}
DIVISORS = (16, 32, 64, 128, 256, 512, 1024)  # group sizes that kernels know
WORD = 32  # bits that packed codes lie in
EXPERT = re.compile(r"\.experts\.(\d+)\.")

# What each axis of a language model's layers follows, by the last word of its name: inputs, and outputs one after another.
_AXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "q_proj": ("hidden", ("attention",)),
    **dict.fromkeys(("k_proj", "v_proj"), ("hidden", ("keys",))),
    "qkv_proj": ("hidden", ("attention", "keys", "keys")),
    "c_attn": ("hidden", ("hidden",) * 3),
    **dict.fromkeys(("o_proj", "out_proj"), ("attention", ("hidden",))),
    **dict.fromkeys(("gate_proj", "up_proj", "fc1", "c_fc"), ("hidden", ("ffn",))),
    **dict.fromkeys(("w1", "w3"), ("hidden", ("ffn",))),  # Mixtral's
    "gate_up_proj": ("hidden", ("ffn", "ffn")),
    **dict.fromkeys(("down_proj", "fc2", "w2"), ("ffn", ("hidden",))),
    **dict.fromkeys(("gate", "router"), ("hidden", ("experts",))),
}


@dataclass(frozen=True)
class Linear:
    """One linear layer.

    name: of the module, as `named_modules` of the class that its config names spells it.
    transposed: whether its weight is kept as [inputs, outputs], as GPT-2's Conv1D does.
    head: whether it gives a language model's logits; tied: whether its weight is the token embedding's, stored once.
    expert: whether it works for some tokens alone; stacked: how many experts' weights its one tensor holds, 0 where it is a module
    of its own.
    """

    name: str
    inputs: int
    outputs: int
    transposed: bool = False
    head: bool = False
    tied: bool = False
    expert: bool = False
    stacked: int = 0

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.inputs * self.outputs * max(1, self.stacked)


def linears(artifact: Artifact, component: str = LANGUAGE_MODEL) -> tuple[Linear, ...]:
    """A torch component's linear layers, in the order of their names' numbers; () where they are not known: its weights are not here yet, or
    are packed, or an earlier stage of the plan will cut them to shapes that its config alone does not say.

    Raises:
        ModelError: an index or a header does not read.
    """
    part = artifact.components[component]
    if part.format != "torch" or part.quantization:
        return ()
    tensors = {n: t for file in loaded_files(artifact, component) for n, t in read_header(file).tensors.items()}
    config = artifact.known_config(component)
    found = [one for name, stored in tensors.items() if (one := _linear(name, stored, config))]
    if component == LANGUAGE_MODEL and found and not any(one.head for one in found):
        found += _tied_head(tensors, config)
    found = _spelt(found, stacks_of(part.kind, config))
    if component in artifact.planned:
        found = _as_planned(found, part.kind, read_json(artifact.folder(component) / "config.json"), config)
    return tuple(sorted(found, key=lambda one: _counted(one.name)))


def named(layers: Iterable[Linear], patterns: Iterable[str]) -> frozenset[str]:
    """The layers that any of the patterns names: `model.layers.0.*`, `*.o_proj`, `re:.*proj`, or a module that they lie in."""
    asked = tuple(patterns)
    return frozenset(layer.name for layer in layers if any(matches(pattern, layer.name) for pattern in asked))


def left_alone(kind: str) -> tuple[str, ...]:
    """The patterns of what stays as it is in a component of this class unless a recipe says otherwise."""
    return (*LEFT_ALONE[""], *LEFT_ALONE.get(kind, ()))


def ignore_faults(layers: Sequence[Linear], patterns: Iterable[str]) -> tuple[Fault, ...]:
    """What is wrong with a recipe's `ignore:`: patterns that are none, or that name no layer of these."""
    ways = tuple(dict.fromkeys(_ways(layers)))
    names = [one.name for one in layers] or None
    return pattern_faults(patterns, names, f"the {len(layers)} linear layers", ways)


def group_faults(layers: Iterable[Linear], size: int, known: Collection[int] | None = None) -> tuple[Fault, ...]:
    """What is wrong with a group size (weights of a row that share a scale; -1 the whole row): every layer whose inputs it does not divide,
    and the ways out.

    Args:
        layers: those to be quantized.
        known: the sizes that may be given; None: any.
    """
    all_ = tuple(layers)
    odd = tuple(one for one in all_ if size > 0 and one.inputs % size)
    if not odd:
        return ()
    listed = "; ".join(f"{names} has {inputs} inputs" for names, inputs in _together(odd))
    common = gcd(*(one.inputs for one in all_))
    fitting = [str(d) for d in DIVISORS if common % d == 0 and (known is None or d in known)]
    fitting = fitting or [str(common)] * (common > 1 and known is None)
    sizes = f"group_size: {' or '.join(fitting)} divides all of them" if fitting else "no group size divides all"
    message = f"group_size {size} does not divide the inputs of {len(odd)} of the {len(all_)} layers: {listed}"
    return (Fault(message, f"{sizes}; -1 gives each row one scale; or {ignoring(odd, all_)}"),)


def packing_faults(layers: Iterable[Linear], bits: int) -> tuple[Fault, ...]:
    """What is wrong with a width whose codes fill words of 32 bits, along a layer's inputs, and with their zero points along its
    outputs: every layer where the last word would not be full, and the ways out."""
    all_ = tuple(layers)
    unit = WORD // gcd(WORD, bits)
    wide = [f"{names} has {size} inputs" for names, size in _together(o for o in all_ if o.inputs % unit)]
    tall = (replace(o, inputs=o.outputs) for o in all_ if o.outputs % unit)
    listed = [*wide, *(f"{names} has {size} outputs" for names, size in _together(tall))]
    if not listed:
        return ()
    odd = [o for o in all_ if o.inputs % unit or o.outputs % unit]
    message = (
        f"{bits} bits are packed {unit} side by side, which does not divide {len(odd)} of the {len(all_)} layers: "
    )
    return (Fault(message + "; ".join(listed), f"give other bits, or {ignoring(odd, all_)}"),)


def ignoring(layers: Iterable[Linear], among: Iterable[Linear]) -> str:
    """What a recipe says to leave these layers as they are, and all that are called as they are: ignore: ["*.k_proj"]; another stage, where
    nothing would be left of those that are to be quantized."""
    layers = tuple(layers)
    called = {_last(one) for one in layers}
    if all(_last(one) in called for one in among):
        return "take quantize.torchao: {mode: int8_weights}, which packs layers of any size"
    patterns = dict.fromkeys(_last(one) for one in layers)
    listed = ", ".join(f'"{pattern}"' for pattern in patterns)
    return f"ignore: [{listed}]"


def be_faultless(faults: Iterable[Fault]) -> None:
    """Raises a UserError with all of the faults, where there are some."""
    if problems := tuple(Problem("", fault.message, fault.fix) for fault in faults):
        raise ManyProblems(problems)


def shares(layers: Iterable[Linear], left: frozenset[str]) -> float:
    """The share of linear layers' weights that a quantizer reaches which leaves these as they are."""
    all_ = tuple(layers)
    reached, total = (sum(one.weights for one in some) for some in ([o for o in all_ if o.name not in left], all_))
    return reached / total if total else 0.0


def left_wide(artifact: Artifact, component: str, ignore: Iterable[str]) -> int:
    """How many weights of a torch component stay as they are by rights: tables of embeddings, heads, routers, and what `ignore` names."""
    layers = linears(artifact, component)
    left = named(layers, (*left_alone(artifact.components[component].kind), *ignore))
    tensors = {n: t for file in loaded_files(artifact, component) for n, t in read_header(file).tensors.items()}
    tables = (
        t.count for n, t in tensors.items() if len(t.shape) == 2 and n.split(".")[-2:-1] and n.split(".")[-2] in TABLES
    )
    return sum(tables) + sum(one.weights for one in layers if one.name in left and not one.tied)


def _linear(name: str, stored: Stored, config: Mapping[str, Any]) -> Linear | None:
    """The layer whose weight a tensor is; None of any other tensor."""
    kind = str(config.get("model_type", ""))
    if len(stored.shape) == 3 and "experts" in name.split(".") and "bias" not in name:
        count, first, second = stored.shape
        outputs, inputs = (second, first) if kind in STACKED_TRANSPOSED else (first, second)
        return Linear(name.removesuffix(".weight"), inputs, outputs, expert=True, stacked=count)
    module, _, last = name.rpartition(".")
    word = module.rpartition(".")[2]
    if last != "weight" or len(stored.shape) != 2 or word in TABLES or word in NORMS:
        return None
    head = module in HEADS
    transposed = kind in TRANSPOSED and not head
    outputs, inputs = reversed(stored.shape) if transposed else stored.shape
    return Linear(module, inputs, outputs, transposed, head=head, expert="experts" in module.split("."))


def _tied_head(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> list[Linear]:
    """The head of a language model that has no weight of its own."""
    words = config.get("vocab_size")
    tables = (
        t for n, t in tensors.items() if n.endswith(".weight") and n.split(".")[-2] in TABLES and len(t.shape) == 2
    )
    return [
        Linear(HEAD, table.shape[1], table.shape[0], head=True, tied=True)
        for table in tables
        if table.shape[0] == words
    ][:1]


def _spelt(found: list[Linear], stacks: Sequence[Stack]) -> list[Linear]:
    """The layers as the class spells them: checkpoints may be of a model without its head, and lack the front of each name."""
    for stack in stacks:
        words = stack.path.split(".")
        for cut in range(1, len(words)):
            front, rest = ".".join(words[:cut]), ".".join(words[cut:])
            if any(one.name.startswith(f"{rest}.") for one in found):
                return [one if one.head else replace(one, name=f"{front}.{one.name}") for one in found]
    return found


def _as_planned(found: list[Linear], kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Linear]:
    """The layers that are left of those on disk once the stages before have run, as far as the config that they leave says it; () where it
    does not."""
    if before == after:
        return found
    stacks = stacks_of(kind, before)
    if not stacks:
        return []
    for stack in stacks:
        count, path = after.get(stack.field), re.escape(stack.path)
        numbers = {one.name: re.match(rf"{path}\.(\d+)\.", one.name) for one in found}
        found = [o for o in found if not (number := numbers[o.name]) or int(number[1]) < int(count or 0)]
    sizes = _sizes(before), _sizes(after)
    if sizes[0] == sizes[1]:
        return found
    fewer = (o for o in found if not (number := EXPERT.search(o.name)) or int(number[1]) < sizes[1]["experts"])
    return [_resized(one, *sizes) for one in fewer]


def _resized(one: Linear, before: Mapping[str, int], after: Mapping[str, int]) -> Linear:
    if one.expert:
        before, after = ({**sizes, "ffn": sizes["expert"]} for sizes in (before, after))
        one = replace(one, stacked=after["experts"] if one.stacked else 0)
    word = one.name.rpartition(".")[2]
    axes = _AXES.get(word, ("hidden", ()))
    if word == "c_proj":
        axes = ("hidden" if ".attn." in one.name else "ffn", ("hidden",))
    inputs, outputs = axes
    wide, wide_after = (sum(sizes[axis] for axis in outputs) for sizes in (before, after))
    return replace(
        one,
        inputs=after[inputs] if before[inputs] == one.inputs else one.inputs,
        outputs=wide_after if wide == one.outputs else one.outputs,
    )


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The widths that the layers of a language model follow."""
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    size = int(config.get("head_dim") or hidden // heads)
    ffn = config.get("intermediate_size") or config.get("ffn_dim") or config.get("n_inner") or 4 * hidden
    keys = int(config.get("num_key_value_heads") or heads)
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    expert = config.get("moe_intermediate_size") or ffn
    found = {
        "hidden": hidden,
        "attention": heads * size,
        "keys": keys * size,
        "ffn": ffn,
        "expert": expert,
        "experts": experts,
    }
    return {name: one if isinstance(one, int) else 0 for name, one in found.items()}  # some list one a block


def _ways(layers: Sequence[Linear]) -> Iterator[str]:
    """Patterns that name some of the layers, the most general ones first."""
    yield from (one.name for one in layers if one.head)
    yield from (_last(one) for one in layers if not one.head)


def _last(layer: Linear) -> str:
    """The pattern of all layers whose name ends as this one's."""
    return f"*.{layer.name.rpartition('.')[2]}"


def _together(layers: Iterable[Linear]) -> list[tuple[str, int]]:
    """Layers of one name but for a number, as one with a range, and their inputs: model.layers.{0-31}.mlp.down_proj, 11008."""
    groups: dict[tuple[str, int], list[int]] = {}
    for one in layers:
        number = re.search(r"\.(\d+)\.", one.name)
        name = f"{one.name[: number.start(1)]}#{one.name[number.end(1) :]}" if number else one.name
        groups.setdefault((name, one.inputs), []).extend([int(number[1])] if number else [])
    return [(name.replace("#", _range(numbers), 1), inputs) for (name, inputs), numbers in groups.items()]


def _range(numbers: list[int]) -> str:
    """0-3,5 in braces; a single number without them."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    listed = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{{{listed}}}" if len(numbers) > 1 else listed


@cache
def _counted(name: str) -> tuple[tuple[int, str], ...]:
    """A name to sort by, its numbers as numbers."""
    return tuple((int(word), "") if word.isdecimal() else (-1, word) for word in name.split("."))
