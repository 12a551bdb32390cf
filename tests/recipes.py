"""Recipes by chance, of every stage and metric on disk: made from what their parameter classes say of their fields."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.params import Params
from compress.recipe.adapters import AdapterSpec
from compress.recipe.gates import Bounds
from compress.recipe.keep import ALWAYS, IF_FASTER, KEEP
from compress.recipe.values import BaselineSpec, DataSpec, EvalSpec

Tree = dict[str, Any]
Path = tuple[str | int, ...]

KEPT = st.sampled_from([ALWAYS, IF_FASTER])
WORDS = st.sampled_from(["x", "unet", "vae", "SM86", "openvino", "all", "./folder", "zoo://digits/train", "5%", ""])
JUNK = st.sampled_from([None, True, -1, 0, 1, 1.5, 4.0, 10**12, "x", "", "${v", [], {}, [1], ["x"], {"x": 1}])


def values(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field's JSON schema takes; what a validator says beside it may refuse some."""
    if "$ref" in schema:
        return values(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema:
        return st.one_of([values(option, definitions) for option in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda text: len(text) <= schema.get("maxLength", 99)
        )
    kind = schema["type"]
    if kind == "array":
        return arrays(schema, definitions)
    if kind == "object":
        return records(schema, definitions)
    plain = {"null": st.none(), "boolean": st.booleans(), "string": WORDS}
    return plain[kind] if kind in plain else numbers(schema)


def numbers(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low, high = schema.get("minimum", over), schema.get("maximum", under)
    if schema["type"] == "integer":
        step = schema.get("multipleOf", 1)
        low, high = 0 if low is None else low, 1000 if high is None else high
        return st.integers(-(-low // step), max(low, high) // step).map(lambda n: n * step)
    return st.floats(
        -5.0 if low is None else low,
        1e6 if high is None else high,
        exclude_min=over is not None,
        exclude_max=under is not None,
        allow_nan=False,
    )


def arrays(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "prefixItems" in schema:  # of three sizes that rise
        return st.tuples(*(values(item, definitions) for item in schema["prefixItems"])).map(sorted)
    least = schema.get("minItems", 0)
    return st.lists(values(schema["items"], definitions), min_size=least, max_size=least + 2)


def records(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[Tree]:
    fields = {name: values(field, definitions) for name, field in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)


def parameters(cls: type[Params], *without: str) -> st.SearchStrategy[Tree]:
    schema = cls.model_json_schema()
    kept = {name: field for name, field in schema.get("properties", {}).items() if name not in without}
    return records({**schema, "properties": kept}, schema.get("$defs", {}))


def named(name: str, cls: type[Params], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`name`, `name:` or `name: {…}`."""
    full = st.tuples(parameters(cls), st.fixed_dictionaries({}, optional=more)).map(lambda two: {name: two[0] | two[1]})
    if any(field.is_required() for field in cls.model_fields.values()):
        return full
    return st.one_of(st.just(name), st.just({name: None}), full, full, full)


def adapters() -> st.SearchStrategy[Any]:
    one = st.one_of(st.just("./lora"), parameters(AdapterSpec).filter(lambda spec: spec["path"]))
    return st.one_of(st.none(), one, st.lists(one, max_size=2))


def stages() -> st.SearchStrategy[list[Any]]:
    more = {"from": st.just("source"), "id": st.just("late"), KEEP: KEPT}
    one = st.sampled_from(stage_names()).flatmap(lambda name: named(name, find_stage(name).params, **more))
    return st.lists(one.flatmap(_kept), max_size=2)


def _kept(entry: Any) -> st.SearchStrategy[Any]:
    """The entry, or the same with `keep` beside its name, where it has none."""
    if isinstance(entry, str) or KEEP in (next(iter(entry.values())) or ()):
        return st.just(entry)
    return st.one_of(st.just(entry), KEPT.map(lambda keep: {**entry, KEEP: keep}))


@st.composite
def measured(draw: st.DrawFn) -> Tree:
    """`evaluate` and `gates`: every gate is of a metric that is measured, and has one bound."""
    names = draw(st.lists(st.sampled_from(metric_names()), max_size=3, unique=True))
    metrics = [draw(named(name, find_metric(name).params)) for name in names]
    evaluate = draw(parameters(EvalSpec, "metrics", "baseline"))
    gates = {name: draw(gate()) for name in names if draw(st.booleans())}
    return {
        "evaluate": {**evaluate, "metrics": metrics, "baseline": draw(parameters(BaselineSpec))},
        "gates": gates,
    }


@st.composite
def gate(draw: st.DrawFn) -> Tree:
    bound = draw(st.sampled_from(sorted(Bounds.model_fields)))
    margins: list[Any] = [0.5, 2] + ([] if bound in ("speedup", "faster", "smaller") else ["5%", "1 MB"])
    other = draw(st.sampled_from([{}, {"two_sided": draw(st.sampled_from([None, True, False]))}]))
    empty = dict.fromkeys(draw(st.sets(st.sampled_from(sorted(set(Bounds.model_fields) - {bound})), max_size=1)))
    return {**empty, bound: draw(st.sampled_from(margins)), **other}


@st.composite
def recipes(draw: st.DrawFn) -> Tree:
    """A recipe as its tree."""
    head: Tree = {"schema": 1, "name": "demo", "model": draw(st.sampled_from(["zoo://tiny", "./folder"]))}
    more = {
        "seed": st.integers(0, 2**32 - 1),
        "trust_remote_code": st.booleans(),
        "adapter": adapters(),
        "data": parameters(DataSpec),
        "stages": st.one_of(st.none(), stages(), stages()),
    }
    return head | draw(st.fixed_dictionaries({}, optional=more)) | (draw(measured()) if draw(st.booleans()) else {})


def paths(tree: Any, above: Path = ()) -> Iterator[Path]:
    """Where a value stands, of every value in the tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*above, key)
        yield from paths(value, (*above, key))


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def with_variables(draw: st.DrawFn, of: st.SearchStrategy[Tree]) -> Tree:
    """A recipe in which one value is a variable's, or a matrix's."""
    tree = copy.deepcopy(draw(of))
    path = draw(st.sampled_from([p for p in paths(tree) if p[0] not in ("schema", "extends", "vars", "matrix")]))
    section = draw(st.sampled_from(["vars", "matrix"]))
    value = at(tree, path)
    at(tree, path[:-1])[path[-1]] = "${v}"
    return {**tree, section: {"v": [value] if section == "matrix" else value}}


@st.composite
def nonfinite(draw: st.DrawFn, of: st.SearchStrategy[Tree]) -> Tree:
    """A recipe with one mistake, if it is one: a value of another kind or size, a key too many, one too few."""
    tree = copy.deepcopy(draw(of))
    path = draw(st.sampled_from(list(paths(tree))))
    owner, last = at(tree, path[:-1]), path[-1]
    how = draw(st.sampled_from(["value", "value", "key", "none"]))
    if how == "value":
        owner[last] = draw(JUNK)
    elif how == "none":
        del owner[last]
    elif isinstance(owner, dict):
        owner[draw(st.sampled_from(["nonsense", "components", "id", "from", "samples", "extends"]))] = draw(JUNK)
    else:
        owner.append(draw(JUNK))
    return tree
