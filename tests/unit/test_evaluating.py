"""What `eval` asks for, checked before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.errors import UserError
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from compress.store.cache import Cache
from tests.fakes import language_model


@pytest.fixture
def sides(tmp_path: Path) -> tuple[str, str]:
    return str(language_model(tmp_path / "one")), str(language_model(tmp_path / "other", (3, 3)))


def request(sides: tuple[str, str], tmp_path: Path, metrics: Any, **more: Any) -> Any:
    return prepare(*sides, Wanted(metrics, **more), Cache(tmp_path / "cache"), tmp_path / "out")


def test_metrics_have_every_parameter_filled_in(sides: tuple[str, str], tmp_path: Path) -> None:
    assert request(sides, tmp_path, {"flops": {}, "size": {}}).spec.metrics.keys() == {"flops", "size"}
    found = request(sides, tmp_path, {"flops": {}}).spec.metrics["flops"]
    assert found == request(sides, tmp_path, {"flops": dict(found)}).spec.metrics["flops"]


def test_every_wrong_parameter_and_gate_is_reported_at_once_in_a_recipe_s_words(
    sides: tuple[str, str], tmp_path: Path
) -> None:
    metrics = {"size": {"sice": 1}, "latency": {"x": object()}}
    gates = {"size": Gate(), "flops": Gate(within=1)}
    with pytest.raises(UserError) as caught:
        request(sides, tmp_path, metrics, gates=gates)
    assert [f"{p.place}: {p.message}" for p in caught.value.problems] == [
        "metrics: size.sice: unknown key",
        "metrics: latency.x: no recipe can hold a object",
        "gates: gate size: give exactly one of within, worse_by, speedup, at_least, at_most, faster, smaller",
        "gates: flops is gated and not measured",
    ]
    assert all(p.fix for p in caught.value.problems)


def test_a_side_that_is_to_write_further_than_it_was_trained_to_is_warned_of(
    sides: tuple[str, str], tmp_path: Path
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 16}
    (Path(sides[0]) / "config.json").write_text(json.dumps(config))
    spec = EvalSpec(prompt_tokens=10, new_tokens=10)
    (message,) = request(sides, tmp_path, {"latency": {}}, spec=spec).warnings
    assert message.startswith(
        f"{sides[0]}: prompt_tokens and new_tokens are 20 together, and the model has 16 positions"
    )
    assert request(sides, tmp_path, {"size": {}}, spec=spec).warnings == ()


@pytest.mark.parametrize("device", [None, 3, "", "cpu ", "gpu"])
def test_what_is_no_device_is_one_clear_error_for_every_verb(
    device: Any, sides: tuple[str, str], tmp_path: Path
) -> None:
    for verb in (
        lambda: compress.load(sides[0], device=device),
        lambda: request(sides, tmp_path, {"size": {}}, device=device),
        lambda: compress.apply("accelerate.steps", sides[0], device=device, cache=tmp_path / "cache"),
    ):
        with pytest.raises(UserError) as caught:
            verb()
        assert any("device" in p.message and p.fix for p in caught.value.problems)


def test_what_a_plan_warns_of_in_data_is_reported_here_too(sides: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one line\nanother")
    gates = {"perplexity": Gate(worse_by="5%")}
    message = request(sides, tmp_path, {"perplexity": {}}, gates=gates, data=str(tmp_path / "d.txt")).warnings
    assert len(message) == 2
    assert message[0].startswith("data: gates on perplexity will stay inconclusive: they rest on 1 of at least 8 units")
    assert "d.txt is 1 document" in message[1]


@pytest.mark.parametrize("metric", ["kid", "no_such_metric"])
def test_sides_data_and_extractors_that_are_not_there_are_reported_at_once(metric: str, tmp_path: Path) -> None:
    data = str(tmp_path / "missing")
    with pytest.raises(UserError) as caught:
        request((str(tmp_path / "a"), str(tmp_path / "b")), tmp_path, {metric: {"features": "./gone"}}, data=data)
    messages = [problem.message for problem in caught.value.problems]
    parts = ["no such model folder", "no such data"] + ["kid.features"] * (metric == "kid")
    assert [part in message for part, message in zip(parts, messages, strict=True)] == [True] * len(parts)
