"""Planning: what will run under which key, what is cached, how much room it takes, and everything that cannot work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import compress
from compress.artifact import derive, write_manifest
from compress.catalogue import Forecast, Stage, find_metric, tasks_for
from compress.errors import Problem, RecipeError, UserError
from compress.files.hashing import list_files
from compress.model.describing import describe
from compress.planning import durations
from compress.planning.plan import Plan, make_plan
from compress.planning.show import plan_text
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec, Recipe
from compress.store.cache import Cache
from tests.fakes import BUILD, CUT, STAGES, TUNE, knowing, language_model, needing, pipeline, recipe, refusing, step

GIB = 2**30


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return pipeline(tmp_path / "generator", unet=(100, 100), vae=(50, 50))


def plan(wanted: Recipe, cache: Cache, *stages: Stage) -> Plan:
    with knowing(*(stages or STAGES)):
        return make_plan(wanted, cache)


def refused(wanted: Recipe, cache: Cache, *stages: Stage) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        plan(wanted, cache, *stages)
    return caught.value.problems


def only(problems: Sequence[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


# What is planned


def test_a_chain_is_planned_in_order_with_the_formats_each_step_leaves(llama: Path, cache: Cache) -> None:
    steps = (step(CUT), step(BUILD, after="demo.cut"), step(TUNE, after="demo.build"))
    found = plan(recipe(llama, *steps), cache)
    assert [node.id for node in found.nodes] == ["demo.cut", "demo.build", "demo.tune"]
    assert [node.expected.components["model"].format for node in found.nodes] == ["torch", "openvino", "openvino"]
    assert len({node.key for node in found.nodes}) == 3
    assert all(len(node.key) == 64 for node in found.nodes)


def test_a_recipe_without_stages_is_a_plan_that_only_measures(llama: Path, cache: Cache) -> None:
    found = plan(recipe(llama), cache)
    assert found.nodes == ()
    assert found.disk_bytes == 0
    assert found.source.artifact.path == llama


def test_a_step_works_on_the_denoiser_unless_it_names_other_components(generator: Path, cache: Cache) -> None:
    steps = (step(CUT), step(CUT, id="both", components=("vae", "text_encoder")))
    assert [node.components for node in plan(recipe(generator, *steps), cache).nodes] == [
        ("unet",),
        ("vae", "text_encoder"),
    ]


def test_a_build_changes_the_format_of_what_it_touches_alone(generator: Path, cache: Cache) -> None:
    (node,) = plan(recipe(generator, step(BUILD, components=("vae",))), cache).nodes
    formats = {name: part.format for name, part in node.expected.components.items()}
    assert formats == {"unet": "torch", "vae": "openvino", "text_encoder": "torch"}


def test_relative_models_and_data_start_where_their_lines_were_written(
    llama: Path, cache: Cache, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "texts.txt").write_text("one\n\ntwo")
    place = {"model": f"{tmp_path / 'top.yaml'}:3:8", "data.evaluate": f"{tmp_path / 'sub' / 'base.yaml'}:2:18"}
    found = plan(recipe("./llama", data={"evaluate": "texts.txt"}, place=place), cache)
    assert found.source.artifact.path == tmp_path / "llama"
    assert found.data["evaluate"].count == 2


def test_relative_models_from_python_start_at_the_current_folder(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.parent)
    assert plan(recipe("./llama"), cache).source.artifact.path.resolve() == llama.resolve()


# Keys and the cache


def keys(wanted: Recipe, cache: Cache, *stages: Stage) -> list[str]:
    return [node.key for node in plan(wanted, cache, *stages).nodes]


def test_planning_twice_gives_the_same_keys(llama: Path, cache: Cache) -> None:
    wanted = recipe(llama, step(CUT))
    assert keys(wanted, cache) == keys(wanted, cache)


@pytest.mark.parametrize("copied", ["with its folder", "under another name"])
def test_where_a_model_lies_does_not_count(llama: Path, cache: Cache, tmp_path: Path, copied: str) -> None:
    other = tmp_path / ("elsewhere/llama" if copied == "with its folder" else "renamed")
    shutil.copytree(llama, other)
    assert keys(recipe(llama, step(CUT)), cache) == keys(recipe(other, step(CUT)), cache)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_any_file_of_the_model_counts(llama: Path, cache: Cache, file: str) -> None:
    before = keys(recipe(llama, step(CUT)), cache)
    if file == "config.json":
        (llama / file).write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "rope_theta": 1}))
    elif file == "model.safetensors":
        with (llama / file).open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x01")
    else:
        (llama / file).write_text('{"model": {"vocab": {"b": 0}}, "added_tokens": []}')
    assert keys(recipe(llama, step(CUT)), cache) != before


def test_the_seed_and_the_version_of_a_stage_count(llama: Path, cache: Cache) -> None:
    before = keys(recipe(llama, step(CUT)), cache)
    assert keys(recipe(llama, step(CUT), seed=1), cache) != before
    assert keys(recipe(llama, step(CUT)), cache, replace(CUT, version=2)) != before


def test_a_name_an_id_and_what_is_measured_do_not_count(llama: Path, cache: Cache) -> None:
    before = keys(recipe(llama, step(CUT)), cache)
    measured = EvalSpec(metrics={"size": {}}, samples=9)
    assert keys(recipe(llama, step(CUT, id="other"), name="renamed", evaluate=measured), cache) == before


@pytest.mark.parametrize("role", ["calibration", "train"])
def test_data_counts_by_its_content_and_only_where_a_stage_reads_it(
    llama: Path, cache: Cache, tmp_path: Path, role: str
) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / f"{name}.txt").write_text(text)

    def key(stage: Stage, name: str) -> list[str]:
        return keys(recipe(llama, step(stage), data={role: str(tmp_path / f"{name}.txt")}), cache, stage)

    reading = needing(CUT, role)
    assert key(reading, "a") == key(reading, "b") != key(reading, "c")
    assert key(CUT, "a") == key(CUT, "c")


def test_the_teacher_counts_and_so_does_which_input_is_which(llama: Path, cache: Cache) -> None:
    def last(after: str, teacher: str) -> str:
        steps = (step(CUT, id="one", ratio=0.1), step(CUT, id="two", ratio=0.2))
        taught = replace(TUNE, inputs=("teacher",))
        wanted = recipe(llama, *steps, step(taught, after=after, inputs={"teacher": teacher}))
        return keys(wanted, cache, CUT, taught)[-1]

    assert len({last("one", "two"), last("two", "one"), last("one", "source"), last("one", "one")}) == 4


def test_processor_features_count_for_bound_stages_alone(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = replace(CUT, bound_to=frozenset({"isa"}))
    wanted = recipe(llama, step(CUT))
    found = {}
    for flags in ("avx2", "avx2 amx"):
        monkeypatch.setattr("compress.planning.keys.machine_fact", lambda kind, flags=flags: flags)
        found[flags] = (keys(wanted, cache, CUT), keys(wanted, cache, bound))
    (plain, tied), (plain_too, tied_elsewhere) = found.values()
    assert plain == plain_too
    assert tied != tied_elsewhere


def fill(cache: Cache, node: Any, seconds: float = 7) -> None:
    """Leave something in the cache under a node's key, as a run would."""
    out = cache.fresh()
    write_manifest(derive(node.expected, out))
    cache.put(node.key, out, {"seconds": seconds, "stage": node.stage.name, "notes": {}})


