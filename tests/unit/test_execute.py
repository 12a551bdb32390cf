"""The executor: what it gives a stage, what it holds the result to, and what it leaves behind when something goes wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compress.artifact import derive, write_manifest
from compress.catalogue import Stage
from compress.errors import CacheError, ContractError, MissingLibrary, StageFailed, UserError
from compress.events import Event, silent
from compress.execution.execute import Done, execute
from compress.execution.reload import Checker, Spare, lent_checker
from compress.files.hashing import digest_folder
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE, Profile
from compress.params import Params
from compress.planning.plan import make_plan
from compress.recipe.values import StepSpec
from compress.store.cache import Cache
from tests.fakes import BUILD, CUT, TUNE, knowing, language_model, needing, pipeline, recipe, step
from tests.tiny import tiny_llama

Tensors = dict[str, np.ndarray[Any, Any]]
Work = Callable[[Any, Any, Any], None]
WEIGHTS = "model.safetensors"


@dataclass
class Trusting:
    """A checker that has seen nothing and believes everything."""

    starts: int = 0
    asked: list[Profile] = field(default_factory=list)

    def start(self, task: str) -> None:
        self.starts += 1

    def probe(self, folder: Path, profile: Profile = ANY_SIZE, *, trust: bool = False) -> dict[str, Any]:
        self.asked.append(profile)
        return {"finite": True, "spread": 1.0, "digest": ""}


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Trusting:
    checker = Trusting()
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(checker))
    return checker


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, stranger: Checker) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("real") / "llama")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


def run(cache: Cache, model: Path, *pairs: tuple[Stage, StepSpec], emit: Any = silent, **more: Any) -> tuple[Done, ...]:
    with knowing(*(stage for stage, _ in pairs)):
        return execute(make_plan(recipe(model, *(spec for _, spec in pairs), **more), cache), cache, emit)


def one(cache: Cache, model: Path, stage: Stage, work: Work, emit: Any = silent, **more: Any) -> Done:
    """Run one stage that does `work`."""
    working = replace(stage, run=work)
    return run(cache, model, (working, step(working, place="r.yaml:7:3", **more)), emit=emit)[0]


def copying(artifact: Any, params: Any, context: Any) -> None:
    write_manifest(derive(artifact, context.out, link=context.link))


def rewriting(change: Callable[[Tensors], None], file: str = WEIGHTS) -> Work:
    """A stage's work that changes the tensors of one file."""

    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, without=(file,), link=context.link)
        tensors = {name: value.copy() for name, value in load_file(artifact.path / file).items()}
        change(tensors)
        save_file(tensors, context.out / file, metadata={"format": "pt"})
        write_manifest(made)

    return work


def add_one(tensors: Tensors) -> None:
    for value in tensors.values():
        value += 1


def leaving(name: str, content: bytes | None) -> Work:
    """A stage's work that changes the weights as it should, and then spoils a file, or removes it."""

    def work(artifact: Any, params: Any, context: Any) -> None:
        rewriting(add_one)(artifact, params, context)
        (context.out / name).unlink(missing_ok=True)
        if content is not None:
            (context.out / name).write_bytes(content)

    return work


def raising(error: BaseException) -> Work:
    def work(artifact: Any, params: Any, context: Any) -> None:
        (context.out / "half").write_text("done")
        (context.scratch / "checkpoint").write_text("step 3")
        raise error

    return work


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What a stage is given


def test_a_stage_gets_its_seed_its_inputs_and_an_empty_folder(cache: Cache, llama: Path, trusting: Trusting) -> None:
    given: list[Any] = []

    def work(artifact: Any, params: Any, context: Any) -> None:
        given.append((artifact, params, context, names(context.out)))
        rewriting(add_one)(artifact, params, context)

    stage = replace(CUT, run=work)
    taught = replace(stage, name="demo.teach", inputs=("teacher",))
    pairs = [
        (stage, step(stage, id="first")),
        (taught, step(taught, id="second", after="first")),  # the source teaches, where the recipe names nobody
    ]
    run(cache, llama, *pairs, seed=7)
    (source, _, alone, before), (artifact, params, context, _) = given
    assert before == []
    assert source.path == llama
    assert artifact.path.parent == cache.root / "entries"
    assert params == step(CUT).params
    assert (alone.seed, context.seed) == (7, 7)
    assert context.inputs["teacher"].path == llama
    assert dict(alone.inputs) == {}


