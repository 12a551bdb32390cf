"""What the user asked for, as frozen values with every default filled in. `reading.py` makes them from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import Field

from compress.catalogue import find_task, task_names
from compress.errors import UserError
from compress.files.user_paths import expanded
from compress.machine.devices import CPU, DEVICES
from compress.params import Params, united
from compress.recipe.adapters import AdapterSpec
from compress.recipe.gates import Gate
from compress.recipe.keep import ALWAYS, IF_FASTER, KEEP
from compress.recipe.python_values import write_yaml

P = TypeVar("P", bound=Params)

SCHEMA_VERSION = 1


class Head(Params):
    """The single values at the top of a recipe."""

    name: str = Field(description="name of the recipe; letters, digits, `.`, `_` and `-`, for it names files")
    model: str = Field(
        description="zoo://NAME, a folder as ./folder, hf://org/name@<40-hex commit>, or a checkpoint in one file as {file: ./x.safetensors, config: "
        "FOLDER}, which is ./x.safetensors::FOLDER elsewhere"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of everything random")
    device: str = Field(
        CPU,
        pattern=f"^({DEVICES})$",
        description="where models run: cpu, cuda, cuda:1, mps, or auto for the best there is",
    )
    trust_remote_code: bool = Field(False, description="whether the model's own Python code may run")


class DataSpec(Params):
    """Where items come from. Training and evaluation never share one."""

    train: str = Field("", description="source of training items: zoo://…/train, an image folder, a text or JSONL file")
    calibration: str = Field("", description="source of calibration items, for quantization and importance scores")
    evaluate: str = Field("", description="source of evaluation items; must share no item with the two others")


class CommonBaseline(Params):
    """What the candidate is compared with: the recipe's own model, run as stated here."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number type of the baseline; default: the checkpoint's own"
    )


class CommonEval(Params):
    """What is measured, on how much."""

    metrics: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="metrics to measure: a list of names, or of {name: {parameters}}"
    )
    samples: int = Field(256, ge=2, description="prompts or documents that quality is measured on")
    stage_samples: int = Field(
        64,
        ge=0,
        description="prompts or documents that each stage is scored on, and timed in a third of the blocks, to show what "
        "it gave and cost; 0 leaves that out",
    )
    controls: tuple[str, ...] = Field(
        (),
        description="ids of steps that other branches end with, plain competitors: each is scored on all `samples`, timed beside "
        "the candidate and held to the gates",
    )
    batch: int = Field(16, ge=1, description="items per call while collecting quality evidence")
    timing_batch: int = Field(1, ge=1, description="prompts or sequences per timed call")
    timing_blocks: int = Field(20, ge=5, description="interleaved blocks per side; each gives one paired ratio")
    starts: int = Field(3, ge=1, description="fresh processes a side that peak memory and cold start are measured in")
    seed: int = Field(0, ge=0, description="seed of prompts' noise; noise belongs to (seed, prompt id)")

    def of(self, kind: type[P]) -> P:
        """A task's own settings, out of all that there are."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


if TYPE_CHECKING:

    class BaselineSpec(CommonBaseline):
        """With every task's own settings."""

    class EvalSpec(CommonEval):
        """With every task's own settings."""

        baseline: BaselineSpec = Field(default_factory=BaselineSpec)

else:
    BaselineSpec = united("BaselineSpec", CommonBaseline, [find_task(name).baseline for name in task_names()])
    EvalSpec = united(
        "EvalSpec",
        CommonEval,
        [find_task(name).settings for name in task_names()],
        baseline=(BaselineSpec, Field(default_factory=BaselineSpec, description="how the baseline is run")),
    )


ADAPTER_KEY = "a LoRA adapter, or a list of them, fused into the model first, or kept beside it (fuse: false): what is compressed, and compared with, is the two together"
# What may stand beside a stage's own parameters, and what each is for; a stage's inputs stand there too.
STEP_KEYS = {
    "id": "name of this step, by which later ones refer to it; default: the stage's",
    "from": "id of the earlier step it continues, or source; default: the one before",
    KEEP: f"{IF_FASTER}: what the stage left is timed here against what it was given, and is kept only if it is faster; also "
    f"beside the stage's name; default: {ALWAYS}",
}
ROLE_KEY = (
    "{}: an earlier step's id, source, or a model of its own, as after `model:` (./folder, zoo://NAME, "
    "hf://org/name@<40-hex commit>, ./x.safetensors::./folder); default: source"
)


