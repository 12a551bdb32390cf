"""Recipe to Plan: what will run, under which key, what is cached, and what cannot work and why. Runs no model."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from compress import deps, gpus
from compress.artifact import Artifact, Provenance
from compress.cache import Cache
from compress.catalogue import Foresight, Stage, find_metric, find_stage
from compress.data import Data, open_data
from compress.engine_checks import engine_problems
from compress.errors import PareError, Problem, RecipeError, UserError
from compress.forecast import changed_fields, unsettled_fields
from compress.graphs import ANY_SIZE, Batches
from compress.hashing import digest_json, list_files
from compress.recipe import Recipe, StepSpec
from compress.sources import Source, find_source, parameter_count

KEY_FORMAT = 1
PROCESS_BYTES = 1_600_000_000  # resident memory of a process with torch, diffusers and openvino imported, measured
SOURCE = "source"
BASE_LIBRARIES = ("torch", "transformers", "diffusers")


@dataclass(frozen=True)
class Node:
    """One stage of the plan. `expected` describes the artifact it will leave, with the input's path."""

    id: str
    stage: Stage
    params: Any
    components: tuple[str, ...]
    after: str
    inputs: Mapping[str, str]
    key: str
    cached: bool
    expected: Artifact
    place: str = ""
    disk_bytes: int = 0
    seconds: float | None = None  # what it took when it last ran here; None: not known
    told: str = ""  # requested against granted
    memory_bytes: int = 0  # for what is in memory beside a process's libraries, where the stage knows
    idle: str = ""  # why the model it leaves cannot run on this machine
    profile: Batches = ANY_SIZE  # the sizes of calls that the model it leaves takes
    # By component: the config fields that it will change, as they will be, and those that only the work decides, or did before.
    forecast: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unsettled: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    source: Source
    nodes: tuple[Node, ...]
    data: Mapping[str, Data] = field(default_factory=dict)
    disk_bytes: int = 0
    memory_bytes: int = 0

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
    problems: list[Problem] = []
    memory, base = cache.root / "digests", recipe.folder("model")
    source = _collect(problems, recipe.place.get("model", ""), lambda: find_source(recipe.model, base, memory))
    data = _open_all(recipe, problems)
    _check_evaluation(recipe, source, data, problems)
    nodes = _chain(recipe, source, data, cache, problems) if source else ()
    if source and nodes:
        problems += engine_problems(recipe, source.artifact, {n.id: n.stage for n in nodes}, nodes[-1].idle)
    if problems or source is None:
        raise RecipeError(tuple(problems))
    plan = Plan(recipe, source, nodes, data, *_room(source, nodes))
    _check_room(plan, cache)
    return plan


def _collect(problems: list[Problem], place: str, make: Any) -> Any:
    """The value, or None after noting every problem of the error at `place`."""
    try:
        return make()
    except UserError as error:
        problems += [Problem(place or p.place, _with_place(p, place), p.fix) for p in error.problems]
        return None


def _with_place(problem: Problem, place: str) -> str:
    return f"{problem.place} {problem.message}" if place and problem.place else problem.message


def _open_all(recipe: Recipe, problems: list[Problem]) -> dict[str, Data]:
    opened = {}
    for role in ("train", "calibration", "evaluate"):
        named = getattr(recipe.data, role)
        place = recipe.place.get(f"data.{role}", recipe.place.get("data", ""))
        base = recipe.folder(f"data.{role}")
        if named and (found := _collect(problems, place, lambda named=named, base=base: open_data(named, base))):
            opened[role] = found
    for role in ("train", "calibration"):
        if role in opened and "evaluate" in opened and (shared := _overlap(opened[role], opened["evaluate"])):
            place = recipe.place.get(f"data.{role}", "")
            problems.append(Problem(place, f"data.{role} shares {shared} with data.evaluate", "give separate splits"))
    return opened


def _overlap(one: Data, other: Data) -> str:
    if one.digest == other.digest:
        return "every item"
    if one.count < 0 or other.count < 0 or one.kind != other.kind or "zoo://" in one.source + other.source:
        return ""  # zoo splits are disjoint by construction, and tested to be
    texts = {other.read(i).text for i in range(other.count)}
    shared = sum(one.read(i).text in texts for i in range(one.count))
    return f"{shared} item{'s' * (shared > 1)}" if shared and one.kind == "texts" else ""


