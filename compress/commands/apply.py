"""`compress.apply`: one stage by itself, as a recipe of one step, read, planned, cached and checked as any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compress.artifact import Artifact
from compress.commands.run import with_weights
from compress.errors import UserError
from compress.events import Emit
from compress.files.user_paths import BESIDE, expanded, file_and_config
from compress.planning.plan import make_plan
from compress.planning.step_checks import CALLED
from compress.recipe.reading import read_values
from compress.recipe.values import SCHEMA_VERSION, Recipe
from compress.store.cache import Cache


def recipe_of(
    stage: str,
    model: Artifact | str | Path,
    parameters: object,
    named: Mapping[str, object],
    settings: Mapping[str, object],
) -> Recipe:
    """A recipe of one stage.

    Args:
        parameters: of the stage, as one mapping or None; named: those given by name.
        settings: what else a recipe says, such as its seed.

    Raises:
        UserError: everything wrong at once.
    """
    place = f'{CALLED}"{stage}")'
    values = {
        "schema": SCHEMA_VERSION,
        "name": "apply",
        "model": _reference(model.path if isinstance(model, Artifact) else model),
        **settings,
        "stages": [{stage: _parameters(parameters, named, place)}],
    }
    (recipe,) = read_values(values, place)
    return recipe


def run_stage(recipe: Recipe, store: Cache, emit: Emit) -> Artifact:
    """What the stage of such a recipe leaves."""
    from compress.execution.execute import execute

    return execute(with_weights(make_plan(recipe, store), store, emit), store, emit)[-1].artifact


def _reference(model: str | Path) -> str:
    """A model as a recipe refers to it: a folder by its whole path, whichever way it is given."""
    file, config = file_and_config(str(model))
    if config:
        return f"{expanded(file).absolute()}{BESIDE}{_reference(config)}"
    path = expanded(model)
    return str(path.absolute()) if isinstance(model, Path) or path.is_dir() else model


def _parameters(given: object, named: Mapping[str, object], place: str) -> dict[str, object]:
    """The parameters given as one mapping, and those given by name; a folder that is a `Path`, as a recipe refers to it.

    Raises:
        UserError: what is given is no mapping, or one is given twice.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        message = f"the parameters are a {type(given).__name__}, not a mapping"
        raise UserError(message, place=place, fix="give {name: value}, or name=value for each")
    if twice := [name for name in named if name in given]:
        raise UserError(f"{', '.join(twice)} is given twice", place=place, fix="give it in the mapping or by name")
    return {key: _reference(value) if isinstance(value, Path) else value for key, value in {**given, **named}.items()}
