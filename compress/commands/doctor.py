"""What this machine can do, and the one command that installs what lacks. Imports no heavy library to find out."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from compress.catalogue import (
    builders,
    engine_names,
    find_engine,
    find_metric,
    find_stage,
    metric_names,
    stage_names,
)
from compress.errors import PareError
from compress.machine import deps, gpus
from compress.machine.devices import CUDA
from compress.machine.facts import machine_fact
from compress.planning.plan import make_plan
from compress.recipe.reading import read_recipes
from compress.recipe.values import Recipe
from compress.store.cache import Cache, default_root


def diagnose(recipes: Sequence[Path] = ()) -> dict[str, dict[str, str]]:
    """Sections of facts, each a name and a line of text.

    Args:
        recipes: files to tell what they would need; none: those in the folder `recipes` of the current one, if there is one.
    """
    files = tuple(recipes) or tuple(sorted(Path("recipes").rglob("*.yaml")))
    found = {
        "machine": _machine(),
        "engines": {name: _engine(name) for name in engine_names()},
        "libraries": {name: deps.version(name) or f"not installed: {install({name})}" for name in libraries()},
        "recipes": {str(file): _recipe(file) for file in files},
        "cache": _cache(),
    }
    missing = {name for file in files for name in _missing(file)}
    if missing:
        found["install"] = {"what the recipes lack": install(missing)}
    return {title: rows for title, rows in found.items() if rows}


@cache
def libraries() -> dict[str, str]:
    """Every distribution that a stage, a metric or an engine asks for, or that an extra of pare brings, with that extra; "" for
    what always comes with pare, and for what no extra does."""
    wanted = {name for stage in map(find_stage, stage_names()) for name in stage.libraries}
    wanted |= {name for metric in map(find_metric, metric_names()) for name in metric.libraries}
    wanted |= {find_engine(name).distribution for name in engine_names()}
    extras = deps.extras_of("pare")
    named = {*map(deps.canonical, wanted), *(name for name, extra in extras.items() if extra)}
    return {name: extras.get(name, "") for name in sorted(named, key=lambda name: (extras.get(name, ""), name))}


def install(missing: set[str]) -> str:
    """The one command that installs these distributions."""
    known = deps.extras_of("pare")
    names = {deps.canonical(name) for name in missing}
    extras = sorted({known[name] for name in names if name in known} - {""})
    others = sorted(name for name in names if name not in known)
    pare = f"'pare[{','.join(extras)}]'" if extras else "pare"
    return f"pip install {' '.join((*((pare,) if extras or not others else ()), *others))}"


def _machine() -> dict[str, str]:
    import psutil

    supported = sys.platform in ("linux", "darwin")
    gpu = gpus.gpu_here()
    return {
        "system": f"{platform.platform()}{'' if supported else ' (not supported yet)'}",
        "python": platform.python_version(),
        "processor": machine_fact("isa"),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {os.cpu_count()} logical",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB, {psutil.virtual_memory().available / 1e9:.1f} GB free",
        "gpu": f"{gpu.name}, {gpu.target}" if gpu else "none found",
        "compiler": shutil.which("g++") or shutil.which("clang++") or "none found",
    }


def _engine(format: str) -> str:
    """Whether an engine can be built and run here."""
    engine = find_engine(format)
    stages = [stage for stage in builders() if format in stage.formats.values()]
    if missing := {name for stage in stages for name in stage.libraries if not deps.version(name)}:
        return f"not installed: {install(missing)}"
    if reported := "; ".join(" ".join(line.split()) for stage in stages for line in stage.machine().splitlines()):
        return reported
    if unavailable := [why for stage in stages if (why := stage.unavailable_here(stage.params()))]:
        return unavailable[0]
    if not deps.version(engine.distribution):
        return f"not installed: {install({engine.distribution})}"
    lacking = engine.lacks(CUDA) if gpus.gpu_here() else ""
    return f"ready on the processor; {lacking}: {getattr(lacking, 'fix', '')}" if lacking else "ready"


def _recipe(file: Path) -> str:
    """What a recipe lacks here, or why its plan refuses it, or that it can run."""
    try:
        recipes = read_recipes(file)
        if missing := _missing(file):
            return f"needs {', '.join(sorted(missing))}: {install(missing)}"
        if unavailable := [
            w for r in recipes for step in r.stages if (w := find_stage(step.stage).unavailable_here(step.params))
        ]:
            return unavailable[0]
    except PareError as error:
        return f"does not read: {error.problems[0].message}"
    return _planned(recipes)


def _planned(recipes: Sequence[Recipe]) -> str:
    """What planning says. Nothing is fetched for it: of a hub's model it would read JSON first."""
    if any("hf://" in recipe.model for recipe in recipes):
        return "ready, as far as can be known before its model is fetched; `pare check` does that"
    root = default_root()
    try:
        with TemporaryDirectory() as elsewhere:  # a cache that is not there yet is not made by looking
            for recipe in recipes:
                make_plan(recipe, Cache(root if root.is_dir() else Path(elsewhere)))
    except PareError as error:
        more = len(error.problems) - 1
        return f"refused: {error.problems[0].message}" + (f" (and {more} more; `pare check`)" if more else "")
    return "ready"


def _missing(file: Path) -> set[str]:
    """The distributions that a recipe's stages and metrics want and that are not installed."""
    try:
        recipes = read_recipes(file)
    except PareError:
        return set()
    wanted = {name for r in recipes for step in r.stages for name in find_stage(step.stage).libraries}
    wanted |= {name for r in recipes for metric in r.evaluate.metrics for name in find_metric(metric).libraries}
    return {name for name in wanted if not deps.version(name)}


def _cache() -> dict[str, str]:
    root = default_root()
    above = next(p for p in (root, *root.parents) if p.exists())
    return {"folder": str(root), "free": f"{shutil.disk_usage(above).free / 1e9:.1f} GB"}
