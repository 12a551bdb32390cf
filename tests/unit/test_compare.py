"""Two sides to a comparison: the same items and noise, each called as it is meant to be, every number traceable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import compress
from compress.artifact import Artifact, Provenance
from compress.catalogue import find_metric
from compress.data.items import Data, Item
from compress.errors import StageFailed, UserError
from compress.events import Event, silent
from compress.model.describing import describe
from compress.opening import open_task
from compress.recipe.gates import Gate
from compress.recipe.values import BaselineSpec, EvalSpec
from evaluation import report
from evaluation.comparison import Comparison
from evaluation.comparison.compare import compare
from evaluation.comparison.sides import Request, viewpoints
from evaluation.observe import hardware
from evaluation.report import result
from evaluation.values import Sample
from tests.tiny import tiny_diffusion, tiny_llama

TEXTS = tuple(f"The array of values number {i} to sort along the given axis." for i in range(8))
CAPTIONS = tuple(f"a {ink} {word} on white paper" for ink in ("red", "blue") for word in ("three", "seven", "one"))
SPEC = EvalSpec(samples=6, timing_blocks=5, prompt_tokens=4, new_tokens=4, batch=3)


def data(texts: tuple[str, ...]) -> Data:
    return Data("texts", "texts", "digest", len(texts), lambda i: Item(f"u{i}", texts[i]))


@dataclass(frozen=True)
class Stand:
    """A place with two models of a task, baseline and candidate."""

    folder: Path
    baseline: Artifact
    candidate: Artifact
    items: Data
    spec: EvalSpec = field(default=SPEC)

    def request(
        self, out: Path, metrics: dict[str, Any], gates: dict[str, Gate] | None = None, **change: Any
    ) -> Request:
        made = Request(
            name="tiny",
            candidate=self.candidate,
            baseline=self.baseline,
            data=self.items,
            spec=self.spec.model_copy(update={"metrics": metrics}),
            gates=gates or {},
            recipe_text="name: tiny\n",
            stages=(),
            workdir=out,
            evidence_dirs=(self.folder / "evidence",),
        )
        return replace(made, **change)


@pytest.fixture(scope="module", autouse=True)
def known_machine() -> Iterator[None]:
    """Measuring this machine takes a second a comparison, and no test here looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "facts", lambda device: {"processor": "a machine"})
        patch.setattr(
            "evaluation.observe.contention.share_of_others", lambda *readings: None
        )  # tests run beside others
        yield


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    folder = tmp_path_factory.mktemp("writers")
    one, other = (replace(describe(tiny_llama(folder / str(s), seed=s)), digest=f"llama {s}") for s in (0, 1))
    return Stand(folder, one, other, data(TEXTS))


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    folder = tmp_path_factory.mktemp("generators")
    one, other = (replace(describe(tiny_diffusion(folder / str(s), seed=s)), digest=f"unet {s}") for s in (0, 1))
    spec = SPEC.model_copy(update={"baseline": BaselineSpec(steps=2)})
    return Stand(folder, one, other, data(CAPTIONS), spec)


ORDER = ("throughput", "size", "perplexity", "latency")


@pytest.fixture(scope="module")
def text(writers: Stand) -> Comparison:
    gates = {"perplexity": Gate(within="1%"), "size": Gate(worse_by="0%")}
    return compare(writers.request(writers.folder / "out", {name: {} for name in ORDER}, gates), silent)


@pytest.fixture(scope="module")
def image(generators: Stand) -> Comparison:
    return compare(generators.request(generators.folder / "out", {"clip_score": {}, "latency": {}}), silent)


def rows(comparison: Comparison) -> dict[str, Any]:
    return {row.metric: row for row in comparison.rows}


def test_what_does_not_count_is_a_warning_reported_once(writers: Stand, tmp_path: Path) -> None:
    items = (
        Item("a", TEXTS[0]),
        Item("b", ""),
        Item("c", TEXTS[1]),
    )  # what a file may hold before its units are asked for
    some = replace(writers.items, digest="some", count=3, read=items.__getitem__, left_out="3 of 9 items count")
    recorded: list[Event] = []
    found = compare(writers.request(tmp_path, {"perplexity": {}, "kl": {}}, data=some), recorded.append)
    *before, unfit, last = found.warnings
    assert unfit.startswith("baseline: its perplexity on these texts")  # it was never trained
    assert (*before, last) == (
        "data: 3 of 9 items count",
        "data: samples: 6 are asked for, and the data hold 3",
        "perplexity: 2 of 3 documents count: of the others no token is scored",
    )
    assert {row.contrast.n for row in found.rows} == {2}
    assert [f"{e.what}: {e.message}" for e in recorded if e.kind == "warning"] == list(found.warnings)
    assert {name: value.baseline.n for name, value in rows(found).items()} == {"perplexity": 2, "kl": 2}


