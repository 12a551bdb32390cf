"""Recipe to Plan: what will run, under which key, what is cached, and what cannot work and why. Runs no model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from compress.adapters.fusing import disk_bytes, with_adapters
from compress.artifact import Artifact, Provenance
from compress.catalogue import Forecast, Stage, find_stage, find_task
from compress.data.items import Data, Kind
from compress.distillation.few_steps import without_images
from compress.errors import Problem, RecipeError, UserError
from compress.files.hashing import unread_bytes
from compress.machine.devices import AS_STORED, CPU, Opening, settled
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE, Batches
from compress.params import Params
from compress.planning import keep_decision, resources
from compress.planning.calls import asked_places, candidate_problems
from compress.planning.cautions import cautions
from compress.planning.controls import control_problems
from compress.planning.engine_checks import engine_problems
from compress.planning.evaluation_checks import evaluation_problems, kind_meant
from compress.planning.forecast import changed_fields, unsettled_fields
from compress.planning.keys import stage_key
from compress.planning.planned_artifact import different, expected_of
from compress.planning.size_mismatch import sizes_apart
from compress.planning.step_checks import (
    configs_read,
    input_problems,
    misfits,
    named_inputs,
    source_problems,
    step_problems,
)
from compress.planning.student_cautions import student_cautions
from compress.recipe.values import Recipe, StepSpec, is_model
from compress.sources.data import open_data
from compress.sources.models import Source, find_folder, find_source
from compress.sources.units import open_units, overlap
from compress.store.cache import Cache

T = TypeVar("T")
SOURCE = "source"
LARGE = 10**9  # bytes that are not read for a key in a second or two
UNHASHED = "unhashed"  # the key of a model that is only looked at
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
    disk_bytes: int = 0
    items_bytes: Mapping[str, int] = field(default_factory=dict)  # what of it goes with a parameter that counts items
    seconds: float | None = None  # from what it took when it last ran here on a model about as large; None: not known
    work: int = 1  # what that time goes with
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


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    source: Source
    nodes: tuple[Node, ...]
    data: Mapping[str, Data] = field(default_factory=dict)
    disk_bytes: int = 0
    memory_bytes: int = 0
    opening: Opening = AS_STORED
    warnings: tuple[str, ...] = ()  # what can run, and may not do what was meant
    models: Mapping[str, Source] = field(default_factory=dict)  # of their own that stages are given, as nodes name them

    @property
    def seconds(self) -> float | None:
        """Time of the stages still to run, if all of them ran here before; evaluation comes on top."""
        times = [n.seconds for n in self.nodes if not n.cached]
        return None if any(t is None for t in times) else sum(t for t in times if t is not None)


def make_plan(recipe: Recipe, cache: Cache) -> Plan:
    """Plan a recipe.

    Raises:
        RecipeError: everything that cannot work, each with its place and what to do instead.
    """
    if lacking := _too_large(recipe, cache):
        raise RecipeError(tuple(lacking))
    problems: list[Problem] = []
    memory, base, place = cache.root / "digests", recipe.folder("model"), recipe.place.get("model", "")
    found = _collect(problems, place, lambda: find_source(recipe.model, base, memory))
    models = _models(recipe, lambda name, start, _: find_source(name, start, memory), problems)
    seen = _look(recipe, found, models, cache, problems)
    source, nodes = seen.source, seen.nodes
    problems += _as_a_whole(recipe, seen)
    if problems or source is None:
        raise RecipeError(tuple(problems))
    disk, resident, lacking = _room(recipe, source, nodes, cache)
    if lacking:
        raise RecipeError(tuple(lacking))
    reported = [*sizes_apart(recipe, source.artifact, nodes), *(message for n in nodes for message in n.warnings)]
    reported += student_cautions(recipe, source.artifact, nodes, models)
    warnings = tuple(cautions(recipe, source, seen.data, reported))
    return Plan(recipe, source, nodes, seen.data, disk, resident, seen.opening, warnings, models)


def _as_a_whole(recipe: Recipe, seen: _Seen) -> list[Problem]:
    """What is wrong with a plan that no step of it shows by itself."""
    from evaluation.preflight.image_checks import frames

    problems: list[Problem] = []
    source, nodes = seen.source, seen.nodes
    if source and nodes:
        problems += engine_problems(recipe, source.artifact, {n.id: n.stage for n in nodes}, nodes[-1].unavailable)
        problems += candidate_problems(recipe, source.artifact, nodes)
    problems += frames(recipe, nodes, seen.data)
    problems += control_problems(recipe, source.artifact if source else None, nodes)
    return problems


def _room(recipe: Recipe, source: Source, nodes: Sequence[Node], cache: Cache) -> tuple[int, int, tuple[Problem, ...]]:
    """Disk and memory that a plan takes, bytes, and what of them this machine does not have."""
    left = nodes[-1].expected if nodes else source.artifact
    evaluated = resources.evaluation_memory(recipe.evaluate, source.artifact, left)
    disk, resident = resources.needed((n.disk_bytes for n in nodes), (evaluated, *(n.memory_bytes for n in nodes)))
    disk += disk_bytes(source, cache)
    shares = [resources.Share(n.id, n.disk_bytes, n.items_bytes) for n in nodes]
    running = resident if any(not n.cached for n in nodes) else 0
    found = resources.problems(disk, running, cache.root, recipe.place.get("model", ""), shares)
    return disk, resident, tuple(found)


def _too_large(recipe: Recipe, cache: Cache) -> tuple[Problem, ...]:
    """What large models need that were never read here and this machine does not have, from headers alone: a key takes all of their
    weights.

    Where the cache holds what the last stage made of some model, that may be of this one, and only the key tells.
    """
    if not recipe.stages or not _unread_bytes(recipe, cache) > LARGE:
        return ()
    problems: list[Problem] = []
    seen = _unread(recipe, frozenset(), cache, problems)
    problems += _as_a_whole(recipe, seen)
    if problems or seen.source is None or not seen.nodes or cache.holds_any(seen.nodes[-1].stage.name):
        return ()
    return _room(recipe, seen.source, seen.nodes, cache)[-1]


def _unread_bytes(recipe: Recipe, cache: Cache) -> int:
    """How much would be read for the keys of a recipe's models."""
    named = {recipe.model: recipe.folder("model"), **dict.fromkeys(_named(recipe), recipe.start)}
    here = {name: base for name, base in named.items() if not name.startswith("hf://")}
    folders = _collect([], "", lambda: [find_folder(name, base) for name, base in here.items()]) or []
    return sum(unread_bytes(folder, cache.root / "digests") for folder in folders)