def test_what_is_cached_shows_and_takes_no_room(llama: Path, cache: Cache) -> None:
    wanted = recipe(llama, step(CUT), step(TUNE, after="demo.cut"))
    before = plan(wanted, cache)
    assert [node.cached for node in before.nodes] == [False, False]
    fill(cache, before.nodes[0])
    after = plan(wanted, cache)
    assert [node.cached for node in after.nodes] == [True, False]
    assert after.nodes[0].disk_bytes == 0
    assert after.disk_bytes == before.disk_bytes - before.nodes[0].disk_bytes
    assert keys(wanted, cache) == [node.key for node in before.nodes]


def test_the_time_is_known_once_every_stage_still_to_run_ran_here_before(llama: Path, cache: Cache) -> None:
    wanted = recipe(llama, step(CUT), step(TUNE, after="demo.cut"))
    cut, tune = plan(wanted, cache).nodes
    assert cut.work == durations.Work(6)  # parameters of the fake model
    cache.root.mkdir(exist_ok=True)
    durations.remember(cache, "demo.cut", 4.5, cut.work)
    assert plan(wanted, cache).seconds is None
    durations.remember(cache, "demo.tune", 0.5, tune.work)
    assert plan(wanted, cache).seconds == 5
    assert ", ~5 s of stages" in (shown := plan_text(plan(wanted, cache)))
    assert compress.text(plan(wanted, cache)) == shown
    assert repr(plan(wanted, cache)) == "<plan of demo: 2 stages, 0 of them cached; compress.text tells more>"
    for wrong in ("not a number", "0.5", "{}", '{"seconds": 1, "work": 0}', "[1]"):
        (cache.root / "seconds" / "demo.tune").write_text(wrong)
        assert plan(wanted, cache).seconds is None


