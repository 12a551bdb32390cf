"""`build.fastest` on tiny models: what it keeps is what its own table says, and the whole table is reported."""

from __future__ import annotations

import errno
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.artifact import Artifact
from compress.building import fastest as chooser
from compress.building.hooked_trials import apart_in_steps, twin, ways
from compress.building.racing import Pace, fastest, race, undecided
from compress.catalogue import find_stage
from compress.engines.torch.runtime import first_tensor
from compress.errors import RecipeError, StageFailed, UserError
from compress.machine import deps
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.graphed import Graphed
from compress.planning.keys import stage_key
from compress.stages.build import fastest as stage_file
from compress.stages.build.fastest import HOOKS, BuildFastest, hooks_on, misplaced, parts, refuse
from tests.graphs import pretended
from tests.stages import CAPTIONS, apply
from tests.tiny import tiny_diffusion, tiny_llama

FEW: dict[str, Any] = {"engines": ("openvino",), "blocks": 4, "new_tokens": 6, "prompt_tokens": 8}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


def test_the_fastest_of_the_table_is_kept_and_generates_as_torch(pipeline: Artifact, tmp_path: Path) -> None:
    made, notes = apply(
        "build.fastest", pipeline, tmp_path / "out", components=("vae",), precisions=("float32", "bfloat16"), **FEW
    )
    table: Any = notes[0].facts["tried"]
    assert next(row["engine"] for row in table) == notes[0].facts["kept"]
    assert {row["engine"] for row in table} == {"torch", "openvino float32", "openvino bfloat16"}
    assert all(row["milliseconds"] > 0 for row in table if not row["why not"])
    assert next(row for row in table if row["engine"] == "torch")["times torch"] == 1
    assert made.components["vae"].format == notes[0].facts["kept"].split()[0]
    assert made.components["unet"].format == "torch"
    ours, theirs = (
        open_task(a).generate(CAPTIONS[:2], ["0", "1"], 0, num_inference_steps=2).astype(int)  # type: ignore[union-attr]
        for a in (made, pipeline)
    )
    assert np.abs(ours - theirs).max() <= 4
    left = {f.name for f in tmp_path.glob("*-scratch/trials/vae/*")}  # the losers have made room already
    assert left == {"decision.json", notes[0].facts["kept"]} - {"torch"}


def test_what_differs_too_much_is_timed_never_kept_and_message(llama: Artifact, tmp_path: Path) -> None:
    made, notes = apply(
        "build.fastest", llama, tmp_path / "out", precisions=("float32", "int4_weights"), within=1e-3, **FEW
    )
    rows = {row["engine"]: row for row in notes[0].facts["tried"]}  # type: ignore[attr-defined]
    assert rows["openvino int4_weights"]["difference"] > 1e-3
    assert "differs from torch" in rows["openvino int4_weights"]["why not"]
    assert notes[0].facts["kept"] in ("openvino float32", "torch")
    assert len(open_task(made).generate([[5, 6, 7]], 4)[0]) == 4  # type: ignore[union-attr]


def test_where_no_engine_is_near_enough_the_stage_says_why(llama: Artifact, tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"no engine took `model` within 1e-12 of torch \(openvino float32: differs by"
    ):
        apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), within=1e-12, **FEW)


@pytest.mark.slow
def test_native_code_may_win(llama: Artifact, tmp_path: Path) -> None:
    options = {**FEW, "engines": ("compiled",)}
    made, notes = apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **options)
    assert {row["engine"]: row["why not"] for row in notes[0].facts["tried"]} == {"compiled float32": "", "torch": ""}  # type: ignore[attr-defined]
    assert len(open_task(made).generate([[5, 6, 7]], 4)[0]) == 4  # type: ignore[union-attr]


