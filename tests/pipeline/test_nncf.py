"""What `quantize.nncf` does beside its three modes: layers left alone, corrections, hybrid, and widths by a budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import compress
from compress.artifact import Artifact, Provenance, Quantization
from compress.catalogue import find_stage
from compress.engines.openvino.layers import digests, layers
from compress.errors import RecipeError, UserError
from compress.files.hashing import digest_files
from compress.model.describing import describe
from compress.opening import open_task
from compress.quantization.sensitivity import read
from tests.families import tiny_text
from tests.stages import apply, forecast
from tests.tiny import tiny_diffusion, tiny_llama

NAME = "quantize.nncf"
FOUR: dict[str, Any] = {"mode": "int4_weights", "group_size": 16}
AUTO: dict[str, Any] = {**FOUR, "bits": "auto"}
WEIGHTS = "openvino_model.bin"
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def measured(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Its layers' costs, and then the engine."""
    folder = tmp_path_factory.mktemp("measured")
    known, _ = apply("analyze.sensitivity", llama, folder / "known", samples=2, group_size=16)
    return apply("build.openvino", known, folder / "built")[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("images")
    model = describe(tiny_diffusion(folder / "model")).calling(num_inference_steps=2)
    known, _ = apply("analyze.sensitivity", model, folder / "known", samples=1, group_size=16, timesteps=1)
    return apply("build.openvino", known, folder / "built", components=("unet",))[0]


def left(folder: Path) -> Counter[str]:
    """How many layers of each kind are still in floats."""
    return Counter(layer.kind for layer in layers(folder))


def scores(artifact: Artifact) -> Any:
    task: Any = open_task(artifact)
    return task.token_logprobs(["hello world, how are you"], 1)[0]


def test_layers_of_a_graph_are_torchs_own_by_their_weights(measured: Artifact) -> None:
    known = read(measured)["model"].layers
    found = digests(measured.path, layers(measured.path))
    by_name = {name: found[layer.fingerprint].names for name, layer in known.items()}
    assert by_name["model.embed_tokens"] == ("embedding_0",)
    assert by_name["model.layers.0.self_attn.q_proj"] == ("linear_0",)
    assert by_name["lm_head"] == ("linear_14",)
    assert len(by_name) == len(found) == 16


@SLOW
def test_transposed_and_tied_layers_are_known_too(tmp_path: Path) -> None:
    known, _ = apply(
        "analyze.sensitivity", describe(tiny_text(tmp_path / "model", "gpt2")), tmp_path / "known", samples=1, bits=(4,)
    )
    built, _ = apply("build.openvino", known, tmp_path / "built")
    found = digests(built.path, layers(built.path))
    names = {name: found[layer.fingerprint].names for name, layer in read(built)["model"].layers.items()}
    assert names["transformer.wte"] == ("embedding_0", "linear_0")
    assert names["transformer.h.0.mlp.c_proj"] == ("addmm_3",)
    assert len(names) == len(found)


@pytest.mark.parametrize(
    ("budget", "widths"), [(0.15, {4}), (0.2, {4, 8}), ("0.03 MB", {4, 8})], ids=["all in 4", "share", "size"]
)
def test_a_budget_is_met_and_the_costliest_layers_are_wide(
    measured: Artifact, tmp_path: Path, budget: float | str, widths: set[int]
) -> None:
    whole = (measured.path / WEIGHTS).stat().st_size
    wanted = budget * whole if isinstance(budget, float) else 30_000
    if widths == {4}:
        with pytest.raises(UserError, match=r"a budget of 0\.01, .* is out of reach") as caught:
            apply(NAME, measured, tmp_path / "out", **AUTO, budget=0.01)
        budget = float(caught.value.problems[0].fix.removeprefix("give a budget from ").partition(" ")[0])
        wanted = budget * whole
    made, notes = apply(NAME, measured, tmp_path / "again", **AUTO, budget=budget)
    size = (made.path / WEIGHTS).stat().st_size
    assert 0.98 * wanted <= size <= 1.005 * wanted
    assert notes[-1].facts["bytes"] == size
    reported = str(notes[-1].facts["widths"])
    assert {int(part.split(" in ")[1].split()[0]) for part in reported.split(", ")} == widths
    assert not layers(made.path)
    assert np.abs(scores(made) - scores(measured)).mean() < 1


@pytest.mark.slow
def test_a_denoisers_convolutions_keep_8_bits_and_its_linear_layers_share_what_is_left(
    images: Artifact, tmp_path: Path
) -> None:
    made, notes = apply(NAME, images, tmp_path / "out", **AUTO, budget=0.25)
    whole, size = ((a.folder("unet") / WEIGHTS).stat().st_size for a in (images, made))
    assert 0.98 * 0.25 * whole <= size <= 1.005 * 0.25 * whole
    assert int(notes[0].facts["u8"]) >= sum(layer.convolves for layer in layers(images.folder("unet")))
    assert int(notes[0].facts["u4"]) > 0


def test_a_budget_between_costs_less_than_one_without_measuring(measured: Artifact, tmp_path: Path) -> None:
    chosen, _ = apply(NAME, measured, tmp_path / "chosen", **AUTO, budget=0.2)
    again, _ = apply(NAME, measured, tmp_path / "again", **AUTO, budget=0.2)
    assert digest_files(chosen.path) == digest_files(again.path)
    narrow, _ = apply(NAME, measured, tmp_path / "narrow", **FOUR)
    exact = scores(measured)
    assert np.abs(scores(chosen) - exact).mean() < np.abs(scores(narrow) - exact).mean()


@SLOW
def test_costs_of_other_weights_are_not_used(measured: Artifact, tmp_path: Path) -> None:
    other, _ = apply("build.openvino", describe(tiny_llama(tmp_path / "other", seed=1)), tmp_path / "built")
    (other.path / "sensitivity.json").write_bytes((measured.path / "sensitivity.json").read_bytes())
    lying = replace(other, lineage=measured.lineage)
    with pytest.raises(UserError, match="measured 0% of the weights that `model` has now"):
        apply(NAME, lying, tmp_path / "out", **AUTO, budget=0.2)


@pytest.mark.parametrize(
    ("mode", "ignore", "kinds"),
    [
        ("int4_weights", ("lm_head", "*.o_proj"), {"MatMul": 3}),
        ("int8_weights", ("embedding_*",), {"Gather": 1}),
        ("int8", ("linear_0", "model.layers.1"), {"MatMul": 8}),
    ],
)
def test_what_is_ignored_stays_in_floats_by_the_graphs_names_and_by_torchs(
    measured: Artifact, tmp_path: Path, mode: str, ignore: tuple[str, ...], kinds: dict[str, int]
) -> None:
    more: dict[str, Any] = {"samples": 2} if mode == "int8" else {"group_size": 16} if "4" in mode else {}
    made, _ = apply(NAME, measured, tmp_path / "out", mode=mode, ignore=ignore, **more)
    assert left(made.path) == kinds


def test_a_pattern_that_names_no_layer_is_an_error_that_names_the_nearest(
    measured: Artifact, llama: Artifact, tmp_path: Path
) -> None:
    wrong = ("*.o_prj", "linear_99")
    with pytest.raises(UserError, match=r"`\*.o_prj` names none of the 16 layers") as caught:
        apply(NAME, measured, tmp_path / "out", **FOUR, ignore=wrong)
    assert len(caught.value.problems) == 2
    assert "linear_9" in caught.value.problems[1].fix
    # Without torch's names the graph is all there is, and a plan reads it.
    plain = replace(measured, lineage=())
    first, second = refused(plain, **FOUR, ignore=wrong)
    assert "`*.o_prj` names none" in first
    assert "`linear_99` names none" in second
    assert refused(plain, **FOUR, ignore=("linear_9",)) == []
    # What is no expression is none for any graph, and for one that is still to be built.
    for model in (plain, measured):
        (message,) = refused(model, **FOUR, ignore=("re:(",))
        assert "`re:(` is no regular expression" in message


@pytest.mark.parametrize(
    "correction", ["awq", pytest.param("scale_estimation", marks=SLOW), pytest.param("gptq", marks=SLOW)]
)
def test_each_correction_does_something_and_repeats_to_the_byte(
    measured: Artifact, tmp_path: Path, correction: str
) -> None:
    plain, _ = apply(NAME, measured, tmp_path / "plain", **FOUR)
    made, notes = apply(NAME, measured, tmp_path / "made", **FOUR, samples=4, corrections=(correction,))
    again, _ = apply(NAME, measured, tmp_path / "again", **FOUR, samples=4, corrections=(correction,))
    assert notes[0].facts["calls"] == 4
    assert digest_files(made.path) == digest_files(again.path)
    assert (made.path / WEIGHTS).read_bytes() != (plain.path / WEIGHTS).read_bytes()
    assert np.abs(scores(made) - scores(measured)).mean() < 1


@SLOW
def test_a_metric_that_looks_at_calls_chooses_other_layers(measured: Artifact, tmp_path: Path) -> None:
    made, notes = apply(
        NAME, measured, tmp_path / "made", **FOUR, ratio=0.5, samples=4, metric="max_activation_variance"
    )
    plain, without = apply(NAME, measured, tmp_path / "plain", **FOUR, ratio=0.5)
    assert notes[0].facts["calls"] == 4
    assert without[0].facts["calls"] == 0
    assert int(notes[0].facts["u4"]) > 0
    assert made.path != plain.path


def test_hybrid_quantizes_activations_of_convolutions_alone(images: Artifact, tmp_path: Path) -> None:
    made, notes = apply(NAME, images, tmp_path / "hybrid", mode="int8_hybrid", samples=2)
    _, full = apply(NAME, images, tmp_path / "whole", samples=2)
    assert not layers(made.folder("unet"))
    assert made.components["unet"].quantization == Quantization("int8_hybrid", 8, "openvino")
    assert 0 < int(notes[0].facts["FakeQuantize"]) < int(full[0].facts["FakeQuantize"])
    assert int(notes[0].facts["u8"]) == left(images.folder("unet"))["MatMul"]
    generated = []
    for artifact in (images, made):
        task: Any = open_task(artifact)
        generated.append(task.generate(["a red three", "blue"], ["0", "1"], 0).astype(int))
    assert 0 < np.abs(generated[0] - generated[1]).mean() < 10


@pytest.mark.parametrize("smooth", [None, pytest.param(0.5, marks=SLOW)])
def test_smoothing_can_be_set_and_left_out(measured: Artifact, tmp_path: Path, smooth: float | None) -> None:
    plain, _ = apply(NAME, measured, tmp_path / "plain", samples=2)
    made, _ = apply(NAME, measured, tmp_path / "made", samples=2, smooth=smooth)
    text = [(a.path / "openvino_model.xml").read_text() for a in (plain, made)]
    assert "nncf_smooth_quant" in text[0]
    assert ("nncf_smooth_quant" in text[1]) is (smooth is not None)
    assert text[0] != text[1] or (plain.path / WEIGHTS).read_bytes() != (made.path / WEIGHTS).read_bytes()


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"mode": "int8_weights", "corrections": ("awq",)}, ["mode int8_weights has no use for corrections"]),
    ({**FOUR, "metric": "mean_activation_variance"}, ["metric chooses the layers that a ratio below 1"]),
    ({**FOUR, "smooth": 0.3}, ["mode int4_weights has no use for smooth"]),
    ({**FOUR, "samples": 4}, ["samples is for calls that corrections look at"]),
    ({"mode": "int8_hybrid"}, ["of which a language model has none"]),
    ({**FOUR, "budget": 0.3}, ["bits: auto and budget go together"]),
    (AUTO, ["bits: auto and budget go together"]),
    ({**AUTO, "budget": 0.2, "ratio": 1.0}, ["bits: auto chooses which layers get 4 bits, and so does ratio"]),
    (
        {"mode": "int8_weights", "samples": 64, "group_size": 64, "bits": "auto", "budget": 0.3},  # defaults, but given
        [f"mode int8_weights has no use for {name}" for name in ("samples", "group_size", "bits", "budget")],
    ),
    (
        {"mode": "int8", "symmetric": False, "ratio": 1, "metric": "weight_quantization_error"},
        [f"mode int8 has no use for {name}" for name in ("symmetric", "ratio", "metric")],
    ),
    ({**AUTO, "budget": "a few"}, ["budget: `a few` is no size"]),
]


