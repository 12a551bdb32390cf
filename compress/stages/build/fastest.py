"""Try the engines and precisions of this machine on the model's own calls, and keep the fastest that agrees with torch.

Use it when you do not know which engine suits a model on this machine. Every component is built with every engine that takes
it, compared with torch, and timed in turns with all others and with torch itself; of those within the bound the fastest stays,
and the report shows the whole table. What is fastest depends on the machine, so the choice belongs to it. Source: interleaved timing, as in Touati et al., "The
Speedup-Test: A Statistical Methodology for Program Speedup Analysis and Computation" (2013).

    - build.fastest: {engines: [openvino, onnxruntime], precisions: [float32, bfloat16]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.artifact import CHOSEN, Artifact
from compress.catalogue import Forecast, Stage, builders, engine_names, find_engine, find_task, stage
from compress.context import Context
from compress.errors import Refusal
from compress.machine import deps
from compress.model.exportable import Components, Profile, refuse_components, wanted
from compress.params import Params, one_of
from compress.sources.models import parameter_count

if TYPE_CHECKING:
    Precision = str
else:  # of all engines together
    Precision = one_of(dict.fromkeys(p for name in engine_names() for p in find_engine(name).precisions))


class BuildFastest(Params):
    engines: tuple[str, ...] | Literal["all"] = Field(
        "all", description="which to try, such as openvino and onnxruntime; all: those whose library is installed"
    )
    precisions: tuple[Precision, ...] = Field(
        ("float32", "bfloat16", "int8_weights"), description="what to try of each engine, where it has it"
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
    """The stages that build an engine, those whose libraries are here, or those named."""
    if params.engines == "all":
        return tuple(s for s in builders() if all(map(deps.version, s.libraries)))
    return tuple(s for s in builders() if _short(s) in params.engines)


def _short(stage: Stage) -> str:
    return stage.name.removeprefix("build.")


def refuse(artifact: Artifact, params: BuildFastest) -> str:
    known = {_short(s): s for s in tried(params)}
    unknown = [] if params.engines == "all" else [e for e in params.engines if e not in known]
    if unknown:
        return Refusal(f"there is no engine {', '.join(unknown)}", f"there is {', '.join(map(_short, builders()))}")
    lacking = {n: [lib for lib in s.libraries if not deps.version(lib)] for n, s in known.items()}
    if missing := [f"{name} needs {', '.join(libs)}" for name, libs in lacking.items() if libs]:
        return Refusal("; ".join(missing), "install it, or leave that engine out")
    if why := refuse_components(artifact, params.components):
        return why
    low, _, high = params.profile.batch
    if any("profile" in s.params.model_fields for s in known.values()) and not low <= params.batch <= high:
        why = f"batch: {params.batch} lies outside its profile, which takes {low} to {high}"
        return Refusal(why, "set profile: {batch: […]} to hold it")
    return ""


def forecast(artifact: Artifact, params: BuildFastest) -> Forecast:
    names = wanted(artifact, params.components)
    each = [4 * parameter_count(artifact.folder(name)) for name in names]
    whole = 4 * sum(parameter_count(artifact.folder(name)) for name in artifact.components)
    stages = [s for s in tried(params) if s.works_on(find_task(artifact.task))]
    ways = len(stages) * len(params.precisions)
    return Forecast(
        reported=f"tries {', '.join(map(_short, stages))} in {', '.join(params.precisions)}",
        scratch_bytes=whole + ways * max(each) + sum(each),  # one being built, one component's trials, and the winners
        memory_bytes=(ways + 2) * max(each),
    )


@stage(
    version=4,
    params=BuildFastest,
    formats={"torch": CHOSEN},
    effects=("format",),
    reproducible="behaviour",
    bound_to=("isa",),
    calls=tried,
    libraries=("torch", "transformers", "diffusers"),
    refuse=refuse,
    forecast=forecast,
    data=lambda params: ("calibration",) if {"int8", "float8"} & set(params.precisions) else (),
)
def run(artifact: Artifact, params: BuildFastest, context: Context) -> None:
    from compress.building.fastest import choose

    choose(artifact, params, [s for s in tried(params) if s.works_on(find_task(artifact.task))], context)
