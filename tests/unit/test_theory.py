"""The measured ratio beside the theoretical one: which rows make a pair, and what is said of it."""

from __future__ import annotations

import math

import pytest

from evaluation.scores import Better, Estimate, Row, Verdict
from evaluation.theory import realised, roof


def row(metric: str, ratio: float, spread: float = 0.0, better: Better = "lower", **protocol: str | int) -> Row:
    contrast = Estimate(ratio, ratio * (1 - spread), ratio * (1 + spread), 20)
    one = Estimate(1, 1, 1, 20)
    return Row(metric, metric, "", better, "ratio", one, one, contrast, Verdict("not gated"), protocol=protocol)


def decoding(ratio: float, spread: float = 0.0) -> Row:
    return row("throughput", ratio, spread, "higher", counts="decoded tokens")


def test_more_than_arithmetic_explains_is_flagged() -> None:
    found = realised((row("latency", 11.4, 0.03), row("flops", 4.2)))
    assert found is not None
    assert (found.measured, found.theoretical) == (11.4, 4.2)
    assert found.share == pytest.approx(11.4 / 4.2)
    assert found.sentence == (
        "11.4× measured, 4.2× fewer operations: 2.7 times what arithmetic alone explains, so engine or precision gave the rest"
    )


def test_less_is_a_share_of_the_promise() -> None:
    found = realised((row("latency", 2.19, 0.02), row("flops", 3.85)))
    assert found is not None
    assert found.sentence == "2.2× measured, 3.9× fewer operations: 57% of what arithmetic promises"


def test_a_ratio_that_holds_theorys_within_its_interval_is_no_flag() -> None:
    for ratio in (2.1, 1.9):
        found = realised((row("latency", ratio, 0.1), row("flops", 2.0)))
        assert found is not None
        assert found.sentence.endswith("what arithmetic explains, as far as the measurement can tell")


def test_text_is_held_against_the_bytes_that_a_token_reads() -> None:
    rows = (row("latency", 9.0), decoding(1.5), row("size", 3.0), row("flops", 1.0, new_tokens=64))
    found = realised(rows)
    assert found is not None
    assert (found.measured, found.theoretical, found.share) == (1.5, 3.0, 0.5)
    assert found.sentence == "1.5× measured, 3.0× fewer bytes a token: 50% of what arithmetic promises"
    faster = realised((row("time_per_output_token", 4.0), row("size", 2.0)))
    assert faster is not None
    assert faster.sentence.endswith("so engine or fewer operations gave the rest")


def test_pictures_a_second_stand_for_a_latency_that_was_not_asked_for() -> None:
    found = realised((row("throughput", 2.0, 0.0, "higher", counts="pictures"), row("flops", 2.0)))
    assert found is not None
    assert found.share == 1


@pytest.mark.parametrize(("ratio", "words"), [(1.0, "as many operations"), (0.5, "2.0× more operations")])
def test_as_many_or_more_operations_are_called_that(ratio: float, words: str) -> None:
    found = realised((row("latency", 2.0), row("flops", ratio)))
    assert found is not None
    assert words in found.sentence


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (row("latency", 2.0),),
        (row("flops", 2.0), row("size", 2.0)),
        (row("latency", 2.0), row("size", 2.0)),  # pictures' bytes bound nothing
        (row("latency", 2.0), row("flops", 2.0, new_tokens=64)),  # nor do text's operations
        (row("latency", 2.0), row("flops", math.nan)),
    ],
)
def test_without_both_rows_there_is_nothing_to_say(rows: tuple[Row, ...]) -> None:
    assert realised(rows) is None


def measured(metric: str, value: float, **protocol: str | int) -> Row:
    one = Estimate(value, value, value, 20)
    return Row(metric, metric, "", "lower", "ratio", one, one, one, Verdict("not gated"), protocol=protocol)


@pytest.mark.parametrize(("batch", "share"), [(1, 50), (4, 12)])
def test_decoding_is_held_against_what_memory_allows(batch: int, share: int) -> None:
    rows = (measured("throughput", 100.0, counts="decoded tokens", batch=batch), measured("size", 50.0))
    said = roof(rows, {"read_gb_s": 10.0})
    assert f"{share}% of the 10 GB/s that this machine reads" in said


def test_pictures_and_unknown_machines_have_no_roof() -> None:
    pictures = (measured("throughput", 100.0, counts="pictures", batch=1), measured("size", 50.0))
    assert roof(pictures, {"read_gb_s": 10.0}) == ""
    text = (measured("throughput", 100.0, counts="decoded tokens", batch=1), measured("size", 50.0))
    assert roof(text, {}) == ""
    assert roof(text[:1], {"read_gb_s": 10.0}) == ""