@pytest.mark.parametrize(("params", "messages"), REFUSED, ids=[one[0][-24:] for _, one in REFUSED])
def test_what_does_not_go_together_is_refused_at_plan(
    measured: Artifact, params: dict[str, Any], messages: list[str]
) -> None:
    found = refused(measured, **params)
    assert len(found) == len(messages)
    assert all(any(message in one for one in found) for message in messages)


def refused(artifact: Artifact, **params: Any) -> list[str]:
    """All that a plan says against it; [] where there is nothing."""
    try:
        forecast(NAME, artifact, **params)
    except UserError as error:
        return [problem.message if problem.fix else "without a remedy" for problem in error.problems]
    return []


def test_a_budget_needs_costs_of_these_weights_in_both_widths(measured: Artifact) -> None:
    given = {**AUTO, "budget": 0.2}
    assert refused(measured, **given) == []
    measuring, building = measured.lineage
    none = replace(measured, lineage=(building,))
    assert refused(none, **given) == ["no analyze.sensitivity of `model` went before it"]
    taught = replace(measured, lineage=(measuring, Provenance("distill.logits", 1, {}, ""), building))
    assert refused(taught, **given) == ["distill.logits changed `model` after analyze.sensitivity had measured it"]
    three = replace(measuring, params={**measuring.params, "bits": [4, 3]})
    (message,) = refused(replace(measured, lineage=(three,)), **given)
    assert "measured 4, 3 bits of `model`, and a budget needs 8, 4" in message


