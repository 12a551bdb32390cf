"""The steps of a plan, as they grow out of each other: what each will run, under which key, and what keeps it from working."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from compress.artifact import Artifact, Provenance
from compress.catalogue import Forecast, Stage, find_stage
from compress.data.items import Data
from compress.distillation.few_steps import without_images
from compress.errors import Problem, UserError
from compress.machine.devices import Opening
from compress.model.exportable import ANY_SIZE, Batches
from compress.params import Params
from compress.planning import durations, keep_decision, resources
from compress.planning.forecast import changed_fields, unsettled_fields
from compress.planning.keys import stage_key
from compress.planning.planned_artifact import different, expected_of
from compress.planning.step_checks import (
    configs_read,
    input_problems,
    misfits,
    named_inputs,
    step_problems,
)
from compress.recipe.values import Recipe, StepSpec, is_model
from compress.sources.models import Source
from compress.store.cache import Cache

T = TypeVar("T")
SOURCE = "source"
UNLESS_KEPT = ", where a step before it is not kept"


@dataclass(frozen=True)
class Node:
    """One stage of the plan. `expected` describes the artifact it will leave, with the input's path."""

    id: str
    stage: Stage
    params: Params
    components: tuple[str, ...]
    after: str
    inputs: Mapping[str, str]
    key: str
    cached: bool
    expected: Artifact
    place: str = ""
    disk_bytes: int = 0  # while it works
    kept_bytes: int = 0  # of them, what it leaves
    items_bytes: Mapping[str, int] = field(default_factory=dict)  # what of it goes with a parameter that counts items
    seconds: float | None = None  # that it will take, as far as is known
    work: durations.Work = durations.NO_WORK  # what that time goes with
    reported: str = ""  # requested against granted
    memory_bytes: int = 0  # for what is in memory beside a process's libraries, where the stage knows
    unavailable: str = ""  # why the model it leaves cannot run on this machine
    profile: Batches = ANY_SIZE  # the sizes of calls that the model it leaves takes
    trusted: bool = False  # whether Python code in the model's folder may run
    warnings: tuple[str, ...] = ()
    # By component: the config fields that it will change, as they will be, and those that only the work decides, or did before.
    forecast: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unsettled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Of a step that is kept only if faster: the key of what its stage leaves, `key` being that of the decision.
    made: str = ""
    undecided: bool = (
        False  # whether a step before it may not be kept: then it may be given something else than planned
    )
    lent: Mapping[str, str] = field(
        default_factory=dict
    )  # by role, the keys of the inputs that are models of their own

    @property
    def models(self) -> dict[str, str]:
        """By role, the models of their own among its inputs."""
        return {role: name for role, name in self.inputs.items() if is_model(name)}


def collect(problems: list[Problem], place: str, make: Callable[[], T]) -> T | None:
    """The value, or None after noting every problem of the error at `place`."""
    try:
        return make()
    except UserError as error:
        problems += [Problem(place or p.place, _with_place(p, place), p.fix) for p in error.problems]
        return None


def _with_place(problem: Problem, place: str) -> str:
    return f"{problem.place}: {problem.message}" if place and problem.place else problem.message


