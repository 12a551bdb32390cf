"""Options of `pare eval` and sizes: what one line says, or one clear error."""

from __future__ import annotations

from typing import Any

import pytest

from compress.errors import UserError
from compress.recipe.gates import Gate
from compress.recipe.options import read_bytes, read_gates, read_metrics


def test_metrics_take_their_parameters_by_name_and_type() -> None:
    found = read_metrics(" fid, kid ,", ["fid.features=clip/", "fid.allow_few=true", "kid.k=3", "kid.c=a: b", "fid.r="])
    assert found == {
        "fid": {"features": "clip/", "allow_few": True, "r": ""},
        "kid": {"k": 3, "c": "a: b"},
    }
    assert list(found) == ["fid", "kid"]


def test_gates_gather_what_is_message_of_a_metric() -> None:
    found = read_gates(["kid.worse_by=0.002", "clip_score.within=1%", "clip_score.two_sided=false"])
    assert found == {"kid": Gate(worse_by=0.002), "clip_score": Gate(within="1%", two_sided=False)}


@pytest.mark.parametrize("text", ["kid", "kid=1", "kid.worse_by", ".worse_by=1", "kid.=1", ""])
def test_what_is_no_setting_is_shown_how_to_write_one(text: str) -> None:
    for read in (lambda t: read_metrics("kid", [t]), lambda t: read_gates([t])):
        with pytest.raises(UserError, match="is no setting") as caught:
            read(text)
        assert "METRIC.NAME=VALUE" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("given", "message", "fix"),
    [
        ("kid.worse=1", "kid.worse: unknown key", "did you mean `worse_by`?"),
        ("kid.speedup=-1", "kid.speedup must be greater than 0, not -1", "give a number greater than 0"),
        ("kid.within=[1]", "kid.within must be text or a number, not a list", "give text or a number"),
    ],
)
def test_a_bound_that_there_is_not_is_named(given: str, message: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        read_gates([given])
    (problem,) = caught.value.problems
    assert (problem.place, problem.message) == ("--gate", message)
    assert problem.fix.startswith(fix)


def test_every_wrong_bound_is_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        read_gates(["kid.worse=1", "kid.speedup=-1", "fid.within=true", "size.within=1%"])
    assert len(caught.value.problems) == 3


def test_numbers_are_those_of_a_recipe() -> None:
    assert read_metrics("kid", ["kid.a=1e-4", "kid.b=on", "kid.c=.inf"])["kid"] == {"a": 1e-4, "b": "on", "c": ".inf"}
    assert read_gates(["kid.worse_by=1e-4"])["kid"].worse_by == 1e-4


def test_a_parameter_of_a_metric_that_is_not_measured_is_a_mistake() -> None:
    with pytest.raises(UserError, match="kid not measured"):
        read_metrics("fid", ["kid.features=x"])


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 5 * 10**8), ("1.5 gb", 15 * 10**8), ("0KB", 0), ("2TB", 2 * 10**12)]
)
def test_sizes(text: str, count: int) -> None:
    assert read_bytes(text) == count


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "infGB", "1 GiB", "nanMB"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(UserError, match="is no size"):
        read_bytes(text)


def test_no_metric_is_a_mistake_and_a_date_that_there_is_not_is_text() -> None:
    with pytest.raises(UserError, match="no metric is named"):
        read_metrics(" , ", [])
    assert read_metrics("kid", ["kid.features=2024-13-45"]) == {"kid": {"features": "2024-13-45"}}