# ---------------------------------------------------------------- viewpoints


def views(stand: Stand, stated: BaselineSpec, **change: Any) -> tuple[Any, Any]:
    request = stand.request(stand.folder, {}, **change)
    return viewpoints(replace(request, spec=stand.spec.model_copy(update={"baseline": stated})))


def test_both_sides_see_the_same_items_noise_and_batch(generators: Stand) -> None:
    base, candidate = views(generators, BaselineSpec())
    assert base.items == candidate.items == tuple(generators.items.read(i) for i in range(6))
    assert (base.seed, base.batch, base.data_digest) == (candidate.seed, candidate.batch, candidate.data_digest)
    assert base.key("images") != candidate.key("images")


def test_a_baseline_of_its_own_checkpoint_is_run_as_its_users_would(generators: Stand) -> None:
    base, candidate = views(generators, BaselineSpec())
    assert (base.opening.dtype, dict(base.call)) == (None, {})
    assert (candidate.opening.dtype, dict(candidate.call)) == (None, {})


def test_guidance_holds_for_both_sides_and_steps_are_the_candidates_own(generators: Stand) -> None:
    few = generators.candidate.calling(num_inference_steps=4)
    base, candidate = views(generators, BaselineSpec(steps=20, guidance=3.0), candidate=few)
    assert dict(base.call) == {"num_inference_steps": 20, "guidance_scale": 3.0}
    assert dict(candidate.call) == {"num_inference_steps": 4, "guidance_scale": 3.0}


def test_what_a_student_is_meant_to_be_called_with_wins_over_the_baselines_guidance(generators: Stand) -> None:
    """Taught to generate without guidance, it would do twice the work and overdo it."""
    student = generators.candidate.calling(num_inference_steps=2, guidance_scale=1.0)
    base, candidate = views(generators, BaselineSpec(steps=20, guidance=3.0), candidate=student)
    assert base.call["guidance_scale"] == 3.0
    assert dict(candidate.call) == {"num_inference_steps": 2, "guidance_scale": 1.0}


def test_what_a_candidate_took_over_from_its_original_goes_as_the_recipe_says_there(generators: Stand) -> None:
    original = generators.baseline.calling(guidance_scale=7.0, eta=0.5)
    copy = generators.candidate.calling(guidance_scale=7.0, eta=0.5)
    base, candidate = views(generators, BaselineSpec(guidance=3.0), baseline=original, candidate=copy)
    assert dict(base.call) == dict(candidate.call) == {"guidance_scale": 3.0, "eta": 0.5}


def test_steps_that_a_stage_set_are_its_own_also_where_the_original_had_as_many(generators: Stand) -> None:
    original = generators.baseline.calling(num_inference_steps=4, guidance_scale=7.0)
    set_to = Provenance("accelerate.steps", 1, {"steps": 4, "scheduler": "", "spacing": ""}, "a key")
    cut_to = Provenance("prune.depth", 1, {"ratio": 0.2}, "another")
    few, cut = (
        replace(generators.candidate.calling(**original.settings.call), lineage=(made,)) for made in (set_to, cut_to)
    )
    stated = BaselineSpec(steps=20, guidance=3.0)
    base, candidate = views(generators, stated, baseline=original, candidate=few)
    assert dict(base.call) == {"num_inference_steps": 20, "guidance_scale": 3.0}
    assert dict(candidate.call) == {"num_inference_steps": 4, "guidance_scale": 3.0}
    _, candidate = views(generators, stated, baseline=original, candidate=cut)
    assert dict(candidate.call) == dict(base.call)
    _, candidate = views(generators, stated, baseline=replace(original, lineage=(set_to,)), candidate=few)
    assert dict(candidate.call) == dict(base.call)  # the original's own stages set nothing for the candidate


def test_a_candidate_that_says_nothing_of_steps_does_the_same_work(generators: Stand) -> None:
    base, candidate = views(generators, BaselineSpec(steps=20))
    assert candidate.call["num_inference_steps"] == base.call["num_inference_steps"] == 20
    quick = generators.baseline.calling(num_inference_steps=8)
    _, candidate = views(generators, BaselineSpec(), baseline=quick)
    assert candidate.call["num_inference_steps"] == 8


