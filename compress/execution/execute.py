"""Plan to Artifacts: the only caller of a stage. Knows no model."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from compress.artifact import Artifact, write_manifest
from compress.context import Context
from compress.errors import ModelError, PareError, StageFailed, UserError, near
from compress.events import Emit, Event
from compress.execution import keep
from compress.execution.blame import cause, remedy
from compress.execution.contract import Digested, broken, check
from compress.execution.reload import Checker, lent_checker
from compress.execution.widths import tell_widths
from compress.files.hashing import Identity, digest_files, identities, list_files
from compress.files.locks import hold
from compress.making.ready import ready
from compress.model.describing import describe
from compress.planning import durations, keep_decision
from compress.planning.nodes import SOURCE, Node, on, with_lineage
from compress.planning.plan import Plan, make_plan
from compress.recipe.reading import read_text
from compress.sources.models import Source
from compress.store.cache import Cache, disk_errors, full_disk

WARNINGS = "warnings"  # among a stage's facts


@dataclass(frozen=True)
class Done:
    """A stage that ran, or whose result was found in the cache. Holds no function, so any process can hand it to another.

    id, after: of its step, and of the step that it continues. components: the ones it worked on. facts: of its notes.
    models: of their own that it was given, by role.
    """

    id: str
    stage: str
    components: tuple[str, ...]
    after: str
    key: str
    artifact: Artifact
    cached: bool
    seconds: float
    facts: Mapping[str, Any]
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeRef:
    """One stage of a plan, in words that any process on the same files can read.

    recipe_file: where relative paths and `extends` start ("": in `start`). overrides, changes: what `--set` put into the text, and
    what `Recipe.with_` changed afterwards; relative paths in both start from `start`. name: the recipe's whole name before those
    changes, which tells the variants of a matrix apart.
    """

    recipe_file: str
    recipe_text: str
    overrides: tuple[str, ...]
    changes: tuple[str, ...]
    start: str
    name: str
    node_id: str


@dataclass(frozen=True)
class Inputs:
    """What a stage continues, and what else it is given, by role."""

    artifact: Artifact
    roles: Mapping[str, Artifact]


def node_refs(plan: Plan) -> tuple[NodeRef, ...]:
    """The stages of a plan, in an order in which they can run.

    Raises:
        UserError: the recipe was made in Python and has no text.
    """
    recipe = plan.recipe
    if not recipe.source:
        raise UserError(f"recipe {recipe.name} has no text to send", fix="write it as a file, or run it with `local`")
    file = str(Path(recipe.file).absolute()) if recipe.file else ""
    start, name = str(recipe.start.absolute()), recipe.variant or recipe.name
    words = (file, recipe.source, recipe.overrides, recipe.changes, start, name)
    return tuple(NodeRef(*words, node.id) for node in plan.nodes)


def run_node(ref: NodeRef, store: Cache, emit: Emit) -> Done:
    """Run one stage on what the cache holds of the stages before it, unless its result is there already.

    Raises:
        RecipeError: the recipe does not read here, or cannot work.
        StageFailed: a stage that this one needs has not run, or this one failed.
    """
    plan = _plan_of(ref, store)
    nodes = {node.id: node for node in plan.nodes}
    if ref.node_id not in nodes:
        raise UserError(f"recipe {ref.name} has no step `{ref.node_id}`", fix=near(ref.node_id, tuple(nodes)))
    store.prepare()
    node = nodes[ref.node_id]

    with lent_checker() as checker, disk_errors(store.root), store.holding() as held:
        return _one(node, lambda: _stored_inputs(node, plan, held, emit), plan, held, checker, emit)


def execute(plan: Plan, cache: Cache, emit: Emit) -> tuple[Done, ...]:
    """Run what is not cached, in order, in this process.

    Raises:
        StageFailed: a stage raised, or its artifact broke the contract; earlier stages stay cached.
        UserError: what the user can mend: a full disk, a missing library.
    """
    cache.prepare()
    cache.sweep()
    done: dict[str, Done] = {}
    with lent_checker() as checker, disk_errors(cache.root), cache.holding() as held:
        artifacts = {SOURCE: _opened(plan.source, held, emit)}

        def find(name: str) -> Artifact:
            return artifacts[name] if name in artifacts else _opened(plan.models[name], held, emit)

        for node in plan.nodes:
            inputs = partial(_inputs, node, find)
            done[node.id] = _one(node, inputs, plan, held, checker, emit)
            artifacts[node.id] = done[node.id].artifact
    return tuple(done.values())


def _inputs(node: Node, find: Callable[[str], Artifact]) -> Inputs:
    return Inputs(find(node.after), {role: find(name) for role, name in node.inputs.items()})


def _stored_inputs(node: Node, plan: Plan, cache: Cache, emit: Emit) -> Inputs:
    """What a stage needs, as other processes left it in the cache.

    Raises:
        StageFailed: some of it is not there.
    """
    keys = {earlier.id: earlier.key for earlier in plan.nodes}

    def find(name: str) -> Artifact:
        if source := plan.source if name == SOURCE else plan.models.get(name):
            return _opened(source, cache, emit)
        if found := cache.get(keys[name], _warning(emit, name)):
            return found
        raise StageFailed(
            f"stage `{node.id}` ({node.stage.name}) needs what `{name}` leaves, and that is not in the cache",
            place=node.place,
            fix=f"run `{name}` first, with the cache {cache.root}",
        )

    return _inputs(node, find)


def _opened(source: Source, cache: Cache, emit: Emit) -> Artifact:
    """A model that no stage made, with its weights on this disk."""
    found = ready(source, cache, emit)
    return replace(found.artifact, digest=found.key)


def _plan_of(ref: NodeRef, store: Cache) -> Plan:
    variants = {recipe.name: recipe for recipe in read_text(ref.recipe_text, ref.recipe_file, ref.overrides)}
    if ref.name not in variants:
        raise UserError(
            f"it gives no recipe called {ref.name}", place=ref.recipe_file, fix=near(ref.name, tuple(variants))
        )
    recipe = replace(variants[ref.name], start=Path(ref.start))
    return make_plan(recipe.with_(*ref.changes) if ref.changes else recipe, store)


def _one(node: Node, inputs: Callable[[], Inputs], plan: Plan, cache: Cache, checker: Checker, emit: Emit) -> Done:
    def waiting() -> None:
        emit(Event("note", node.id, "another run is at work on it; waiting"))

    with cache.locked(node.key, waiting):
        if found := cache.get(node.key, _warning(emit, node.id)):
            emit(Event("cached", node.id, facts={"key": node.key}))
            facts = cache.facts(node.key)
            for message in facts.get("notes", {}).get(WARNINGS, ()):  # as true as when it was made
                emit(Event("warning", node.id, message))
            return _done(node, found, facts.get("notes", {}), float(facts.get("seconds", 0)), cached=True)
        given = inputs()
        node = on(node, given.artifact)
        checker.start(given.artifact.task)
        emit(Event("started", node.id, facts={"key": node.key}))
        began = time.monotonic()
        notes: dict[str, Any] = {}
        out = cache.fresh()
        working = hold(out)  # so that no other run sweeps it away, however long this takes
        try:
            make = _make_if_faster if node.made else _make
            known = make(node, given, plan, cache, out, checker, _noting(emit, node.id, notes))
            seconds = time.monotonic() - began
            facts = {"stage": node.stage.name, "seconds": round(seconds, 3), "notes": notes}
            made = cache.put(node.key, out, facts, known)
        finally:
            shutil.rmtree(out, ignore_errors=True)
            if working:
                working.release()
    timed = durations.noted_as(keep_decision.timed_as(node.stage, bool(node.made)), plan.opening.device)
    durations.remember(cache, timed, seconds, node.work)
    emit(Event("finished", node.id, facts={"key": node.key, "seconds": round(seconds, 3)}))
    return _done(node, made, notes, seconds, cached=False)


def _make_if_faster(
    node: Node, given: Inputs, plan: Plan, cache: Cache, out: Path, checker: Checker, emit: Emit
) -> dict[Identity, str]:
    """As `_make`, of a step that is kept only if it is faster: what its stage leaves is an entry of its own, and one of the two is passed
    on. What the stage stated of its work is reported where that stays."""
    message: list[Event] = []

    def recorded(event: Event) -> None:
        if event.kind in ("note", "warning"):
            message.append(event)
        elif event.kind not in ("started", "finished", "cached"):  # which are reported of the step as a whole
            emit(event)

    made = _one(replace(node, key=node.made, made=""), lambda: given, plan, cache, checker, recorded)
    found = keep.decide(given.artifact, made.artifact, plan, cache.scratch(node.key), emit)
    for event in message if found.kept else ():
        emit(event)
    emit(Event("note", node.id, found.why, facts={**(_noted(made) if found.kept else {}), **found.facts}))
    if found.unsettled:
        again = "this decision stands until another evaluate.timing_blocks asks anew"
        emit(Event("warning", node.id, f"decided while the machine was not at rest: {found.unsettled}; {again}"))
    chosen = made.artifact if found.kept else given.artifact
    known = identities(chosen.path, cache.recorded(chosen))
    keep.pass_on(chosen, out, link=found.kept or node.after != SOURCE)
    return identities(out, digest_files(out, known))


def _noted(done: Done) -> dict[str, Any]:
    """The facts of a stage, its warnings aside."""
    return {name: fact for name, fact in done.facts.items() if name != WARNINGS}


def _done(node: Node, artifact: Artifact, notes: Mapping[str, Any], seconds: float, *, cached: bool) -> Done:
    named = node.id, node.stage.name, node.components, node.after, node.key
    return Done(*named, artifact, cached, seconds, dict(notes), node.models)


def _warning(emit: Emit, what: str) -> Callable[[str], None]:
    return lambda message: emit(Event("warning", what, message))


def _make(
    node: Node, given: Inputs, plan: Plan, cache: Cache, out: Path, checker: Checker, emit: Emit
) -> dict[Identity, str]:
    """Run a stage into `out` and hold what it left to its contract. Returns the digests of all its files.

    Each file is hashed once: what is a hard link of the input's file keeps the digest that was recorded of that.
    """
    before = Digested(given.artifact, cache.recorded(given.artifact))
    known = identities(given.artifact.path, before.files)  # before the stage could write through a link
    _run_stage(node, given, plan, cache, out, emit)
    after = Digested(describe(out), digest_files(out, known))
    known = identities(out, after.files)
    check(before, after, node, checker, _warning(emit, node.id))
    tell_widths(node, before.artifact, after.artifact, emit)
    return known


def _noting(emit: Emit, node: str, notes: dict[str, Any]) -> Emit:
    """Pass events on, and keep the facts of a stage's notes for the report, each under its component's name, and its warnings."""

    def listen(event: Event) -> None:
        if event.kind == "warning" and event.what == node:
            notes.setdefault(WARNINGS, []).append(event.message)
        if event.kind == "note" and event.what == node:
            part = f"{event.facts['component']} " if "component" in event.facts else ""
            notes.update({f"{part}{name}": fact for name, fact in event.facts.items() if name != "component"})
        emit(event)

    return listen


def _run_stage(node: Node, given: Inputs, plan: Plan, cache: Cache, out: Path, emit: Emit) -> None:
    context = Context(
        out=out,
        scratch=cache.scratch(node.key),
        seed=plan.recipe.seed,
        opening=replace(plan.opening, adapters=False),
        inputs=given.roles,
        data={role: plan.data[role] for role in node.stage.data(node.params)},  # only what is part of its key
        emit=emit,
        node=node.id,
        link=node.after != SOURCE,
    )
    try:
        with disk_errors(cache.root):
            node.stage.run(given.artifact, node.params, context)
    except PareError:
        raise
    except Exception as error:
        # Libraries that write by themselves say something else instead, and may have taken away what they began.
        written = sum((out / f).stat().st_size for f in list_files(out))
        if shutil.disk_usage(out).free + written < node.disk_bytes:
            raise full_disk(cache.root) from error
        emit(Event("failed", node.id, facts={"traceback": traceback.format_exc()}))
        raise StageFailed(
            f"stage `{node.id}` ({node.stage.name}) failed: {cause(error)}",
            place=node.place,
            fix=remedy(error),
        ) from error
    try:
        write_manifest(replace(describe(out), lineage=with_lineage(node, given.artifact)))
    except ModelError as error:
        raise broken(node, f"what it left is no model: {error.problems[0].message}") from error
