"""What pare can do is what lies on disk: `compress/stages/prune/width.py` is the stage `prune.width`,
`evaluation/metrics/kid.py` is the metric `kid`. Nobody edits a list."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import UserError, near
from compress.params import Params

if TYPE_CHECKING:
    from compress.artifact import Artifact, Format, Task
    from compress.context import Context

Effect = Literal["weights", "format", "settings"]
Reproducible = Literal["bytes", "behaviour"]
Run = Callable[..., None]


@dataclass(frozen=True)
class Foresight:
    """What a stage can tell before anything runs: its components' configs as they will be, what it grants of what was asked,
    the disk it needs beside its result while it works, and the memory for its weights, gradients and moments.

    unsettled: by component, the fields of its config that may come out otherwise, for only the work decides them.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: str = ""
    scratch_bytes: int = 0
    memory_bytes: int = 0
    unsettled: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: what it takes, what it leaves behind, and what it is held to.

    `formats` maps each component format it takes to the one it leaves; `effect` and `reproducible` are what the contract
    check enforces; `bound_to` names what of the machine belongs into the key; `data` says which data roles ("train",
    "calibration") it cannot do without, given its parameters; `calls` the stages it runs itself, which decide its result too; `inputs` the roles of further artifacts it is given ("teacher",
    the source unless the recipe names another); `refuse` looks at an artifact's description before anything runs and returns
    why this stage cannot work on it ("" when it can); `foresee` says what will come of it, or raises a UserError; `idle_here` says
    why what it leaves, and all that follows from it, cannot run on this machine ("" when it can); `machine` tells a reader
    what this machine can do with the stage, and how to install what lacks.
    """

    name: str
    version: int
    params: type[Params]
    tasks: frozenset[Task]
    formats: Mapping[Format, Format]
    effect: Effect
    reproducible: Reproducible
    run: Run
    bound_to: frozenset[str] = frozenset()
    data: Callable[[Any], tuple[str, ...]] = field(default=lambda params: ())
    calls: Callable[[Any], tuple[Stage, ...]] = field(default=lambda params: ())
    inputs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    extra: str = ""
    doc: str = ""
    refuse: Callable[[Artifact, Any], str] = field(default=lambda artifact, params: "")
    foresee: Callable[[Artifact, Any], Foresight] = field(default=lambda artifact, params: Foresight())
    idle_here: Callable[[Any], str] = field(default=lambda params: "")
    machine: Callable[[], str] = field(default=lambda: "")


def stage(
    *,
    version: int,
    params: type[Params],
    tasks: tuple[Task, ...],
    formats: Mapping[Format, Format],
    effect: Effect,
    reproducible: Reproducible,
    bound_to: tuple[str, ...] = (),
    data: Callable[[Any], tuple[str, ...]] | None = None,
    calls: Callable[[Any], tuple[Stage, ...]] | None = None,
    inputs: tuple[str, ...] = (),
    libraries: tuple[str, ...] = (),
    extra: str = "",
    refuse: Callable[[Artifact, Any], str] | None = None,
    foresee: Callable[[Artifact, Any], Foresight] | None = None,
    idle_here: Callable[[Any], str] | None = None,
    machine: Callable[[], str] | None = None,
) -> Callable[[Callable[[Artifact, Any, Context], None]], Stage]:
    """Turn a stage file's `run` function into its record. The name is the file's place, the help its docstring."""

    def record(run: Callable[[Artifact, Any, Context], None]) -> Stage:
        return Stage(
            name=run.__module__.removeprefix("compress.stages."),
            version=version,
            params=params,
            tasks=frozenset(tasks),
            formats=dict(formats),
            effect=effect,
            reproducible=reproducible,
            run=run,
            bound_to=frozenset(bound_to),
            data=data or (lambda params: ()),
            calls=calls or (lambda params: ()),
            inputs=inputs,
            libraries=libraries,
            extra=extra,
            doc=sys.modules[run.__module__].__doc__ or "",
            refuse=refuse or (lambda artifact, params: ""),
            foresee=foresee or (lambda artifact, params: Foresight()),
            idle_here=idle_here or (lambda params: ""),
            machine=machine or (lambda: ""),
        )

    return record


@cache
def stage_names() -> tuple[str, ...]:
    return _names("compress.stages")


@cache
def metric_names() -> tuple[str, ...]:
    return _names("evaluation.metrics")


@cache
def find_stage(name: str) -> Stage:
    """The stage called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    if name not in stage_names():
        raise UserError(f"no stage is called `{name}`", fix=near(name, stage_names()))
    found = importlib.import_module(f"compress.stages.{name}").run
    if not isinstance(found, Stage):
        raise TypeError(f"compress/stages/{name.replace('.', '/')}.py: `run` is not decorated with @stage")
    return found


@cache
def find_metric(name: str) -> Any:
    """The `evaluation.scores.Metric` called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    if name not in metric_names():
        raise UserError(f"no metric is called `{name}`", fix=near(name, metric_names()))
    found = importlib.import_module(f"evaluation.metrics.{name}").measure
    if not hasattr(found, "statistic"):
        raise TypeError(f"evaluation/metrics/{name}.py: `measure` is not decorated with @metric")
    return found


def _names(package: str) -> tuple[str, ...]:
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, prefix=f"{package}.")
    return tuple(sorted(m.name.removeprefix(f"{package}.") for m in found if not m.ispkg))
