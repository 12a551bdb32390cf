"""What was measured, in the model card of a saved folder: `export.hub` wrote the card before there was a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.machine.deps import version
from compress.publishing.model_cards import CARD, read_card, with_measured
from compress.recipe.values import Recipe
from compress.sources.models import HUB
from evaluation.comparison import Comparison
from evaluation.report import formatting
from evaluation.report.markdown import safe, table

LIMITS = (
    "nothing is stated here of what no row names: other data, languages, lengths and devices, safety, bias",
    "what the card of the model it was made from says of its limits and its uses holds for this one too",
)


def complete(folder: Path, comparison: Comparison, recipe: Recipe) -> None:
    """Put a comparison into the card of a saved folder."""
    found = HUB.fullmatch(recipe.model)
    card = with_measured(
        read_card(folder / CARD), [*_measured(comparison, recipe)], base=found["repo"] if found else ""
    )
    part = folder / f"{CARD}.part"  # so that the card is whole whenever it is read
    part.write_bytes(str(card).encode("utf-8", "backslashreplace"))
    part.replace(folder / CARD)


def _measured(comparison: Comparison, recipe: Recipe) -> Iterator[str]:
    yield f"{safe(formatting.VERDICTS[comparison.status])}. The baseline is the model it was made from; intervals are of 95%."
    yield from table(comparison)
    yield ""
    ran = (
        f"{name[:1].upper()}{name[1:]}: {formatting.runs(comparison, side)}."
        for name, side in formatting.sides(comparison)
    )
    yield " ".join(map(safe, ran)) + "\n"
    for row in comparison.rows:
        protocol = "".join(f", {key} {value}" for key, value in row.protocol.items())
        counted = "1 unit" if row.contrast.n == 1 else f"{row.contrast.n} units"
        yield f"* {safe(f'{row.title}: {counted}{protocol}')}"
    yield f"* seeds: {recipe.seed} of the stages, {recipe.evaluate.seed} of the evaluation"
    yield f"* by pare {version('pare')}"
    yield f"* machine: {safe(formatting.machine(comparison))}"
    yield from (f"* warning: {safe(message)}" for message in comparison.warnings)
    yield "\n### Limits\n"
    yield from (f"* {safe(message)}" for message in (*formatting.unmeasured(comparison), *LIMITS))
    yield "\n### The recipe\n"
    yield from (f"    {formatting.visible(line)}" for line in comparison.recipe.splitlines())