@dataclass(frozen=True)
class StepSpec:
    """One stage of the chain. `inputs` names further artifacts by role, such as the teacher: an id, "source", or a model of its own
    (`is_model`), whose relative folder starts where the recipe does; `places` is where each is named."""

    id: str
    stage: str
    params: Params
    after: str  # id of the step it continues, or "source"
    inputs: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    if_faster: bool = False  # whether what it leaves is kept only if it is faster than what it was given
    places: Mapping[str, str] = field(default_factory=dict)

    def at(self, role: str) -> str:
        """Where an input is named."""
        return self.places.get(role) or self.place


def is_model(name: str) -> bool:
    """Whether what a step is given is a model of its own: no id of a step has a slash in it."""
    return "/" in name


class Origin(Protocol):
    """What a recipe was made from: enough to make another of it."""

    def changed(self, changes: Sequence[str]) -> Recipe:
        """The recipe with each `dotted.path=YAML` put in."""


def started(path: str, place: str) -> str:
    """A path as the current folder sees it, of one that is written at `file:line:column` and starts there; "" stays."""
    file, *numbers = place.rsplit(":", 2)
    elsewhere = not path or "://" in path or expanded(path).is_absolute()
    here = len(numbers) != 2 or Path(file).parent == Path()
    return path if elsewhere or here else str(Path(file).parent / path)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `place` maps a dotted path such as `stages.0.bits` to `file:line:column`."""

    name: str
    model: str
    seed: int
    trust_remote_code: bool
    data: DataSpec
    stages: tuple[StepSpec, ...]
    evaluate: EvalSpec
    gates: Mapping[str, Gate]
    place: Mapping[str, str]
    adapters: tuple[AdapterSpec, ...] = ()  # fused into the model, one after the other
    device: str = CPU
    source: str = ""  # the text it was read from, for the report
    file: str = ""
    overrides: tuple[str, ...] = ()  # what `--set` put into that text
    changes: tuple[str, ...] = ()  # what `with_` changed after that
    variant: str = ""  # its name before `with_` changed it; "": the same
    start: Path = Path()  # where relative files in overrides and changes start; the current folder
    origin: Origin | None = field(default=None, compare=False, repr=False)  # None: made without reading

    def with_(self, *changes: str | Mapping[str, object]) -> Recipe:
        """Another recipe, read anew with some values changed: `{"stages.0.ratio": 0.3}`, or "stages.0.ratio=0.3" as after `--set`.

        It is this recipe that changes: what `extends`, `vars` and `matrix` gave is a value like any other.

        Raises:
            RecipeError: everything that is wrong with the other recipe.
            UserError: this one was made without reading.
        """
        if self.origin is None:
            raise UserError(f"recipe {self.name} was never read", fix="change one that `compress.check` gave")
        reported: list[str] = []
        for change in changes:
            pairs = () if isinstance(change, str) else change.items()
            reported += (
                [change]
                if isinstance(change, str)
                else [f"{path}={write_yaml(v, one_line=True).rstrip()}" for path, v in pairs]
            )
        changed = self.origin.changed(reported)
        return replace(
            changed,
            overrides=self.overrides,
            changes=(*self.changes, *reported),
            variant=self.variant or self.name,
            start=self.start if self.start != Path() else Path.cwd(),
        )

    @property
    def reported(self) -> str:
        """The text it was read from, and below it, as comments, what was put into that and changed afterwards."""
        below = [f"# --set {o}" for o in self.overrides] + [f"# with_ {c}" for c in self.changes]
        return "\n".join((self.source.rstrip("\n"), *below, "")) if below else self.source

    def given(self, id: str) -> dict[str, Any]:
        """The parameters that a step was given, as they are written, with what `--set` and `with_` changed; null, where that is the default,
        gives none. The step that a teacher is of is among them; a model of its own is not."""
        number, step = next((n, one) for n, one in enumerate(self.stages) if one.id == id)
        fields, values = type(step.params).model_fields, step.params.model_dump(mode="json")
        roles = {role: name for role, name in step.inputs.items() if not is_model(name)}
        open_ = {name for name, value in values.items() if value is None and fields[name].get_default() is None}
        start = f"stages.{number}."
        names = (path.removeprefix(start) for path in self.place if path.startswith(start))
        known = roles | values | ({KEEP: IF_FASTER} if step.if_faster else {})
        return {name: known[name] for name in names if name in known and name not in open_}

    def folder(self, path: str) -> Path:
        """Where a relative file named at a dotted path starts: the folder of the recipe it is written in (which may be one
        that this recipe extends), or `start` for `--set` and for recipes made in Python."""
        file, *numbers = self.place.get(path, "").rsplit(":", 2)
        return Path(file).parent if len(numbers) == 2 else self.start
