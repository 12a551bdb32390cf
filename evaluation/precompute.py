"""Measure the baselines of recipes into the `evidence` folder beside each, so that users need only generate the candidate.

    python -m evaluation.precompute recipes/quickstart.yaml

An entry is found by what decides it (model, call, data, seed), so evidence of other weights is never mistaken for theirs.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import compress
from compress.commands.progress import Progress
from compress.commands.run import with_weights
from compress.events import silent
from compress.store.cache import open_cache
from evaluation.comparison.sides import Request, viewpoints
from evaluation.observe.collect import collect


def ship(recipe: Path) -> Path:
    """Collect the baseline's evidence anew; returns the folder that holds it, and nothing else."""
    plan = with_weights(compress.plan(recipe), open_cache(None), silent)
    baseline = replace(plan.source.artifact, digest=plan.source.key)
    folder = recipe.parent / "evidence"
    request = Request(
        name=plan.recipe.name,
        candidate=baseline,
        baseline=baseline,
        data=plan.data.get("evaluate"),
        spec=plan.recipe.evaluate,
        gates={},
        recipe_text="",
        stages=(),
        workdir=folder,
        evidence_dirs=(folder,),
    )
    view, _ = viewpoints(request)
    shutil.rmtree(folder, ignore_errors=True)
    with Progress(quiet=not sys.stderr.isatty()) as emit:
        collect(view, (folder,), "baseline", emit)
    return folder


if __name__ == "__main__":
    for named in sys.argv[1:]:
        ship(Path(named))