def problems_beside(recipe: Recipe, reported: Collection[Problem], cache: Cache) -> tuple[Problem, ...]:
    """What else is wrong with a recipe of which only a part could be read: its model, its data, and whether they fit the rest.

    Args:
        reported: the mistakes in its text.
    """
    problems: list[Problem] = []
    _unread(recipe, frozenset(problem.place for problem in reported), cache, problems)
    return tuple(problems)


def _unread(recipe: Recipe, wrong: frozenset[str], cache: Cache, problems: list[Problem]) -> _Seen:
    """As `_look`, but nothing is fetched, and no weights are hashed.

    Args:
        wrong: the places that do not read.
    """
    place = recipe.place.get("model", "")

    def look(name: str, base: Path, place: str) -> Source | None:
        if name.startswith("hf://") or place in wrong:
            return None
        return Source(describe(find_folder(name, base)), UNHASHED)

    found = _collect(problems, place, lambda: look(recipe.model, recipe.folder("model"), place))
    models = _models(recipe, look, problems)
    local = tuple(one for one in recipe.adapters if not one.path.startswith("hf://"))
    return _look(replace(recipe, adapters=local), found, models, cache, problems)


def _models(
    recipe: Recipe, find: Callable[[str, Path, str], Source | None], problems: list[Problem]
) -> dict[str, Source]:
    """The models of their own that stages are given, by what their steps call them.

    Args:
        find: one, by its name, where its relative folder starts, and the place that names it.
    """
    asked = {
        name: _collect(problems, place, partial(find, name, recipe.start, place))
        for name, place in _named(recipe).items()
    }
    return {name: one for name, one in asked.items() if one}


def _named(recipe: Recipe) -> dict[str, str]:
    """The models of their own that steps name, each with the first place that does."""
    found: dict[str, str] = {}
    for step in recipe.stages:
        for role, name in step.inputs.items():
            if is_model(name):
                found.setdefault(name, step.at(role))
    return found


@dataclass(frozen=True)
class _Seen:
    """What planning finds, whatever is wrong with it."""

    source: Source | None
    opening: Opening
    data: Mapping[str, Data]
    nodes: tuple[Node, ...]


