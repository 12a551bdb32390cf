"""The report as a pull-request comment."""

from __future__ import annotations

import re

from compress.planning.keep_decision import decisions
from evaluation.comparison import Comparison
from evaluation.report import controls, engine_trials, formatting, sensitivity, waterfall
from evaluation.report.stage_settings import as_given, state_of
from evaluation.report.summary import questions

MARKUP = re.compile(r"([\\`*_\[\]|~#!])")
MENTION = re.compile(r"@(?=\w)")


def render(comparison: Comparison) -> str:
    """Verdict, the three answers, the table, the stages, the machine in one line, the candidate and how to call it."""
    lines = [f"## {safe(comparison.name)}: {formatting.VERDICTS[comparison.status]}", ""]
    lines += [f"* **{question}** {safe(answer)}" for question, answer in questions(comparison)]
    lines += table(comparison)
    lines += _stages(comparison)
    lines += _controls(comparison) + _contributions(comparison) + _trials(comparison)
    ran = (
        f"{name[:1].upper()}{name[1:]}: {formatting.runs(comparison, side)}."
        for name, side in formatting.sides(comparison)
    )
    lines += ["", " ".join(map(safe, ran))]
    lines += [f"Machine: {safe(formatting.machine(comparison))}."]
    reported = (
        *decisions(comparison.stages),
        *sensitivity.lines(comparison.stages),
        *formatting.unmeasured(comparison),
    )
    lines += ["", *(f"* {safe(line)}" for line in reported)] if reported else []
    if comparison.warnings:
        lines += ["", *(f"* Warning: {safe(w)}" for w in comparison.warnings)]
    return "\n".join(lines + _handed(comparison)) + "\n"


def table(comparison: Comparison) -> list[str]:
    """Every metric on both sides with its interval, and what its gate says."""
    if not comparison.rows:
        return []
    lines = ["", "| metric | baseline | candidate | difference or ratio, 95% | verdict | gate |"]
    lines += ["|---|---:|---:|---:|---|---|"]
    for row in comparison.rows:
        gate = row.verdict.gate + (f" ({formatting.reason(row)})" if formatting.reason(row) else "")
        cells = (row.title, *formatting.scores(row), formatting.contrast(row), formatting.mark(row), gate)
        lines.append("| " + " | ".join(map(safe, cells)) + " |")
    return lines


def _stages(comparison: Comparison) -> list[str]:
    """The stages, each with what it was given."""
    lines = ["", "| stage | as given | | seconds | size |", "|---|---|---|---:|---:|"] if comparison.stages else []
    for stage in comparison.stages:
        state, size = state_of(stage), formatting.size(stage["size_bytes"])
        cells = (stage["id"], as_given(stage), state, f"{stage['seconds']:.1f}", size)
        lines.append("| " + " | ".join(map(safe, cells)) + " |")
    return lines


def _handed(comparison: Comparison) -> list[str]:
    """Where the candidate lies, and code that calls it, as text: indented, nothing in it is markup."""
    where, *code = formatting.handed(comparison) or ("",)
    shown = [f"    {' '.join(formatting.visible(line).splitlines())}" for line in code]
    return ["", f"{safe(where[:1].upper() + where[1:])}. To call it:", "", *shown] if where else []


def _controls(comparison: Comparison) -> list[str]:
    lines = []
    for control in comparison.controls:
        lines += ["", f"**{safe(controls.line(comparison, control))}**", ""]
        lines += ["| " + " | ".join(map(safe, (*controls.HEADINGS, ""))) + " |", "|---|" + "---:|" * 3 + "---|---|"]
        lines += ["| " + " | ".join(map(safe, row)) + " |" for _, row in controls.table(comparison, control)]
    return lines


def _contributions(comparison: Comparison) -> list[str]:
    headings, rows = waterfall.table(comparison)
    if not rows:
        return []
    lines = ["", "| " + " | ".join(map(safe, headings)) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(map(safe, row)) + " |" for row in rows]
    if units := waterfall.units(comparison):
        lines += ["", f"Quality of the stages on the first {units} items."]
    notes = [f"* {safe(step.stage)}: {safe(step.note)}" for step in comparison.steps if step.note]
    return lines + (["", *notes] if notes else [])


def _trials(comparison: Comparison) -> list[str]:
    lines = []
    for found in engine_trials.read(comparison.stages):
        headings = (f"engine of {found.component or found.stage}", *engine_trials.HEADINGS[1:])
        lines += ["", "| " + " | ".join(map(safe, headings)) + " |", "|---" + "|---:" * 4 + "|---|"]
        lines += ["| " + " | ".join(map(safe, row)) + " |" for row in found.rows]
    return lines


def safe(text: object) -> str:
    """Text that can neither break the table nor bring markup, a link or a mention with it."""
    found = " ".join(formatting.visible(text).split())
    found = found.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    found = MENTION.sub("@\u200c", MARKUP.sub(r"\\\1", found))
    # A zero-width non-joiner keeps the text readable and stops a host's autolinking.
    return found.replace("://", ":\u200c//")
