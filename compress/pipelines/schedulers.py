"""What diffusers' schedulers can do, read from a scheduler's config and the installed library's source: which settings a class
takes, and which cannot work together. Importing one takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from compress.artifact import SCHEDULER, SCHEDULER_CONFIG, Artifact, read_json
from compress.errors import Problem, Refusal
from compress.machine.library_classes import source_of
from compress.pipelines.index import INDEX

# The schedulers that a recipe names, and the class that each name means.
NAMED = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
Named = Literal["ddim", "ddpm", "dpm-solver++", "euler", "euler-ancestral", "heun", "lcm", "pndm", "unipc"]
# Their last training step holds noise alone when `rescale_betas_zero_snr` is set; all others stop a little before it.
EXACT = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
DATA_SOLVERS = ("dpmsolver++", "sde-dpmsolver++")  # those that can step to where no noise is left
ONE_STEP = "if num_inference_steps == 1:"  # in pipelines which then generate what the scheduler says lies at the end
WARM_UP = 4  # the steps that PNDM's Runge-Kutta start takes


@dataclass(frozen=True)
class SchedulerClass:
    """What a scheduler's source says of it.

    defaults: the settings that it takes, with their defaults.
    schedules: the values of `beta_schedule` that it knows.
    spaced: whether `timestep_spacing` says where its steps lie.
    forecasts: whether a step tells beside what comes next also what lies at the end.
    predictions: the values of `prediction_type` that its steps go by; none where it reads them in a way of its own.
    """

    defaults: Mapping[str, object]
    schedules: frozenset[str]
    spaced: bool
    forecasts: bool
    predictions: frozenset[str]

    def value(self, config: Mapping[str, Any], name: str) -> Any:
        """A setting, as its config says or by default; None of one that it does not take."""
        return config.get(name, self.defaults[name]) if name in self.defaults else None


@cache
def read_class(kind: str) -> SchedulerClass | None:
    """What the installed diffusers says of a scheduler class; None where it has none such."""
    text = source_of(kind, "schedulers")
    tree = ast.parse(text) if text else None
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None) if tree else None
    methods = {n.name: n for n in found.body if isinstance(n, ast.FunctionDef)} if found else {}
    if found is None or "__init__" not in methods:
        return None
    made = methods["__init__"]
    names, given = [a.arg for a in made.args.args[1:]], made.args.defaults
    defaults = dict(zip(names[len(names) - len(given) :], map(_constant, given), strict=True))
    spaced = any(isinstance(n, ast.Attribute) and n.attr == "timestep_spacing" for n in ast.walk(found))
    returns = ast.walk(methods["step"]) if "step" in methods else iter(())
    given_back = (n.value for n in returns if isinstance(n, ast.Return))
    forecasts = any(isinstance(value, ast.Tuple) and len(value.elts) > 1 for value in given_back)
    schedules, predictions = frozenset(_compared(made, "beta_schedule")), frozenset(_predictions(found))
    return SchedulerClass(defaults, schedules, spaced, forecasts, predictions)


def _constant(value: ast.expr) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None  # such as -float("inf")


def _compared(function: ast.FunctionDef, name: str) -> Iterator[str]:
    """The texts that a function compares an argument with."""
    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == name:
            for side in node.comparators:
                yield from (n.value for n in ast.walk(side) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _predictions(found: ast.ClassDef) -> Iterator[str]:
    """What a class compares `prediction_type` with, but for what it then refuses."""
    for node in ast.walk(found):
        if not isinstance(node, ast.If) or not isinstance(asked := node.test, ast.Compare):
            continue
        refused = isinstance(asked.ops[0], ast.Eq) and isinstance(node.body[0], ast.Raise)
        if isinstance(asked.left, ast.Attribute) and asked.left.attr == "prediction_type" and not refused:
            yield from (str(side.value) for side in asked.comparators if isinstance(side, ast.Constant))


def config_of(artifact: Artifact) -> Mapping[str, Any]:
    """The config of a pipeline's scheduler, as it is or will be, with the class that the pipeline opens it as; {} without one."""
    if SCHEDULER in artifact.planned:
        return artifact.planned[SCHEDULER]
    file, index = artifact.path / SCHEDULER_CONFIG, artifact.path / INDEX
    if not file.is_file():
        return {}
    named = read_json(index).get(SCHEDULER) if index.is_file() else None
    config = read_json(file)
    return {**config, "_class_name": named[1]} if isinstance(named, list) and len(named) == 2 else config


