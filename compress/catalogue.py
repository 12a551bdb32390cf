"""What pare can do is what lies on disk: `compress/stages/prune/width.py` is the stage `prune.width`, `evaluation/metrics/kid.py`
the metric `kid`, `compress/tasks/text_to_image.py` the task, `compress/engines/onnx/` the engine. Nobody edits a list."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, Unpack

from compress.engines import Engine
from compress.errors import UserError, near
from compress.params import Params
from compress.tasks import OF_DATA, Observable, Task

if TYPE_CHECKING:
    from compress.artifact import Artifact, Format, Quantization, Settings
    from compress.context import Context
    from evaluation.metrics import Metric

P = TypeVar("P", bound=Params)
R = TypeVar("R")

Effect = Literal["weights", "format", "settings", "files"]  # the last: files of its own, which no library reads
Reproducible = Literal["bytes", "behaviour"]
Run = Callable[..., None]


@dataclass(frozen=True)
class Forecast:
    """What a stage can say before anything runs.

    configs: by component, the config as it will be.
    reported: what it grants of what was asked, in words.
    scratch_bytes: the disk it needs beside its result while it works.
    item_bytes: by the parameter that says how many items of the training data are used at most, the further disk that each takes.
    memory_bytes: for its weights, gradients and moments.
    quantization: by component, how it packs the weights.
    settings: those it leaves; None: those it was given.
    unsettled: by component, the fields of its config that may come out otherwise, for only the work decides them.
    warnings: what it grants that may not be what was meant, with what to do.
    kinds: the classes of components that become models of another.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reported: str = ""
    scratch_bytes: int = 0
    item_bytes: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    quantization: Mapping[str, Quantization] = field(default_factory=dict)
    settings: Settings | None = None
    unsettled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Misfit:
    """Why a stage cannot use a further artifact that it is given under a role, and what to give instead."""

    role: str
    message: str
    fix: str


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: what it takes, what it leaves behind, and what the contract check holds it to.

    name: its file's place below `compress/stages`, with dots.
    version: of its result; another one is another key.
    needs: what of a model must be observable, which decides the tasks it works on.
    formats: by the component format it takes, the one it leaves; empty: any, and leaves it.
    effects: what it changes: weights, format, settings, files beside the model.
    reproducible: whether equal inputs give equal bytes, or equal behaviour.
    run: does the work.
    components: those it works on, where its parameters do not say.
    packed: whether it takes weights that are quantized already.
    carries: whether an adapter that is kept beside the model works on what it leaves: its layers have the shapes that they had, or the adapter
        is cut along with them.
    lossy: of a stage that changes settings alone, whether a model then gives other numbers, beyond rounding.
    bound_to: what of the machine belongs into its key.
    data: from its parameters, the roles ("train", "calibration") it cannot do without.
    images: from its parameters, how many images of the training data it reads, of as many items.
    calls: from its parameters, the stages it runs itself, which decide its result too.
    inputs: roles of further artifacts it is given ("teacher"), the source unless the recipe names another.
    libraries: distributions whose versions belong into its key.
    extra: what installs them, `pip install "pare[EXTRA]"`.
    doc: its file's docstring.
    refuse: why it cannot work on an artifact, read from the description alone; "" when it can.
    forecast: what will come of it. Raises a UserError.
    files: those that it leaves beside the model, by path.
    unfit: what of its inputs does not fit the artifact or the parameters.
    unavailable_here: why what it leaves, and all that follows from it, cannot run on this machine; "" when it can.
    elsewhere: why what it leaves does nothing on a kind of device; "" where it does something.
    on_device: what a plan says of it on a device, beside what it grants.
    misplaced: why it cannot work on an artifact, or what it leaves be opened, on a device; "" where it can.
    machine: what this machine can do with it, and how to install what lacks.
    kernels: what the weights it leaves are multiplied in on a GPU, as `machine/kernels.py` names it; "" where it has no part in that.
    built_for: the compute capabilities that it builds for; () where any will do. Raises a UserError.
    """

    name: str
    version: int
    params: type[Params]
    needs: frozenset[Observable]
    formats: Mapping[Format, Format]
    effects: frozenset[Effect]
    reproducible: Reproducible
    run: Run
    components: tuple[str, ...] = ()
    packed: bool = False
    carries: bool = False
    lossy: bool = False
    bound_to: frozenset[str] = frozenset()
    data: Callable[[Any], tuple[str, ...]] = field(default=lambda params: ())
    images: Callable[[Any], int] = field(default=lambda params: 0)
    calls: Callable[[Any], tuple[Stage, ...]] = field(default=lambda params: ())
    inputs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    extra: str = ""
    doc: str = ""
    refuse: Callable[[Artifact, Any], str] = field(default=lambda artifact, params: "")
    forecast: Callable[[Artifact, Any], Forecast] = field(default=lambda artifact, params: Forecast())
    unfit: Callable[[Artifact, Any, Mapping[str, Artifact]], Iterable[Misfit]] = field(
        default=lambda artifact, params, inputs: ()
    )
    unavailable_here: Callable[[Any], str] = field(default=lambda params: "")
    elsewhere: Callable[[str], str] = field(default=lambda device: "")
    misplaced: Callable[[Artifact, Any, str], str] = field(default=lambda artifact, params, device: "")
    on_device: Callable[[Artifact, Any, str], str] = field(default=lambda artifact, params, device: "")
    machine: Callable[[], str] = field(default=lambda: "")
    kernels: Callable[[Any], str] = field(default=lambda params: "")
    built_for: Callable[[Any], tuple[str, ...]] = field(default=lambda params: ())

    @property
    def makes(self) -> bool:
        """Whether it writes components anew, and does not only say how to call them, or something about them."""
        return not self.effects <= {"settings", "files"}

    def takes(self, format: Format) -> bool:
        """Whether it works on components of this format."""
        return not self.formats or format in self.formats

    def leaves(self, format: Format) -> Format:
        """The format in which it leaves a component of this one."""
        return self.formats.get(format, format)

    def touches(self, artifact: Artifact, params: Params) -> tuple[str, ...]:
        """The components it works on: as its parameters or its record say, `all` being those that it takes, else the main one."""
        named = getattr(params, "components", self.components)
        found = artifact.choose(named, self.takes)
        return tuple(n for n in found if named != "all" or not self._halves(artifact, n))

    def _halves(self, artifact: Artifact, component: str) -> bool:
        """Whether what it leaves of a component does one of the two things that the pipeline calls it for."""
        format = artifact.components[component].format
        return self.leaves(format) != format and halved(artifact, component)

    def works_on(self, task: Task) -> bool:
        """Whether models of this task show what it needs."""
        return not task.fits(self.needs)


class StageFields(TypedDict, Generic[P], total=False):
    """What a stage's file may say of it: fields of `Stage`, which has their defaults."""

    components: tuple[str, ...]
    packed: bool
    carries: bool
    lossy: bool
    data: Callable[[P], tuple[str, ...]]
    images: Callable[[P], int]
    calls: Callable[[P], tuple[Stage, ...]]
    inputs: tuple[str, ...]
    files: tuple[str, ...]
    libraries: tuple[str, ...]
    extra: str
    refuse: Callable[[Artifact, P], str]
    forecast: Callable[[Artifact, P], Forecast]
    unfit: Callable[[Artifact, P, Mapping[str, Artifact]], Iterable[Misfit]]
    unavailable_here: Callable[[P], str]
    elsewhere: Callable[[str], str]
    misplaced: Callable[[Artifact, P, str], str]
    on_device: Callable[[Artifact, P, str], str]
    machine: Callable[[], str]
    kernels: Callable[[P], str]
    built_for: Callable[[P], tuple[str, ...]]