def test_stated_steps_win_over_the_baselines_own(generators: Stand) -> None:
    base, _ = views(generators, BaselineSpec(steps=20), baseline=generators.baseline.calling(num_inference_steps=8))
    assert base.call["num_inference_steps"] == 20


def test_the_baselines_number_type_is_the_candidates_too_unless_an_engine_takes_part(generators: Stand) -> None:
    base, candidate = views(generators, BaselineSpec(dtype="bfloat16"))
    assert (base.opening.dtype, candidate.opening.dtype) == ("bfloat16", "bfloat16")
    built = generators.candidate.replacing({"unet": "openvino"})
    base, candidate = views(generators, BaselineSpec(dtype="bfloat16"), candidate=built)
    assert (base.opening.dtype, candidate.opening.dtype) == ("bfloat16", None)


def test_a_recipe_without_data_has_nothing_to_look_at(generators: Stand) -> None:
    base, _ = views(generators, BaselineSpec(), data=None)
    assert (base.items, base.data_digest) == ((), "")


# ---------------------------------------------------------------- rows


def test_rows_come_in_the_order_of_the_recipe(text: Comparison, writers: Stand) -> None:
    assert tuple(row.metric for row in text.rows) == ORDER
    turned = compare(writers.request(writers.folder / "turned", {"size": {}, "perplexity": {}}), silent)
    assert [row.metric for row in turned.rows] == ["size", "perplexity"]


@pytest.mark.parametrize("name", ORDER)
def test_the_samples_beside_the_result_give_the_rows_numbers_again(name: str, text: Comparison, writers: Stand) -> None:
    stored = load_file(writers.folder / "out" / "samples" / f"{name}.safetensors")
    metric, row = find_metric(name), rows(text)[name]
    sides = [Sample(tuple(map(str, range(len(stored[s])))), stored[s]) for s in ("baseline", "candidate")]
    assert metric.score(sides[0]) == row.baseline
    assert metric.score(sides[1]) == row.candidate
    assert metric.contrast(sides[1], sides[0]) == row.contrast


def test_samples_of_a_distance_hold_the_real_side_too(generators: Stand, tmp_path: Path) -> None:
    def real(i: int) -> Item:
        image = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        return Item(f"u{i}", CAPTIONS[i], lambda: image)

    items = replace(generators.items, digest="with images", read=real)
    found = compare(generators.request(tmp_path, {"kid": {}}, data=items), silent)
    stored = load_file(tmp_path / "samples" / "kid.safetensors")
    assert set(stored) == {"baseline", "candidate", "baseline.reference", "candidate.reference"}
    metric = find_metric("kid")
    again = metric.score(Sample(("",) * 6, stored["baseline"], stored["baseline.reference"]))
    assert again == rows(found)["kid"].baseline
    assert rows(found)["kid"].title == "KID, digits-clip features"


def test_only_gated_rows_are_judged(text: Comparison) -> None:
    judged = {name: row.verdict.status for name, row in rows(text).items()}
    assert judged["size"] == "pass"
    assert judged["perplexity"] in ("fail", "inconclusive")
    assert judged["latency"] == judged["throughput"] == "not gated"
    assert text.status == judged["perplexity"]


def test_the_protocol_travels_with_each_quality_row(text: Comparison, image: Comparison) -> None:
    assert rows(text)["perplexity"].protocol == {
        "samples": 6,
        "seed": 0,
        "data": "digest",
        "softmax": "float32",
        "version": find_metric("perplexity").version,
    }
    assert {"features", "weights", "resize", "samples", "seed"} <= set(rows(image)["clip_score"].protocol)


def test_times_have_a_noise_floor_and_nothing_else_has(text: Comparison, image: Comparison) -> None:
    with_noise = {row.metric for found in (text, image) for row in found.rows if row.noise}
    assert with_noise == {"latency", "throughput"}
    for found in (text, image):
        noise = rows(found)["latency"].noise
        assert noise.n == 5
        assert noise.low <= noise.value <= noise.high
        assert 0.1 < noise.value < 10  # the baseline against itself, on a machine that has other work too


def test_speeds_state_the_work_of_a_call(text: Comparison, image: Comparison) -> None:
    assert rows(text)["latency"].protocol["work"] == 4  # tokens
    assert rows(text)["throughput"].protocol["counts"] == "decoded tokens"
    assert rows(image)["latency"].protocol["work"] == 2  # denoiser evaluations, counted


