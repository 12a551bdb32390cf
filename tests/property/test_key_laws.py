"""Laws of keys: a key changes exactly when something that decides the result changes, and only downstream of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.files.hashing import digest_json
from compress.planning.keys import stage_key
from compress.planning.plan import make_plan
from compress.store.cache import Cache
from tests.fakes import CUT, Cut, knowing, language_model, recipe, step

CALLS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["demo.cut", "demo.turn"]),
        "version": st.integers(1, 2),
        "task": st.sampled_from(["text_generation", "text_to_image"]),
        "ratio": st.sampled_from([0.25, 0.5]),
        "layers": st.sampled_from([(), (1,), (1, 2), (2, 1)]),
        "components": st.sampled_from([("unet",), ("vae",), ("unet", "vae")]),
        "inputs": st.sampled_from(
            [{"model": "k"}, {"model": "k2"}, {"model": "k", "teacher": "k"}, {"data.train": "k"}]
        ),
        "seed": st.integers(0, 1),
        "torch": st.sampled_from(["2.13", "2.14"]),
        "isa": st.sampled_from(["avx2", "amx"]),
    }
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=10,
)

TAUGHT = replace(CUT, inputs=("teacher",))


def key_of(call: dict[str, Any], workers: int = 1) -> str:
    stage = replace(CUT, name=call["name"], version=call["version"], bound_to=frozenset({"isa"}))
    params = Cut(ratio=call["ratio"], layers=call["layers"], workers=workers)
    with (
        mock.patch("compress.machine.deps.version", lambda library: call["torch"] if library == "torch" else "1"),
        mock.patch("compress.planning.keys.machine_fact", return_value=call["isa"]),
    ):
        return stage_key(stage, call["task"], params, call["components"], call["inputs"], call["seed"])


@given(CALLS, CALLS)
def test_keys_are_equal_exactly_when_everything_counted_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@given(CALLS, CALLS, st.data())
def test_any_one_counted_field_changes_the_key(one: dict[str, Any], other: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(one)))
    changed = {**one, field: other[field]}
    assert (key_of(one) == key_of(changed)) == (one[field] == other[field])


@given(CALLS, st.integers(1, 64))
def test_fields_marked_uncached_do_not_count(call: dict[str, Any], workers: int) -> None:
    assert key_of(call) == key_of(call, workers)


@given(CALLS)
def test_the_order_in_which_inputs_are_named_does_not_count(call: dict[str, Any]) -> None:
    backwards = {**call, "inputs": dict(reversed(call["inputs"].items()))}
    assert key_of(call) == key_of(backwards)


@given(CALLS, st.text(max_size=8))
def test_a_library_the_stage_does_not_use_does_not_count(call: dict[str, Any], version: str) -> None:
    def known(library: str) -> str:
        return version if library == "openvino" else "1"

    plain = replace(CUT, libraries=("numpy",))
    arguments = (call["task"], Cut(), call["components"], call["inputs"], call["seed"])
    with mock.patch("compress.machine.deps.version", known):
        found = stage_key(plain, *arguments)
    with mock.patch("compress.machine.deps.version", return_value="1"):
        assert stage_key(plain, *arguments) == found
        assert stage_key(replace(plain, libraries=("openvino",)), *arguments) != found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("keys") / "model")


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, int]]:
    """For each step, which step it continues and which teaches it; -1 is the source."""
    length = draw(st.integers(1, 6))
    return [(draw(st.integers(-1, i - 1)), draw(st.integers(-1, i - 1))) for i in range(length)]


def keys_of(model: Path, tree: list[tuple[int, int]], changed: int) -> list[str]:
    """The keys of a plan whose step number `changed` has another ratio."""
    name = {-1: "source", **{i: f"s{i}" for i in range(len(tree))}}
    steps = [
        step(
            TAUGHT, id=name[i], after=name[after], inputs={"teacher": name[teacher]}, ratio=0.1 if i == changed else 0.2
        )
        for i, (after, teacher) in enumerate(tree)
    ]
    with knowing(TAUGHT):
        return [node.key for node in make_plan(recipe(model, *steps), Cache(model.parent / "cache")).nodes]


@given(trees(), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_change_reaches_exactly_the_steps_built_on_it(
    model: Path, tree: list[tuple[int, int]], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tree) - 1))
    reached = {place}
    for index, parents in enumerate(tree):
        if reached & set(parents):
            reached.add(index)
    before, after = keys_of(model, tree, -1), keys_of(model, tree, place)
    assert {i for i in range(len(tree)) if before[i] != after[i]} == reached


def shuffled(value: Any, data: st.DataObject) -> Any:
    """The same value with its mappings in another order, and its white space gone through a parser."""
    if isinstance(value, dict):
        items = data.draw(st.permutations(list(value.items())))
        return {key: shuffled(inner, data) for key, inner in items}
    return [shuffled(inner, data) for inner in value] if isinstance(value, list) else value


@given(JSON, st.data())
@settings(deadline=None)
def test_a_digest_does_not_see_the_order_of_keys(value: Any, data: st.DataObject) -> None:
    assert digest_json(value) == digest_json(shuffled(value, data))
    assert digest_json(value) == digest_json(json.loads(json.dumps(value, indent=3)))


@given(JSON, JSON)
def test_a_digest_tells_different_values_apart(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_json(one) == digest_json(other)) == same


@given(st.one_of(st.just(float("nan")), st.just(float("inf")), st.binary(), st.sets(st.integers(), min_size=1)))
def test_what_json_cannot_say_has_no_digest(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        digest_json([value])
