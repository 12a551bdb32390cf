"""Shuffling and splitting, empty rows and copies change no score and no n: what counts is each thing that was scored, once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.artifact import Artifact
from compress.data.items import Item
from compress.model.describing import describe
from compress.opening import open_language
from compress.recipe.gates import Gate
from compress.sources.units import open_units
from evaluation.distances.image_sets import different
from evaluation.evidence import Evidence
from evaluation.metrics import kl, perplexity
from evaluation.values import Sample, shared
from evaluation.verdict import statistics
from evaluation.verdict.gates import judge
from tests.families import tiny_text

MODEL = Artifact(Path("model"), "text_generation", {})
PLAIN = ("ab", "the array", "of values", "a", "b" * 30, "to sort along the given axis")
FILLER = st.lists(st.one_of(st.just(""), st.sampled_from(PLAIN)), max_size=6)


@cache
def reader() -> Any:
    with TemporaryDirectory() as folder:
        return open_language(describe(tiny_text(Path(folder), "phi3")))


def observed(texts: Sequence[str], batch: int) -> Evidence:
    """What is seen of these rows of a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        items = open_units(str(path), Path()).first(99)
    scores = tuple(reader().token_logprobs([item.text for item in items], batch))
    return Evidence(MODEL, items, token_logprobs=scores, bytes_read=tuple(len(item.text) for item in items))


@cache
def plain() -> tuple[float, int]:
    found = perplexity.measure.score(perplexity.measure.measure(observed(PLAIN, 1), perplexity.Perplexity()))
    return found.value, found.n


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(PLAIN), filler=FILLER, place=st.integers(0, len(PLAIN)), batch=st.integers(1, 9))
def test_order_splits_empty_rows_and_copies_change_no_score_and_no_n(
    order: Sequence[str], filler: list[str], place: int, batch: int
) -> None:
    seen = observed([*order[:place], *filler, *order[place:]], batch)
    found = perplexity.measure.score(perplexity.measure.measure(seen, perplexity.Perplexity()))
    assert found.n == plain()[1] == len(PLAIN)
    assert found.value == pytest.approx(plain()[0], rel=1e-5)


# What was scored


SCORED = (np.log([0.5, 0.25]), np.empty(0), np.log([0.1]), np.empty(0))


def documents(scores: Sequence[np.ndarray] = SCORED) -> Evidence:
    items = tuple(Item(f"d{i}", "text") for i in range(len(scores)))
    return Evidence(MODEL, items, token_logprobs=tuple(scores), bytes_read=(4,) * len(scores))


@pytest.mark.parametrize(("metric", "params"), [(perplexity, perplexity.Perplexity()), (kl, kl.Kl())])
def test_documents_without_a_scored_token_are_no_evidence(metric: Any, params: Any) -> None:
    found = metric.measure.measure(documents(), params)
    assert found.unit_ids == ("d0", "d2")
    assert found.left_out == "2 of 4 documents count: of the others no token is scored"
    assert metric.measure.score(found).n == metric.measure.contrast(found, found).n == 2
    whole = metric.measure.measure(documents([SCORED[0], SCORED[2]]), params)
    assert whole.left_out == ""
    one, other = metric.measure.score(found), metric.measure.score(whole)
    assert (one.value, one.low, one.high) == (other.value, other.low, other.high)


@pytest.mark.parametrize(("metric", "params"), [(perplexity, perplexity.Perplexity()), (kl, kl.Kl())])
@pytest.mark.parametrize(
    ("scores", "why"), [(SCORED[:2], "one unit has no interval"), (SCORED[1:2], "no item was scored")]
)
def test_a_gate_on_one_row_or_on_none_is_open(metric: Any, params: Any, scores: Any, why: str) -> None:
    found = metric.measure.measure(documents(scores), params)
    score, contrast = metric.measure.score(found), metric.measure.contrast(found, found)
    assert score.note.startswith(why) or metric is perplexity
    verdict = judge(Gate(within=1000.0), metric.measure, score, contrast, candidate=score)
    assert (verdict.status, verdict.why) == ("inconclusive", why)


@pytest.mark.parametrize("statistic", ["MEAN", "SHARE", "PROPORTION", "TIME", "RATE", "RESOURCE"])
def test_no_statistic_has_an_interval_of_one_unit(statistic: str) -> None:
    one = Sample(("a",), np.ones(1))
    found = getattr(statistics, statistic).contrast(one, one)
    assert found.n == 1
    assert found.value == (1 if getattr(statistics, statistic).compared == "ratio" else 0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_sides_are_held_against_each_other_on_what_both_scored() -> None:
    one = Sample(("a", "b", "c"), np.array([1.0, 2, 3]))
    found = shared(one, Sample(("c", "d", "a"), np.array([30.0, 40, 10])))
    assert [side.unit_ids for side in found] == [("a", "c")] * 2
    assert [side.values.tolist() for side in found] == [[1, 3], [10, 30]]
    assert len(shared(one, Sample((), np.empty(0)))[0].values) == 0


# Guards on how many images there are


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 40), st.sampled_from([np.float32, np.float64]))
def test_copies_of_a_image_are_one(n: int, d: int, copies: int, kind: Any) -> None:
    draw = np.random.default_rng(n * 1000 + copies)
    rows = draw.normal(size=(n, d)).astype(kind)
    more = rows[draw.integers(n, size=copies)] * (
        1 + 1e-7 * draw.normal(size=(copies, d))
    )  # as another batch gives them
    assert different(draw.permutation(np.concatenate([rows, more.astype(kind)]))) == n