def test_denoiser_evaluations_are_counted_and_not_taken_from_the_recipe(generators: Stand, tmp_path: Path) -> None:
    """Four steps on one side, two on the other: the row says the baseline's, the sides say both."""
    spec = generators.spec.model_copy(update={"baseline": BaselineSpec(steps=4), "metrics": {"latency": {}}})
    request = generators.request(tmp_path, {}, candidate=generators.candidate.calling(num_inference_steps=2))
    found = compare(replace(request, spec=spec), silent)
    assert rows(found)["latency"].protocol["work"] == 4
    assert found.baseline.call == {"num_inference_steps": 4}
    assert found.candidate.call == {"num_inference_steps": 2}


def test_a_model_against_itself_differs_by_nothing_and_passes(writers: Stand, tmp_path: Path) -> None:
    gates = {"perplexity": Gate(within="0%")}
    spec = writers.spec.model_copy(update={"samples": 8, "metrics": {"perplexity": {}}})
    found = compare(writers.request(tmp_path, {}, gates, candidate=writers.baseline, spec=spec), silent)
    contrast = rows(found)["perplexity"].contrast
    assert (contrast.value, contrast.low, contrast.high) == (0, 0, 0)
    assert (found.status, found.exit_code) == ("pass", 0)


def test_size_alone_opens_no_model(writers: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("compress.opening.open_task", refuse)
    found = compare(writers.request(tmp_path, {"size": {}}), silent)
    assert rows(found)["size"].contrast.value == 1
    assert (found.images, found.completions) == ((), ())


def test_other_protocols_on_the_two_sides_refuse_to_be_compared(
    writers: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_metric("perplexity")
    softmax = iter(["float32", "bfloat16"])

    def measure(evidence: Any, params: Any) -> Sample:
        return replace(real.measure(evidence, params), protocol={"softmax": next(softmax)})

    monkeypatch.setattr("evaluation.comparison.compare.find_metric", lambda name: replace(real, measure=measure))
    with pytest.raises(StageFailed, match=r"perplexity.*different protocols.*float32.*bfloat16") as caught:
        compare(writers.request(tmp_path, {"perplexity": {}}), silent)
    assert "same extractor" in caught.value.problems[0].fix


# ---------------------------------------------------------------- what a reader is shown


def test_images_of_both_sides_are_those_that_were_scored(image: Comparison, generators: Stand) -> None:
    assert [p.unit_id for p in image.images] == [f"u{i}" for i in range(6)]
    assert [p.caption for p in image.images] == list(CAPTIONS)
    task = open_task(generators.candidate)
    expected = task.generate([CAPTIONS[2]], ["u2"], 0, num_inference_steps=2)[0]
    assert np.abs(image.images[2].candidate.astype(int) - expected).max() <= 1
    assert np.abs(image.images[2].baseline.astype(int) - expected).max() > 10


def test_completions_name_the_first_token_in_which_the_sides_part(text: Comparison, writers: Stand) -> None:
    one, other = open_task(writers.baseline), open_task(writers.candidate)
    assert len(text.completions) == 6
    parted = [c.first_divergent_token for c in text.completions]
    assert parted == sorted(parted)  # those that part first in front
    for found in text.completions:
        prompt = one.encode(TEXTS[int(found.unit_id[1:])])[:4]
        written = [task.complete(prompt, 4) for task in (one, other)]
        assert found.first_divergent_token == next(i for i, (a, b) in enumerate(zip(*written, strict=True)) if a != b)
        assert found.prompt == one.tokenizer.decode(prompt, skip_special_tokens=True)
        assert TEXTS[int(found.unit_id[1:])].startswith(found.prompt)
        assert found.baseline == one.tokenizer.decode(written[0])
        assert found.candidate == one.tokenizer.decode(written[1])


def test_completions_that_never_part_say_so(writers: Stand, tmp_path: Path) -> None:
    found = compare(writers.request(tmp_path, {"latency": {}, "perplexity": {}}, candidate=writers.baseline), silent)
    assert [c.first_divergent_token for c in found.completions] == [-1] * 6
    assert all(c.baseline == c.candidate for c in found.completions)


def test_sides_say_what_they_are_and_how_they_were_called(image: Comparison, text: Comparison) -> None:
    assert (image.baseline.digest, image.candidate.digest) == ("unet 0", "unet 1")
    assert image.baseline.call == image.candidate.call == {"num_inference_steps": 2}
    assert text.baseline.engine.startswith("torch")
    assert (text.name, text.task, image.task) == ("tiny", "text_generation", "text_to_image")
    assert text.machine == {"processor": "a machine"}


def test_an_engine_is_named_component_by_component(writers: Stand, tmp_path: Path) -> None:
    built = replace(writers.candidate.replacing({"model": "openvino"}), path=tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(b"weights")
    found = compare(writers.request(tmp_path, {"size": {}}, candidate=built), silent)
    assert found.candidate.engine == "model: openvino"


@pytest.mark.parametrize(("samples", "message"), [(256, False), (300, True), (len(TEXTS), False)])
def test_more_samples_than_the_data_hold_are_message_where_somebody_asked(
    samples: int, message: bool, writers: Stand, tmp_path: Path
) -> None:
    spec = writers.spec.model_copy(update={"samples": samples, "metrics": {"size": {}}})
    found = compare(writers.request(tmp_path, {}, spec=spec), silent)
    reported = f"data: samples: {samples} are asked for, and the data hold {len(TEXTS)}"
    assert found.warnings == ((reported,) if message else ())
    by_plan = reported.replace("data: ", "plan: ", 1)
    again = compare(writers.request(tmp_path, {}, spec=spec, warnings=(by_plan,)), silent)
    assert again.warnings == (by_plan,)  # what the plan has reported is not reported again


def test_warnings_reach_the_report_and_the_listener(writers: Stand, tmp_path: Path) -> None:
    request = writers.request(tmp_path / "out", {"perplexity": {}}, evidence_dirs=(tmp_path / "evidence",))
    first = compare(request, silent)
    base, _ = viewpoints(request)
    (tmp_path / "evidence" / base.key("documents") / "logprobs.safetensors").write_bytes(b"damaged")
    recorded: list[Event] = []
    again = compare(request, recorded.append)
    (unfit,) = first.warnings
    assert unfit.startswith("baseline: its perplexity on these texts")  # it was never trained
    assert len(again.warnings) == 2
    assert "corrupt" in again.warnings[0]
    assert again.warnings[1] == unfit
    assert [e.kind for e in recorded].count("warning") == 2
    assert [row.contrast for row in again.rows] == [row.contrast for row in first.rows]
    report.write(again, tmp_path / "out")
    assert "corrupt" in json.loads((tmp_path / "out" / "result.json").read_text())["warnings"][0]
    assert "2 warnings" in (tmp_path / "out" / "report.md").read_text()
    assert "corrupt" in (tmp_path / "out" / "report.html").read_text()


def test_a_result_comes_back_from_its_file_with_every_number(text: Comparison, tmp_path: Path) -> None:
    report.write(text, tmp_path)
    back = result.from_dict(json.loads((tmp_path / "result.json").read_text()))
    assert back.rows == text.rows
    assert back.completions == text.completions
    assert (back.status, back.exit_code) == (text.status, text.exit_code)


def test_quality_repeats_to_the_last_digit_though_nothing_was_cached(
    text: Comparison, writers: Stand, tmp_path: Path
) -> None:
    request = writers.request(tmp_path, {"perplexity": {}}, evidence_dirs=(tmp_path / "evidence",))
    again = rows(compare(request, silent))["perplexity"]
    assert (again.baseline, again.candidate, again.contrast) == (
        rows(text)["perplexity"].baseline,
        rows(text)["perplexity"].candidate,
        rows(text)["perplexity"].contrast,
    )


# ---------------------------------------------------------------- two folders, without a recipe


def evaluate(stand: Stand, out: Path, *folders: Path, **options: Any) -> Comparison:
    return compress.evaluate(*folders, cache=stand.folder / "cache", out=out, **options)


def test_models_of_different_tasks_are_not_compared(writers: Stand, generators: Stand, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different tasks") as caught:
        evaluate(writers, tmp_path / "out", generators.baseline.path, writers.baseline.path, metrics=["size"])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_two_folders_compare_as_a_recipe_would(writers: Stand, text: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(TEXTS))
    found = evaluate(
        writers,
        tmp_path / "out",
        writers.candidate.path,
        writers.baseline.path,
        metrics=["perplexity", "size"],
        data=str(file),
        spec=SPEC,
    )
    assert rows(found)["perplexity"].contrast == rows(text)["perplexity"].contrast
    assert found.status == "not gated"
    assert {f.name for f in (tmp_path / "out").iterdir()} >= {"result.json", "report.html", "events.jsonl", "samples"}


def test_evidence_is_found_again_though_the_model_moved(writers: Stand, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(TEXTS))
    moved = shutil.copytree(writers.baseline.path, tmp_path / "moved")
    options: dict[str, Any] = {"metrics": ["perplexity"], "data": str(file), "spec": SPEC}
    for folder in (writers.baseline.path, moved):
        recorded: list[Event] = []
        evaluate(writers, tmp_path / "out", folder, folder, emit=recorded.append, **options)
    assert [e for e in recorded if "reading with" in e.what] == []
