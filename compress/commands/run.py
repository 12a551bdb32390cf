"""A plan carried out: its stages, the copy of the candidate that is asked for, the comparison; the log and the reports on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.commands.results import EVENTS, RESULT
from compress.errors import UserError
from compress.events import Emit, Event
from compress.execution.executors import LOCAL, Executor, find_executor
from compress.execution.saving import save
from compress.publishing.model_cards import has_card
from compress.recipe.values import Recipe
from compress.store.cache import Cache, disk_errors

if TYPE_CHECKING:
    from compress.execution.execute import Done
    from compress.planning.plan import Plan
    from evaluation.comparison import Comparison
    from evaluation.comparison.sides import Request
    from evaluation.preflight.image_checks import Images


def run_plan(
    found: Plan, cache: Cache, out: Path, emit: Emit, executor: Executor | None = None, kept: Path | None = None
) -> Comparison:
    """Execute a plan and compare its last artifact with the baseline; writes the log and the reports into `out`.

    Args:
        kept: the folder to copy that artifact to, whatever the comparison will say of it.
    """
    from compress.execution.execute import WARNINGS
    from compress.execution.unopened import first_warnings, warned_once
    from evaluation.comparison.compare import noting
    from evaluation.comparison.sides import Request
    from evaluation.preflight.image_checks import to_be_read
    from evaluation.report.card import complete

    recipe, evaluated = found.recipe, found.data.get("evaluate")
    with disk_errors(out), logged(out, emit) as log, cache.holding() as store:
        store.prepare()
        if other := replaced(out, recipe):
            log(Event("warning", "plan", other))
        real = to_be_read(recipe.evaluate.metrics, evaluated, recipe.evaluate.samples)
        warnings: list[str] = []
        found = with_weights(found, store, noting(log, warnings), real)
        done = (executor or find_executor(LOCAL)).run(found, store, warned_once(log))
        for one in done:
            store.hold(one.key)  # whichever process made it, this one goes on to measure it
        baseline = replace(found.source.artifact, digest=found.source.key)
        candidate = done[-1].artifact if done else baseline
        request = Request(
            name=recipe.name,
            candidate=candidate,
            baseline=baseline,
            data=evaluated,
            spec=recipe.evaluate,
            gates=recipe.gates,
            recipe_text=recipe.reported,
            stages=tuple(_stage_row(d, recipe, cache) for d in done),
            workdir=out,
            evidence_dirs=evidence_dirs(recipe, cache),
            chain=chain_of(done),
            left={one.id: one.artifact for one in done},
            opening=found.opening.of(None),
            kept=save(candidate, kept, log) if kept else None,
            warnings=(
                *warnings,
                *first_warnings((d.id, message) for d in done for message in d.facts.get(WARNINGS, ())),
            ),
        )
        comparison = _measured(found, request, cache, log)
        if kept and has_card(candidate):
            complete(kept, comparison, recipe)
        return comparison


def replaced(out: Path, recipe: Recipe) -> str:
    """That a report lies in a folder already, of other settings, which this run's will replace; or ""."""
    try:
        before = json.loads((out / RESULT).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    if before == recipe.reported:
        return ""
    return f"{out} holds the report of a run with other settings, which this run's replaces: --out FOLDER keeps both"


def _measured(found: Plan, request: Request, cache: Cache, log: Emit) -> Comparison:
    """The comparison; how long it took is remembered, unless some of what it looked at was known before."""
    from compress.commands.evaluate import measure
    from compress.planning import durations
    from evaluation.comparison.sides import viewpoints

    def known() -> int:
        return sum(1 for _ in (cache.root / "evidence").iterdir())

    before, began = known(), time.monotonic()
    comparison = measure(request, log)
    looked_at = sum(len(view.kinds) for view in viewpoints(request))
    if known() - before >= looked_at or not durations.scored(found.recipe.evaluate):
        name = durations.noted_as(durations.evaluation_name(found.source.artifact), found.opening.device)
        durations.remember(cache, name, time.monotonic() - began, found.measuring)
    return comparison


def with_weights(found: Plan, cache: Cache, emit: Emit, real: Iterable[Images] = ()) -> Plan:
    """The same plan, with its models' weights on this disk: fetched, and adapters in them. What the plan warns of is reported first.

    Args:
        real: images that will be read, beside those that its stages learn from.

    Raises:
        DamagedImages: some do not read.
        UserError: weights cannot be had, or are no numbers, of which no stage would make any.
    """
    from compress.making.ready import base_of, ready
    from compress.model.finite_checks import refuse_nonfinite
    from evaluation.preflight.image_checks import refuse_damaged, to_be_learnt

    refuse_damaged(chain(real, to_be_learnt(found.nodes, found.data.get("train"))), cache.root / "digests", emit)
    for message in found.warnings:
        emit(Event("warning", "plan", message))
    if not found.nodes or not all(node.cached for node in found.nodes):
        base = ready(base_of(found.source), cache, emit)
        refuse_nonfinite(base.artifact, base.key, cache.root / "digests")
    wanted = {name for node in found.nodes if not node.cached for name in node.models.values()}
    models = {name: ready(one, cache, emit) if name in wanted else one for name, one in found.models.items()}
    for name in sorted(wanted):
        refuse_nonfinite(models[name].artifact, models[name].key, cache.root / "digests")
    return replace(found, source=ready(found.source, cache, emit), models=models)


def chain_of(done: Sequence[Done]) -> tuple[tuple[str, Artifact], ...]:
    """The stages that lead to the candidate, with what each left. What only another stage reads (a teacher) is none."""
    found: list[tuple[str, Artifact]] = []
    by_id, at = {d.id: d for d in done}, done[-1].id if done else ""
    while at in by_id:
        found.append((at, by_id[at].artifact))
        at = by_id[at].after
    return tuple(reversed(found))


def _stage_row(done: Done, recipe: Recipe, cache: Cache) -> Mapping[str, Any]:
    """What a stage was given, and what it left. Its folder is read from the cache's root."""
    from compress.files.hashing import list_files

    size = sum((done.artifact.path / f).stat().st_size for f in list_files(done.artifact.path))
    return {
        "id": done.id,
        "stage": done.stage,
        "params": recipe.given(done.id),
        "key": done.key,
        "digest": done.artifact.digest,
        "cached": done.cached,
        "seconds": round(done.seconds, 3),
        "size_bytes": size,
        "facts": {**done.models, **done.facts},
        "path": str(done.artifact.path.relative_to(cache.root)),
    }


def evidence_dirs(recipe: Recipe, cache: Cache) -> tuple[Path, ...]:
    """Where evidence may lie: the cache, written and read, then what ships beside the recipe, only read."""
    shipped = Path(recipe.file).parent / "evidence"
    return (cache.root / "evidence", shipped) if recipe.file and shipped.is_dir() else (cache.root / "evidence",)


@contextmanager
def logged(out: Path, emit: Emit) -> Iterator[Emit]:
    """Every event also goes to `events.jsonl` in the run's folder, one JSON object a line."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / EVENTS).open("a")
    except OSError as error:
        raise UserError(
            f"cannot write the run's folder: {error.strerror}",
            place=str(out),
            fix="give another with --out (out= in Python)",
        ) from error
    with stream:

        def log(event: Event) -> None:
            record = {"time": round(time.time(), 3), **{k: v for k, v in vars(event).items() if v}}
            stream.write(json.dumps(record, default=str) + "\n")
            stream.flush()
            emit(event)

        yield log
