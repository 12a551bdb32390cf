"""The contract, beside what `test_execute` holds a stage to: what was forecast of a config must come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import Artifact, Component, derive, write_manifest
from compress.catalogue import Forecast, Stage
from compress.errors import ContractError
from compress.events import silent
from compress.execution.contract import Digested, check
from compress.execution.execute import execute
from compress.files.hashing import digest_files
from compress.model.depth_units import depth_pools, unsettled, without
from compress.model.describing import describe
from compress.params import Params
from compress.planning.forecast import changed_fields, unsettled_fields
from compress.planning.nodes import Node
from compress.planning.plan import make_plan
from compress.store.cache import Cache
from tests.fakes import CUT, TUNE, language_model, step
from tests.tiny import tiny_diffusion, tiny_llama
from tests.unit.test_execute import WEIGHTS, Trusting, add_one, knowing, recipe, rewriting, run

LLAMA = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 32}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr("compress.execution.execute.lent_checker", lambda: contextlib.nullcontext(Trusting()))
    return Cache(tmp_path / "cache")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = language_model(tmp_path / "llama")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def promising(*, leaves: Mapping[str, Any], name: str = "demo.cut", **fields: Any) -> Stage:
    """A stage that forecasts these fields of a config, and leaves those."""

    def forecast(artifact: Artifact, params: Any) -> Forecast:
        config = dict(artifact.config("model"))
        return Forecast({"model": {**config, **fields}}, unsettled={"model": frozenset({"layer_types"})})

    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, without=("config.json",), link=context.link)
        (context.out / WEIGHTS).unlink()
        rewriting(add_one)(artifact, params, replace(context, out=context.scratch, link=False))
        (context.scratch / WEIGHTS).rename(context.out / WEIGHTS)
        (context.out / "config.json").write_text(json.dumps({**artifact.config("model"), **leaves}))
        write_manifest(made)

    return replace(CUT, name=name, forecast=forecast, run=work)


@pytest.mark.parametrize(
    ("forecast", "leaves", "message"),
    [
        (
            {"num_hidden_layers": 3},
            {"num_hidden_layers": 2},
            "`num_hidden_layers` of model was forecast to be 3, and is 2",
        ),
        ({"num_hidden_layers": 3}, {}, "`num_hidden_layers` of model was forecast to be 3, and is 4"),
        ({"head_dim": 8}, {}, "`head_dim` of model was forecast to be 8, and is nothing"),
        ({"widths": (8, 16)}, {"widths": [8, 8]}, "`widths` of model was forecast to be [8, 16], and is [8, 8]"),
    ],
)
def test_a_stage_that_leaves_another_config_than_it_forecast_breaks_its_contract(
    cache: Cache, llama: Path, forecast: dict[str, Any], leaves: dict[str, Any], message: str
) -> None:
    lying = promising(leaves=leaves, **forecast)
    with pytest.raises(ContractError) as caught:
        run(cache, llama, (lying, step(lying)))
    assert caught.value.problems[0].message.endswith(f"broke its contract: {message}")
    assert list((cache.root / "entries").iterdir()) == []


@pytest.mark.parametrize(
    ("forecast", "leaves"),
    [
        ({"num_hidden_layers": 3}, {"num_hidden_layers": 3}),
        ({"widths": (8, 16)}, {"widths": [8, 16]}),  # JSON knows no tuples
        ({"tied": None}, {}),  # a config may leave out what is not set
        ({}, {"transformers_version": "9"}),  # nothing was stated of it
        ({"layer_types": ["full"]}, {"layer_types": ["sliding"]}),  # it stated that it cannot know
    ],
)
def test_a_stage_that_leaves_what_it_forecast_keeps_it(
    cache: Cache, llama: Path, forecast: dict[str, Any], leaves: dict[str, Any]
) -> None:
    honest = promising(leaves=leaves, **forecast)
    assert run(cache, llama, (honest, step(honest)))[0].artifact.config("model")["hidden_size"] == 32


def test_what_an_earlier_stage_left_open_is_not_held_against_a_later_one(cache: Cache, llama: Path) -> None:
    """Planned on a guess, the later forecast of that field is a guess too, whatever the later stage says of it."""
    first = promising(leaves={"layer_types": ["b"], "num_hidden_layers": 3}, layer_types=["a"], num_hidden_layers=3)
    second = promising(name="demo.more", leaves={"layer_types": [], "num_hidden_layers": 2}, num_hidden_layers=2)
    sure = replace(second, forecast=lambda a, p: Forecast({"model": {**a.config("model"), "layer_types": ["a", "a"]}}))
    for later in (second, sure):
        _, done = run(
            cache,
            llama,
            (first, step(first)),
            (later, step(later, after="demo.cut", ratio=0.1 if later is sure else 0.2)),
        )
        assert done.artifact.config("model")["layer_types"] == []  # neither what was guessed nor what it was sure of


def test_a_config_that_does_not_read_breaks_the_contract(cache: Cache, llama: Path) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        promised.run(artifact, params, context)
        (context.out / "config.json").write_text("{")

    promised = promising(leaves={"hidden_size": 16}, hidden_size=16)
    broken = replace(promised, run=work)
    with pytest.raises(ContractError, match=r"its contract: .*does not read as JSON"):
        run(cache, llama, (broken, step(broken)))


# ---------------------------------------------------------------- damage


class Chosen(Params):
    components: tuple[str, ...] = ()


def _nudge(folder: Path) -> None:
    """Change one number of a component's weights, as a stage must."""
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    tensors[first] = tensors[first] + 1e-3
    file.unlink()
    save_file(tensors, file)