def faults(config: Mapping[str, Any], place: str, steps: object = None, pipeline: str = "") -> Iterator[Problem]:
    """Why a scheduler cannot generate, as far as its config and class tell.

    Args:
        config: what its scheduler_config.json says.
        steps: denoising steps, where they are known; else only what fails in any number is reported.
        pipeline: the class of the pipeline that it generates in.
    """
    kind = str(config.get("_class_name", ""))
    if (known := read_class(kind)) is None:
        return
    for message, fix in (*_schedule_faults(kind, known, config), *_last_step_faults(kind, known, config, steps)):
        yield Problem(place, message, fix)
    if isinstance(steps, int) and (why := _too_many(kind, known, config, steps)):
        yield Problem(place, f"{kind} cannot do {steps} steps: {why[0]}", why[1])
    if steps == 1 and not known.forecasts and ONE_STEP in source_of(pipeline, "pipelines"):
        message = (
            f"{pipeline} generates one step only with a scheduler that tells what lies at its end, and {kind} does not"
        )
        yield Problem(place, message, "ask for two steps, or for another scheduler, such as lcm")


def _schedule_faults(kind: str, known: SchedulerClass, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    of = partial(known.value, config)
    schedule = of("beta_schedule")
    if known.schedules and str(schedule) not in known.schedules and not of("trained_betas"):
        yield f"{kind} knows no beta_schedule {schedule}", f"it knows {', '.join(sorted(known.schedules))}"
    ends = not known.spaced or of("timestep_spacing") in ("trailing", "linspace")
    if kind in EXACT and ends and of("rescale_betas_zero_snr") and of("prediction_type") == "epsilon":
        message = (
            "rescale_betas_zero_snr with prediction_type epsilon divides by zero where the schedule holds noise alone"
        )
        yield message, "set rescale_betas_zero_snr to false, or give a model that predicts velocity (v_prediction)"
    if known.predictions and (predicts := of("prediction_type")) not in known.predictions:
        others = ", ".join(NAMED[name] for name in _takers(str(predicts)))
        instead = f"give the model a scheduler that takes {predicts}: {others}" if others else "say what it predicts"
        yield (
            f"{kind} takes no prediction_type {predicts}",
            f"it takes {', '.join(sorted(known.predictions))}: {instead}",
        )
    if len(spacings := [name for name in SPACINGS if of(name)]) > 1:
        yield f"{kind} spaces its noise in one way, and {' and '.join(spacings)} are set", "leave one of them"


def _last_step_faults(
    kind: str, known: SchedulerClass, config: Mapping[str, Any], steps: object
) -> Iterator[tuple[str, str]]:
    """Solvers that cannot step to where no noise is left, which is what most of them do last."""
    of, several = partial(known.value, config), isinstance(steps, int) and steps > 1
    if of("final_sigmas_type") != "zero":
        return
    if kind.startswith("DPMSolver") and (solver := of("algorithm_type")) not in DATA_SOLVERS:
        message = f"algorithm_type {solver} cannot step to no noise at all (final_sigmas_type zero)"
        yield message, "set final_sigmas_type to sigma_min, or algorithm_type to dpmsolver++"
    if kind == "UniPCMultistepScheduler":
        lacks = {
            "with solver_type bh1": of("solver_type") == "bh1",
            "without predict_x0": not of("predict_x0"),
            "without lower_order_final": several and not of("lower_order_final") and of("solver_order") != 1,
        }
        if lacking := " and ".join(name for name, there in lacks.items() if there):
            message = f"UniPC divides by zero when it steps to no noise at all (final_sigmas_type zero) {lacking}"
            yield message, "set final_sigmas_type to sigma_min, or solver_type to bh2, the two others to true"


def _too_many(kind: str, known: SchedulerClass, config: Mapping[str, Any], steps: int) -> tuple[str, str] | None:
    """Why a scheduler cannot do so many steps, or so few, and what to ask for."""
    of = partial(known.value, config)
    levels = "num_train_timesteps" if kind in EXACT or "beta_schedule" in known.defaults else ""
    for name in (levels, "original_inference_steps" if kind in EXACT else ""):
        if isinstance(most := of(name), int) and steps > most:
            return f"at most {most} ({name})", f"ask for {most} or fewer"
    if steps == 1 and of("shift_terminal"):
        return "it stretches them to end at its shift_terminal, and one step begins at its own", "ask for two or more"
    if kind == "PNDMScheduler" and not of("skip_prk_steps") and steps < WARM_UP:
        return f"it starts with {WARM_UP} of another kind (skip_prk_steps false)", f"ask for {WARM_UP} or more"
    return None


def left_out(config: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The settings of a scheduler that another class does not take, and that say other than their own class's default."""
    own, other = read_class(str(config.get("_class_name", ""))), read_class(kind)
    if own is None or other is None:
        return ()
    return tuple(
        n for n, default in own.defaults.items() if config.get(n, default) != default and n not in other.defaults
    )


def foreign(config: Mapping[str, Any], name: str) -> Refusal:
    """Why a named scheduler cannot sample what the model predicts, and what to do; "" where it can."""
    kind, predicts = str(config.get("_class_name", "")), str(config.get("prediction_type", "epsilon"))
    if kind.startswith("Flow") or predicts == "trigflow":
        return Refusal(f"{kind} integrates a flow, and `{name}` samples a diffusion", "leave `scheduler` out")
    known = read_class(NAMED[name])
    if known and known.predictions and predicts not in known.predictions:
        takers = ", ".join(f"`{one}`" for one in _takers(predicts))
        which = f"choose one of {takers}, or leave" if takers else "leave"
        return Refusal(f"`{name}` takes no {predicts}", f"{which} `scheduler` out")
    return Refusal("")


def _takers(predicts: str) -> list[str]:
    """The schedulers that a recipe names which go by what a model predicts."""
    known = ((name, read_class(kind)) for name, kind in NAMED.items())
    return [name for name, found in known if found and predicts in found.predictions]


def changes(config: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The settings of a scheduler that come out otherwise, its class among them, where another is named. A name means the whole
    setting: DPM-Solver++ is the class and its algorithm; and what only fits the class of before, such as a solver's order at the
    end, is not carried over."""
    own = config.get("_class_name")
    kind = NAMED[name] if name else str(own or "")
    changed: dict[str, Any] = {"_class_name": kind}
    if name == "dpm-solver++":
        changed["algorithm_type"] = "dpmsolver++"
        if config.get("algorithm_type", "dpmsolver++") not in DATA_SOLVERS:
            changed["final_sigmas_type"] = "zero"  # which the others cannot do
    if kind != own and config.get("lower_order_final") is False and name in ("dpm-solver++", "unipc"):
        changed["lower_order_final"] = True
    return changed


def named_config(config: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """A scheduler's config as it is where another is named in its place."""
    return {**config, **changes(config, name)} if name else config


def reported(config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """What will generate, and which settings of the model's own scheduler it cannot take over."""
    kind, own = str(changed["_class_name"]), config.get("_class_name")
    message = ", ".join(f"{n} {v}" for n, v in changed.items() if n != "_class_name" and config.get(n) != v)
    lost = left_out(config, kind)
    gone = f"; it takes no {', '.join(lost)}, which the model's own {own} is set to" if lost else ""
    return f"{kind}{f' ({message})' if message else ''}{gone}"
