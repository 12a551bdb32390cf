"""What a recipe says of adapters: `adapter: ./lora`, `{path: ./lora, scale: 0.8}`, `{path: ./lora, fuse: false}`, or a list of these."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from compress.errors import Problem
from compress.params import Params
from compress.recipe.validate import check_params, given
from compress.recipe.yaml_tree import Node

MAX_ADAPTERS = 20
FIX = "adapter: ./lora, adapter: {path: ./lora, scale: 0.8}, or a list of these"


class AdapterSpec(Params):
    """One LoRA adapter, and how strongly it counts."""

    path: str = Field(
        min_length=1, description="its folder or .safetensors file, or hf://org/name@<40-hex commit> of the hub"
    )
    scale: float = Field(
        1.0, allow_inf_nan=False, description="what its update is multiplied by, beside its own alpha and rank"
    )
    fuse: bool = Field(
        True,
        description="whether it is fused into the model; false: it stays an adapter beside it, which stages carry on",
    )


def read_adapters(node: Node | None, problems: list[Problem]) -> tuple[AdapterSpec, ...]:
    """The adapters that a recipe names; what is wrong with them is added to `problems`."""
    if node is None or node.value is None:
        return ()
    entries = node.entries if isinstance(node.value, list) else [node]
    if len(entries) > MAX_ADAPTERS:
        problems.append(Problem(node.at, f"adapter has {len(entries)} entries; at most {MAX_ADAPTERS}", "give fewer"))
        return ()
    return tuple(_each(entries, isinstance(node.value, list), problems))


def _each(entries: list[Node], listed: bool, problems: list[Problem]) -> Iterator[AdapterSpec]:
    for number, entry in enumerate(entries):
        label = f"adapter.{number}" if listed else "adapter"
        if isinstance(entry.value, str):
            entry = Node({"path": entry}, entry.place, entry.key)
        elif not isinstance(entry.value, dict):
            problems.append(Problem(entry.at, f"{label} must be a folder, not {given(entry.value)}", FIX))
            continue
        if (spec := check_params(AdapterSpec, entry, label, problems)) is not None:
            yield spec