def test_a_stage_after_the_source_copies_and_a_later_one_may_link(
    cache: Cache, llama: Path, trusting: Trusting
) -> None:
    cut, tune = replace(CUT, run=rewriting(add_one)), replace(TUNE, run=copying)
    first, second = run(cache, llama, (cut, step(cut)), (tune, step(tune, after="demo.cut")))
    inode = (llama / "config.json").stat().st_ino
    assert (first.artifact.path / "config.json").stat().st_ino != inode
    assert (second.artifact.path / WEIGHTS).stat().st_ino == (first.artifact.path / WEIGHTS).stat().st_ino


def test_a_stage_gets_only_the_data_that_counts_in_its_key(
    cache: Cache, llama: Path, trusting: Trusting, tmp_path: Path
) -> None:
    for role in ("train", "calibration", "evaluate"):
        (tmp_path / f"{role}.txt").write_text(role)
    data = {role: str(tmp_path / f"{role}.txt") for role in ("train", "calibration", "evaluate")}
    seen: list[dict[str, str]] = []

    def work(artifact: Any, params: Any, context: Any) -> None:
        seen.append({role: found.read(0).text for role, found in context.data.items()})
        rewriting(add_one)(artifact, params, context)

    stage = replace(needing(CUT, "calibration"), run=work)
    run(cache, llama, (stage, step(stage)), data=data)
    assert seen == [{"calibration": "calibration"}]


def test_progress_and_notes_carry_the_name_of_their_step(cache: Cache, llama: Path, trusting: Trusting) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        assert list(context.progress("ab", "letters", 2)) == ["a", "b"]
        context.note("cut well", share=0.5)
        rewriting(add_one)(artifact, params, context)

    recorded: list[Event] = []
    one(cache, llama, CUT, work, recorded.append, id="mine")
    assert [e.kind for e in recorded] == ["started", "progress", "progress", "progress", "note", "finished"]
    assert [(e.done, e.total) for e in recorded if e.kind == "progress"] == [(0, 2), (1, 2), (2, 2)]
    assert {e.what for e in recorded if e.kind == "progress"} == {"mine letters"}
    assert {e.what for e in recorded if e.kind != "progress"} == {"mine"}


# What is kept


def test_an_artifact_knows_the_stages_that_made_it(cache: Cache, llama: Path, trusting: Trusting) -> None:
    cut, tune = replace(CUT, run=rewriting(add_one)), replace(TUNE, run=copying)
    first, second = run(cache, llama, (cut, step(cut, ratio=0.25)), (tune, step(tune, after="demo.cut")))
    assert [p.stage for p in second.artifact.lineage] == ["demo.cut", "demo.tune"]
    assert second.artifact.lineage[0].params == {"ratio": 0.25, "layers": [], "components": []}
    assert [p.key for p in second.artifact.lineage] == [first.key, second.key]
    assert describe(second.artifact.path).lineage == second.artifact.lineage


def test_notes_are_kept_with_the_entry_and_come_back_when_it_is_used_again(
    cache: Cache, llama: Path, trusting: Trusting
) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        context.note("first", removed=12, kind="heads")
        context.note("second", removed=13)
        context.emit(Event("note", "somebody else", facts={"removed": 99}))
        rewriting(add_one)(artifact, params, context)

    done = one(cache, llama, CUT, work)
    again = one(cache, llama, CUT, raising(AssertionError("it ran twice")))
    assert (done.cached, again.cached) == (False, True)
    assert dict(done.facts) == dict(again.facts) == {"removed": 13, "kind": "heads"}
    assert again.seconds == pytest.approx(done.seconds, abs=0.001)
    assert again.artifact == done.artifact
    assert cache.facts(done.key)["stage"] == "demo.cut"


