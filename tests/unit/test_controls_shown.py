"""Controls as reports show them: beside the candidate everywhere, and deciding nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from evaluation.comparison import Comparison, Side, Verdict
from evaluation.comparison.control_rows import Beside, Control
from evaluation.report import controls as reported
from evaluation.report import html, junit, markdown, result, runs_table, tradeoff
from evaluation.values import Estimate
from tests.unit.comparisons import image, staged
from tests.unit.test_reports import Page, printed


def beside(metric: str, title: str, status: Any, over: Estimate, contrast: Estimate, why: str = "") -> Beside:
    own = Estimate(42.0, 41.0, 43.0, 30)
    noise = Estimate(1.0, 0.99, 1.01, 30) if metric == "latency" else None
    return Beside(metric, title, own, contrast, over, Verdict(status, "a bound" if why or status else "", why), noise)


def controlled(read: Any = "fail", over: Estimate = Estimate(2.1, 1.9, 2.3, 30)) -> Comparison:  # noqa: B008 - frozen
    rows = (
        beside("latency", "latency", "pass", over, Estimate(9.8, 9.1, 10.4, 30)),
        beside("digits_read", "digits read", read, Estimate(0.05, 0.03, 0.07, 512), Estimate(-0.05, -0.07, -0.03, 512), "outside"),
    )  # fmt: skip
    side = Side("untrained", "e" * 64, "unet: openvino", {"num_inference_steps": 6})
    return replace(image(), controls=(Control("untrained", side, rows),))


def test_a_line_says_the_lead_and_whether_the_control_would_have_passed() -> None:
    assert reported.lines(controlled()) == [
        "Beside the control `untrained`: 2.10× faster [1.90, 2.30] in latency. The control alone is 9.80× [9.10, 10.40] as fast "
        "as the baseline, and would not have passed: it fails digits read; passes latency."
    ]
    assert "and would have passed: latency, digits read." in reported.lines(controlled("pass"))[0]
    assert "it leaves open digits read; passes latency." in reported.lines(controlled("inconclusive"))[0]
    slower = controlled(over=Estimate(0.5, 0.4, 0.8, 30))
    assert "2.00× slower [1.25, 2.50] in latency." in reported.lines(slower)[0]
    alike = controlled(over=Estimate(1.0, 0.99, 1.01, 30))
    assert "is no more than the noise." in reported.lines(alike)[0]
    lost = Estimate(math.nan, math.nan, math.nan, 0, "it did not start")
    assert "latency not measured (it did not start)." in reported.lines(controlled(over=lost))[0]
    (control,) = controlled().controls
    free = tuple(replace(row, verdict=Verdict("not gated")) for row in control.rows[1:])
    unheld = replace(controlled(), controls=(replace(control, rows=free),))
    assert reported.lines(unheld) == ["Beside the control `untrained`: The control alone was held to no gate."]
    assert reported.lines(image()) == []


def test_controls_stand_in_every_report_and_decide_no_verdict(tmp_path: Path) -> None:
    comparison = controlled()
    assert (comparison.status, comparison.exit_code) == ("pass", 0)
    assert "Beside the control `untrained`: 2.10× faster [1.90, 2.30]" in printed(comparison, 300)
    assert "control untrained: unet: openvino, steps 6" in printed(comparison, 300)
    text = markdown.render(comparison)
    cells = "42.00 | −0.050 [−0.070, −0.030] | +0.050 [0.030, 0.070] | ✗ fail | a bound: outside |"
    assert f"| digits read | {cells}" in text.replace("\\", "")
    assert "Control untrained: unet: openvino" in text
    page = Page(html.render(comparison))
    assert page.open == []
    assert page.text.index("Scores") < page.text.index("Beside the controls") < page.text.index("control untrained")


def test_a_result_keeps_its_controls_and_one_from_before_there_were_any_reads() -> None:
    comparison = controlled()
    data = json.loads(json.dumps(result.to_dict(comparison), allow_nan=False))
    jsonschema.validate(data, result.schema())
    assert result.from_dict(data) == replace(comparison, images=())
    del data["controls"]
    assert result.from_dict(data).controls == ()
    assert reported.lines(result.from_dict(data)) == []


def test_a_control_with_a_verdict_that_there_is_not_is_no_result() -> None:
    data = result.to_dict(controlled())
    data["controls"][0]["rows"][0]["verdict"]["status"] = "perhaps"
    with pytest.raises(ValueError, match="perhaps"):
        result.from_dict(data)


def test_the_table_of_many_runs_has_a_line_for_each_control() -> None:
    headings, cells = runs_table.columns([controlled(), replace(image(), name="other")])
    assert [line[0] for line in cells] == ["digits to int8", "digits to int8, control untrained", "other"]
    assert cells[1][1] == "fail"
    assert cells[1][2].startswith("9.80× [9.10, 10.40]")
    assert cells[1][headings.index("digits_read")].startswith("−0.050")
    assert cells[1][headings.index("weights")] == "–"  # no gate asked for the control's
    assert "control untrained" in runs_table.markdown([controlled()])
    rows = runs_table.to_dicts([controlled()])
    assert [row["metric"] for row in rows if row["control"] == "untrained"] == ["latency", "digits_read"]
    assert [row["status"] for row in rows if row["control"] == "untrained"] == ["fail", "fail"]
    assert len([row for row in rows if not row["control"]]) == len(image().rows)


def test_a_control_has_a_point_of_its_own_in_the_plot_of_speed_against_quality() -> None:
    found = replace(staged(), controls=controlled().controls)
    rows = {row.metric: row for row in found.rows}
    *before, point = tradeoff.points_of(found, rows["latency"], rows["digits_read"])
    assert before == tradeoff.points_of(staged(), rows["latency"], rows["digits_read"])
    assert (point.name, point.speed.value, point.quality.value) == ("control untrained", 9.8, -0.05)
    assert "control untrained" in html.render(found)
    assert "control" not in "".join(p.name for p in tradeoff.points_of(found, rows["latency"], rows["fid"]))


def test_a_control_is_reported_beside_the_test_cases_and_is_none() -> None:
    suite = ElementTree.fromstring(junit.render(controlled()))
    assert suite.findtext("system-out") == reported.lines(controlled())[0]
    assert suite.get("failures") == "0"
    assert len(suite.findall("testcase")) == len(ElementTree.fromstring(junit.render(image())))
