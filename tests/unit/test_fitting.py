"""A model that knows less of its texts than who guesses is reported; one that knows anything is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.model.describing import describe
from evaluation.comparison.sanity import worse_than_guessing
from evaluation.evidence import Evidence
from tests.fakes import language_model, pipeline

WORDS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = language_model(tmp_path_factory.mktemp("fitting") / "model")
    (made / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": WORDS}))
    return made


def reported(folder: Path, *documents: list[float]) -> str:
    return worse_than_guessing(Evidence(describe(folder), token_logprobs=tuple(map(np.array, documents))))


@given(st.lists(st.lists(st.floats(-50, -0.01), max_size=5), min_size=1, max_size=4))
def test_it_is_reported_exactly_where_perplexity_is_above_the_vocabulary(
    folder: Path, documents: list[list[float]]
) -> None:
    scored = [value for document in documents for value in document]
    perplexity = math.exp(-float(np.mean(scored))) if scored else 0
    if abs(perplexity - WORDS) > 1e-9:
        assert bool(reported(folder, *documents)) == (perplexity > WORDS)


def test_the_number_and_what_it_is_held_against_are_named(folder: Path) -> None:
    message = reported(folder, [-math.log(2 * WORDS)] * 3, [])
    assert message.startswith("its perplexity on these texts, 100, is above the 50 tokens")
    assert "does not fit the data" in message
    assert "e+" in reported(folder, [-1e9])  # beyond what a float holds


def test_what_cannot_be_reported_is_not(folder: Path, tmp_path: Path) -> None:
    assert reported(folder) == reported(folder, [], []) == ""
    assert reported(language_model(tmp_path / "unsaid"), [-1e3]) == ""  # no vocabulary in its config
    assert worse_than_guessing(Evidence(describe(pipeline(tmp_path / "generator")))) == ""