def test_a_model_is_reloaded_in_calls_of_the_sizes_it_was_last_built_for(
    cache: Cache, llama: Path, trusting: Trusting
) -> None:
    class Sized(Params):
        profile: Profile = Profile(batch=(3, 3, 4))

    sized = replace(CUT, name="demo.sized", params=Sized, run=rewriting(add_one))
    cut = replace(CUT, run=rewriting(add_one))
    steps = (cut, step(cut)), (sized, step(sized, after=cut.name)), (cut, step(cut, id="again", after=sized.name))
    run(cache, llama, *steps)
    assert trusting.asked == [ANY_SIZE, Sized().profile, Sized().profile]


def test_what_is_cached_starts_no_process_and_says_so(cache: Cache, llama: Path, trusting: Trusting) -> None:
    one(cache, llama, CUT, rewriting(add_one))
    assert trusting.starts == 1
    recorded: list[Event] = []
    one(cache, llama, CUT, rewriting(add_one), recorded.append)
    assert trusting.starts == 1
    assert [e.kind for e in recorded] == ["cached"]


def test_the_time_a_stage_took_shows_in_the_next_plan(cache: Cache, llama: Path, trusting: Trusting) -> None:
    one(cache, llama, CUT, rewriting(add_one))
    with knowing(CUT):
        (node,) = make_plan(recipe(llama, step(CUT, ratio=0.9)), cache).nodes
    assert not node.cached
    assert node.seconds is not None
    assert 0 <= node.seconds < 60


def test_the_users_own_model_is_left_as_it_was(cache: Cache, llama: Path, trusting: Trusting) -> None:
    before = digest_folder(llama)
    one(cache, llama, CUT, rewriting(add_one))
    assert digest_folder(llama) == before


# When a stage fails


def test_scratch_outlives_a_failure_and_goes_with_success(cache: Cache, llama: Path, trusting: Trusting) -> None:
    found: list[str] = []

    def work(artifact: Any, params: Any, context: Any) -> None:
        checkpoint = context.scratch / "checkpoint"
        found.append(checkpoint.read_text() if checkpoint.exists() else "")
        checkpoint.write_text("step 3")
        if len(found) == 1:
            raise RuntimeError("power cut")
        rewriting(add_one)(artifact, params, context)

    with pytest.raises(StageFailed):
        one(cache, llama, CUT, work)
    done = one(cache, llama, CUT, work)
    assert found == ["", "step 3"]
    assert not (cache.root / "scratch" / done.key).exists()


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (RuntimeError("out of luck"), StageFailed, r"stage `cut` \(demo.cut\) failed: RuntimeError: out of luck"),
        (FileNotFoundError(errno.ENOENT, "no such file", "x"), StageFailed, r"\(demo.cut\) failed: FileNotFoundError"),
        (OSError("does not appear to have a file named config.json"), StageFailed, r"\(demo.cut\) failed: OSError"),
        (MemoryError(), StageFailed, r"\(demo.cut\) failed: MemoryError"),
        (OSError(errno.ENOSPC, "no space left"), CacheError, "the disk is full"),
        (UserError("eight heads do not split in three"), UserError, "eight heads"),
        (MissingLibrary("the library `x` is not installed"), MissingLibrary, "`x`"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_reported_and_never_stored(
    cache: Cache, llama: Path, trusting: Trusting, error: BaseException, expected: type[BaseException], says: str | None
) -> None:
    with pytest.raises(expected, match=says) as caught:
        one(cache, llama, CUT, raising(error), id="cut")
    assert type(caught.value) is expected
    assert names(cache.root / "entries") == []
    assert names(cache.root / "tmp") == []
    (scratch,) = (cache.root / "scratch").iterdir()
    assert names(scratch) == ["checkpoint"]


def test_a_library_that_fails_where_the_disk_has_become_too_small_is_reported_as_a_full_disk(
    cache: Cache, llama: Path, trusting: Trusting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(artifact: Any, params: Any, context: Any) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=400_000))
        raise RuntimeError("basic_ios::clear: iostream error")

    with pytest.raises(CacheError, match=r"the disk is full \(0.4 MB free\)") as caught:
        one(cache, llama, CUT, fails)
    assert caught.value.exit_code == 2