def stage(
    *,
    version: int,
    params: type[P],
    reproducible: Reproducible,
    effects: tuple[Effect, ...],
    needs: tuple[Observable, ...] = (),
    formats: Mapping[Format, Format] | None = None,
    bound_to: tuple[str, ...] = (),
    **given: Unpack[StageFields[P]],
) -> Callable[[Callable[[Artifact, P, Context], None]], Stage]:
    """Turn a stage file's `run` function into its record. The name is the file's place, the help its docstring."""

    def record(run: Callable[[Artifact, P, Context], None]) -> Stage:
        return Stage(
            name=run.__module__.removeprefix("compress.stages."),
            version=version,
            params=params,
            needs=frozenset(needs),
            formats=dict(formats or {}),
            effects=frozenset(effects),
            reproducible=reproducible,
            run=run,
            bound_to=frozenset(bound_to),
            doc=sys.modules[run.__module__].__doc__ or "",
            **given,
        )

    return record


@cache
def stage_names() -> tuple[str, ...]:
    return _names("compress.stages")


@cache
def metric_names() -> tuple[str, ...]:
    return _names("evaluation.metrics")


@cache
def task_names() -> tuple[str, ...]:
    return _names("compress.tasks")


@cache
def engine_names() -> tuple[str, ...]:
    """The formats that there is an engine for: torch's own is one of them."""
    root = importlib.import_module("compress.engines")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(root.__path__) if m.ispkg))