@dataclass
class _Chain:
    """A plan's nodes as they grow, and what each step leaves: its artifact as it will be, and its key."""

    recipe: Recipe
    data: Mapping[str, Data]
    cache: Cache
    opening: Opening
    known: dict[str, tuple[Artifact, str]]
    nodes: list[Node] = field(default_factory=list)
    otherwise: dict[str, list[Artifact]] = field(default_factory=dict)  # what it leaves where steps are not kept

    def add(self, step: StepSpec) -> list[Problem]:
        """Plan one step more; returns what keeps it from working."""
        artifact, _ = self.known[step.after]
        stage = find_stage(step.stage)
        found = self.look(step, stage, artifact)
        given = {name: known for name, (known, _) in self.known.items()}
        found += input_problems(step, stage, artifact, given)
        if why := without_images(step.params, self.data.get("train")):
            found.append(Problem(step.place, why, "set latents: teacher, or give a folder of images"))
        if not found:
            found += collect(found, step.place, partial(misfits, step, stage, artifact, given)) or []
        forecast = None if found else collect(found, step.place, partial(_forecast, stage, artifact, step.params))
        if forecast is None and stage.effects <= {"weights", "files"}:
            # It goes with no format and no call that a later step could lack, and has its place in the chain.
            made = Provenance(stage.name, stage.version, step.params.counted(), "")
            left = replace(artifact, lineage=(*artifact.lineage, made))
            self.known[step.id] = (left, self.known[step.after][1])
        if forecast is None or not given.keys() >= set(named_inputs(step, stage).values()):
            return [replace(p, message=_about(step.stage, p.message)) for p in found]
        node = self.node(step, stage, stage.touches(artifact, step.params), forecast)
        others = self.otherwise_left(step, stage, found)
        passed = (artifact, *self.otherwise.get(step.after, ())) if step.if_faster else ()
        otherwise = different(node.expected, [*others, *passed])
        found += keep_decision.too_many(self.recipe, step, len(otherwise))
        if not found:
            self.known[step.id], self.otherwise[step.id] = (node.expected, node.key), otherwise
            self.nodes.append(node)
        return list(dict.fromkeys(found))

    def otherwise_left(self, step: StepSpec, stage: Stage, problems: list[Problem]) -> Iterator[Artifact]:
        """What comes of a step where steps before it are not kept; `problems` gains why it then cannot work."""
        for artifact in self.otherwise.get(step.after, ()):
            found = self.look(step, stage, artifact)
            forecast = None if found else collect(found, step.place, partial(_forecast, stage, artifact, step.params))
            if forecast:
                yield expected_of(artifact, stage, step.params, stage.touches(artifact, step.params), forecast)
            problems += [replace(p, message=f"{_about(step.stage, p.message)}{UNLESS_KEPT}") for p in found]

    def look(self, step: StepSpec, stage: Stage, artifact: Artifact) -> list[Problem]:
        """What keeps a step from working on an artifact."""
        found: list[Problem] = []
        touched, before = stage.touches(artifact, step.params), self.before(step)
        look = partial(step_problems, self.recipe, step, stage, artifact, touched, self.opening)
        found += collect(found, step.place, look) or []
        if not step.if_faster:
            return found
        unavailable = collect(found, step.place, partial(stage.unavailable_here, step.params)) or (
            before.unavailable if before else ""
        )
        return [*found, *keep_decision.problems(self.recipe, step, stage, artifact, unavailable)]

    def before(self, step: StepSpec) -> Node | None:
        return next((n for n in self.nodes if n.id == step.after), None)

    def node(self, step: StepSpec, stage: Stage, touched: tuple[str, ...], forecast: Forecast) -> Node:
        artifact, parent = self.known[step.after]
        before = self.before(step)
        roles = named_inputs(step, stage)
        inputs = {"model": parent, **{role: self.known[name][1] for role, name in roles.items()}}
        inputs |= {f"data.{role}": self.data[role].digest for role in stage.data(step.params) if role in self.data}
        made = stage_key(stage, artifact.task, step.params, touched, inputs, self.recipe.seed, self.opening)
        keys = made, parent, self.known[SOURCE][1]
        key = (
            keep_decision.decision_key(*keys, self.known[SOURCE][0], self.recipe, self.opening)
            if step.if_faster
            else made
        )
        cached = self.cache.has(key)
        unsettled = unsettled_fields(forecast, before.unsettled if before else {})
        work = durations.work(artifact, touched, stage, step.params)
        timed = durations.noted_as(keep_decision.timed_as(stage, step.if_faster), self.opening.device)
        copies = 2 if step.if_faster and step.after == SOURCE else 1  # of what cannot be linked
        items = resources.items_bytes(forecast.item_bytes, step.params, self.data.get("train"))
        expected = expected_of(artifact, stage, step.params, touched, forecast)
        written = resources.stage_bytes(stage, artifact, expected, touched, step.after == SOURCE)
        disk = copies * written + forecast.scratch_bytes
        memory = resources.stage_memory(stage, artifact, expected, forecast.memory_bytes)
        there = stage.on_device(artifact, step.params, self.opening.device)
        reported = (forecast.reported, there, keep_decision.reported(self.cache, key) if step.if_faster else "")
        beside = sum(resources.opened_bytes(self.known[name][0]) for name in roles.values() if is_model(name))
        return Node(
            id=step.id,
            stage=stage,
            params=step.params,
            components=touched,
            after=step.after,
            inputs=roles,
            key=key,
            cached=cached,
            expected=expected,
            place=step.place,
            disk_bytes=0 if cached else disk + sum(items.values()),
            kept_bytes=0 if cached else copies * written,
            items_bytes=items,
            seconds=durations.expected(self.cache, timed, work),
            work=work,
            reported="; ".join(filter(None, reported)),
            memory_bytes=0 if cached else memory + beside,
            unavailable=stage.unavailable_here(step.params) or (before.unavailable if before else ""),
            profile=getattr(step.params, "profile", before.profile if before else ANY_SIZE),
            forecast=changed_fields(artifact, forecast, unsettled),
            unsettled=unsettled,
            lent={role: self.known[name][1] for role, name in roles.items() if is_model(name)},
            trusted=self.opening.trust_remote_code,
            warnings=tuple(f"{step.id}: {message}" for message in forecast.warnings),
            made=made if step.if_faster else "",
            undecided=bool(self.otherwise.get(step.after)),
        )


def on(node: Node, artifact: Artifact) -> Node:
    """The same node, expected to leave what comes of this artifact, where another may have been planned."""
    if not node.undecided:
        return node
    forecast = _forecast(node.stage, artifact, node.params)
    return replace(
        node,
        expected=expected_of(artifact, node.stage, node.params, node.components, forecast),
        forecast=changed_fields(artifact, forecast, node.unsettled),
    )


def _forecast(stage: Stage, artifact: Artifact, params: Params) -> Forecast:
    with configs_read():
        return stage.forecast(artifact, params)


def chain_of(
    recipe: Recipe,
    source: Source,
    models: Mapping[str, Source],
    data: Mapping[str, Data],
    cache: Cache,
    opening: Opening,
    problems: list[Problem],
) -> tuple[Node, ...]:
    known = {name: (one.artifact, one.key) for name, one in {SOURCE: source, **models}.items()}
    chain = _Chain(recipe, data, cache, opening, known)
    for step in recipe.stages:
        if step.after in chain.known:  # else the step it continues has problems of its own, which are reported
            problems += chain.add(step)
    return tuple(chain.nodes)


def _about(stage: str, message: str) -> str:
    return message if stage in message else f"{stage}: {message}"


def with_lineage(node: Node, artifact: Artifact) -> tuple[Provenance, ...]:
    """The lineage of a node's result: its input's, and itself."""
    itself = Provenance(node.stage.name, node.stage.version, node.params.counted(), node.key, node.lent)
    return (*artifact.lineage, itself)
