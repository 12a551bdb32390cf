"""What each stage of a run was given, as a recipe writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.planning.keep_decision import dropped
from compress.recipe.python_values import write_yaml

LONGEST = 200  # characters: lists of layers are long


def as_given(stage: Mapping[str, Any]) -> str:
    """`distill.steps: {steps: 4, guidance: 3.0}`; "" where a stage of the name that stands beside it was given nothing, or no more is
    known: results of before tell no parameters."""
    name, params = stage.get("stage", ""), stage.get("params") or {}
    if not params:
        return "" if name == stage["id"] else str(name)
    found = f"{name}: {write_yaml(params, one_line=True).strip()}"
    return found if len(found) <= LONGEST else f"{found[: LONGEST - 1]}…"


def state_of(stage: Mapping[str, Any]) -> str:
    """What became of a stage: whether it ran or was cached, and where it was to be kept only if faster, that it was not."""
    state = "cached" if stage["cached"] else "ran"
    return f"{state}, not kept" if dropped((stage,)) else state