def test_fields_that_came_later_leave_old_keys_alone() -> None:
    stage = find_stage(NAME)
    old = {"mode", "samples", "components", "group_size", "symmetric", "ratio"}
    assert stage.params().counted().keys() == old
    assert stage.params(ignore=("a",), smooth=None).counted().keys() == {*old, "ignore", "smooth"}
    assert stage.data(stage.params(mode="int8_hybrid")) == ("calibration",)
    assert stage.data(stage.params(**FOUR)) == ()
    assert stage.data(stage.params(**FOUR, corrections=("awq",))) == ("calibration",)


def test_torchs_names_are_refused_when_planned_where_nothing_keeps_them(tmp_path: Path) -> None:
    model, file = tiny_llama(tmp_path / "model"), tmp_path / "recipe.yaml"
    (tmp_path / "texts.txt").write_text("\n\n".join(f"The {i}th value." for i in range(20)))
    engine = [{"build.openvino": {}}, {NAME: {"mode": "int8_weights", "ignore": ["*.o_porj", "linear_9", "re:.*proj"]}}]
    body = {"schema": 1, "name": "x", "model": str(model), "data": {"calibration": "texts.txt"}, "stages": engine}
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(RecipeError) as caught:
        compress.plan(file, cache=tmp_path / "cache")
    (problem,) = caught.value.problems
    assert "ignore: `*.o_porj` is as torch calls layers" in problem.message
    assert problem.fix.startswith("put analyze.sensitivity in front of the engine")
    body["stages"] = [{"analyze.sensitivity": {"bits": [8], "samples": 2}}, *engine]
    file.write_text(yaml.safe_dump(body))
    assert len(compress.plan(file, cache=tmp_path / "cache").nodes) == 3