def _check_evaluation(recipe: Recipe, source: Source | None, data: Mapping[str, Data], problems: list[Problem]) -> None:
    from evaluation.gates import problems as gate_problems

    place = recipe.place.get("evaluate.metrics", "")
    for index, name in enumerate(recipe.evaluate.metrics):
        metric = find_metric(name)
        here = recipe.place.get(f"evaluate.metrics.{index}", place)
        if source and source.artifact.task not in metric.tasks:
            fits = ", ".join(sorted(metric.tasks))
            problems.append(
                Problem(here, f"{name} measures {fits}, and this model does {source.artifact.task}", "remove it")
            )
        if metric.needs_data and not recipe.data.evaluate:
            problems.append(Problem(here, f"{name} needs evaluation data", "add data: {evaluate: …}"))
    for name, gate in recipe.gates.items():
        if name in recipe.evaluate.metrics and (why := gate_problems(gate, find_metric(name))):
            problems.append(
                Problem(recipe.place.get(f"gates.{name}", ""), f"gate {name}: {why}", "`pare explain " + name + "`")
            )
    wanted = {"text_to_image": "captioned_images", "text_generation": "texts"}
    for role, found in data.items():
        if source and found.kind != wanted[source.artifact.task]:
            where = recipe.place.get(f"data.{role}", "")
            problems.append(
                Problem(
                    where, f"{found.source} holds {found.kind}, this model needs {wanted[source.artifact.task]}", ""
                )
            )


def _chain(
    recipe: Recipe, source: Source, data: Mapping[str, Data], cache: Cache, problems: list[Problem]
) -> tuple[Node, ...]:
    known: dict[str, tuple[Artifact, str]] = {SOURCE: (source.artifact, source.key)}
    nodes: list[Node] = []
    for step in recipe.stages:
        if step.after not in known:
            continue  # the step it continues has problems of its own, which are reported
        artifact, _ = known[step.after]
        stage = find_stage(step.stage)
        touched = touched_components(step, artifact)
        found = list(_step_problems(recipe, step, stage, artifact, touched, data))
        found += [
            Problem(
                step.place,
                f"{step.stage}: input `{role}` names `{name}`, which is no earlier step",
                "name one, or source",
            )
            for role, name in step.inputs.items()
            if name not in known
        ]
        found += [
            Problem(
                step.place, f"{step.stage}: its {role} `{name}` is an engine there", "name a step before the engine"
            )
            for role, name in step.inputs.items()
            if name in known and known[name][0].components[artifact.main].format not in stage.formats
        ]
        found += [
            Problem(step.place, f"{step.stage} takes no {role}", "remove it")
            for role in step.inputs
            if role not in stage.inputs
        ]
        foresight = None if found else _collect(found, step.place, partial(stage.foresee, artifact, step.params))
        if found or foresight is None:
            problems += [replace(p, message=_about(step.stage, p.message)) for p in found]
            continue
        before = next((n for n in nodes if n.id == step.after), None)
        idle = stage.idle_here(step.params) or (before.idle if before else "")
        profile = getattr(step.params, "profile", before.profile if before else ANY_SIZE)
        made = _node(recipe, step, stage, touched, known, data, cache, foresight)
        unsettled = unsettled_fields(foresight, before.unsettled if before else {})
        made = replace(made, forecast=changed_fields(artifact, foresight, unsettled), unsettled=unsettled)
        node = replace(made, idle=idle, profile=profile)
        known[step.id] = (node.expected, node.key)
        nodes.append(node)
    return tuple(nodes)


def _about(stage: str, message: str) -> str:
    return message if stage in message else f"{stage}: {message}"


def touched_components(step: StepSpec, artifact: Artifact) -> tuple[str, ...]:
    """The components a step works on: as the recipe says, else as its parameters say, else the main one."""
    if step.components:
        return step.components
    chosen = getattr(step.params, "components", ())
    if chosen == "all":
        return artifact.working
    return tuple(chosen) or (artifact.main,)


def _step_problems(
    recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, touched: tuple[str, ...], data: Mapping[str, Data]
) -> list[Problem]:
    place = step.place
    if artifact.task not in stage.tasks:
        fits = ", ".join(sorted(stage.tasks))
        return [
            Problem(place, f"{stage.name} works on {fits}, and this model does {artifact.task}", "remove this stage")
        ]
    found = []
    for name in touched:
        if name not in artifact.components:
            have = ", ".join(f"`{c}`" for c in artifact.components)
            found.append(Problem(place, f"{stage.name}: this model has no component `{name}`", f"it has {have}"))
            continue
        have_format = artifact.components[name].format
        if have_format not in stage.formats:
            takes = " or ".join(stage.formats)
            after = f"after `{step.after}`" if step.after != SOURCE else "in the source model"
            fix = f"put a stage before it that makes {takes}, or give it `from:` an earlier step"
            found.append(Problem(place, f"{stage.name} takes {takes}, but `{name}` is {have_format} {after}", fix))
    if step.components and step.components != (artifact.main,) and "components" not in stage.params.model_fields:
        found.append(Problem(place, f"{stage.name} works on `{artifact.main}` and takes no components", "remove it"))
    if not found and (why := stage.refuse(artifact, step.params)):
        found.append(Problem(place, f"{stage.name}: {why}", f"`pare explain {stage.name}` says what it can do"))
    found += [
        Problem(place, f"{stage.name} needs {role} data", f"add data: {{{role}: …}}")
        for role in stage.data(step.params)
        if not getattr(recipe.data, role)
    ]
    found += [
        Problem(
            place,
            f"{stage.name} needs the library {library}",
            f"pip install 'pare[{stage.extra}]'" if stage.extra else f"pip install {library}",
        )
        for library in stage.libraries
        if not deps.version(library)
    ]
    return found