# What cannot work


def test_an_unknown_component_is_refused_with_those_there_are(generator: Path, cache: Cache) -> None:
    wanted = recipe(generator, step(CUT, components=("transformer",), place="r.yaml:5:3"))
    problem = only(refused(wanted, cache))
    assert problem.place == "r.yaml:5:3"
    assert "no component `transformer`" in problem.message
    assert problem.fix == "it has `unet`, `vae`, `text_encoder`"


def test_a_wrong_format_names_the_step_that_made_it_and_turning_them_round_mends_it(llama: Path, cache: Cache) -> None:
    build = step(BUILD)
    problem = only(refused(recipe(llama, build, step(CUT, after="demo.build")), cache))
    assert problem.message == "demo.cut takes torch, but `model` is openvino after `demo.build`"
    assert problem.fix == "put demo.cut before demo.build"
    assert len(plan(recipe(llama, step(CUT), step(BUILD, after="demo.cut")), cache).nodes) == 2
    assert len(plan(recipe(llama, build, step(CUT, after="source")), cache).nodes) == 2


def test_what_follows_a_refused_step_is_not_blamed_for_it(llama: Path, cache: Cache) -> None:
    steps = (step(CUT, components=("unet",)), step(BUILD, after="demo.cut"), step(TUNE, after="demo.build"))
    assert "no component" in only(refused(recipe(llama, *steps), cache)).message


def test_a_stage_for_another_task_is_refused(llama: Path, cache: Cache) -> None:
    images = replace(CUT, needs=frozenset({"denoising"}))
    problem = only(refused(recipe(llama, step(CUT)), cache, images))
    fits = ", ".join(tasks_for(images.needs))
    assert "text_to_image" in fits
    assert problem.message == f"demo.cut works on {fits}, and this model does text_generation"


def test_a_stage_may_refuse_a_model_and_its_reason_is_reported(llama: Path, cache: Cache) -> None:
    problem = only(refused(recipe(llama, step(CUT)), cache, refusing(CUT, "heads come in pairs")))
    assert problem.message == "demo.cut: heads come in pairs"
    assert "pare explain demo.cut" in problem.fix


def test_missing_data_names_its_role(llama: Path, cache: Cache) -> None:
    problems = refused(recipe(llama, step(CUT)), cache, needing(CUT, "calibration", "train"))
    assert [p.message for p in problems] == ["demo.cut needs calibration data", "demo.cut needs train data"]
    assert problems[0].fix == "add data: {calibration: …}"


@pytest.mark.parametrize(
    ("extra", "command"), [("", "pip install absent_library"), ("gptq", "pip install 'pare[gptq]'")]
)
def test_a_missing_library_is_reported_with_the_command_that_installs_it(
    llama: Path, cache: Cache, extra: str, command: str
) -> None:
    needy = replace(CUT, libraries=("numpy", "absent_library"), extra=extra)
    problem = only(refused(recipe(llama, step(CUT)), cache, needy))
    assert problem.message == "demo.cut needs the library absent_library"
    assert problem.fix == command


def test_an_input_must_be_an_earlier_step(llama: Path, cache: Cache) -> None:
    taught = replace(CUT, inputs=("teacher",))
    wanted = recipe(llama, step(taught, inputs={"teacher": "demo.tune"}), step(TUNE))
    found = only(refused(wanted, cache, taught, TUNE))
    assert "input `teacher` names `demo.tune`, which is no earlier step" in found.message