def _edit(file: Path, **changed: object) -> None:
    config = {**json.loads(file.read_text()), **changed}
    file.unlink()
    file.write_text(json.dumps(config))


def _spoil(folder: Path, *, value: float, name: str) -> None:
    """Fill one layer of a component's weights with one value."""
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    chosen = next(key for key in sorted(tensors) if name in key)
    tensors[chosen] = torch.full_like(tensors[chosen], value)
    file.unlink()
    save_file(tensors, file)


def _black(folder: Path) -> None:
    """The last layer of the decoder says black, whatever it is given."""
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.weight"].zero_()
    tensors["decoder.conv_out.bias"].fill_(-1)
    file.unlink()
    save_file(tensors, file)


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "an unscaled latent": (
        "vae",
        lambda out: _edit(out / "vae/config.json", scaling_factor=1.0),
        "`scaling_factor` of vae",
    ),
    "another prediction": (
        "unet",
        lambda out: _edit(out / "scheduler/scheduler_config.json", prediction_type="epsilon"),
        "`prediction_type` of scheduler",
    ),
    "another scheduler": (
        "unet",
        lambda out: _edit(out / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"]),
        "`_class_name` of scheduler",
    ),
    "no numbers in one layer": (
        "unet",
        lambda out: _spoil(out / "unet", value=float("nan"), name="conv_out.weight"),
        "`conv_out.weight` in unet holds values that are not finite",
    ),
    "all black": ("vae", lambda out: _black(out / "vae"), "the reloaded model gives a constant output"),
    "a half-precision decoder that overflows": (
        "vae",
        lambda out: _spoil(out / "vae", value=3e38, name="decoder.conv_in.weight"),
        "holds values that are no numbers",
    ),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_stage_that_damages_a_pipeline_is_named(what: str, pipeline: Path, tmp_path: Path) -> None:
    """Each kind of damage that people's pipelines come with, done by a stage: found when it is held to its contract."""
    component, damage, message = DAMAGE[what]

    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, link=False)
        _nudge(context.out / component)
        damage(context.out)
        write_manifest(made)

    harming = replace(CUT, params=Chosen, run=work)
    with pytest.raises(ContractError) as caught:
        run(Cache(tmp_path / "cache"), pipeline, (harming, step(harming, components=(component,))))
    assert caught.value.problems[0].message.startswith("stage `demo.cut` (demo.cut) broke its contract: ")
    assert message in caught.value.problems[0].message
    assert list((tmp_path / "cache" / "entries").iterdir()) == []


def test_a_stage_that_damages_what_it_did_not_name_is_reported(pipeline: Path, tmp_path: Path) -> None:
    def work(artifact: Any, params: Any, context: Any) -> None:
        made = derive(artifact, context.out, link=False)
        _nudge(context.out / "unet")
        _nudge(context.out / "vae")
        write_manifest(made)

    straying = replace(CUT, params=Chosen, run=work)
    with pytest.raises(ContractError, match="it changed the weights of vae, which it did not name"):
        run(Cache(tmp_path / "cache"), pipeline, (straying, step(straying, components=("unet",))))


