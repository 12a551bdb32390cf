"""Executors: found by their file, handed a plan; a stage travels as text, and ends in the same key and bytes wherever it runs."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import compress
from compress.cli import main
from compress.commands.run import run_plan
from compress.errors import RecipeError, StageFailed, UserError
from compress.events import silent
from compress.execution import executors
from compress.execution.execute import Done, NodeRef, _plan_of, execute, node_refs, run_node
from compress.execution.executors import executor_names, find_executor
from compress.planning.plan import Plan, make_plan
from compress.store.cache import Cache
from tests.fakes import CUT, knowing, language_model, recipe, step
from tests.tiny import tiny_diffusion

RECIPE = """\
schema: 1
name: steps
model: ./model
vars: {n: 2}
matrix: {scheduler: [ddim, euler]}
stages:
  - accelerate.steps: {steps: "${n}"}
  - accelerate.steps: {steps: 3, scheduler: "${scheduler}", id: again}
"""
PLANTED = '''\
"""Every stage by its reference."""

from compress.execution.execute import node_refs, run_node


def run(plan, store, emit):
    (store.root / "planted").write_text(plan.recipe.name)
    return tuple(run_node(ref, store, emit) for ref in node_refs(plan))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two variants beside its model."""
    found = tmp_path_factory.mktemp("executors")
    tiny_diffusion(found)
    (found / "r.yaml").write_text(RECIPE)
    return found


def plans(folder: Path, cache: Path, *overrides: str) -> tuple[Plan, ...]:
    return compress.plan_all(folder / "r.yaml", overrides, cache=cache)


@pytest.fixture(scope="module")
def local(folder: Path) -> tuple[Done, ...]:
    """What this process makes of the second variant."""
    found = plans(folder, folder / "local", "vars.n=4")[1]
    return execute(found, Cache(folder / "local"), silent)


def elsewhere(ref: NodeRef, root: Path, answer: object) -> None:
    answer.put(run_node(ref, Cache(root), silent))  # type: ignore[attr-defined]


