"""Share of a benchmark's documents that the model gets right, through EleutherAI's lm-evaluation-harness.

Tasks are the harness' own YAML files with documents in local files; nothing is looked up. A document counts 0 or 1 by the task's
`acc`, or else its `exact_match`. The two models are compared with each other document by document, with McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from compress.errors import UserError
from compress.files.hashing import digest_json
from compress.machine.deps import version
from compress.params import Params
from compress.sources.units import firsts
from evaluation.evidence import Evidence
from evaluation.metrics import metric
from evaluation.values import Sample
from evaluation.verdict import statistics

PRIMARY = ("acc", "exact_match")


class Accuracy(Params):
    tasks: tuple[str, ...] = Field(
        min_length=1, description="folders or YAML files of the harness' tasks; relative to the current folder"
    )
    few_shot: int = Field(0, ge=0, description="solved examples before each question")
    limit: int | None = Field(None, ge=1, description="documents of each task; default: all")


@metric(
    version=1,
    title="accuracy",
    params=Accuracy,
    needs=("language_model",),
    better="higher",
    ends=(0, 1),
    statistic=statistics.PROPORTION,
    libraries=("lm_eval",),
    extra="lm-eval",
)
def measure(evidence: Evidence, params: Accuracy) -> Sample:
    from compress.opening import open_language
    from evaluation.observe.lm_eval_harness import load_tasks, run_tasks

    tasks = load_tasks(params.tasks)  # first, for it may refuse
    model = open_language(evidence.artifact, evidence.opening)
    found = run_tasks(model, tasks, params.few_shot, params.limit, evidence.seed)
    marks = {f"{task}/{doc}": mark for task, rows in found.items() for doc, mark in _marks(task, rows).items()}
    asked = [[row["doc_hash"], row["prompt_hash"]] for rows in found.values() for row in rows]
    protocol: dict[str, str | int | float] = {
        "tasks": ", ".join(found),
        "documents": digest_json(asked),
        "few_shot": params.few_shot,
        "harness": version("lm-eval"),
    }
    asked_once, held = len(marks), sum(len({row["doc_id"] for row in rows}) for rows in found.values())
    left_out = f"{asked_once} of {held} documents count: the others are copies" if asked_once < held else ""
    return Sample(tuple(marks), np.array(list(marks.values())), protocol=protocol, note=_each(found), left_out=left_out)


def _marks(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """0 or 1 of each document, by its number: the task's first filter's, where it has several. Of equal documents the first
    counts.

    Raises:
        UserError: the task gives no such mark.
    """
    name = next((name for name in PRIMARY if name in rows[0]), "")
    message = [row for row in rows if row["filter"] == rows[0]["filter"]]
    once = [message[i] for i in firsts(row["doc_hash"] for row in message)]
    marks = {row["doc_id"]: float(row[name]) for row in once} if name else {}
    if not marks or set(marks.values()) - {0.0, 1.0}:
        raise UserError(
            f"the task {task} marks no document right or wrong",
            fix="list acc or exact_match in its metric_list, or drop it from accuracy",
        )
    return marks


def _each(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Every task's own share, where there are several."""
    shares = {task: np.mean(list(_marks(task, rows).values())) for task, rows in found.items()}
    return ", ".join(f"{task} {share:.3f}" for task, share in shares.items()) if len(shares) > 1 else ""
