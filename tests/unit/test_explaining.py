"""Parameters as `pare explain` tells them: in YAML's words, each default one that a recipe could give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, TypeAdapter

from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.commands.explain_parameters import kind, parameter_lines, value
from compress.params import Params

RECORDS = [*(find_stage(n).params for n in stage_names()), *(find_metric(n).params for n in metric_names())]


class Inner(Params):
    size: tuple[int, int] = Field((1, 2), description="fewest and most")


class Outer(Params):
    mode: Literal["fast", "small"] = Field(description="what counts")
    names: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = Field("all", description="which")
    inner: Inner = Field(default_factory=Inner, description="how large")
    limit: float | None = None


def test_a_record_is_reported_with_what_is_in_it() -> None:
    assert list(parameter_lines(Outer)) == [
        "  mode: fast | small (required)",
        "      what counts",
        "  names: [str, …] | all (default all)",
        "      which",
        "  inner: mapping (default {size: [1, 2]})",
        "      how large",
        "    size: [int, int] (default [1, 2])",
        "        fewest and most",
        "  limit: float | null (default null)",
    ]


@pytest.mark.parametrize("params", RECORDS)
def test_every_default_is_what_a_recipe_would_say(params: type[Params]) -> None:
    for field in params.model_fields.values():
        assert "typing" not in kind(field.annotation)
        if field.is_required():
            continue
        default: Any = field.get_default(call_default_factory=True)
        read = yaml.safe_load(value(default))
        assert TypeAdapter(field.annotation).validate_python(read) == default