def test_a_failed_stage_points_into_the_recipe_and_says_how_to_resume(
    cache: Cache, llama: Path, trusting: Trusting
) -> None:
    with pytest.raises(StageFailed) as caught:
        one(cache, llama, CUT, raising(RuntimeError("out of luck")))
    problem = caught.value.problems[0]
    assert problem.place == "r.yaml:7:3"
    assert "run the same command again" in problem.fix
    assert caught.value.exit_code == 3


def test_what_finished_before_a_failure_stays_cached(cache: Cache, llama: Path, trusting: Trusting) -> None:
    cut = replace(CUT, run=rewriting(add_one))
    tune = replace(TUNE, run=raising(RuntimeError("late")))
    pairs = [(cut, step(cut)), (tune, step(tune, after="demo.cut"))]
    with pytest.raises(StageFailed, match="late"):
        run(cache, llama, *pairs)
    assert len(names(cache.root / "entries")) == 1
    mended = [(cut, step(cut)), (replace(tune, run=copying), step(tune, after="demo.cut"))]
    assert [done.cached for done in run(cache, llama, *mended)] == [True, False]


# The contract


def breach(cache: Cache, model: Path, stage: Stage, work: Work, **more: Any) -> str:
    """What the contract check says of this work: it names the step and its stage, and stores nothing."""
    with pytest.raises(ContractError) as caught:
        one(cache, model, stage, work, id="mine", **more)
    problem = caught.value.problems[0]
    assert problem.message.startswith(f"stage `mine` ({stage.name}) broke its contract: ")
    assert problem.place == "r.yaml:7:3"
    assert "report" in problem.fix
    assert caught.value.exit_code == 3
    assert names(cache.root / "entries") == []
    assert names(cache.root / "tmp") == []
    return problem.message.partition("contract: ")[2]


def test_a_build_that_leaves_torch_weights_breaks_its_contract(cache: Cache, llama: Path, trusting: Trusting) -> None:
    assert "formats" in breach(cache, llama, BUILD, rewriting(add_one))


def test_a_component_that_got_lost_breaks_the_contract(cache: Cache, tmp_path: Path, trusting: Trusting) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, without=("vae",), link=context.link)
        write_manifest(replace(made, components={n: c for n, c in made.components.items() if n != "vae"}))

    assert "formats" in breach(cache, pipeline(tmp_path / "p"), CUT, work)


@pytest.mark.parametrize(
    "file", ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
)
def test_a_change_of_settings_may_change_no_weight_of_any_component(
    cache: Cache, tmp_path: Path, trusting: Trusting, file: str
) -> None:
    message = breach(cache, pipeline(tmp_path / "p"), TUNE, rewriting(add_one, file))
    assert message == f"it declared a change of settings and changed the weights of {file.partition('/')[0]}"


def test_a_change_of_settings_alone_keeps_the_contract(cache: Cache, llama: Path, trusting: Trusting) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        write_manifest(derive(artifact, context.out, link=context.link).calling(num_beams=2))

    assert one(cache, llama, TUNE, work).artifact.settings.call == {"num_beams": 2}


def test_a_component_left_as_it_was_breaks_the_contract(cache: Cache, llama: Path, trusting: Trusting) -> None:
    assert breach(cache, llama, CUT, copying) == "it left model as it was"


