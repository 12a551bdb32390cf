"""Recipe to Plan: what will run, under which key, what is cached, and what cannot work and why. Runs no model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from compress.adapters.fusing import with_adapters
from compress.catalogue import find_stage, find_task
from compress.data.items import Data, Kind
from compress.errors import Problem, RecipeError
from compress.machine.devices import AS_STORED, CPU, CUDA, Opening, settled
from compress.making.ready import disk_bytes, memory_bytes
from compress.pipelines.image_sizes import called_size
from compress.planning import durations, resources
from compress.planning.calls import asked_places, candidate_problems, planned_calls
from compress.planning.cautions import cautions, raced_otherwise, uncounted_memory
from compress.planning.controls import control_problems
from compress.planning.engine_checks import engine_problems
from compress.planning.evaluation_checks import evaluation_problems, kind_meant
from compress.planning.nodes import Node, chain_of, collect
from compress.planning.size_mismatch import pixels_apart, sizes_apart, sizes_kept
from compress.planning.step_checks import (
    source_problems,
)
from compress.planning.student_cautions import saving_nothing, student_cautions
from compress.recipe.values import Recipe, is_model
from compress.sources.data import open_data
from compress.sources.models import Source, find_source, look_at, unread
from compress.sources.units import open_units, overlap
from compress.store.cache import Cache

LARGE = 10**9  # bytes that are not read for a key in a second or two
UNHASHED = "unhashed"  # the key of a model that is only looked at


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    source: Source
    nodes: tuple[Node, ...]
    data: Mapping[str, Data] = field(default_factory=dict)
    disk_bytes: int = 0  # at its worst moment
    kept_bytes: int = 0  # of the disk, what is left there
    memory_bytes: int = 0
    opening: Opening = AS_STORED
    warnings: tuple[str, ...] = ()  # what can run, and may not do what was meant
    models: Mapping[str, Source] = field(default_factory=dict)  # of their own that stages are given, as nodes name them
    measuring_seconds: float | None = None  # that the comparison will take; None where nobody knows

    def __repr__(self) -> str:
        cached = sum(node.cached for node in self.nodes)
        return (
            f"<plan of {self.recipe.name}: {len(self.nodes)} stages, {cached} of them cached; compress.text tells more>"
        )

    @property
    def seconds(self) -> float | None:
        """Time of the stages still to run, if that of all of them is known; the comparison comes on top."""
        times = [n.seconds for n in self.nodes if not n.cached]
        return None if any(t is None for t in times) else sum(t for t in times if t is not None)

    @property
    def measuring(self) -> durations.Work:
        """What the comparison goes over."""
        return durations.evaluation_work(self.recipe.evaluate, self.source.artifact)


def make_plan(recipe: Recipe, cache: Cache) -> Plan:
    """Plan a recipe.

    Raises:
        RecipeError: everything that cannot work, each with its place and what to do instead.
    """
    if lacking := _too_large(recipe, cache):
        raise RecipeError(tuple(lacking))
    problems: list[Problem] = []
    memory, base, place = cache.root / "digests", recipe.folder("model"), recipe.place.get("model", "")
    found = collect(problems, place, lambda: find_source(recipe.model, base, memory))
    models = _models(recipe, lambda name, start, _: find_source(name, start, memory), problems)
    seen = _look(recipe, found, models, cache, problems)
    source, nodes = seen.source, seen.nodes
    problems += _as_a_whole(recipe, seen)
    if problems or source is None:
        raise RecipeError(tuple(problems))
    room = _room(recipe, (source, *models.values()), nodes, cache)
    if room.problems:
        raise RecipeError(room.problems)
    reported = [*sizes_apart(recipe, source.artifact, nodes), *(message for n in nodes for message in n.warnings)]
    reported += student_cautions(recipe, source.artifact, nodes, models)
    reported += [*saving_nothing(recipe, source.artifact, nodes), *sizes_kept(recipe, source.artifact, nodes)]
    reported += [
        *uncounted_memory(recipe, source.artifact, nodes, seen.opening.device),
        *raced_otherwise(recipe, nodes),
    ]
    warnings = tuple(cautions(recipe, source, seen.data, reported))
    made = Plan(recipe, source, nodes, seen.data, room.disk, room.kept, room.memory, seen.opening, warnings, models)
    name = durations.noted_as(durations.evaluation_name(source.artifact), seen.opening.device)
    return replace(made, measuring_seconds=durations.expected(cache, name, made.measuring))


def sketch(recipe: Recipe, source: Source, cache: Cache) -> tuple[int, tuple[Problem, ...]]:
    """The memory that a recipe takes whose model was found, bytes, and all that keeps it from working but what this machine has."""
    problems: list[Problem] = []
    seen = _look(recipe, source, {}, cache, problems)
    problems += _as_a_whole(recipe, seen)
    return _room(recipe, (source,), seen.nodes, cache).memory, tuple(problems)


def _as_a_whole(recipe: Recipe, seen: _Seen) -> list[Problem]:
    """What is wrong with a plan that no step of it shows by itself."""
    from evaluation.preflight.image_checks import frames, masks

    problems: list[Problem] = []
    source, nodes = seen.source, seen.nodes
    if source and nodes:
        problems += engine_problems(recipe, source.artifact, {n.id: n.stage for n in nodes}, nodes[-1].unavailable)
        problems += candidate_problems(recipe, source.artifact, nodes)
        problems += pixels_apart(recipe, source.artifact, nodes)
    problems += frames(recipe, nodes, seen.data)
    if source:
        calls = planned_calls(recipe, source.artifact, nodes)
        sizes = tuple(dict.fromkeys(called_size(source.artifact, call) for call in calls))
        own = tuple(dict.fromkeys(called_size(one, {}) for one in (source.artifact, *(n.expected for n in nodes))))
        for role, data in seen.data.items():
            problems += masks(data, *((recipe.evaluate.samples, sizes) if role == "evaluate" else (data.count, own)))
    problems += control_problems(recipe, source.artifact if source else None, nodes)
    return problems


@dataclass(frozen=True)
class _Room:
    """What a plan takes, bytes: of the disk at its worst moment, what is left there, of the memory; and what of it this machine does not
    have."""

    disk: int
    kept: int
    memory: int
    problems: tuple[Problem, ...]


def _room(recipe: Recipe, models: Sequence[Source], nodes: Sequence[Node], cache: Cache) -> _Room:
    """What a plan takes.

    Args:
        models: the source, then those that stages are given.
    """
    source = models[0]
    left = nodes[-1].expected if nodes else source.artifact
    evaluated = resources.evaluation_memory(recipe.evaluate, source.artifact, left)
    making, text = max(memory_bytes(one, cache) for one in models), source.artifact.writes_text
    memory = resources.memory_at_most((evaluated, making, *(n.memory_bytes for n in nodes)), text)
    made = sum(disk_bytes(one, cache) for one in models)
    disk = made + resources.disk_at_most((n.disk_bytes, n.kept_bytes) for n in nodes)
    shares = [resources.Share(n.id, n.disk_bytes, n.items_bytes) for n in nodes]
    running = memory if making or any(not n.cached for n in nodes) else 0
    found = resources.problems(disk, running, cache.root, recipe.place.get("model", ""), shares)
    return _Room(disk, made + sum(n.kept_bytes for n in nodes), memory, tuple(found))


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
    return _room(recipe, (seen.source,), seen.nodes, cache).problems


def _unread_bytes(recipe: Recipe, cache: Cache) -> int:
    """How much would be read for the keys of a recipe's models."""
    named = {recipe.model: recipe.folder("model"), **dict.fromkeys(_named(recipe), recipe.start)}
    memory = cache.root / "digests"
    return sum(collect([], "", lambda: [unread(name, base, memory) for name, base in named.items()]) or [])


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
        found = None if place in wrong else look_at(name, base, cache.root / "digests")
        return Source(found, UNHASHED) if found else None

    found = collect(problems, place, lambda: look(recipe.model, recipe.folder("model"), place))
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
        name: collect(problems, place, partial(find, name, recipe.start, place))
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
    kind = find_task(source.artifact.task).data if source else kind_meant(recipe)
    data = _open_all(recipe, problems, kind, cache.root / "digests")
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
        nodes = chain_of(recipe, source, models, data, cache, opening, problems)
    return _Seen(source, opening, data, nodes)


