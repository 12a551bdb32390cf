"""How long stages and evaluations take: what they took here last, moved to other sizes along a line that was measured once.

Source of the lines: `python -m tests.programs.durations`, on two cores with AVX512-VNNI; a machine's own runs say how many times faster or slower it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from math import log, prod
from pathlib import Path
from statistics import median
from typing import NamedTuple

from compress.artifact import Artifact
from compress.catalogue import Stage, find_metric, find_task
from compress.files import hashing
from compress.machine.devices import CPU
from compress.params import Params
from compress.pipelines.call_arguments import STEPS as CALLED_STEPS
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import steps_run, strength_of
from compress.pipelines.index import class_of
from compress.quantization import sizes
from compress.recipe.keep import IF_FASTER
from compress.recipe.values import EvalSpec
from compress.store.cache import Cache
from compress.tasks import COST, Observable
from compress.tokenizers.vocabulary import positions

LINES = Path(__file__).with_name("durations.json")
FOLDER = "seconds"  # in the cache
KEPT = 16  # runs of each stage that are remembered
OF_A_SIZE = 2  # of them, of which the shorter one counts
ALIKE = 4  # times as many parameters: beyond that, what one run took says little of another, where no line is known
TOKENS = "tokens"
READ = ("batch", "accumulate", TOKENS, "substeps", "iters")  # parameters that say how much each round is of
SIDE = 64  # of latents, where a config does not say
STEPS = 20  # of a pipeline whose recipe does not say
TELLING = (
    5  # seconds that something should take before it tells how fast a machine is: imports are a part of shorter ones
)
SIDES = 3  # that are timed: baseline, candidate, and the baseline against itself


class Work(NamedTuple):
    """What time goes with, as far as a plan can tell: the parameters that are worked on, how often something goes over them, and how many
    fresh processes are started."""

    parameters: int
    rounds: int = 1
    starts: int = 0


NO_WORK = Work(1)


class Run(NamedTuple):
    """What was seen once."""

    seconds: float
    work: Work


@dataclass(frozen=True)
class Line:
    """Seconds: `fixed`, and more for each thousand million parameters gone over, and for each fresh process."""

    fixed: float
    each: float
    start: float = 0.0

    def at(self, work: Work) -> float:
        return self.fixed + self.each * work.parameters * work.rounds / 1e9 + self.start * work.starts


def work(artifact: Artifact, touched: Iterable[str], stage: Stage, params: Params) -> Work:
    """The work of a stage. Of one that learns, its rounds are what it reads in all its updates; one that runs the model on data goes over
    each place of its latents."""
    given = dict(vars(params))
    if given.get(TOKENS) and (most := _read_at_most(artifact)):
        given[TOKENS] = min(int(given[TOKENS]), most)
    rounds = int(given.get("updates") or given.get("steps") or 1) * prod(int(given.get(name) or 1) for name in READ)
    read = rounds * (latent_places(artifact) if rounds > 1 or stage.data(params) else 1)
    return Work(max(1, sum(sizes.parameters(artifact, name) for name in touched)), read)


def _read_at_most(artifact: Artifact) -> int:
    """The tokens of a text that a language model has positions for, to which rows of more are cut; 0 where its config does not say."""
    return positions(artifact.known_config(artifact.main)) if artifact.writes_text and artifact.main else 0


def evaluation_work(spec: EvalSpec, source: Artifact) -> Work:
    """The work of a comparison: how often the model is gone over for quality and for speed, and the processes that start."""
    metrics = [find_metric(name) for name in spec.metrics]
    needs = needed(spec)
    steps = 1 if source.writes_text else _steps(spec, source)
    timed = int(getattr(spec, "new_tokens", 1)) if source.writes_text else steps
    rounds = 2 * spec.samples * steps if scored(spec) else 0
    if any(metric.timed for metric in metrics):
        rounds += SIDES * spec.timing_blocks * timed
    starts = 2 * (spec.starts + 1) if "starts" in needs else 0
    return Work(max(1, sizes.parameters(source, source.main)), max(1, rounds) * latent_places(source), starts)


def _steps(spec: EvalSpec, source: Artifact) -> int:
    """The steps of an image that are run, which a strength makes fewer than are asked for."""
    kind, asked = class_of(source.path), find_task(source.task).asked(spec.baseline, source.settings.call)
    return max(
        1,
        steps_run(kind, int(asked.get(CALLED_STEPS) or STEPS), strength_of(source, asked, call_arguments(kind) or {})),
    )


def latent_places(artifact: Artifact) -> int:
    """How many places the latents of a pipeline have, each of which its denoiser goes over; 1 of a language model."""
    if artifact.writes_text or not artifact.main:
        return 1
    side = artifact.known_config(artifact.main).get("sample_size")
    sides = side if isinstance(side, list) else [side, side]
    return prod(one if isinstance(one, int) and one > 0 else SIDE for one in sides)


def needed(spec: EvalSpec) -> frozenset[Observable]:
    """What a comparison looks at."""
    return frozenset(one for name in spec.metrics for one in find_metric(name).needs)


def scored(spec: EvalSpec) -> bool:
    """Whether it looks at what comes out of a model, which is kept from run to run."""
    return bool(needed(spec) - COST)


def evaluation_name(source: Artifact) -> str:
    """What the time of a comparison is remembered by."""
    return f"evaluate {source.task}"


def noted_as(name: str, device: str) -> str:
    """What the time of something is remembered by, on a device: lines are of processors, and so are names without one."""
    kind = device.partition(":")[0]
    return name if kind == CPU else f"{name} on {kind}"


def remember(cache: Cache, name: str, seconds: float, work: Work) -> None:
    """Write down how long something took here, and for how much: the last runs of each size, so that one beside which others were at work is
    not all that is known."""
    note = cache.root / FOLDER / name
    known = runs(note)
    alike = [one for one in known if one.work == work][1 - OF_A_SIZE :]
    kept = [*(one for one in known if one.work != work), *alike, Run(round(seconds, 3), work)][-KEPT:]
    hashing.remember(note, json.dumps([{"seconds": one.seconds, **one.work._asdict()} for one in kept]))


def expected(cache: Cache, name: str, work: Work) -> float | None:
    """How many seconds something will take; None where nobody knows."""
    known = shortest(runs(cache.root / FOLDER / name))
    line = lines().get(name) or lines().get(name.removesuffix(f" {IF_FASTER}"))  # whose timing is the smaller part
    if line is None:
        return _scaled(known, work)
    usual = machine_speed(cache)
    nearest = min(known, key=lambda one: _apart(one.work, work, line), default=None)
    if nearest is None:
        return line.at(work) * usual
    # The further away in size, the less a run tells of this one, and the more all others do.
    share = 1 / (1 + _apart(nearest.work, work, line))
    return line.at(work) * float((nearest.seconds / line.at(nearest.work)) ** share * usual ** (1 - share))


def shortest(known: Sequence[Run]) -> list[Run]:
    """Of each size the shortest run, in the order in which those were last seen."""
    found: dict[Work, Run] = {}
    for one in known:
        before = found.pop(one.work, one)
        found[one.work] = min(before, one)
    return list(found.values())


def machine_speed(cache: Cache) -> float:
    """How many times as long as on the machine of the lines everything took here so far; 1 where nothing ran."""
    found = []
    for name, line in lines().items():
        if (known := shortest(runs(cache.root / FOLDER / name))) and line.at(known[-1].work) >= TELLING:
            found.append(known[-1].seconds / line.at(known[-1].work))
    return median(found) if found else 1.0


@once
def lines() -> Mapping[str, Line]:
    """By stage, or evaluation of a task, its line."""
    stored = json.loads(LINES.read_text(encoding="utf-8"))["lines"] if LINES.is_file() else {}
    return {name: Line(**one) for name, one in stored.items()}


def runs(note: Path) -> tuple[Run, ...]:
    """What was written down; () where nothing was, or it does not read."""
    try:
        stored = json.loads(note.read_text())
        rows = stored if isinstance(stored, list) else [stored]  # older notes hold the last run alone
        found = tuple(Run(float(one.pop("seconds")), Work(**one)) for one in rows)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return ()
    return found if all(one.seconds > 0 and min(one.work[:2]) > 0 for one in found) else ()


def _scaled(known: Sequence[Run], work: Work) -> float | None:
    """Of something without a line: in proportion to the last run of a like size."""
    if not known:
        return None
    last = known[-1]
    share = work.parameters / last.work.parameters
    return last.seconds * share * work.rounds / last.work.rounds if 1 / ALIKE <= share <= ALIKE else None


def _apart(one: Work, other: Work, line: Line) -> float:
    """How far two sizes are from each other, by what they should take."""
    return abs(log(line.at(one) / line.at(other)))