def test_an_input_that_a_stage_does_not_take_is_refused(llama: Path, cache: Cache) -> None:
    problem = only(refused(recipe(llama, step(CUT, inputs={"teacher": "source"})), cache))
    assert (problem.message, problem.fix) == ("demo.cut takes no teacher", "remove it")


def test_what_a_stage_forecasts_is_reported_and_reaches_the_next_stages_plan(llama: Path, cache: Cache) -> None:
    seen: list[Any] = []

    def forecast(artifact: Any, params: Any) -> Forecast:
        seen.append(artifact.config("model").get("num_hidden_layers", 2))
        return Forecast({"model": {"num_hidden_layers": seen[-1] - 1}}, "one layer less", scratch_bytes=5_000_000)

    cutting = replace(CUT, forecast=forecast)
    with knowing(cutting):
        found = make_plan(recipe(llama, step(CUT), step(CUT, id="again", after="demo.cut")), cache)
    assert seen == [2, 1]
    assert [node.reported for node in found.nodes] == ["one layer less"] * 2
    with knowing(CUT):
        plain = make_plan(recipe(llama, step(CUT)), cache)
    assert found.nodes[0].disk_bytes == plain.nodes[0].disk_bytes + 5_000_000


def test_what_a_stage_forecasts_to_fail_is_a_problem_with_its_place(llama: Path, cache: Cache) -> None:
    def forecast(artifact: Any, params: Any) -> Forecast:
        raise UserError("no such width", fix="use prune.depth")

    problem = only(refused(recipe(llama, step(CUT, place="r.yaml:3:5")), cache, replace(CUT, forecast=forecast)))
    assert (problem.place, problem.message, problem.fix) == (
        "r.yaml:3:5",
        "demo.cut: no such width",
        "use prune.depth",
    )


@pytest.mark.parametrize("role", ["train", "calibration"])
@pytest.mark.parametrize(
    ("mine", "shared"),
    [("a\n\nb\n\nc", "every item"), ("x\n\nb", "1 item"), ("c\n\nx\n\nb", "2 items"), ("x\n\ny", "")],
)
def test_data_that_overlaps_the_evaluation_is_refused_with_how_much(
    llama: Path, cache: Cache, tmp_path: Path, role: str, mine: str, shared: str
) -> None:
    (tmp_path / "mine.txt").write_text(mine)
    (tmp_path / "evaluate.txt").write_text("a\n\nb\n\nc")
    data = {role: str(tmp_path / "mine.txt"), "evaluate": str(tmp_path / "evaluate.txt")}
    wanted = recipe(llama, data=data, place={f"data.{role}": "r.yaml:4:9"})
    if shared:
        problem = only(refused(wanted, cache))
        assert problem.message.startswith(f"data.{role} shares {shared} with data.evaluate")
        assert problem.place == "r.yaml:4:9"
    else:
        assert set(plan(wanted, cache).data) == {role, "evaluate"}


def test_the_same_zoo_split_twice_is_an_overlap_and_two_splits_are_none(generator: Path, cache: Cache) -> None:
    data = {"calibration": "zoo://digits/test", "evaluate": "zoo://digits/test"}
    assert "every item" in only(refused(recipe(generator, data=data), cache)).message
    assert plan(recipe(generator, data=data | {"calibration": "zoo://digits/validation"}), cache).data


def test_data_of_another_kind_than_the_model_reads_is_refused(llama: Path, cache: Cache) -> None:
    problem = only(refused(recipe(llama, data={"evaluate": "zoo://digits/test"}), cache))
    assert problem.message == "zoo://digits/test holds images with captions, and this model needs texts"


def test_a_metric_of_another_task_and_one_without_data_are_refused_where_they_stand(llama: Path, cache: Cache) -> None:
    place = {"evaluate.metrics.0": "r.yaml:6:1", "evaluate.metrics.1": "r.yaml:7:1"}
    wanted = recipe(llama, evaluate=EvalSpec(metrics={"kid": {}, "perplexity": {}}), place=place)
    found = [(p.place, p.message) for p in refused(wanted, cache)]
    fits = ", ".join(tasks_for(find_metric("kid").needs))
    assert "text_to_image" in fits
    assert ("r.yaml:6:1", f"kid measures {fits}, and this model does text_generation") in found
    assert ("r.yaml:7:1", "perplexity needs evaluation data") in found


