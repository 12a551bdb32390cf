"""Gates as test cases. Inconclusive is an error, not a failure: the gate could not be decided, and a CI must not pass it."""

from __future__ import annotations

from xml.etree import ElementTree

from evaluation.report import words
from evaluation.scores import Comparison


def render(comparison: Comparison) -> str:
    gated = [row for row in comparison.rows if row.verdict.status != "not gated"]
    count = {status: str(sum(row.verdict.status == status for row in gated)) for status in ("fail", "inconclusive")}
    attributes = {
        "name": _clean(comparison.name),
        "tests": str(len(gated)),
        "failures": count["fail"],
        "errors": count["inconclusive"],
    }
    suite = ElementTree.Element("testsuite", attributes)
    for row in gated:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _clean(comparison.name), "name": f"{row.metric}: {row.verdict.gate}"}
        )
        kind = {"fail": "failure", "inconclusive": "error"}.get(row.verdict.status)
        if kind:
            ElementTree.SubElement(case, kind, {"message": _clean(f"{words.contrast(row)}; {row.verdict.why}")})
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(
        c for c in text if c in "\t\n" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff")
    )