@cache
def find_stage(name: str) -> Stage:
    """The stage called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    return _find("stage", name, stage_names(), "compress.stages", "run", Stage)


@cache
def find_metric(name: str) -> Metric[Params]:
    """The metric called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    from evaluation.metrics import Metric

    return _find("metric", name, metric_names(), "evaluation.metrics", "measure", Metric)


@cache
def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    found = _find("task", name, task_names(), "compress.tasks", "TASK", Task)
    return _named(found, found.name, name)


@cache
def find_engine(format: str) -> Engine:
    """The engine that runs components of a format.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    found = _find("engine", format, engine_names(), "compress.engines", "ENGINE", Engine)
    return _named(found, found.format, format)


def tasks_for(needs: frozenset[Observable]) -> tuple[str, ...]:
    """The tasks whose models, on data that gives all it can, show what a metric or a stage needs."""
    return tuple(n for n in task_names() if not find_task(n).fits(needs, OF_DATA))


def both_ways(artifact: Artifact, component: str) -> bool:
    """Whether a component makes latents of the images that a model is given, beside images of latents."""
    return component == "vae" and "inputs" in find_task(artifact.task).takes


def halved(artifact: Artifact, component: str) -> bool:
    """Whether an engine would do one of the two things that a pipeline calls a component for: of autoencoders that give the mean and variance of
    a latent it has a graph for each."""
    return both_ways(artifact, component) and artifact.components[component].kind not in ENCODED


def builders() -> tuple[Stage, ...]:
    """The stages that turn torch components into one kind of engine, by name."""
    found = (find_stage(name) for name in stage_names() if name.startswith("build."))
    return tuple(s for s in found if s.formats.get("torch") in engine_names())


ENCODED = ("AutoencoderKL",)  # classes whose encoder has a graph of its own
# What people know by a name of its own, and is a way of a stage.
MEANT = {
    "awq": "quantize.autoround: {method: awq}",
    "rtn": "quantize.autoround: {method: rtn}",
    "smoothquant": "quantize.nncf: {mode: int8}",
    "nf4": "quantize.bitsandbytes: {mode: nf4}",
    "fp8": "quantize.torchao: {mode: float8}",
    "lcm": "distill.steps: {method: consistency}",
    "imatrix": "quantize.llamacpp: {importance: true}",
}


def _find(what: str, name: str, known: tuple[str, ...], package: str, record: str, kind: type[R]) -> R:
    if name not in known:
        called = MEANT.get(name.rpartition(".")[2]) if what == "stage" else None
        raise UserError(f"no {what} is called `{name}`", fix=f"that is `{called}`" if called else near(name, known))
    found = getattr(importlib.import_module(f"{package}.{name}"), record, None)
    if not isinstance(found, kind):
        raise TypeError(f"{package}.{name}: `{record}` is no {kind.__name__}")
    return found


def _named(record: R, message: str, name: str) -> R:
    if message != name:
        raise TypeError(f"a record that calls itself `{message}` lies where `{name}` should")
    return record


def _names(package: str) -> tuple[str, ...]:
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, prefix=f"{package}.")
    return tuple(sorted(m.name.removeprefix(f"{package}.") for m in found if not m.ispkg))
