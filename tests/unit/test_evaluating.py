"""What `eval` asks for, checked before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.cache import Cache
from compress.errors import UserError
from compress.evaluating import Wanted, prepare
from compress.recipe import Gate
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


def test_every_wrong_parameter_and_gate_is_told_at_once_in_a_recipe_s_words(
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
