"""Floating revisions of the hub in a recipe's text, replaced by the commits that they name today."""

from __future__ import annotations

import re
from pathlib import Path

from compress.recipe.reading import hub_references
from compress.sources.models import pin_hub


def pin(recipe: Path) -> list[str]:
    """Rewrite a recipe's file, each reference that names no commit pinned; its ends of lines stay as they are.

    Returns:
        What was pinned, as it stands in the file now.

    Raises:
        PareError: a reference does not resolve.
    """
    made = []
    for reference in hub_references(recipe):
        pinned = pin_hub(reference)
        if pinned != reference:
            whole = re.compile(
                re.escape(reference) + r"(?![\w./@-])"
            )  # hf://org/name, not the start of hf://org/name-xl
            recipe.write_bytes(whole.sub(pinned, recipe.read_bytes().decode()).encode())
            made.append(pinned)
    return made
