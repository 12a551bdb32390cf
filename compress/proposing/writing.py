"""A proposal as the text of a recipe, with a comment at each line that says why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from compress.proposing.choices import Facts, Step
from compress.tokenizers.vocabulary import positions

WIDTH = 100
LENGTH = 96  # tokens of a timed text where nobody says
FEWEST = 8  # prompts or documents below which no gate of quality decides
MOST = {True: 200, False: 256}  # documents, prompts: more of them cost more time than they tell
# By the fewest documents or prompts, the margin that they can decide.
PERPLEXITY = ((100, "5%"), (30, "10%"), (FEWEST, "20%"))
CLIP_SCORE = ((128, "2%"), (32, "5%"), (FEWEST, "10%"))
ROLES = ("train", "calibration", "evaluate")


@dataclass(frozen=True)
class Asked:
    """What a recipe is to be for. data: by role, as a recipe names it. units: how many items there are to measure quality on; -1: any
    number. features: an extractor for images that are not the zoo's, or ""."""

    name: str
    model: str
    data: Mapping[str, str] = field(default_factory=dict)
    units: int = 0
    features: str = ""


def recipe_text(asked: Asked, facts: Facts, steps: Sequence[Step], left: Sequence[tuple[str, str]]) -> str:
    """The recipe, commented."""
    return "\n".join((*_head(asked, facts), *_data(asked), *_stages(steps, left), *_evaluate(asked, facts), ""))


def _head(asked: Asked, facts: Facts) -> Iterator[str]:
    kind = facts.artifact.components[facts.artifact.main].kind
    yield f"# {kind}, to be {facts.goal}, on {facts.machine.words}. Written by `pare init`; it is yours to change."
    yield "schema: 1"
    yield f"name: {scalar(asked.name)}"
    yield f"model: {scalar(asked.model)}"
    yield "seed: 0"
    if facts.machine.gpu:
        yield "device: cuda"


def _data(asked: Asked) -> Iterator[str]:
    if asked.data:
        yield "data:"
        for role in (role for role in ROLES if role in asked.data):
            shared = (
                "  # those it learns from"
                if role == "calibration" and asked.data.get("train") == asked.data[role]
                else ""
            )
            yield f"  {role}: {scalar(asked.data[role])}{shared}"
    if "evaluate" not in asked.data:
        yield "# Without data to evaluate on, speed and size are measured, and quality is not: --data evaluate=…"


def _stages(steps: Sequence[Step], left: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "stages:" if steps else "stages: []"
    for step in steps:
        yield f"  # {step.why}"
        yield f"  - {step.stage}: {flow(step.params)}"
        if step.keep:
            yield f"    keep: {step.keep}"
    for title, why in left:
        yield from textwrap.wrap(
            f"left out: {title}: {why}",
            WIDTH,
            initial_indent="  # ",
            subsequent_indent="  #   ",
            break_long_words=False,
        )


def _evaluate(asked: Asked, facts: Facts) -> Iterator[str]:
    text = facts.artifact.writes_text
    wide = "float32" if not facts.machine.gpu else "bfloat16" if facts.machine.bfloat16 else "float16"
    yield "evaluate:"
    yield f"  baseline: {{dtype: {wide}}}  # PyTorch eager, as the model's users run it"
    metrics, gates = ["throughput" if text else "latency", "peak_memory", "size"], [_speed_gate(facts)]
    count = MOST[text] if asked.units < 0 else min(asked.units, MOST[text])
    if "evaluate" in asked.data:
        yield f"  samples: {max(2, count)}"
        quality, gate = _quality(asked, text, count)
        metrics, gates = [*quality, *metrics], [*gate, *gates]
    else:
        gates.append("  # no gate of quality, and nothing measures it: that takes held-out data, --data evaluate=…")
    if text and (known := positions(facts.artifact.known_config(facts.artifact.main))) and known < LENGTH:
        yield f"  prompt_tokens: {known // 4}  # the model has {known} positions"
        yield f"  new_tokens: {known // 4}"
    if asked.features:
        yield f"  features: {scalar(asked.features)}"
    yield f"  metrics: [{', '.join(metrics)}]"
    yield "gates:"
    yield from gates


def _speed_gate(facts: Facts) -> str:
    if not facts.faster:
        return "  size: {smaller: 1.5}"
    return f"  {'throughput' if facts.artifact.writes_text else 'latency'}: {{faster: 1.2}}"


def _quality(asked: Asked, text: bool, count: int) -> tuple[list[str], list[str]]:
    """Metrics of quality, and a gate with a margin that so many units can decide."""
    if text:
        return ["perplexity", "kl"], _margin("perplexity", "worse_by", PERPLEXITY, count, "documents")
    if not judged(asked):
        why = (
            "  # no gate of quality: CLIP score takes --features FOLDER, of a CLIP model (the zoo's knows digits alone)"
        )
        return ["ssim", "lpips"], [why]
    return ["clip_score", "kid"] if count >= CLIP_SCORE[1][0] else ["clip_score"], _margin(
        "clip_score", "within", CLIP_SCORE, count, "prompts"
    )


def _margin(metric: str, bound: str, known: Sequence[tuple[int, str]], count: int, what: str) -> list[str]:
    margin = next((margin for least, margin in known if count >= least), "")
    if not margin:
        return [f"  # no gate of quality: {count} {what} decide nothing, {FEWEST} are the fewest"]
    return [f"  {metric}: {{{bound}: {margin}}}  # what {count} {what} can decide"]


def judged(asked: Asked) -> bool:
    """Whether there is an extractor that knows such images."""
    return bool(asked.features) or asked.data.get("evaluate", "").startswith("zoo://")


def flow(params: Mapping[str, Any]) -> str:
    """Parameters on one line."""
    return yaml.safe_dump(dict(params), default_flow_style=True, sort_keys=False, width=1000).strip()


def scalar(text: str) -> str:
    """Text as YAML writes it where a value stands."""
    return yaml.safe_dump(text, default_flow_style=True, width=10000).removesuffix("\n...\n").strip()
