"""The measured ratio beside the theoretical one: which rows make a pair, and what is stated of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from compress.model.describing import describe
from compress.zoo import zoo_model
from evaluation.comparison import Comparison, Row, Side, Verdict
from evaluation.comparison.roofline import Realised, bytes_read, roof
from evaluation.comparison.roofline import realised as of_comparison
from evaluation.metrics.size import weights_read
from evaluation.values import Better, Estimate
from tests.stages import apply
from tests.tiny import tiny_llama


def row(metric: str, ratio: float, spread: float = 0.0, better: Better = "lower", **protocol: str | int) -> Row:
    contrast = Estimate(ratio, ratio * (1 - spread), ratio * (1 + spread), 20)
    one = Estimate(1, 1, 1, 20)
    return Row(metric, metric, "", better, "ratio", one, one, contrast, Verdict("not gated"), protocol=protocol)


def decoding(ratio: float, spread: float = 0.0) -> Row:
    return row("throughput", ratio, spread, "higher", counts="decoded tokens")


def compared(
    rows: tuple[Row, ...], read: tuple[int, int] = (0, 0), engine: str = "openvino", **machine: float
) -> Comparison:
    before = Side("baseline", "", "torch float32 eager", read_bytes=read[0])
    after = Side("candidate", "", engine, read_bytes=read[1])
    return Comparison("x", "text_generation", before, after, rows, machine, "")


def realised(rows: tuple[Row, ...], read: tuple[int, int] = (0, 0)) -> Realised | None:
    return of_comparison(compared(rows, read))


def test_more_than_arithmetic_explains_is_flagged() -> None:
    found = realised((row("latency", 11.4, 0.03), row("flops", 4.2)))
    assert found is not None
    assert (found.measured, found.theoretical) == (11.4, 4.2)
    assert found.share == pytest.approx(11.4 / 4.2)
    assert found.sentence == (
        "11.4× measured, 4.2× fewer operations: 2.7 times what arithmetic alone explains, so engine, precision or quicker calls gave the rest"
    )


def test_the_same_engine_gave_nothing() -> None:
    images = (row("latency", 2.0, 0.03), row("flops", 1.5))
    found = of_comparison(compared(images, engine="torch float32 eager"))
    assert found is not None
    assert found.sentence.endswith("alone explains, so fewer or quicker calls gave the rest")
    text = of_comparison(compared((row("time_per_output_token", 4.0),), (200, 100), engine="torch float32 eager"))
    assert text is not None
    assert text.sentence.endswith("so fewer operations or quicker calls gave the rest")


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
    rows = (row("latency", 9.0), decoding(1.5), row("size", 2.0), row("flops", 1.0, new_tokens=64))
    found = realised(rows, (300, 100))
    assert found is not None
    assert (found.measured, found.theoretical, found.share) == (1.5, 3.0, 0.5)
    assert found.sentence == "1.5× measured, 3.0× fewer bytes a token: 50% of what arithmetic promises"
    faster = realised((row("time_per_output_token", 4.0),), (200, 100))
    assert faster is not None
    assert faster.sentence.endswith("so engine, fewer operations or quicker calls gave the rest")


def test_images_a_second_stand_for_a_latency_that_was_not_asked_for() -> None:
    found = realised((row("throughput", 2.0, 0.0, "higher", counts="images"), row("flops", 2.0)))
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
        (row("time_per_output_token", 2.0), row("size", 2.0)),  # what lies on disk need not be what is read
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
    rows = (measured("throughput", 100.0, counts="decoded tokens", batch=batch),)
    message = roof(compared(rows, (1, 50_000_000), read_gb_s=10.0))
    assert f"{share}% of the 10 GB/s that this machine reads" in message


def test_decoding_on_a_gpu_is_held_against_what_it_copies() -> None:
    rows = (measured("throughput", 100.0, counts="decoded tokens", batch=1),)
    message = roof(compared(rows, (1, 50_000_000), read_gb_s=10.0, gpu_copy_gb_s=4000.0))
    assert message == "Decoding reads 5.0 GB/s of weights, 0% of the 4000 GB/s that this GPU copies"


def test_weights_that_come_over_the_bus_have_no_roof_of_memory() -> None:
    rows = (measured("throughput", 100.0, counts="decoded tokens", batch=1),)
    found = compared(rows, (1, 50_000_000), read_gb_s=10.0)
    moved = replace(found.candidate, lineage=({"stage": "accelerate.offload"},))
    assert roof(found)
    assert roof(replace(found, candidate=moved)) == ""


def test_images_and_unknown_machines_have_no_roof() -> None:
    read = (50_000_000, 50_000_000)
    images = (measured("throughput", 100.0, counts="images", batch=1),)
    assert roof(compared(images, read, read_gb_s=10.0)) == ""
    text = (measured("throughput", 100.0, counts="decoded tokens", batch=1),)
    assert roof(compared(text, read)) == ""
    assert roof(compared(text, read_gb_s=10.0)) == ""
    assert roof(compared((), read, read_gb_s=10.0)) == ""


def test_torch_reads_weights_as_they_were_opened_and_an_engine_as_they_are_stored(tmp_path: Path) -> None:
    llama = describe(zoo_model("docs-llama"))  # stored in bfloat16
    stored = sum(file.stat().st_size for file in weights_read(llama))
    assert bytes_read(llama, "") == stored
    assert bytes_read(llama, "bfloat16") == pytest.approx(stored, rel=0.01)  # but for the file's header
    assert bytes_read(llama, "float32") == 2 * bytes_read(llama, "bfloat16")
    engine, _ = apply("build.openvino", describe(tiny_llama(tmp_path / "model")), tmp_path / "out")
    assert bytes_read(engine, "float32") == (engine.path / "openvino_model.bin").stat().st_size
