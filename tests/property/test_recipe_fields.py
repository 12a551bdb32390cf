"""Every field of a recipe has a consumer: another value gives another plan, key, view of a side, verdict, or a problem."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from compress.catalogue import find_metric, find_task, task_names
from compress.commands.run import evidence_dirs
from compress.errors import RecipeError
from compress.planning.plan import make_plan
from compress.recipe.adapters import AdapterSpec
from compress.recipe.gates import Bounds, Gate
from compress.recipe.reading import read_text
from compress.recipe.shared_parameters import shared_names, spread
from compress.recipe.values import BaselineSpec, DataSpec, EvalSpec, Head, Recipe, StepSpec
from compress.store.cache import Cache
from evaluation.comparison.sides import Request, viewpoints
from evaluation.values import Estimate
from evaluation.verdict.gates import allowed, problems
from tests.fakes import CUT, TUNE, knowing, language_model, needing, pipeline, recipe, step, write_headers

ROOT = Path(__file__).parents[2]

TAUGHT = needing(replace(CUT, name="demo.teach", inputs=("teacher",)), "train", "calibration")
TEXTS = ("one", "two")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    language_model(folder / "model")
    language_model(folder / "other", (3, 3))
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text("".join(f"{text} of {name}, and more\n\n" for text in TEXTS))
    return folder


def planned(made: Recipe, place: Path) -> Any:
    """What a plan says that a run acts on, or its problems."""
    try:
        with knowing(CUT, TUNE, TAUGHT):
            plan = make_plan(made, Cache(place / "cache"))
    except RecipeError as error:
        return error.problems
    nodes = [(n.id, n.stage.name, n.params, n.after, n.inputs, n.key, n.place) for n in plan.nodes]
    return plan.source.key, {role: data.digest for role, data in plan.data.items()}, nodes


def whole(place: Path, **more: Any) -> Recipe:
    data = {role: str(place / f"{name}.txt") for role, name in zip(DataSpec.model_fields, "abc", strict=True)}
    steps = (step(CUT), step(TAUGHT, after="demo.cut", inputs={"teacher": "source"}, place="r.yaml:5:3"))
    return recipe(place / "model", *steps, data=data, **more)


def changed_head(place: Path, field: str) -> Recipe:
    other: Mapping[str, Any] = {
        "name": "other",
        "model": str(place / "other"),
        "seed": 1,
        "device": "cuda",
        "trust_remote_code": True,
    }
    return replace(whole(place), **{field: other[field]})


@pytest.mark.parametrize("field", sorted(set(Head.model_fields) - {"name"}))
def test_the_head_of_a_recipe_changes_the_plan(place: Path, field: str) -> None:
    assert planned(changed_head(place, field), place) != planned(whole(place), place)


@pytest.mark.parametrize("field", AdapterSpec.model_fields)
def test_an_adapter_changes_the_plan(place: Path, field: str) -> None:
    lora = write_headers(
        place / "lora/adapter_model.safetensors", {"w.lora_A.weight": (1, 3), "w.lora_B.weight": (2, 1)}
    )
    spec = AdapterSpec(path=str(lora.parent))
    other = spec.model_copy(update={field: {"path": str(place / "none"), "scale": 0.5, "fuse": False}[field]})
    before = replace(whole(place), model=str(language_model(place / "tuned")))
    write_headers(place / "tuned/model.safetensors", {"w.weight": (2, 3)})
    plans = [planned(replace(before, adapters=found), place) for found in ((), (spec,), (other,))]
    assert all(plans.count(one) == 1 for one in plans)


def test_the_name_is_that_of_the_run() -> None:
    assert "found.recipe.name" in reads(ROOT / "compress/api.py")
    assert "recipe.name" in reads(ROOT / "compress/commands/run.py")


@pytest.mark.parametrize("field", DataSpec.model_fields)
def test_data_changes_the_plan(place: Path, field: str) -> None:
    before = whole(place)
    other = replace(before, data=before.data.model_copy(update={field: str(place / "none.txt")}))
    assert planned(other, place) != planned(before, place)


@pytest.mark.parametrize("field", [field.name for field in fields(StepSpec)])
def test_a_step_changes_the_plan(place: Path, field: str) -> None:
    changes: Mapping[str, Any] = {
        "id": "other", "stage": "demo.cut", "params": TAUGHT.params(ratio=0.1), "after": "source",
        "inputs": {"teacher": "demo.cut"}, "place": "r.yaml:9:9", "if_faster": True, "places": {"teacher": "r.yaml:9:19"},
    }  # fmt: skip
    before = whole(place)
    if field == "places":  # which only what is wrong there tells
        first, last = before.stages
        before = replace(before, stages=(first, replace(last, inputs={"teacher": "./none"})))
    first, last = before.stages
    other = replace(before, stages=(first, replace(last, **{field: changes[field]})))
    assert planned(other, place) != planned(before, place)


# What is measured


def views(place: Path, spec: EvalSpec, words: bool, task: str = "") -> Any:
    """How both sides will be looked at, as models of a task, or of the one that their folders show."""
    from compress.model.describing import describe
    from compress.sources.data import open_data

    model = place / "model" if words else pipeline(place / "pipeline")
    items = open_data(str(place / "c.txt") if words else "zoo://digits/test", Path())
    artifact = replace(describe(model), task=task) if task else describe(model)
    request = Request("x", artifact, artifact, items, spec, {}, "", (), place, ())
    return [(v.opening, v.call, v.items, v.seed, v.batch, v.evidence) for v in viewpoints(request)]


BASELINE: Mapping[str, Any] = {
    "dtype": "bfloat16", "steps": 3, "guidance": 2.5, "negative_prompt": "ugly", "height": 16, "width": 16, "scheduler": "lcm",
    "strength": 0.5, "image_guidance": 2.0, "padding_mask_crop": 4,
}  # fmt: skip
SEEN: Mapping[str, Any] = {
    "samples": 3, "batch": 5, "seed": 7, "prompt_tokens": 9, "new_tokens": 11, "continuations": 13,
    "images_per_prompt": 2,
}  # fmt: skip


@pytest.mark.parametrize("field", BaselineSpec.model_fields)
def test_the_baseline_is_run_as_asked(place: Path, field: str) -> None:
    asked = EvalSpec(baseline=BaselineSpec(**{field: BASELINE[field]}))
    owners = [name for name in task_names() if field in find_task(name).baseline.model_fields] or [""]
    for task in owners:
        assert views(place, asked, words=False, task=task) != views(place, EvalSpec(), words=False, task=task)


@pytest.mark.parametrize("field", SEEN)
def test_what_quality_is_measured_on_is_as_asked(place: Path, field: str) -> None:
    words = field not in ("samples", "seed", "batch", "images_per_prompt")
    assert views(place, EvalSpec(**{field: SEEN[field]}), words) != views(place, EvalSpec(), words)


@pytest.mark.parametrize("field", sorted(set(EvalSpec.model_fields) - {"baseline", *SEEN, *shared_names()}))
def test_whatever_else_an_evaluation_is_reported_is_read_by_it(field: str) -> None:
    found = {one for file in (ROOT / "evaluation").rglob("*.py") for one in reads(file)}
    assert any(one in found for one in (f"spec.{field}", f"request.spec.{field}"))


@pytest.mark.parametrize("field", shared_names())
def test_what_is_named_once_is_every_metric_s(field: str) -> None:
    assert spread({"kid": {}}, EvalSpec(**{field: "./x"})) == {"kid": {field: "./x"}}


@pytest.mark.parametrize("field", Gate.model_fields)
def test_a_gate_changes_what_it_lets_pass(field: str) -> None:
    held = {"within": "fid", "two_sided": "fid", "smaller": "size"}.get(field, "latency")
    metric, base = find_metric(held), Estimate(5.0, 4.0, 6.0, 10)
    before = Gate(within=1) if field == "two_sided" else Gate(**{field: 2})
    after = Gate(within=1, two_sided=False) if field == "two_sided" else Gate(**{field: 3})
    assert problems(before, metric) == problems(after, metric) == ""
    assert allowed(before, metric, base) != allowed(after, metric, base)


def test_no_bound_is_only_declared() -> None:
    assert set(Gate.model_fields) == {*Bounds.model_fields, "two_sided"}


# What stands beside


def test_whatever_else_a_recipe_holds_is_read(tmp_path: Path) -> None:
    own = {field.name for field in fields(Recipe)} - set(Head.model_fields)
    reported = {"source", "file", "overrides", "changes", "variant", "start"}
    assert own == {"adapters", "data", "stages", "evaluate", "gates", "place", "origin", *reported}
    (tmp_path / "evidence").mkdir()
    (read,) = read_text("schema: 1\nname: a\nmodel: ./none\n", str(tmp_path / "r.yaml"))
    assert len(evidence_dirs(read, Cache(tmp_path / "cache"))) == 2  # by its file
    assert planned(read, tmp_path)[0].place == f"{tmp_path / 'r.yaml'}:3:8"  # by its places
    assert read.with_("seed=1").seed == 1  # by its origin
    assert {"recipe.reported", "recipe.gates"} <= set(reads(ROOT / "compress/commands/run.py"))
    assert {f"recipe.{name}" for name in reported} <= set(
        reads(ROOT / "compress/execution/execute.py")
    )  # they make a reference


def reads(file: Path) -> Iterator[str]:
    """Every dotted name that a file reads, such as `request.spec.starts`."""
    yield from (ast.unparse(n) for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute))
