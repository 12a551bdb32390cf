"""A recipe file becomes values here: every default filled in, every mistake found in one go, each at its line and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compress.catalogue import find_stage, stage_names
from compress.errors import Problem, RecipeError
from compress.files.user_paths import file_and_config
from compress.recipe.adapters import read_adapters
from compress.recipe.checkpoints import as_reference
from compress.recipe.entries import is_text
from compress.recipe.expand import extended, overridden, read_file, variants
from compress.recipe.python_values import write_yaml
from compress.recipe.sections import check_schema, read_sections, refused
from compress.recipe.values import Recipe
from compress.recipe.yaml_tree import Node, parse_tree


def read_recipes(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """The recipes of a file: one, or one per combination of its `matrix`. `overrides` are `dotted.path=value`.

    Raises:
        RecipeError: everything wrong with it, in the order of the file.
    """
    return read_text(read_file(path), str(path), overrides)


def read_partly(path: Path, overrides: Sequence[str] = ()) -> tuple[tuple[Recipe, ...], tuple[Problem, ...]]:
    """As `read_recipes`, of a file with mistakes too: of each recipe what can be judged without the rest, and every mistake.

    Raises:
        RecipeError: it is no YAML, or a recipe of a later schema.
    """
    text = read_file(path)
    return _read_tree(parse_tree(text, str(path)), text, str(path), overrides)


def read_text(text: str, file: str, overrides: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """The recipes in `text`; `file` names it in messages, and `extends` starts from its folder.

    Raises:
        RecipeError: everything wrong with it, in the order of the file.
    """
    return _whole(*_read_tree(parse_tree(text, file), text, file, overrides))


def read_values(values: Mapping[str, object], place: str) -> tuple[Recipe, ...]:
    """The recipes that these values say, as their YAML is read; `place` is where all of their problems are.

    Raises:
        RecipeError: everything wrong with it.
    """
    text = write_yaml(values)
    return _whole(*_read_tree(parse_tree(text, place, fixed_place=True), text, "", ()))


def _whole(found: tuple[Recipe, ...], problems: tuple[Problem, ...]) -> tuple[Recipe, ...]:
    if problems or not found:
        raise refused(problems)
    return found


def _read_tree(
    tree: Node, text: str, file: str, overrides: Sequence[str]
) -> tuple[tuple[Recipe, ...], tuple[Problem, ...]]:
    problems: list[Problem] = []
    root = overridden(extended(tree, file), overrides, problems)
    found: list[Recipe] = []
    if check_schema(root, problems):
        for variant in variants(root, problems):
            own: list[Problem] = []
            recipe = read_sections(variant.root, own, variant.suffix, text, file)
            problems += [problem for problem in own if problem.place not in variant.unfilled]
            if recipe is not None:
                found.append(replace(recipe, overrides=tuple(overrides), start=Path.cwd() if overrides else Path()))
    return tuple(found), tuple(problems)


def hub_references(path: Path) -> tuple[str, ...]:
    """What the file itself, not one it extends, says of models of the hub: after `model:`, of its adapters, and of those that its
    stages are given.

    Raises:
        RecipeError: it is no YAML, or names none, and no model at all.
    """
    root = parse_tree(read_file(path), str(path))
    stages = root.fields.get("stages")
    steps = [step for entry in (stages.entries if stages else ()) for step in entry.fields.items()]
    named = [
        params.fields[role].value
        for name, params in steps
        if name in stage_names()
        for role in find_stage(name).inputs
        if role in params.fields
    ]
    adapters = (spec.path for spec in read_adapters(root.fields.get("adapter"), []))
    given = [one for value in (*adapters, *named) if (one := _fetched(str(value))).startswith("hf://")]
    try:
        model = _fetched(model_reference(path))
    except RecipeError:
        if not given:
            raise
        model = ""
    return tuple(dict.fromkeys(one for one in (model, *given) if one.startswith("hf://") or not given))


def _fetched(reference: str) -> str:
    """What of a reference to a model may be of the hub: of a checkpoint in one file, its configs."""
    file, config = file_and_config(reference)
    return config or file


def model_reference(path: Path) -> str:
    """What the file itself, not one it extends, says after `model:`; nothing else of it is checked.

    Raises:
        RecipeError: it is no YAML, or names no model.
    """
    root = parse_tree(read_file(path), str(path))
    node = root.fields.get("model")
    node = as_reference(node, []) if node else None
    if node is None or not is_text(node):
        fix = "pin it in the recipe that this one extends" if "extends" in root.fields else "model: hf://org/name"
        raise RecipeError((Problem(node.at if node else root.place, "this file names no model", fix),))
    return str(node.value)
