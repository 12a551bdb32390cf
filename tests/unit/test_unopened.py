"""That a model was not opened again holds for every step behind the first, and is told once."""

from __future__ import annotations

from compress.events import Event
from compress.execution.unopened import first_warnings, unopened, warned_once

WHY = unopened("gptqmodel opens gptq checkpoints, and it is not installed")
OTHER = "`model` takes 2.00 MB as gptq, more than the 1.00 MB it was made of"


def test_the_same_reason_of_several_steps_is_passed_on_once() -> None:
    heard: list[Event] = []
    emit = warned_once(heard.append)
    given = [Event("warning", step, message) for message in (WHY, OTHER) for step in ("a", "b", "c")]
    given += [Event("warning", "d", unopened("there is no GPU")), Event("note", "d", WHY)]
    for event in given:
        emit(event)
    assert heard == [given[0], *given[3:]]  # what differs by step is passed on of each


def test_a_report_lists_it_once_too() -> None:
    told = [("a", WHY), ("b", OTHER), ("b", WHY), ("c", OTHER), ("c", WHY)]
    assert list(first_warnings(told)) == [f"a: {WHY}", f"b: {OTHER}", f"c: {OTHER}"]