def test_a_gate_that_its_metric_cannot_answer_is_refused_before_anything_runs(llama: Path, cache: Cache) -> None:
    wanted = recipe(llama, evaluate=EvalSpec(metrics={"size": {}}), gates={"size": Gate()})
    assert only(refused(wanted, cache)).message.startswith("gate size: ")


def test_a_model_that_is_none_and_data_that_is_none_are_reported_in_one_go(tmp_path: Path, cache: Cache) -> None:
    place = {"model": "r.yaml:3:8", "data.evaluate": "r.yaml:4:18"}
    wanted = recipe(tmp_path / "nowhere", step(CUT), data={"evaluate": "nowhere.txt"}, place=place)
    problems = refused(wanted, cache)
    assert [p.place for p in problems] == ["r.yaml:3:8", "r.yaml:4:18"]
    assert str(tmp_path / "nowhere") in problems[0].message
    assert all(p.fix for p in problems)


def test_every_problem_of_every_step_is_reported_at_once(generator: Path, cache: Cache) -> None:
    steps = (
        step(CUT, id="a", components=("nose",)),
        step(CUT, id="b", components=("ear",)),
        step(BUILD, id="c"),
        step(CUT, id="d", after="c"),
    )
    message = " ".join(p.message for p in refused(recipe(generator, *steps), cache))
    assert all(word in message for word in ("`nose`", "`ear`", "openvino after `c`"))


# Room


def written_bytes(folder: Path) -> int:
    return sum((folder / f).stat().st_size for f in list_files(folder))


def upper_bound_cases() -> list[tuple[str, dict[str, Any]]]:
    return [("demo.tune", {}), ("demo.cut", {}), ("demo.cut", {"components": ("vae", "unet")})]


@pytest.mark.parametrize(("name", "options"), upper_bound_cases())
def test_the_disk_estimate_is_an_upper_bound_of_what_a_step_after_the_source_writes(
    cache: Cache, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = pipeline(tmp_path / "large", unet=(100, 100), vae=(700, 1000), text_encoder=(600, 1000))
    stage = next(s for s in STAGES if s.name == name)
    (node,) = plan(recipe(model, step(stage, **options)), cache).nodes
    out = tmp_path / "out"
    write_manifest(derive(describe(model), out, link=False))  # the least that any stage leaves; it must copy the source
    assert written_bytes(out) <= node.disk_bytes


def test_settings_behind_another_step_link_its_files_and_take_next_to_nothing(generator: Path, cache: Cache) -> None:
    first, second = plan(recipe(generator, step(CUT), step(TUNE, after="demo.cut")), cache).nodes
    assert second.disk_bytes <= 1_000_000 < first.disk_bytes


def test_the_estimate_counts_float32_weights_whatever_the_file_holds(cache: Cache, tmp_path: Path) -> None:
    small = plan(recipe(language_model(tmp_path / "s", (1000, 1000)), step(CUT)), cache)
    large = plan(recipe(language_model(tmp_path / "l", (2000, 1000)), step(CUT)), cache)
    assert large.disk_bytes - small.disk_bytes >= 4_000_000
    assert large.memory_bytes - small.memory_bytes == 3 * 4_000_000
    assert small.memory_bytes > 10**9  # two processes with their libraries


def machine(monkeypatch: pytest.MonkeyPatch, *, disk: int = 100 * GIB, memory: int = 100 * GIB) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=disk, used=0, free=disk))
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)


def test_a_model_too_large_for_the_disk_is_refused_with_both_numbers(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, disk=500_000)
    problem = only(refused(recipe(llama, step(CUT)), cache))
    assert problem.place == str(cache.root)
    assert re.fullmatch(
        r"needs about [1-9]\d* MB of disk, [1-9]\d* MB of it for demo.cut, and 0 MB are free", problem.message
    )
    assert "--cache" in problem.fix


