"""Gates as test cases.

A failed gate is a `failure`. An inconclusive one is an `error`, not a failure and not skipped: it could not be decided,
and a CI that waved it through would turn "not enough samples" into "as good".
"""

from __future__ import annotations

from xml.etree import ElementTree

from evaluation.comparison import Comparison
from evaluation.report import controls
from evaluation.report.formatting import contrast, reason, visible


def render(comparison: Comparison) -> str:
    """A `testsuite` with one `testcase` a gated row; the controls, which no run passes or fails by, in its `system-out`."""
    gated = [row for row in comparison.rows if row.verdict.status != "not gated"]
    count = {status: str(sum(row.verdict.status == status for row in gated)) for status in ("fail", "inconclusive")}
    name = visible(comparison.name)
    attributes = {"name": name, "tests": str(len(gated)), "failures": count["fail"], "errors": count["inconclusive"]}
    suite = ElementTree.Element("testsuite", attributes)
    for row in gated:
        title = visible(f"{row.metric}: {row.verdict.gate}")
        case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": title})
        kind = {"fail": "failure", "inconclusive": "error"}.get(row.verdict.status)
        if kind:
            ElementTree.SubElement(case, kind, {"message": visible(f"{contrast(row)}; {reason(row)}")})
    if reported := controls.lines(comparison):
        ElementTree.SubElement(suite, "system-out").text = "\n".join(map(visible, reported))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
