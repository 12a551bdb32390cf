"""Which parts of a denoiser can be passed over at some steps, because what they gave at an earlier one is near enough: read from configs and from
the installed source of diffusers, whose own caches read the same table of what blocks give back.

A transformer is a chain of blocks on one stream, which ends where the last of them ends. A UNet is passed over from one level on: the outermost
levels run at each step, on what the last level within gave.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

from compress.artifact import Artifact
from compress.errors import Refusal
from compress.machine.library_classes import hooks_source, source_of

Method = Literal["first_block", "taylorseer", "mag", "deep"]
DEEP: Method = "deep"
# What diffusers' caches take for a transformer's lists of blocks.
STACKS = (
    *("blocks", "transformer_blocks", "single_transformer_blocks", "layers"),
    *("visual_transformer_blocks", "temporal_transformer_blocks"),
)
COUNTS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}  # fields of configs
FEWEST = 2  # blocks: one that runs, and one that is passed over
LEVELLED = "UNet2DConditionModel"
OTHER = "leave this stage out"


@dataclass(frozen=True)
class Returned:
    """What a block gives back: where in a tuple its stream stands and where the text's, None where it gives the stream alone; and what its
    `forward` calls the two."""

    hidden: int = 0
    text: int | None = None
    hidden_name: str = "hidden_states"
    text_name: str = "encoder_hidden_states"


def uncacheable(artifact: Artifact, method: Method, levels: int = 1) -> str:
    """Why a denoiser has nothing that a method could pass over, or ""."""
    kind = artifact.components[artifact.main].kind
    if method == DEEP:
        return _without_levels(artifact, kind, levels)
    if kind == LEVELLED:
        return Refusal(
            f"{method} passes over a transformer's blocks, and `{artifact.main}` is a UNet", f"method: {DEEP}"
        )
    found = stacks_of(kind)
    if isinstance(found, str):
        return Refusal(found, OTHER)
    config = artifact.known_config(artifact.main)
    counts = [config.get(COUNTS.get(name, "")) for name in found]
    if all(isinstance(n, int) for n in counts) and sum(counts) < FEWEST:  # type: ignore[arg-type]
        return Refusal(f"`{artifact.main}` has a single block, and {method} runs the first one at each step", OTHER)
    return ""


def _without_levels(artifact: Artifact, kind: str, levels: int) -> str:
    """Why no inner level of a denoiser can be passed over, or ""."""
    if kind != LEVELLED:
        message = f"{DEEP} passes over the inner levels of a UNet, and `{artifact.main}` is a {kind}"
        return Refusal(message, "method: first_block" if not isinstance(stacks_of(kind), str) else OTHER)
    found = artifact.known_config(artifact.main).get("down_block_types")
    if isinstance(found, list) and len(found) <= levels:
        has = f"{len(found)} level{'s' * (len(found) != 1)}"
        fix = f"levels: {len(found) - 1}, or less" if len(found) > 1 else OTHER
        return Refusal(f"`{artifact.main}` has {has}, and levels: {levels} leaves none to pass over", fix)
    return ""


@cache
def stacks_of(kind: str) -> Mapping[str, Returned] | str:
    """A transformer's lists of blocks in the order in which they run, each with what its blocks give back; or why its blocks cannot be
    passed over."""
    made = dict(_stacks(source_of(kind, "models"), kind))
    if not made:
        return f"of {kind} diffusers knows no blocks that a cache could pass over"
    known = returned_by()
    found = dict[str, Returned]()
    for name, block in made.items():
        if block not in known:
            return f"diffusers does not say what the blocks of {kind} give back ({block or name})"
        found[name] = known[block]
    if len({(one.text is None) for one in found.values()}) > 1:
        return f"the blocks of {kind} do not all give back the same streams"
    return MappingProxyType(found)


@cache
def returned_by() -> Mapping[str, Returned]:
    """By the class of a block, what it gives back, as diffusers' own table for its caches says."""
    source = hooks_source()
    found = dict[str, Returned]()
    for node in ast.walk(ast.parse(source)) if source else ():
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "TransformerBlockRegistry.register"):
            continue
        given = {one.arg: one.value for one in node.keywords}
        kind, spelled = given.get("model_class"), given.get("metadata")
        if isinstance(kind, ast.Name) and isinstance(spelled, ast.Call):
            found[kind.id] = _returned({str(one.arg): one.value for one in spelled.keywords})
    return MappingProxyType(found)


def _returned(spelled: Mapping[str, ast.expr]) -> Returned:
    def value(name: str, default: object) -> object:
        node = spelled.get(name)
        return node.value if isinstance(node, ast.Constant) else default

    hidden, text = value("return_hidden_states_index", 0), value("return_encoder_hidden_states_index", None)
    return Returned(
        hidden if isinstance(hidden, int) else 0,
        text if isinstance(text, int) else None,
        str(value("hidden_states_argument_name", Returned.hidden_name)),
        str(value("encoder_hidden_states_argument_name", Returned.text_name)),
    )


def _stacks(source: str, kind: str) -> Iterator[tuple[str, str]]:
    """The lists of blocks that a class makes in its `__init__`, in order, each with the class of its blocks, "" where that is not read."""
    tree = ast.parse(source) if source else None
    owner = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None) if tree else None
    functions = (n for n in owner.body if isinstance(n, ast.FunctionDef)) if owner else ()
    begin = next((n for n in functions if n.name == "__init__"), None)
    for node in ast.walk(begin) if begin else ():
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as made
            ) if name in STACKS and ast.unparse(made.func).endswith("ModuleList"):
                classes = (
                    n.func.id
                    for a in made.args
                    for n in ast.walk(a)
                    if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                )
                yield name, next((one for one in classes if one[0].isupper()), "")
            case _:
                pass