def test_a_model_too_large_for_memory_is_refused_with_both_numbers(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, memory=16 * 10**9)
    huge = language_model(tmp_path / "huge", (40_000, 50_000), real=False)  # two billion parameters, no room on disk
    monkeypatch.setattr("compress.sources.models.digest_folder", lambda path, memory: "digest")
    problem = only(refused(recipe(huge, step(CUT), place={"model": "r.yaml:3:8"}), cache))
    assert problem.place == "r.yaml:3:8"
    assert "needs about 25.1 GB of memory, and this machine has 16.0 GB" in problem.message
    assert len(plan(recipe(huge), cache).nodes) == 0  # with nothing to run, nothing is refused


def test_a_small_disk_is_no_hindrance_once_everything_is_cached(
    llama: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(llama, step(CUT))
    fill(cache, plan(wanted, cache).nodes[0])
    machine(monkeypatch, disk=10, memory=10)
    assert plan(wanted, cache).disk_bytes == 0


def test_planning_writes_no_entry_and_makes_no_cache_folder(llama: Path, tmp_path: Path) -> None:
    elsewhere = Cache(tmp_path / "not" / "yet")
    assert not plan(recipe(llama, step(CUT)), elsewhere).nodes[0].cached
    assert not (elsewhere.root / "entries").exists()


# Speed


def test_planning_the_quickstart_imports_no_heavy_library(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'openvino', 'nncf', 'scipy', 'pandas', 'PIL', 'safetensors'}"
    code = f"import sys, compress; compress.plan('recipes/quickstart.yaml', cache=sys.argv[1]); print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


# Packed weights


@pytest.mark.parametrize(
    "stages",
    [
        "[build.openvino: {precision: int8_weights}, quantize.nncf: {mode: int4_weights}]",
        "[build.openvino: {}, quantize.nncf: {mode: int8_weights}, quantize.nncf: {mode: int4_weights}]",
    ],
)
def test_what_holds_few_bits_already_is_not_quantized_again(stages: str, llama: Path, tmp_path: Path) -> None:
    from compress import api

    file = tmp_path / "r.yaml"
    file.write_text(f"schema: 1\nname: r\nmodel: {llama}\nstages: {stages}\n")
    with pytest.raises(RecipeError) as caught:
        api.plan(file, cache=tmp_path / "cache")
    (problem,) = (p for p in caught.value.problems if "already" in p.message)
    assert "are int8_weights already, and quantize.nncf cannot change packed weights" in problem.message
    at_build = "precision" in stages
    either = "leave quantize.nncf out, or the precision of build.openvino"
    assert problem.fix == (either if at_build else "keep one of the stages that quantize it")


# How far a model's positions reach


@pytest.mark.parametrize(
    ("metrics", "tokens", "message"),
    [
        (["latency"], (60, 8), "prompt_tokens and new_tokens are 68 together, and the model has 64 positions"),
        (["token_agreement"], (60, 8), "68 together"),
        (["latency"], (56, 8), ""),
        (["size"], (60, 8), ""),
    ],
)
def test_more_tokens_than_a_table_of_positions_holds_are_refused(
    metrics: list[str], tokens: tuple[int, int], message: str, llama: Path, tmp_path: Path
) -> None:
    from compress import api

    prompt, new = tokens
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 64, "vocab_size": 8}
    (llama / "config.json").write_text(json.dumps(config))
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    file = tmp_path / "r.yaml"
    file.write_text(
        f"schema: 1\nname: r\nmodel: {llama}\ndata: {{evaluate: t.txt}}\n"
        f"evaluate: {{metrics: {metrics}, prompt_tokens: {prompt}, new_tokens: {new}}}\n"
    )
    if not message:
        api.plan(file, cache=tmp_path / "cache")
        return
    with pytest.raises(RecipeError, match=message) as caught:
        api.plan(file, cache=tmp_path / "cache")
    assert caught.value.problems[0].place.startswith(f"{file}:5:")
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 64}
    (llama / "config.json").write_text(json.dumps(config))
    (warned,) = api.plan(file, cache=tmp_path / "cache").warnings  # which computes its positions
    assert message in warned
    assert "ask for fewer" in warned
    config["max_position_embeddings"] = 68
    (llama / "config.json").write_text(json.dumps(config))
    assert api.plan(file, cache=tmp_path / "cache").warnings == ()
