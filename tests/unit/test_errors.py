"""Errors keep all that they say where they are raised again in another process."""

from __future__ import annotations

import pickle

import pytest

from compress import errors
from compress.errors import PareError, Problem

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, PareError)]
PROBLEMS = (Problem("r.yaml:1:2", "no", "yes"), Problem("r.yaml:3:4", "neither"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[PareError]) -> None:
    many = issubclass(kind, errors.ManyProblems)
    error = kind(PROBLEMS) if many else kind("no", place="r.yaml:1:2", fix="yes")  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.problems, again.exit_code) == (str(error), error.problems, error.exit_code)
    assert len(again.problems) == (2 if many else 1)