def _node(
    recipe: Recipe,
    step: StepSpec,
    stage: Stage,
    touched: tuple[str, ...],
    known: Mapping[str, tuple[Artifact, str]],
    data: Mapping[str, Data],
    cache: Cache,
    foresight: Foresight,
) -> Node:
    artifact, parent_key = known[step.after]
    roles = {role: step.inputs.get(role, SOURCE) for role in stage.inputs}
    inputs = {"model": parent_key, **{role: known[name][1] for role, name in roles.items()}}
    inputs |= {f"data.{role}": data[role].digest for role in stage.data(step.params) if role in data}
    key = stage_key(stage, artifact.task, step.params, touched, inputs, recipe.seed)
    expected = artifact.replacing({name: stage.formats[artifact.components[name].format] for name in touched})
    expected = replace(expected, planned={**artifact.planned, **foresight.configs})
    cached = cache.has(key)
    facts = _previous(cache, stage.name)
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
        disk_bytes=0
        if cached
        else _stage_bytes(stage, artifact, touched, step.after == SOURCE) + foresight.scratch_bytes,
        seconds=facts,
        told=foresight.told,
        memory_bytes=0 if cached else foresight.memory_bytes,
    )


def stage_key(
    stage: Stage, task: str, params: Any, components: tuple[str, ...], inputs: Mapping[str, str], seed: int
) -> str:
    """The key of a stage's result: everything that decides its bytes, known before anything runs."""
    called = {s.name: [s.version, *_surroundings(s)] for s in stage.calls(params)}
    parts = [
        KEY_FORMAT,
        stage.name,
        stage.version,
        task,
        params.counted(),
        components,
        dict(inputs),
        seed,
        *_surroundings(stage),
        *([called] if called else []),
    ]
    return digest_json(parts)


def _surroundings(stage: Stage) -> tuple[dict[str, str], dict[str, str]]:
    """The versions of a stage's libraries, and what of the machine it is bound to."""
    libraries = {name: deps.version(name) for name in sorted({*BASE_LIBRARIES, *stage.libraries})}
    return libraries, {kind: machine_fact(kind) for kind in sorted(stage.bound_to)}


def machine_fact(kind: str) -> str:
    """What of this machine a `bound_to` kind stands for, as text."""
    if kind == "gpu":
        return gpus.fingerprint()
    if kind == "isa":
        flags = _cpu_flags()
        return f"{platform.machine()} {' '.join(f for f in sorted(flags) if f.startswith(('avx', 'amx', 'sse4', 'asimd', 'sve')))}"
    return platform.machine()


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def with_lineage(node: Node, artifact: Artifact) -> tuple[Provenance, ...]:
    """The lineage of a node's result: its input's, and itself."""
    return (*artifact.lineage, Provenance(node.stage.name, node.stage.version, node.params.counted(), node.key))


def _previous(cache: Cache, stage: str) -> float | None:
    note = cache.root / "seconds" / stage
    try:
        return float(note.read_text())
    except (OSError, ValueError):
        return None


def _stage_bytes(stage: Stage, artifact: Artifact, touched: tuple[str, ...], copies: bool) -> int:
    """Upper bound of what a stage writes: float32 weights of what it touches, and a copy of the rest where it cannot link.

    Only entries of the cache are linked to one another; a stage that continues the source copies it.
    """
    copied = sum((artifact.path / f).stat().st_size for f in list_files(artifact.path)) if copies else 0
    written = 0 if stage.effect == "settings" else sum(4 * _parameters(artifact, name) for name in touched)
    return 1_000_000 + copied + written


def _parameters(artifact: Artifact, component: str) -> int:
    try:
        return parameter_count(artifact.folder(component))
    except PareError:
        return 0


def _room(source: Source, nodes: tuple[Node, ...]) -> tuple[int, int]:
    weights = sum(4 * _parameters(source.artifact, name) for name in source.artifact.components)
    disk = sum(node.disk_bytes for node in nodes)
    # Two processes (ours and the checker), and at worst the source, an export of it and its quantized copy at once.
    return disk, 2 * PROCESS_BYTES + max(3 * weights, *(node.memory_bytes for node in nodes), 0)


def _check_room(plan: Plan, cache: Cache) -> None:
    below = next(p for p in (cache.root, *cache.root.parents) if p.exists())
    free, memory = shutil.disk_usage(below).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    problems = []
    if plan.disk_bytes > free:
        message = f"needs about {_size(plan.disk_bytes)} of disk, and {_size(free)} are free"
        problems.append(Problem(str(cache.root), message, "free room, or give another folder with --cache"))
    if plan.memory_bytes > memory and any(not n.cached for n in plan.nodes):
        message = f"needs about {_size(plan.memory_bytes)} of memory, and this machine has {_size(memory)}"
        problems.append(Problem(plan.recipe.place.get("model", ""), message, "use a larger machine or a smaller model"))
    if problems:
        raise RecipeError(tuple(problems))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