def test_a_stage_that_runs_in_another_process_gives_the_same_key_and_bytes(
    folder: Path, tmp_path: Path, local: tuple[Done, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    refs = node_refs(compress.plan_all("r.yaml", ["vars.n=4"], cache=tmp_path / "cache")[1])
    monkeypatch.chdir(tmp_path)  # relative paths are the recipe's, wherever a process stands
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    for ref, here in zip(refs, local, strict=True):
        process = context.Process(target=elsewhere, args=(ref, tmp_path / "cache", answers))
        process.start()
        there: Done = answers.get(timeout=240)
        process.join()
        assert (there.id, there.key, there.after, there.cached) == (here.id, here.key, here.after, False)
        assert there.artifact.digest == here.artifact.digest
        assert there.facts == here.facts
    again = run_node(refs[-1], Cache(tmp_path / "cache"), silent)
    assert again.cached
    assert again.artifact.digest == local[-1].artifact.digest


def test_references_and_results_survive_pickling(folder: Path, local: tuple[Done, ...]) -> None:
    refs = node_refs(plans(folder, folder / "local", "vars.n=4")[1])
    assert [ref.node_id for ref in refs] == [done.id for done in local]
    assert {ref.name for ref in refs} == {"steps-scheduler-euler"}
    assert pickle.loads(pickle.dumps((refs, local))) == (refs, local)


def test_a_reference_makes_the_very_plan_that_it_was_taken_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `--set` and `with_` changed the recipe, and whatever folder their relative paths start from."""
    (tmp_path / "there").mkdir()
    shutil.copytree(folder / "model", tmp_path / "there" / "other")
    monkeypatch.chdir(tmp_path / "there")
    cache = Cache(tmp_path / "cache")
    recipes = compress.check(folder / "r.yaml", ["seed=3", "model=./other"], cache=cache.root)
    changed = recipes[1].with_("stages.1.steps=5").with_({"name": "own", "stages.0.steps": 4})
    found = [make_plan(recipe, cache) for recipe in (*recipes, changed)]
    monkeypatch.chdir(tmp_path)
    for plan in found:
        refs = node_refs(plan)
        again = _plan_of(pickle.loads(pickle.dumps(refs[-1])), cache)
        assert [node.key for node in again.nodes] == [node.key for node in plan.nodes]
        assert (again.recipe.name, again.recipe.seed) == (plan.recipe.name, 3)
    assert len({plan.nodes[-1].key for plan in found}) == 3


def test_a_report_tells_what_was_put_into_a_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = compress.check(folder / "r.yaml", ["seed=3"], cache=tmp_path)[0].with_({"stages.0.steps": 4})
    assert recipe.reported == RECIPE + "# --set seed=3\n# with_ stages.0.steps=4\n"
    assert compress.check(folder / "r.yaml", cache=tmp_path)[0].reported == RECIPE


def test_what_is_cached_asks_for_no_input_and_what_is_not_says_which_it_lacks(
    folder: Path, tmp_path: Path, local: tuple[Done, ...]
) -> None:
    _, last = node_refs(plans(folder, tmp_path, "vars.n=4")[1])
    with pytest.raises(
        StageFailed, match=r"stage `again` \(accelerate.steps\) needs what `accelerate.steps` leaves"
    ) as caught:
        run_node(last, Cache(tmp_path), silent)
    assert caught.value.problems[0].place.endswith("r.yaml:8:5")
    assert str(tmp_path) in caught.value.problems[0].fix
    alone = Cache(tmp_path / "alone")
    alone.prepare()
    alone.put(local[-1].key, shutil.copytree(local[-1].artifact.path, alone.fresh(), dirs_exist_ok=True), {})
    assert run_node(last, alone, silent).cached


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda ref: replace(ref, name="steps-scheduler-eular"), UserError, "gives no recipe called"),
        (lambda ref: replace(ref, node_id="agian"), UserError, "no step `agian`\n  fix: did you mean `again`"),
        (lambda ref: replace(ref, recipe_text="schema: 1"), RecipeError, "name"),
        (lambda ref: replace(ref, overrides=("stages.0.accelerate.steps.steps=x",)), RecipeError, "steps"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_clear_error(
    folder: Path, tmp_path: Path, change: Callable[[NodeRef], NodeRef], error: type[UserError], says: str
) -> None:
    ref = node_refs(plans(folder, tmp_path)[1])[1]
    with pytest.raises(error, match=says):
        run_node(change(ref), Cache(tmp_path), silent)


def test_a_recipe_without_a_text_cannot_be_sent(tmp_path: Path) -> None:
    with knowing(CUT):
        plan = make_plan(recipe(language_model(tmp_path / "llama"), step(CUT)), Cache(tmp_path / "cache"))
    with pytest.raises(UserError, match="no text to send"):
        node_refs(plan)


# Found by their file


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A second executor, beside the first on the package's path."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "planted.py").write_text(PLANTED)
    (tmp_path / "more" / "empty.py").write_text("")
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path / "more")])
    importlib.invalidate_caches()
    executor_names.cache_clear()
    yield "planted"
    executor_names.cache_clear()


def test_a_file_is_the_registration(planted: str) -> None:
    assert {"empty", "local", "planted"} <= set(executor_names())
    with pytest.raises(TypeError, match=r"empty\.py has no function `run`"):
        find_executor("empty")


def test_the_executor_that_was_named_runs_the_plan(
    planted: str, folder: Path, tmp_path: Path, local: tuple[Done, ...]
) -> None:
    cache = Cache(tmp_path / "cache")
    plan = plans(folder, cache.root, "vars.n=4")[1]
    found = run_plan(plan, cache, tmp_path / "out", silent, find_executor(planted))
    assert (cache.root / "planted").read_text() == plan.recipe.name
    assert [row["digest"] for row in found.stages] == [done.artifact.digest for done in local]


def test_both_faces_take_the_name_of_an_executor(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "model")
    (tmp_path / "r.yaml").write_text("schema: 1\nname: tiny\nmodel: ./model\nevaluate: {metrics: [size]}\n")
    note = tmp_path / "cache" / "planted"
    compress.run("r.yaml", cache=tmp_path / "cache", executor=planted)
    note.unlink()
    compress.run_all("r.yaml", cache=tmp_path / "cache", executor=planted)
    note.unlink()
    with pytest.raises(SystemExit) as left:
        main(["run", "r.yaml", "--cache", "cache", "--executor", planted])
    assert left.value.code == 0
    assert note.exists()


def test_an_unknown_executor_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="did you mean `local`"):
        find_executor("lokal")
    with pytest.raises(SystemExit) as left:
        main(["run", "nowhere.yaml", "--cache", str(tmp_path / "cache"), "--executor", "ray"])
    assert left.value.code == 2
    assert "no executor is called `ray`\n  fix: known: `local`" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