def _look(
    recipe: Recipe, found: Source | None, models: Mapping[str, Source], cache: Cache, problems: list[Problem]
) -> _Seen:
    """Hold a recipe's models, data, metrics and stages against each other; what does not fit is added to `problems`."""
    place = recipe.place.get("model", "")
    source = with_adapters(found, recipe, cache.root / "digests", problems)
    opening = _opening(recipe, problems)
    data = _open_all(recipe, problems, find_task(source.artifact.task).data if source else kind_meant(recipe))
    problems += evaluation_problems(recipe, source.artifact if source else None, data)
    nodes: tuple[Node, ...] = ()
    for name, at in _named(recipe).items():
        if one := models.get(name):
            # As one that a stage changes: packed weights do not teach either, whatever library opens them.
            problems += source_problems(one.artifact, opening, at, fetched=not one.remote, changed=True)
    if source:
        asked = find_task(source.artifact.task).asked(recipe.evaluate.baseline, source.artifact.settings.call)
        places, fetched = asked_places(recipe, source.artifact), not source.remote
        stages = [find_stage(step.stage) for step in recipe.stages]
        changed = any(stage.makes and not stage.packed for stage in stages)
        problems += source_problems(
            source.artifact, opening, place, fetched=fetched, call=asked, places=places, changed=changed
        )
        nodes = _chain(recipe, source, models, data, cache, opening, problems)
    return _Seen(source, opening, data, nodes)


def _opening(recipe: Recipe, problems: list[Problem]) -> Opening:
    """How the recipe wants every model opened; on the processor where it names a device that there is not."""
    place = recipe.place.get("device", "")
    device = _collect(problems, place, lambda: settled(recipe.device))
    return Opening(device=device or CPU, trust_remote_code=recipe.trust_remote_code)


def _collect(problems: list[Problem], place: str, make: Callable[[], T]) -> T | None:
    """The value, or None after noting every problem of the error at `place`."""
    try:
        return make()
    except UserError as error:
        problems += [Problem(place or p.place, _with_place(p, place), p.fix) for p in error.problems]
        return None


def _with_place(problem: Problem, place: str) -> str:
    return f"{problem.place}: {problem.message}" if place and problem.place else problem.message


def _open_all(recipe: Recipe, problems: list[Problem], kind: Kind | None) -> dict[str, Data]:
    opened = {}
    for role in ("train", "calibration", "evaluate"):
        named = getattr(recipe.data, role)
        place = recipe.place.get(f"data.{role}", recipe.place.get("data", ""))
        base = recipe.folder(f"data.{role}")
        opener = open_units if role == "evaluate" else open_data
        if named and (found := _collect(problems, place, partial(opener, named, base, kind))):
            opened[role] = found
    for role in ("train", "calibration"):
        both = role in opened and "evaluate" in opened
        if both and (message := overlap(role, opened[role], opened["evaluate"])):
            problems.append(Problem(recipe.place.get(f"data.{role}", ""), message, "give separate splits"))
    return opened


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
            found += _collect(found, step.place, partial(misfits, step, stage, artifact, given)) or []
        forecast = None if found else _collect(found, step.place, partial(_forecast, stage, artifact, step.params))
        if forecast is None and stage.effects <= {"weights", "files"}:
            self.known[step.id] = self.known[
                step.after
            ]  # it goes with no format and no call that a later step could lack
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
            forecast = None if found else _collect(found, step.place, partial(_forecast, stage, artifact, step.params))
            if forecast:
                yield expected_of(artifact, stage, step.params, stage.touches(artifact, step.params), forecast)
            problems += [replace(p, message=f"{_about(step.stage, p.message)}{UNLESS_KEPT}") for p in found]

    def look(self, step: StepSpec, stage: Stage, artifact: Artifact) -> list[Problem]:
        """What keeps a step from working on an artifact."""
        found: list[Problem] = []
        touched, before = stage.touches(artifact, step.params), self.before(step)
        look = partial(step_problems, self.recipe, step, stage, artifact, touched, self.opening)
        found += _collect(found, step.place, look) or []
        if not step.if_faster:
            return found
        unavailable = _collect(found, step.place, partial(stage.unavailable_here, step.params)) or (
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
        work = resources.work(artifact, touched, step.params)
        copies = 2 if step.if_faster and step.after == SOURCE else 1  # of what cannot be linked
        items = resources.items_bytes(forecast.item_bytes, step.params, self.data.get("train"))
        expected = expected_of(artifact, stage, step.params, touched, forecast)
        written = resources.stage_bytes(stage, artifact, expected, touched, step.after == SOURCE)
        disk = copies * written + forecast.scratch_bytes
        memory = resources.stage_memory(stage, artifact, expected, forecast.memory_bytes)
        reported = (forecast.reported, keep_decision.reported(self.cache, key) if step.if_faster else "")
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
            items_bytes=items,
            seconds=resources.expected_seconds(self.cache, keep_decision.timed_as(stage, step.if_faster), work),
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


def _chain(
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
