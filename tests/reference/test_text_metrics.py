"""Greedy continuations compared with the original's, and McNemar's test against scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from compress.artifact import Artifact
from compress.data.items import Item
from compress.errors import UserError
from compress.recipe.gates import Gate
from evaluation.evidence import Continuation, Evidence
from evaluation.metrics import text_agreement, token_agreement, tokens_written
from evaluation.values import Sample
from evaluation.verdict import statistics
from evaluation.verdict.gates import judge, problems

MODEL = Artifact(Path("model"), "text_generation", {})
AGREEMENT, WRITTEN = token_agreement.TokenAgreement(), tokens_written.TokensWritten()


def wrote(*rows: Sequence[int], original: Evidence | None = None, most: int = 6) -> Evidence:
    """One item more than continuations, as there are: only the first documents are continued."""
    items = tuple(Item(f"d{i}", "") for i in range(len(rows) + 1))
    message = tuple(Continuation("", tuple(row), "") for row in rows)
    return Evidence(MODEL, items, original, continuations=message, written=most)


def sample(values: Sequence[float]) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), np.array(values, dtype=float))


def test_agreement_is_the_share_before_the_first_token_that_differs() -> None:
    original = wrote([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2], [9, 9, 9, 9, 9], [])
    candidate = wrote([1, 2, 3, 4], [1, 2, 0, 4], [0, 2, 3, 4], [1, 2, 3, 4], [9, 9, 9, 9], [], original=original)
    found = token_agreement.measure.measure(candidate, AGREEMENT)
    assert found.values.tolist() == [1, 2 / 4, 0, 2 / 4, 4 / 5]
    assert found.unit_ids == ("d0", "d1", "d2", "d3", "d4")  # nobody wrote anything behind the last one's empty prompt
    estimate = token_agreement.measure.score(found)
    assert estimate.value == pytest.approx(2.8 / 5)
    assert estimate.note == "median first divergent token 2 of 5; 1 of 5 agree to the end"


def test_identical_sides_agree_wholly_and_say_so() -> None:
    original = wrote([1, 2, 3], [4, 5], [6])
    alone = token_agreement.measure.measure(original, AGREEMENT)
    same = token_agreement.measure.measure(wrote([1, 2, 3], [4, 5], [6], original=original), AGREEMENT)
    assert alone.values.tolist() == same.values.tolist() == [1, 1, 1]
    assert same.note == "3 of 3 agree to the end"
    found = token_agreement.measure.contrast(same, alone)
    assert (found.low, found.value, found.high) == (0, 0, 0)
    assert found.note == same.note


def test_a_later_first_difference_is_never_worse() -> None:
    original = wrote(*[[0] * 8] * 8)
    candidate = wrote(*[[0] * i + [1] * (8 - i) for i in range(8)], original=original)
    found = token_agreement.measure.measure(candidate, AGREEMENT).values
    assert found.tolist() == [i / 8 for i in range(8)]


def test_agreement_of_texts_is_the_share_of_characters_before_the_first_that_differs() -> None:
    def spoke(*texts: str, original: Evidence | None = None) -> Evidence:
        items = tuple(Item(f"d{i}", "") for i in range(len(texts) + 1))
        return Evidence(MODEL, items, original, continuations=tuple(Continuation("", (), text) for text in texts))

    one, other = ("abcd", "abcd", "ab", "", "", "x"), ("abcd", "abXd", "abcd", "", "y", "")
    params = text_agreement.TextAgreement()
    found = text_agreement.measure.measure(spoke(*other, original=spoke(*one)), params)
    assert found.unit_ids == ("d0", "d1", "d2", "d4", "d5")  # two that wrote nothing agree on nothing
    plain = []
    for a, b in zip(one, other, strict=True):
        same = 0
        while same < min(len(a), len(b)) and a[same] == b[same]:
            same += 1
        plain += [same / max(len(a), len(b))] if a or b else []
    assert found.values.tolist() == plain
    assert found.note == "1 of 5 agree to the end"
    assert text_agreement.measure.measure(spoke(*one), params).values.tolist() == [1] * 4
    with pytest.raises(UserError, match="no prompt was continued"):
        text_agreement.measure.measure(spoke("", original=spoke("")), params)


def test_the_number_of_tokens_counts_each_sides_own() -> None:
    found = tokens_written.measure.measure(wrote([1] * 6, [1] * 3, [], [1] * 6), WRITTEN)
    assert found.values.tolist() == [6, 3, 6]
    assert found.unit_ids == ("d0", "d1", "d3")
    assert tokens_written.measure.score(found).value == 5
    assert tokens_written.measure.score(found).note == "2 of 3 stopped by the limit of 6"
    assert tokens_written.measure.measure(wrote([1] * 5), WRITTEN).note == ""
    assert not tokens_written.measure.own


@pytest.mark.parametrize(("share", "status"), [(0.8, "fail"), (1.2, "fail"), (1.0, "pass")])
def test_answers_a_fifth_shorter_or_longer_fail_a_gate_of_five_percent(share: float, status: str) -> None:
    lengths = np.random.default_rng(0).integers(30, 50, 40)
    base = tokens_written.measure.measure(wrote(*[[1] * n for n in lengths], most=64), WRITTEN)
    other = tokens_written.measure.measure(wrote(*[[1] * round(share * n) for n in lengths], most=64), WRITTEN)
    metric, gate = tokens_written.measure, Gate(within="5%")
    assert judge(gate, metric, metric.score(base), metric.contrast(other, base)).status == status
    assert "both sides" in problems(Gate(worse_by="5%"), metric)


@pytest.mark.parametrize("metric", [token_agreement, tokens_written])
def test_without_continuations_there_is_a_remedy_and_no_number(metric: object) -> None:
    with pytest.raises(UserError, match="no prompt was continued") as caught:
        metric.measure.measure(wrote(), None)  # type: ignore[attr-defined]
    assert "continuations: 32" in caught.value.problems[0].fix


# ---------------------------------------------------------------- McNemar


def pairs(won: int, lost: int, even: int = 5) -> tuple[np.ndarray, np.ndarray]:
    candidate = np.array([1.0] * won + [0.0] * lost + [1.0] * even)
    return candidate, np.array([0.0] * won + [1.0] * lost + [1.0] * even)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_the_exact_binomial_test_of_the_pairs_that_differ(won: int, lost: int, even: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert statistics.mcnemar(*pairs(won, lost, even)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_knows_no_side_and_no_pair_that_agrees() -> None:
    one = statistics.mcnemar(*pairs(12, 4))
    assert one == statistics.mcnemar(*pairs(4, 12)) == statistics.mcnemar(*pairs(12, 4, 500))
    assert one == pytest.approx(0.0768, abs=1e-4)
    assert statistics.mcnemar(*pairs(0, 0)) == 1


def test_a_proportions_contrast_tells_who_won_what() -> None:
    candidate, baseline = pairs(12, 4, 34)
    found = statistics.PROPORTION.contrast(sample(candidate), sample(baseline))
    assert found.note == "McNemar p = 0.077 (12 won, 4 lost)"
    assert found.value == pytest.approx(8 / 50)
    plain = statistics.SHARE.contrast(sample(candidate), sample(baseline))
    assert (found.low, found.high) == (plain.low, plain.high)
    assert statistics.PROPORTION.score(sample(candidate)).value == candidate.mean()
