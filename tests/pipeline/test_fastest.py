"""`build.fastest` on tiny models: what it keeps is what its own table says, and the whole table is reported."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.artifact import Artifact
from compress.building.racing import Pace, fastest, race, undecided
from compress.catalogue import find_stage
from compress.errors import RecipeError, StageFailed, UserError
from compress.machine import deps
from compress.model.describing import describe
from compress.opening import open_task
from compress.planning.keys import stage_key
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
    assert "tries openvino in float32" in plan.nodes[0].reported
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