def test_an_interrupted_choice_builds_nothing_twice(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compress.building.fastest

    def cut_off(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(compress.building.fastest, "race", cut_off)
    with pytest.raises(KeyboardInterrupt):
        apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **FEW)
    built = list((tmp_path / "out-scratch").rglob("openvino_model.xml"))
    assert len(built) == 1
    stamp = built[0].stat().st_mtime_ns
    monkeypatch.setattr(compress.building.fastest, "_assemble", cut_off)
    # Losers go at once, and beside noise torch may win on a model this small.
    monkeypatch.setattr(
        compress.building.fastest, "race", lambda calls, _: {n: Pace(1.0 + (n == "torch"), 0.0) for n in calls}
    )
    (tmp_path / "out").rmdir()
    with pytest.raises(KeyboardInterrupt):
        apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **FEW)
    assert built[0].stat().st_mtime_ns == stamp


def test_a_recipe_with_it_runs_caches_and_says_what_may_follow(llama: Artifact, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    step = "build.fastest: {engines: [openvino], precisions: [float32], blocks: 4, new_tokens: 4, prompt_tokens: 8}"
    recipe.write_text(f"schema: 1\nname: x\nmodel: {llama.path}\nstages:\n  - {step}\n")
    plan = compress.plan(recipe, cache=tmp_path / "cache")
    assert plan.nodes[0].reported == "tries openvino in float32, beside torch in float32"
    compress.run(recipe, cache=tmp_path / "cache", out=tmp_path / "runs")
    assert compress.plan(recipe, cache=tmp_path / "cache").nodes[0].cached
    recipe.write_text(recipe.read_text() + "  - quantize.nncf: {mode: int8_weights}\n")
    with pytest.raises(RecipeError, match=r"takes openvino, but `model` is fastest after `build\.fastest`"):
        compress.check(recipe, cache=tmp_path / "cache")


def test_an_engine_nobody_knows_is_refused(llama: Artifact) -> None:
    stage = find_stage("build.fastest")
    assert "there is no engine warp" in stage.refuse(llama, stage.params(engines=("warp",)))
    assert "no component unet" in stage.refuse(llama, stage.params(components=("unet",)))


def test_what_noise_does_not_tell_apart_is_undecided() -> None:
    best = Pace(1.0, 0.1)
    assert undecided({"best": best, "near": Pace(1.2, 0.1), "far": Pace(1.3, 0.1)}) == ("best", "near")
    assert undecided({"noisy": Pace(1.5, 0.3), "best": best}) == ("noisy", "best")
    assert undecided({"best": best, "far": Pace(1.3, 0.05)}) == ("best",)


def test_those_that_are_close_race_again_for_longer(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compress.building.fastest

    recorded: list[tuple[set[str], int]] = []
    table = {"torch": Pace(1.1, 0.1), "openvino float32": Pace(1.0, 0.1)}

    def racing(calls: Any, blocks: int) -> dict[str, Pace]:
        recorded.append((set(calls), blocks))
        again = len(recorded) == 2  # the longer look turns them round
        return {n: Pace(2 - table[n].seconds, 0.01) if again else table[n] for n in calls}

    monkeypatch.setattr(compress.building.fastest, "race", racing)
    _, notes = apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **FEW)
    assert recorded == [(set(table), 4), (set(table), 12)]
    assert notes[0].facts["kept"] == "torch"
    assert [row["engine"] for row in notes[0].facts["tried"]] == list(table)  # type: ignore[attr-defined]


@pytest.mark.alone
def test_a_race_finds_the_faster_and_takes_turns() -> None:
    recorded: list[str] = []

    def work(name: str, seconds: float) -> Any:
        import time

        def call() -> None:
            recorded.append(name)
            time.sleep(seconds)

        return call

    paces = race({"slow": work("slow", 0.06), "quick": work("quick", 0.025)}, blocks=4)
    assert fastest(paces) == "quick"
    assert paces["slow"].seconds > paces["quick"].seconds > 0.02
    blocks = [tuple(recorded[i : i + 2]) for i in range(len(recorded) - 8, len(recorded), 2)]
    assert set(blocks) == {("slow", "quick"), ("quick", "slow")}  # either goes first in some


def test_a_choice_cut_off_anywhere_goes_on(llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compress.building.fastest

    def cut_off(*args: Any) -> Any:
        raise KeyboardInterrupt

    def again() -> Any:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **FEW)

    slow_torch = {"torch": Pace(2.0, 0.01), "openvino float32": Pace(1.0, 0.01)}
    monkeypatch.setattr(compress.building.fastest, "race", lambda calls, blocks: slow_torch)
    for place in ("_drop_others", "_table", "_place"):  # a build, a race, and the last step, each half done
        with monkeypatch.context() as patch:
            patch.setattr(compress.building.fastest, place, cut_off)
            with pytest.raises(KeyboardInterrupt):
                again()
    monkeypatch.setattr(compress.building.fastest, "race", cut_off)  # what was decided is not raced again
    made, notes = again()
    assert notes[0].facts["kept"] == "openvino float32"
    assert made.components["model"].format == "openvino"
    assert len(open_task(made).generate([[5, 6, 7]], 4)[0]) == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "no room"), OSError),
        (MemoryError(), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ],
)
def test_want_of_disk_or_memory_is_no_answer_about_an_engine(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    import compress.building.fastest

    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(compress.building.fastest, "_run", fail)
    with pytest.raises(kind):
        apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **FEW)