def test_every_component_that_was_named_must_have_changed(cache: Cache, tmp_path: Path, trusting: Trusting) -> None:
    message = breach(
        cache,
        pipeline(tmp_path / "p"),
        CUT,
        rewriting(add_one, "unet/diffusion_pytorch_model.safetensors"),
        components=("unet", "vae", "text_encoder"),
    )
    assert message == "it left text_encoder, vae as it was"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_break_the_contract_and_are_named(
    cache: Cache, llama: Path, trusting: Trusting, value: float
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["w"][1, 2] = value

    assert breach(cache, llama, CUT, rewriting(spoil)) == "`w` in model holds values that are not finite"


def test_what_is_added_to_scores_as_a_mask_may_be_infinite(cache: Cache, llama: Path, trusting: Trusting) -> None:
    def masked(tensors: Tensors) -> None:
        add_one(tensors)
        tensors["attn.causal_mask"] = np.full(3, -np.inf, np.float32)

    assert not one(cache, llama, CUT, rewriting(masked)).cached


@pytest.mark.parametrize("content", [b"", b"short", bytes(200), b"\x02" + bytes(7) + b"[]"])
def test_weights_that_do_not_read_break_the_contract(
    cache: Cache, llama: Path, trusting: Trusting, content: bytes
) -> None:
    assert "its model does not read: truncated" in breach(cache, llama, CUT, leaving(WEIGHTS, content))


def test_a_stage_that_leaves_nothing_breaks_its_contract(cache: Cache, llama: Path, trusting: Trusting) -> None:
    assert "what it left is no model" in breach(cache, llama, CUT, lambda artifact, params, context: None)


def test_a_real_model_passes_and_is_probed_by_a_stranger(cache: Cache, real: Path, reloading: None) -> None:
    def shrink(tensors: Tensors) -> None:
        tensors["lm_head.weight"] *= 0.5

    done = one(cache, real, CUT, rewriting(shrink))
    assert not done.cached
    assert names(cache.root / "tmp") == []
    assert cache.problem(done.key, thorough=True) == ""


def zero_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"][:] = 0


def blow_up(tensors: Tensors) -> None:
    tensors["lm_head.weight"][:] = 3e38
    tensors["model.norm.weight"][:] = 3e38


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (zero_head, "the reloaded model gives a constant output"),
        (blow_up, "the reloaded model gives values that are not finite"),
    ],
)
def test_finite_weights_that_give_no_sense_break_the_contract(
    cache: Cache, real: Path, reloading: None, change: Callable[[Tensors], None], message: str
) -> None:
    assert breach(cache, real, CUT, rewriting(change)) == message


@pytest.mark.parametrize("nonfinite", ["tokenizer", "shape"])
def test_what_does_not_load_in_a_fresh_process_breaks_the_contract(
    cache: Cache, real: Path, reloading: None, nonfinite: str
) -> None:
    config = json.loads((real / "config.json").read_text()) | {"intermediate_size": 65}
    work = {
        "tokenizer": leaving("tokenizer.json", b"{}"),
        "shape": leaving("config.json", json.dumps(config).encode()),
    }[nonfinite]
    assert breach(cache, real, CUT, work).startswith("does not reload: ")


def test_an_artifact_that_brings_the_checker_down_is_reported_and_the_next_one_gets_a_new_process(
    tmp_path: Path,
) -> None:
    with Checker() as checker:
        checker.start()
        assert checker.process is not None
        checker.process.kill()
        with pytest.raises(ContractError, match="brought down the process"):
            checker.probe(tmp_path)
        assert checker.process is None
        checker.start()
        assert checker.process is not None
        started = checker.process
    assert started.poll() is not None  # and it ends with the run


def started(checker: Checker) -> subprocess.Popen[str]:
    checker.start()
    assert checker.process is not None
    return checker.process


def test_the_next_run_takes_the_checker_over_where_the_surroundings_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare = Spare()
    with spare.take() as checker:
        process = started(checker)
        spare.keep(checker)
    assert process.poll() is None
    with spare.take() as checker:
        assert checker.process is process
        assert spare.take().process is None  # a run beside it gets one of its own
        spare.keep(checker)
    monkeypatch.setenv("PARE_ELSEWHERE", "1")
    assert spare.take().process is None
    assert process.poll() is not None


def test_a_checker_that_no_run_takes_ends() -> None:
    spare = Spare(seconds=0.05)
    with spare.take() as checker:
        process = started(checker)
        spare.keep(checker)
    assert process.wait(timeout=30) is not None
    assert spare.take().process is None


def test_a_run_that_fails_takes_its_checker_with_it() -> None:
    left = []

    def fail() -> None:
        with lent_checker() as checker:
            left.append(started(checker))
            raise ContractError("broken")

    with pytest.raises(ContractError, match="broken"):
        fail()
    assert left[0].poll() is not None