def _opening(recipe: Recipe, problems: list[Problem]) -> Opening:
    """How the recipe wants every model opened. A GPU that is not here is one problem, and the rest is looked at as if it were."""
    refused: list[Problem] = []
    device = collect(refused, recipe.place.get("device", ""), lambda: settled(recipe.device))
    if device is None and str(recipe.device).startswith("cuda"):
        device = CUDA
        refused = [
            replace(one, fix=f"{one.fix}; `pare plan RECIPE --for H100` plans for a GPU elsewhere") for one in refused
        ]
    problems += refused
    return Opening(device=device or CPU, trust_remote_code=recipe.trust_remote_code)


def _open_all(recipe: Recipe, problems: list[Problem], kind: Kind | None, memory: Path) -> dict[str, Data]:
    opened = {}
    for role in ("train", "calibration", "evaluate"):
        named = getattr(recipe.data, role)
        place = recipe.place.get(f"data.{role}", recipe.place.get("data", ""))
        base = recipe.folder(f"data.{role}")
        opener = open_units if role == "evaluate" else open_data
        if named and (found := collect(problems, place, partial(opener, named, base, kind, memory))):
            opened[role] = found
    for role in ("train", "calibration"):
        both = role in opened and "evaluate" in opened
        if both and (message := overlap(role, opened[role], opened["evaluate"])):
            problems.append(Problem(recipe.place.get(f"data.{role}", ""), message, "give separate splits"))
    return opened