def test_an_engine_that_fails_at_its_first_call_is_reported_and_not_kept(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.engines.openvino.runtime import Stateful

    real = Stateful.step

    def too_long(self: Any, tokens: Any, past: Any) -> Any:
        if tokens.shape[1] == FEW["prompt_tokens"]:
            raise UserError("the graph takes other sizes")
        return real(self, tokens, past)

    monkeypatch.setattr(Stateful, "step", too_long)
    options = {**FEW, "engines": ("openvino", "onnxruntime")}
    made, notes = apply("build.fastest", llama, tmp_path / "out", precisions=("float32",), **options)
    rows = {row["engine"]: row["why not"] for row in notes[0].facts["tried"]}  # type: ignore[attr-defined]
    assert rows == {"openvino float32": "the graph takes other sizes", "onnxruntime float32": "", "torch": ""}
    assert made.components["model"].format in ("onnx", "torch")


def test_a_newer_engine_makes_the_choice_anew(llama: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = find_stage("build.fastest")
    params = stage.params(engines=("openvino",))

    def key() -> str:
        return stage_key(stage, "text_generation", params, ("model",), {}, 0)

    before, real = key(), deps.version
    assert key() == before
    with monkeypatch.context() as patch:
        patch.setattr(deps, "version", lambda name: "99.0" if name == "openvino" else real(name))
        assert key() != before
    newer = replace(find_stage("build.openvino"), version=99)
    assert (
        stage_key(replace(stage, calls=lambda params: (newer,)), "text_generation", params, ("model",), {}, 0) != before
    )


def test_a_batch_beyond_what_its_engines_are_built_for_is_refused(llama: Artifact) -> None:
    stage = find_stage("build.fastest")
    compiled = {"engines": ("compiled",), "batch": 32}
    assert "batch: 32 lies outside its profile, which takes 1 to 16" in stage.refuse(llama, stage.params(**compiled))
    assert stage.refuse(llama, stage.params(**compiled, profile={"batch": (1, 32, 32)})) == ""
    assert stage.refuse(llama, stage.params(engines=("openvino",), batch=32)) == ""


# ---------------------------------------------------------------- torch itself, with hooks


def test_each_hook_is_tried_by_itself_and_with_the_others() -> None:
    assert ways(("compile", "cuda_graph")) == (("compile",), ("cuda_graph",), ("compile", "cuda_graph"))
    assert ways(()) == ()


def test_on_a_gpu_torch_is_tried_with_both_and_elsewhere_with_what_is_named(llama: Artifact) -> None:
    plain = llama
    named = BuildFastest(hooks=("cuda_graph",))
    assert hooks_on(BuildFastest(), "cuda:0") == HOOKS
    assert hooks_on(BuildFastest(), "cpu") == {}
    assert hooks_on(named, "cpu") == {"cuda_graph": "accelerate.cuda_graph"}
    assert "taken on an NVIDIA GPU" in misplaced(plain, named, "cpu")
    assert misplaced(plain, named, "cuda:0") == ""
    for params, device in (
        (BuildFastest(), "mps"),
        (BuildFastest(engines=()), "cpu"),
        (BuildFastest(engines=(), hooks=()), "cuda:0"),
    ):
        assert "nothing is tried beside plain torch" in misplaced(plain, params, device)
    assert misplaced(plain, BuildFastest(engines=()), "cuda:0") == ""


def test_without_engines_the_main_component_alone_is_tried(pipeline: Artifact) -> None:
    assert set(parts(pipeline, BuildFastest())) == {"unet", "vae", "text_encoder"}
    assert parts(pipeline, BuildFastest(engines=(), hooks=("compile",))) == ("unet",)
    why = refuse(pipeline, BuildFastest(engines=(), hooks=("compile",), components=("vae",)))
    assert why == "hooks are tried in `unet`, and for vae no engine is named"


def test_a_graph_that_answers_no_call_is_no_way_to_run(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**FEW, "engines": (), "new_tokens": 4}
    monkeypatch.setattr(Graphed, "_not_now", lambda self: "hooks hang on its parts")
    message = "torch cuda_graph: no graph answers its calls: hooks hang on its parts"
    warnings.simplefilter("ignore")  # each eager call's own; pytest sets back what was
    with pretended(), pytest.raises(StageFailed, match=message):
        apply("build.fastest", llama, tmp_path / "out", hooks=("cuda_graph",), **few)


@pytest.mark.parametrize("kept", [pytest.param("torch", marks=pytest.mark.slow), "torch compile"])
def test_compiled_blocks_are_compared_timed_and_kept_where_they_win(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(chooser, "race", lambda calls, _: {n: Pace(1.0 + (n != kept), 0.0) for n in calls})
    few = {**FEW, "engines": (), "new_tokens": 3}
    made, notes = apply("build.fastest", llama, tmp_path / "out", hooks=("compile",), **few)
    rows: Any = {row["engine"]: row for row in notes[0].facts["tried"]}  # type: ignore[attr-defined]
    assert rows.keys() == {"torch", "torch compile"}
    assert 0 < rows["torch compile"]["difference"] < 1e-5
    assert notes[0].facts["kept"] == kept
    assert [one.name for one in made.settings.hook] == (["accelerate.compile"] if "compile" in kept else [])
    assert made.components["model"].format == "torch"
    assert open_task(made).generate([[5, 6, 7]], 4) == open_task(llama).generate([[5, 6, 7]], 4)  # type: ignore[union-attr]


def test_a_graph_is_held_to_torch_in_the_steps_that_it_replays(llama: Artifact, tmp_path: Path) -> None:
    few = {**FEW, "engines": (), "new_tokens": 4}
    with pretended():
        made, notes = apply("build.fastest", llama, tmp_path / "out", hooks=("cuda_graph",), **few)
        (row,) = [row for row in notes[0].facts["tried"] if row["engine"] != "torch"]  # type: ignore[attr-defined]
        assert row["milliseconds"] > 0
        assert row["difference"] < 1e-5
    won = notes[0].facts["kept"] == "torch cuda_graph"
    assert [one.name for one in made.settings.hook] == (["accelerate.cuda_graph"] if won else [])


def test_a_hook_that_changes_the_steps_is_seen(llama: Artifact) -> None:
    plain = open_task(llama, Opening("float32")).model  # type: ignore[union-attr]
    other, prompt = twin(plain), torch.tensor([[5, 6, 7]])
    call = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 4, "min_new_tokens": 4}
    assert apart_in_steps(prompt, call, plain, other).relative == 0
    real = other.forward
    later = lambda *a, **k: _scaled(real(*a, **k), 1.5 if k["input_ids"].shape[1] == 1 else 1)  # noqa: E731
    other.forward = later
    assert apart_in_steps(prompt, call, plain, other).relative > 0.1
    assert plain.forward is not later
    assert next(other.parameters()).data_ptr() == next(plain.parameters()).data_ptr()


def test_a_score_that_is_no_number_is_no_agreement(llama: Artifact) -> None:
    plain = open_task(llama, Opening("float32")).model  # type: ignore[union-attr]
    other, prompt = twin(plain), torch.tensor([[5, 6, 7]])
    call = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 4, "min_new_tokens": 4}
    real = other.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = real(*args, **kwargs)
        output.logits[..., 9] = float("nan")
        return output

    other.forward = broken
    assert apart_in_steps(prompt, call, plain, other).relative == float("inf")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_torch_is_raced_in_the_type_that_is_asked_for_whatever_it_is_stored_in(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = describe(tiny_diffusion(tmp_path / "model", dtype=torch.bfloat16))
    seen: list[torch.dtype] = []

    def race(calls: Any, blocks: int) -> dict[str, Pace]:
        seen.extend(first_tensor(call()).dtype for call in calls.values())
        return {name: Pace(1.0 + (name == "torch"), 0.0) for name in calls}

    monkeypatch.setattr(chooser, "race", race)
    options = {**FEW, "engines": (), "hooks": ("cuda_graph",), "torch_dtype": dtype}
    with pretended():
        made, _ = apply("build.fastest", stored, tmp_path / "out", **options)
    assert set(seen) == {getattr(torch, dtype)}
    assert made.settings.hook


def test_parts_that_nothing_else_runs_stay_in_torch(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU beside engines of the processor: the denoiser has hooks, and the others have nothing."""
    monkeypatch.setattr(stage_file, "elsewhere", lambda format, opening: "it runs on cpu")
    monkeypatch.setattr(chooser, "race", lambda calls, _: {n: Pace(1.0 + (n == "torch"), 0.0) for n in calls})
    with pretended():
        made, notes = apply("build.fastest", pipeline, tmp_path / "out", **{**FEW, "hooks": ("cuda_graph",)})
    assert {part.format for part in made.components.values()} == {"torch"}
    assert [n.facts["component"] for n in notes if "nothing else runs" in n.message] == ["text_encoder", "vae"]
    assert notes[-1].facts["kept"] == "torch cuda_graph"


def test_what_cannot_be_tried_is_told_by_the_plan(llama: Artifact, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for step, why in (
        ("{engines: [openvin]}", "there is no engine openvin"),
        (
            "{engines: [onnxruntime], precisions: [float16]}",
            "nothing is tried beside plain torch on cpu: float16 is for GPUs here",
        ),
        ("{engines: [openvino], precisions: [float8]}", "no engine that has such a precision, and no hook"),
        ("{engines: [openvino], precisions: [float8], hooks: [compile]}", "none of openvino has float8"),
        ("{engines: [openvino], precisions: [], hooks: [compile]}", "precisions names none for the engines"),
        ("{engines: [tensorrt]}", "nothing is tried beside plain torch on cpu: there is no NVIDIA GPU available here"),
    ):
        recipe.write_text(f"schema: 1\nname: x\nmodel: {llama.path}\nstages:\n  - build.fastest: {step}\n")
        with pytest.raises(RecipeError) as caught:
            compress.plan(recipe, cache=tmp_path / "cache")
        assert why in caught.value.problems[0].message


def test_of_ways_that_noise_does_not_tell_apart_the_nearest_to_torch_is_kept(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"torch": 2.0, "openvino float32": 1.02, "openvino int8_weights": 1.0}
    for spread, kept in ((0.05, "openvino float32"), (0.001, "openvino int8_weights")):
        monkeypatch.setattr(chooser, "race", lambda calls, _, s=spread: {n: Pace(seconds[n], s) for n in calls})
        _, notes = apply("build.fastest", llama, tmp_path / kept, precisions=("float32", "int8_weights"), **FEW)
        assert (notes[0].facts["kept"], notes[0].facts["torch in"]) == (kept, "float32")


def test_a_race_in_other_numbers_than_the_evaluations_is_warned_of(llama: Artifact, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    body = (
        "schema: 1\nname: x\nmodel: {model}\nstages: [build.fastest: {{engines: [openvino]{more}}}]\n"
        "evaluate: {{metrics: [size], baseline: {{dtype: bfloat16}}}}\n"
    )
    for more, warned in (("", True), (", torch_dtype: bfloat16", False)):
        recipe.write_text(body.format(model=llama.path, more=more))
        found = [one for one in compress.plan(recipe, cache=tmp_path / "cache").warnings if "times torch in" in one]
        assert bool(found) == warned
        assert not found or found[0].endswith("set its torch_dtype to bfloat16")


def _scaled(output: Any, by: float) -> Any:
    output.logits = output.logits * by
    return output


@pytest.mark.slow
def test_a_denoiser_takes_hooks_beside_an_engine_of_another_part(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winners = ("torch cuda_graph", "openvino float32")
    monkeypatch.setattr(chooser, "race", lambda calls, _: {n: Pace(1.0 + (n not in winners), 0.0) for n in calls})
    with pretended():
        options = {**FEW, "components": ("unet", "vae"), "precisions": ("float32",), "hooks": ("cuda_graph",)}
        made, notes = apply("build.fastest", pipeline, tmp_path / "out", **options)
    first = {note.facts["component"]: note.facts["kept"] for note in notes if "kept" in note.facts}
    assert first["vae"] == "openvino float32"
    assert made.components["vae"].format == "openvino"
    assert first["unet"] in winners
    assert [one.component for one in made.settings.hook] == (["unet"] if first["unet"] == winners[0] else [])


def test_a_recipe_says_what_torch_is_tried_with(llama: Artifact, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    step = "build.fastest: {engines: [], hooks: [compile]}"
    recipe.write_text(f"schema: 1\nname: x\nmodel: {llama.path}\nstages:\n  - {step}\n")
    assert (
        compress.plan(recipe, cache=tmp_path / "cache").nodes[0].reported
        == "tries torch with compile, beside torch in float32"
    )
    recipe.write_text(recipe.read_text().replace("compile", "cuda_graph"))
    with pytest.raises(RecipeError, match="a CUDA graph is taken on an NVIDIA GPU, and the device is cpu") as caught:
        compress.plan(recipe, cache=tmp_path / "cache")
    assert caught.value.problems[0].fix == "leave cuda_graph out of `hooks`"


def test_of_a_union_the_branch_that_was_meant_is_spoken_of(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for given, place, message in (
        ("[cuda_graphs]", 29, "build.fastest.hooks.0 must be one of 'compile' or 'cuda_graph', not \"cuda_graphs\""),
        ("compile", 28, "build.fastest.hooks must be a list or one of 'auto', not \"compile\""),
    ):
        recipe.write_text(f"schema: 1\nname: r\nmodel: ./m\nstages:\n  - build.fastest: {{hooks: {given}}}\n")
        with pytest.raises(RecipeError) as caught:
            compress.plan(recipe, cache=tmp_path / "cache")
        assert [(p.place, p.message) for p in caught.value.problems if "hooks" in p.message] == [
            (f"{recipe}:5:{place}", message)
        ]