def test_a_check_needs_no_runner(llama: Path, tmp_path: Path) -> None:
    artifact = describe(llama)
    with knowing(TUNE):
        (node,) = make_plan(recipe(llama, step(TUNE)), Cache(tmp_path / "cache")).nodes
    side = Digested(artifact, digest_files(llama))
    check(side, side, node, Trusting(), lambda message: None)
    with pytest.raises(ContractError, match="left model as it was"):
        check(side, side, replace(node, stage=CUT), Trusting(), lambda message: None)


# What real stages forecast


RECIPE = """\
schema: 1
name: cuts
model: {model}
data: {{calibration: {data}}}
stages:
"""
CASES = {
    "text": ("zoo://docstrings/train", "prune.depth: {ratio: 0.5}", "prune.width: {ratio: 0.25, parts: [ffn]}"),
    "image": ("zoo://digits/train", "prune.depth: {ratio: 0.2}", "prune.width: {ratio: 0.5}"),
    "image again": ("zoo://digits/train", "prune.depth: {ratio: 0.2}", "prune.depth: {ratio: 0.2}"),
}


@pytest.mark.parametrize("case", CASES)
def test_cuts_leave_the_configs_that_they_forecast(case: str, cache: Cache, tmp_path: Path) -> None:
    data, *steps = CASES[case]
    model = tiny_llama(tmp_path / "model") if case == "text" else tiny_diffusion(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(model=model, data=data) + "".join(f"  - {one}\n" for one in steps))
    plan = compress.plan(file, cache=cache.root)
    part = plan.source.artifact.main
    assert any(node.forecast[part] for node in plan.nodes) == (case != "image again")  # a UNet's blocks differ
    done = execute(plan, cache, silent)
    for node, left in zip(plan.nodes, done, strict=True):
        config = left.artifact.config(part)
        assert {key: config[key] for key in node.forecast[part]} == json.loads(json.dumps(node.forecast[part]))


def node_of(cache: Cache, model: Path, text: str, tmp_path: Path) -> Node:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(model=model, data="zoo://docstrings/train") + f"  - {text}\n")
    return compress.plan(file, cache=cache.root).nodes[0]


def test_a_cut_in_depth_knows_how_many_layers_go_and_not_which(cache: Cache, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"layer_types": ["full", "sliding"]}
    (model / "config.json").write_text(json.dumps(config))
    node = node_of(cache, model, "prune.depth: {ratio: 0.5}", tmp_path)
    assert node.forecast == {"model": {"num_hidden_layers": 1}}
    assert node.unsettled == {"model": {"layer_types"}}


def test_a_cut_in_width_knows_every_field(cache: Cache, tmp_path: Path) -> None:
    node = node_of(cache, tiny_llama(tmp_path / "model"), "prune.width: {ratio: 0.5, parts: [ffn]}", tmp_path)
    assert node.forecast == {"model": {"intermediate_size": 32}}
    assert node.unsettled == {}


TYPES = st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=2, max_size=6)


@given(TYPES, st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_units_go_they_differ_in_unsettled_fields_alone(types: list[str], data: st.DataObject) -> None:
    config = {"num_hidden_layers": len(types), "layer_types": types, "hidden_size": 8}
    (pool,) = depth_pools("LlamaForCausalLM", config)
    count = data.draw(st.integers(1, len(types) - 1))
    chosen = st.lists(st.sampled_from(range(len(types))), min_size=count, max_size=count, unique=True).map(sorted)
    one, other = (without(config, tuple(pool.units[i] for i in data.draw(chosen))) for _ in range(2))
    differ = {key for key in config if one[key] != other[key]}
    assert differ <= unsettled("LlamaForCausalLM", config) <= {"layer_types"}


def test_fields_that_nobody_changes_are_not_forecast(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "text_generation", {"model": Component("torch", "", "X")}, planned={"model": LLAMA})
    reported = Forecast({"model": {**LLAMA, "hidden_size": 16, "extra": 1}}, unsettled={"model": frozenset({"extra"})})
    assert changed_fields(artifact, reported, unsettled_fields(reported, {})) == {"model": {"hidden_size": 16}}
    assert unsettled_fields(reported, {"model": frozenset({"a"}), "vae": frozenset({"b"})}) == {
        "model": {"a", "extra"},
        "vae": {"b"},
    }
