"""What `pare explain` says: its examples are recipes that read, and it leaves nothing out that one could write."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml

import compress
from compress.catalogue import (
    engine_names,
    find_engine,
    find_metric,
    find_stage,
    find_task,
    metric_names,
    stage_names,
    task_names,
)
from compress.cli import main
from compress.commands.explain import GATES, RECIPE, TOPICS, explain
from compress.errors import UserError
from compress.params import Params
from compress.recipe.gates import Bounds, Gate
from compress.recipe.reading import read_recipes
from compress.recipe.sections import TOP_KEYS
from compress.recipe.values import EvalSpec
from evaluation.verdict.gates import problems

RECIPES = Path(compress.__file__).parent.parent / "recipes"


def example(text: str) -> str:
    """The indented block."""
    return textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))


def keys(text: str) -> set[str]:
    return set(re.findall(r"^ *([a-z_]+)(?::|$)", text, re.MULTILINE))


def test_the_example_of_a_recipe_reads(tmp_path: Path) -> None:
    shutil.copy(RECIPES / "quickstart.yaml", tmp_path)
    (tmp_path / "own.yaml").write_text(example(RECIPE))
    found = read_recipes(tmp_path / "own.yaml")
    assert [recipe.name for recipe in found] == ["digits-int8-bits-int8", "digits-int4_weights-bits-int4-weights"]
    assert "kid" not in found[0].evaluate.metrics
    assert "kid" not in found[0].gates
    assert found[0].evaluate.controls == ("plain",)
    assert [step.after for step in found[0].stages] == ["source", *["accelerate.steps"] * 2, "engine"]


def test_the_example_of_gates_can_be_judged() -> None:
    gates = yaml.safe_load(example(GATES))["gates"]
    assert len(gates) == 5
    assert [problems(Gate(**gate), find_metric(name)) for name, gate in gates.items()] == [""] * 5


def test_every_key_of_a_recipe_and_of_a_gate_is_reported() -> None:
    fields = [name for kind in EvalSpec.mro() if kind is not Params for name in getattr(kind, "model_fields", ())]
    assert {*TOP_KEYS, *fields} <= keys(explain("recipe"))
    assert {*Bounds.model_fields, "two_sided", *metric_names()} <= {*keys(explain("gates")), *metric_names()}
    assert all(re.search(rf"^  {name} ", explain("gates"), re.MULTILINE) for name in metric_names())


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_is_reported_with_all_that_may_stand_beside_its_parameters(name: str) -> None:
    stage = find_stage(name)
    assert {*stage.params.model_fields, "id", "from", *stage.inputs} <= keys(explain(name))


@pytest.mark.parametrize("name", task_names())
def test_a_task_tells_its_settings_and_what_fits_it(name: str) -> None:
    task, message = find_task(name), explain(name)
    assert {*task.settings.model_fields, *task.baseline.model_fields} <= keys(message)
    assert task.title in message
    words = set(re.split(r"[,\s]+", message))
    assert {"latency", "size"} <= words
    assert {stage for stage in stage_names() if find_stage(stage).works_on(task)} <= words


@pytest.mark.parametrize("name", engine_names())
def test_an_engine_tells_where_it_runs_and_in_what(name: str) -> None:
    message = explain(name)
    assert find_engine(name).title in message
    assert all(word in message for word in (*find_engine(name).precisions, *find_engine(name).devices))
    assert name == "torch" or "build." in message


def test_a_name_that_is_none_is_reported_with_what_comes_near() -> None:
    with pytest.raises(UserError, match="no stage, metric, task or engine is called `openvin`") as caught:
        explain("openvin")
    assert "openvino" in caught.value.problems[0].fix


def test_nothing_asked_for_lists_all_that_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["explain"])
    assert left.value.code == 0
    words = set(re.split(r"[,\s]+", capsys.readouterr().out))
    assert {*TOPICS, *stage_names(), *metric_names(), *task_names(), *engine_names()} <= words


def test_adapters_are_a_subject_of_their_own() -> None:
    message = explain("adapter")
    assert "LoRA that peft, diffusers or kohya's trainers saved" in message
    assert {"path", "scale"} <= keys(message)
    assert "{ADAPTERS}" not in explain("recipe")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("steps", "`pare explain accelerate.steps` or `pare explain distill.steps`"),
        ("call", "`pare explain accelerate.call`"),
        ("consistency", "`pare explain distill.steps` (method: consistency)"),
        ("lcm", "`pare explain accelerate.steps` (scheduler: lcm)"),
        ("negative_prompt", "(its negative_prompt)"),
        ("latncy", "did you mean `latency`?"),
    ],
)
def test_what_has_no_name_of_its_own_is_found_by_a_last_part_a_parameter_or_a_value(name: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        explain(name)
    assert fix in caught.value.problems[0].fix
