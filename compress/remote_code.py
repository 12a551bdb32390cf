"""Python code that lies in a model's own folder: what asks for it, told from JSON. It runs only where a recipe trusts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "AutoModelForCausalLM"


def remote_class(config: Mapping[str, Any], auto: str) -> str:
    """The class that a `config.json` names for one of transformers' Auto classes, as `module.Class`; "" where it names none."""
    named = config.get("auto_map")
    return str(named.get(auto, "")) if isinstance(named, Mapping) else ""
