"""Try the engines and precisions of this machine on the model's own calls, and keep the fastest that agrees with torch.

Use it when you do not know which engine suits a model on this machine. Every component is built with every engine that takes
it, compared with torch, and timed in turns with all others and with torch itself; of those within the bound the fastest stays,
the nearest to torch where noise does not tell several apart, and the report shows the whole table. `hooks` has torch itself tried
with compiled blocks, with calls replayed from CUDA graphs, and with both, as accelerate.compile and accelerate.cuda_graph leave
it: what both give is no sum of what each gives. What is fastest depends on the machine, so the choice belongs to it. Source:
interleaved timing, as in Touati et al., "The Speedup-Test: A Statistical Methodology for Program Speedup Analysis and
Computation" (2013).

    - build.fastest: {engines: [openvino, onnxruntime], precisions: [float32, bfloat16]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.artifact import CHOSEN, Artifact
from compress.catalogue import Forecast, Stage, builders, engine_names, find_engine, find_stage, find_task, stage
from compress.context import Context
from compress.errors import PareError, Refusal
from compress.machine import deps
from compress.machine.devices import Opening, kind_of
from compress.model.exportable import Components, Profile, refuse_components, wanted
from compress.model.hook_settings import COMPILE, GRAPH
from compress.params import Params, one_of
from compress.planning.step_checks import elsewhere
from compress.sources.models import parameter_count

if TYPE_CHECKING:
    Precision = str
else:  # of all engines together
    Precision = one_of(dict.fromkeys(p for name in engine_names() for p in find_engine(name).precisions))
HOOKS = {"compile": COMPILE, "cuda_graph": GRAPH}  # in the order in which they are applied


class BuildFastest(Params):
    engines: tuple[str, ...] | Literal["all"] = Field(
        "all", description="which to try, such as openvino and onnxruntime; all: those whose library is installed"
    )
    precisions: tuple[Precision, ...] = Field(
        ("float32", "float16", "bfloat16", "int8_weights"), description="what to try of each engine, where it has it"
    )
    hooks: tuple[Literal["compile", "cuda_graph"], ...] | Literal["auto"] = Field(
        "auto",
        description="what the main component is tried with in torch, each and together; auto: both on an NVIDIA GPU, none elsewhere",
    )
    torch_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32",
        description="what torch is timed in: that of evaluate.baseline. Beside a part that becomes an engine, torch runs in float32",
    )
    within: float = Field(
        0.05,
        gt=0,
        description="largest accepted difference to torch: its root mean square over that of torch's own output",
    )
    components: Components = Field("all", description="what to build; all: every component that generates or writes")
    batch: int = Field(1, ge=1, description="prompts or sequences of a timed call")
    prompt_tokens: int = Field(64, ge=1, description="tokens that a timed text begins with")
    new_tokens: int = Field(48, ge=1, description="tokens that a timed text is continued by")
    profile: Profile = Field(
        default_factory=lambda: Profile(),
        description="the sizes of calls, of engines that are built for some: TensorRT, compiled",
    )
    blocks: int = Field(12, ge=4, description="times that each is measured, in turns")
    samples: int = Field(64, ge=1, le=2000, description="calls that int8 and float8 are calibrated on")


def tried(params: BuildFastest) -> tuple[Stage, ...]:
    """The stages whose work is tried: those that build an engine, and those that hook something into torch."""
    named = HOOKS if params.hooks == "auto" else params.hooks
    return (*engines(params), *(find_stage(HOOKS[name]) for name in dict.fromkeys(named)))


def hooks_on(params: BuildFastest, device: str) -> Mapping[str, str]:
    """What torch is tried with on a device, of HOOKS."""
    auto = tuple(HOOKS) if kind_of(device) == "cuda" else ()
    named = auto if params.hooks == "auto" else params.hooks
    return {name: stage for name, stage in HOOKS.items() if name in named}


def engines(params: BuildFastest) -> tuple[Stage, ...]:
    """The stages that build an engine, those whose libraries are here, or those named."""
    if params.engines == "all":
        return tuple(s for s in builders() if all(map(deps.version, s.libraries)))
    return tuple(s for s in builders() if _short(s) in params.engines)


def _short(stage: Stage) -> str:
    return stage.name.removeprefix("build.")


def calibrated(params: BuildFastest) -> bool:
    """Whether an engine is tried in a precision whose ranges are read off calls."""
    offered = {p for s in engines(params) for p in find_engine(s.leaves("torch")).precisions}
    return bool({"int8", "float8"} & set(params.precisions) & offered)


def refuse(artifact: Artifact, params: BuildFastest) -> str:
    known = {_short(s): s for s in engines(params)}
    if unknown := unknown_engines(params):
        return Refusal(f"there is no engine {', '.join(unknown)}", f"there is {', '.join(map(_short, builders()))}")
    lacking = {n: [lib for lib in s.libraries if not deps.version(lib)] for n, s in known.items()}
    if missing := [f"{name} needs {', '.join(libs)}" for name, libs in lacking.items() if libs]:
        return Refusal("; ".join(missing), "install it, or leave that engine out")
    offered = {p for s in known.values() for p in find_engine(s.leaves("torch")).precisions}
    asked = params.precisions if "precisions" in params.model_fields_set and params.engines != "all" else ()
    if known and (lost := [p for p in asked if p not in offered]):
        why = f"none of {', '.join(known)} has {', '.join(lost)}"
        return Refusal(why, "leave it out of precisions, or name another engine")
    if known and not params.precisions:
        return Refusal("precisions names none for the engines", "name some, or engines: [] to try hooks alone")
    if why := refuse_components(artifact, params.components):
        return why
    if not known and artifact.main not in wanted(artifact, params.components):
        why = f"hooks are tried in `{artifact.main}`, and for {', '.join(wanted(artifact, params.components))} no engine is named"
        return Refusal(why, f"name engines, or add {artifact.main} to components")
    low, _, high = params.profile.batch
    if any("profile" in s.params.model_fields for s in known.values()) and not low <= params.batch <= high:
        why = f"batch: {params.batch} lies outside its profile, which takes {low} to {high}"
        return Refusal(why, "set profile: {batch: […]} to hold it")
    return ""


def given_to(params: BuildFastest, stage: Stage, precision: str, component: str) -> Params:
    """What a stage that builds an engine is given for a trial."""
    chosen = {
        "precision": precision,
        "components": (component,),
        "samples": params.samples,
        "profile": params.profile,
    }
    return stage.params(**{k: v for k, v in chosen.items() if k in stage.params.model_fields})


def possible(
    artifact: Artifact, params: BuildFastest, component: str, device: str
) -> Iterator[tuple[Stage, Params, str]]:
    """What is tried of engines: the stage, what it is given, and why it cannot be tried on a device, or ""."""
    for one in engines(params):
        format = one.leaves("torch")
        for precision in params.precisions if one.works_on(find_task(artifact.task)) else ():
            if precision in find_engine(format).precisions:
                given = given_to(params, one, precision, component)
                why = elsewhere(format, Opening(device=device)) or _unfit(artifact, one, given, device)
                yield one, given, str(why)


def _unfit(artifact: Artifact, stage: Stage, given: Params, device: str) -> str:
    try:
        return stage.misplaced(artifact, given, device) or stage.unavailable_here(given)
    except PareError as error:
        return error.problems[0].message


def misplaced(artifact: Artifact, params: BuildFastest, device: str) -> str:
    """Why nothing that is named can be tried on a device, or ""."""
    if unknown_engines(params):
        return ""  # `refuse` says so
    for name, tried_by in hooks_on(params, device).items():
        if why := find_stage(tried_by).elsewhere(kind_of(device)):
            return Refusal(why, f"leave {name} out of `hooks`")
    if hooks_on(params, device):
        return ""
    whys = [why for _, _, why in possible(artifact, params, artifact.main, device)]
    if all(whys):
        reasons = "; ".join(dict.fromkeys(whys)) or "no engine that has such a precision, and no hook"
        return Refusal(
            f"nothing is tried beside plain torch on {device}: {reasons}",
            "name other engines or precisions, or hooks: [compile]",
        )
    return ""


def unknown_engines(params: BuildFastest) -> list[str]:
    known = set(map(_short, builders()))
    return [] if params.engines == "all" else [name for name in params.engines if name not in known]


def on_device(artifact: Artifact, params: BuildFastest, device: str) -> str:
    """What is tried on a device."""
    able: dict[str, list[str]] = {}
    for one, given, why in possible(artifact, params, artifact.main, device):
        if not why:
            able.setdefault(_short(one), []).append(given.precision)  # type: ignore[attr-defined]
    hooks = hooks_on(params, device)
    tried = [f"{engine} in {', '.join(precisions)}" for engine, precisions in able.items()]
    tried += [f"torch with {', '.join(hooks)}"] if hooks else []
    return f"tries {'; '.join(tried)}, beside torch in {params.torch_dtype}"


def parts(artifact: Artifact, params: BuildFastest) -> tuple[str, ...]:
    """The components of which there is something to try: of those without a hook, engines alone."""
    names = wanted(artifact, params.components)
    return names if engines(params) else tuple(name for name in names if name == artifact.main)


def forecast(artifact: Artifact, params: BuildFastest) -> Forecast:
    names = parts(artifact, params)
    each = [4 * parameter_count(artifact.folder(name)) for name in names]
    whole = 4 * sum(parameter_count(artifact.folder(name)) for name in artifact.components)
    stages = [s for s in engines(params) if s.works_on(find_task(artifact.task))]
    ways = len(stages) * len(params.precisions)
    return Forecast(
        scratch_bytes=whole + ways * max(each) + sum(each),  # one being built, one component's trials, and the winners
        memory_bytes=(ways + 2) * max(each),
    )


@stage(
    version=5,
    params=BuildFastest,
    formats={"torch": CHOSEN},
    effects=("format", "settings"),
    reproducible="behaviour",
    bound_to=("isa",),
    calls=tried,
    libraries=("torch", "transformers", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    misplaced=misplaced,
    on_device=on_device,
    data=lambda params: ("calibration",) if calibrated(params) else (),
)
def run(artifact: Artifact, params: BuildFastest, context: Context) -> None:
    from compress.building.fastest import choose

    device = context.opening.device
    ways = {name: list(possible(artifact, params, name, device)) for name in parts(artifact, params)}
    choose(artifact, ways, params, hooks_on(params, device), context)
